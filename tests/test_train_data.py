"""Training on augmented, folder and CIFAR data: what a step sees, exact resuming with any workers, and what is refused."""

import dataclasses
import json
import os
import shutil
import threading

import numpy as np
import pytest

import convkern as ck
from convkern import cli
from convkern.data import transforms as T
from convkern.random import SHUFFLE
from convkern.train import Config, Interrupted, checkpoint, evaluate, loop, predict, resume, train
from convkern.train import folder as folders

from .test_data_formats import cifar100_arrays, cifar100_files, write_folder
from .test_train import TRAIN, assert_same_run, interrupt_after, write_data

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

AUGMENT = "crop=3,flip,jitter,cutout=8"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("idx")
    write_data(folder, TRAIN, 40)
    return folder


@pytest.fixture
def config(data_dir, tmp_path):
    return Config(
        data="mnist",
        data_dir=str(data_dir),
        augment=AUGMENT,
        epochs=2,
        batch_size=32,
        lr=0.002,
        out=str(tmp_path / "run"),
    )


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("finished") / "run")
    return train(
        Config(data="mnist", data_dir=str(data_dir), augment=AUGMENT, epochs=2, batch_size=32, lr=0.002, out=out),
        quiet=True,
    )


def no_workers():
    return not [thread for thread in threading.enumerate() if thread.name.startswith("convkern-data")]


def test_every_step_has_its_images_augmented_by_epoch_and_place(config, monkeypatch):
    steps = []
    real = loop.Trainer._step
    monkeypatch.setattr(
        loop.Trainer, "_step", lambda self, x, labels: steps.append((x, labels)) or real(self, x, labels)
    )
    train(dataclasses.replace(config, workers=2, seed=5), quiet=True)
    some = ck.data.load("sample", "train").subset(slice(0, TRAIN))
    mean, std = ck.data.channel_stats(some)
    wanted = T.Compose(
        [
            T.RandomCrop(28, padding=3),
            T.RandomHorizontalFlip(0.5),
            T.ColorJitter(0.4, 0.4, 0.4, 0.1),
            T.Normalize(mean, std),
            T.Cutout(8),
        ]
    )
    for epoch in (0, 1):
        order = ck.data.rng(5, SHUFFLE, epoch).permutation(TRAIN)
        x, labels = zip(*steps[4 * epoch : 4 * epoch + 4], strict=True)
        np.testing.assert_array_equal(np.concatenate(labels), some.labels[order])
        np.testing.assert_array_equal(np.concatenate(x), wanted(some.images[order], seed=5, epoch=epoch, samples=order))
    assert len(steps) == 8


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_runs_are_equal_for_any_number_of_workers(config, finished, workers):
    assert_same_run(train(dataclasses.replace(config, workers=workers), quiet=True).folder, finished.folder)
    assert no_workers()


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(config, finished, monkeypatch, steps):
    interrupt_after(steps, monkeypatch)
    with pytest.raises(Interrupted) as stop:
        train(dataclasses.replace(config, workers=1), quiet=True)
    assert no_workers()
    monkeypatch.undo()
    assert_same_run(resume(stop.value.folder, quiet=True, workers=2).folder, finished.folder)
    assert Config.load(stop.value.folder / folders.CONFIG).workers == 2


def test_augmentation_cannot_change_on_the_way(finished):
    with pytest.raises(
        ValueError, match=r"augment cannot change when a run is resumed: it was 'crop=3,.*', got 'flip'"
    ):
        resume(finished.folder, augment="flip")


def test_augmentation_changes_the_run(config, finished):
    folder = train(dataclasses.replace(config, augment="none"), quiet=True).folder
    with pytest.raises(AssertionError):
        assert_same_run(folder, finished.folder)


def test_waiting_before_an_interruption_counts(config, monkeypatch):
    interrupt_after(2, monkeypatch)
    with pytest.raises(Interrupted) as stop:
        train(config, quiet=True)
    monkeypatch.undo()
    path = stop.value.folder / checkpoint.LAST
    saved = checkpoint.load(path)
    assert 0 < saved.position.waited < saved.position.seconds
    saved.position.waited, saved.position.seconds = 3000.0, 4000.0
    checkpoint.save(path, saved)
    resume(stop.value.folder, quiet=True)
    first = json.loads((stop.value.folder / folders.METRICS).read_text().splitlines()[0])
    assert 0.7 < first["idle_share"] < 0.8


def test_metrics_hold_the_idle_share(config):
    folder = train(dataclasses.replace(config, workers=1), quiet=True).folder
    records = [json.loads(line) for line in (folder / folders.METRICS).read_text().splitlines()]
    assert all(0 < record["idle_share"] < 1 for record in records)


# --- folders of pictures -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes that anyone can tell apart, of several sizes, as train and val."""
    place = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6)):
        for name, level in (("bright", 180), ("dark", 40)):
            (place / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(level - 40, level + 40, (30 + i, 50 - i, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(place / split / name / f"{i}.png")
    return place


@pytest.fixture
def folder_run(pictures, tmp_path):
    line = (
        f"train --data folder --data-dir {pictures} --image-size 28 --augment crop,flip --workers 2 --epochs 4 "
        f"--batch-size 16 --lr 0.002 --out {tmp_path / 'run'}"
    )
    assert cli.main(line.split()) == 0
    return tmp_path / "run"


def test_train_evaluate_and_predict_on_folders(folder_run, pictures, tmp_path, capsys):
    config = Config.load(folder_run / folders.CONFIG)
    assert (config.data, config.image_size, config.augment, config.workers) == ("folder", 28, "crop,flip", 2)
    found = evaluate(folder_run)
    assert found.classes == ("bright", "dark")
    assert found.accuracy == 1
    assert found.confusion.tolist() == [[6, 0], [0, 6]]
    answers = predict(folder_run, [pictures / "val/bright/0.png", pictures / "val/dark/5.png"])
    assert [answer.classes[0] for answer in answers] == ["bright", "dark"]
    shutil.copytree(pictures, tmp_path / "moved")
    before = (folder_run / "last.safetensors").read_bytes()
    assert cli.main(["train", "--resume", str(folder_run), "--data-dir", str(tmp_path / "moved")]) == 0
    assert (folder_run / "last.safetensors").read_bytes() == before
    os.remove(tmp_path / "moved/train/dark/3.png")
    assert cli.main(["train", "--resume", str(folder_run), "--data-dir", str(tmp_path / "moved")]) == 2
    assert "data_crc" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_ends_training_with_its_name(pictures, tmp_path, workers, capsys):
    shutil.copytree(pictures, tmp_path / "data")
    victim = tmp_path / "data/val/dark/4.png"  # looked at after the first epoch
    victim.write_bytes(victim.read_bytes()[:60])
    line = f"train --data folder --data-dir {tmp_path / 'data'} --image-size 28 --workers {workers} --epochs 1"
    assert cli.main([*line.split(), "--out", str(tmp_path / "run")]) == 2
    assert f"{victim} cannot be read as a picture" in capsys.readouterr().err
    assert no_workers()


def test_folders_that_cannot_be_used(pictures, tmp_path, capsys):
    def error(*options):
        assert cli.main(["train", "--data", "folder", *map(str, options)]) == 2
        return capsys.readouterr().err

    assert "data_dir must be given for the data 'folder'" in error()
    assert "train: expected a folder with one subfolder a class, there is none" in error("--data-dir", tmp_path)
    assert "image_size must be at least 1, got 0" in error("--data-dir", pictures, "--image-size", 0)
    assert "augment must have a cutout of at most the image's 28x28, got 'cutout=29'" in error(
        "--data-dir", pictures, "--image-size", 28, "--augment", "cutout=29"
    )


# --- CIFAR-100 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "classes"), [("cifar100", 100), ("cifar100-coarse", 20)])
def test_train_on_cifar100(tmp_path, name, classes):
    write_folder(tmp_path / "cifar-100-binary", cifar100_files(cifar100_arrays(), "binary"))
    config = Config(
        data=name,
        data_dir=str(tmp_path),
        augment="crop,flip",
        workers=1,
        epochs=1,
        batch_size=4,
        out=str(tmp_path / "run"),
    )
    train(config, quiet=True)
    assert evaluate(tmp_path / "run").confusion.shape == (classes, classes)


# --- the words ---------------------------------------------------------------------------------------------------


def described(augment, shape=(3, 32, 48)):
    built = T.augmentation(augment, shape, [0.5] * 3, [0.25] * 3)
    return [(type(step).__name__, {k: v for k, v in vars(step).items() if k[0] != "_"}) for step in built.transforms]


def test_words_mean_these_transforms():
    (crop, flip, jitter, normalize, cutout, erase) = described("erase,cutout,jitter,flip,crop")
    assert (crop[0], crop[1]["size"], crop[1]["padding"]) == ("RandomCrop", (32, 48), (4, 4, 4, 4))
    assert (flip[0], flip[1]["p"]) == ("RandomHorizontalFlip", 0.5)
    assert jitter[0] == "ColorJitter"
    assert jitter[1]["brightness"] == jitter[1]["contrast"] == jitter[1]["saturation"] == (0.6, 1.4)
    assert jitter[1]["hue"] == (-0.1, 0.1)
    assert normalize[0] == "Normalize"
    assert (cutout[0], cutout[1]["size"], cutout[1]["n_holes"], cutout[1]["fill"]) == ("Cutout", 16, 1, 0)
    assert (erase[0], erase[1]["p"], erase[1]["value"]) == ("RandomErasing", 0.5, 0)
    assert T.augmentation("none", (3, 32, 48), [0] * 3, [1] * 3) is None


def test_words_take_numbers():
    (crop, flip, jitter, _, cutout, erase) = described("crop=2, flip=0.25, jitter=0.2, cutout=5, erase=1")
    assert crop[1]["padding"] == (2, 2, 2, 2)
    assert flip[1]["p"] == 0.25
    assert jitter[1]["contrast"] == (0.8, 1.2)
    assert jitter[1]["hue"] == (-0.05, 0.05)
    assert cutout[1]["size"] == 5
    assert erase[1]["p"] == 1


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("crop,zoom", "augment must be none or some of crop, flip, jitter, cutout, erase; got 'zoom' in 'crop,zoom'"),
        ("crop,none", "got 'none' in 'crop,none'"),
        ("flip,flip=1", "augment must name flip once, got 'flip,flip=1'"),
        ("flip=1.5", r"augment's flip must be a probability, 0 to 1, got 1\.5"),
        ("erase=-1", r"augment's erase must be a probability, 0 to 1, got -1\.0"),
        ("jitter=2", "augment's jitter must be 0 to 1, got 2"),
        ("crop=0", "augment's crop must be an integer of at least 1 .pixels of padding.*, got '0'"),
        ("cutout=2.5", r"augment's cutout must be an integer of at least 1 .side of the blank.*, got '2\.5'"),
        ("crop=", "augment's crop must be a number .pixels of padding.*, got ''"),
        ("flip=nan", "augment's flip must be finite, got nan"),
    ],
)
def test_words_refused(augment, message):
    with pytest.raises(ValueError, match=message):
        T.parse(augment)
