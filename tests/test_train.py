"""Training: resumed runs equal uninterrupted ones, whatever stops them, and every file survives what happens to it."""

import dataclasses
import json
import signal

import numpy as np
import pytest

import convkern as ck
from convkern.data.idx import write_idx
from convkern.train import Config, Interrupted, checkpoint, loop, predict, resume, run, train
from convkern.train import folder as folders
from convkern.train.evaluation import evaluate, load_model
from convkern.train.progress import Progress

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

TRAIN, TEST = 100, 40  # images; with batches of 32 the last one is partial


def write_data(folder, train_count, test_count):
    """Some images of the sample as the files of MNIST."""
    for split, prefix, count in (("train", "train", train_count), ("test", "t10k", test_count)):
        some = ck.data.load("sample", split).subset(slice(0, count))
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", some.images[:, 0])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", some.labels.astype(np.uint8))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("idx")
    write_data(folder, TRAIN, TEST)
    return folder


@pytest.fixture
def config(data_dir, tmp_path):
    return Config(data="mnist", data_dir=str(data_dir), epochs=2, batch_size=32, lr=0.002, out=str(tmp_path / "run"))


@pytest.fixture(scope="session")
def finished(data_dir, tmp_path_factory):
    """An uninterrupted run of two epochs; nobody writes into its folder."""
    out = str(tmp_path_factory.mktemp("finished") / "run")
    return train(Config(data="mnist", data_dir=str(data_dir), epochs=2, batch_size=32, lr=0.002, out=out), quiet=True)


class CtrlC(Progress):
    """Presses Ctrl-C after a number of steps, as a person does: with a signal, at any time."""

    at_step = 0

    def step(self, position):
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == self.at_step:
            signal.raise_signal(signal.SIGINT)


def interrupt_after(steps, monkeypatch):
    def choose(epochs, length, quiet):
        progress = CtrlC(epochs, length)
        progress.at_step = steps
        return progress

    monkeypatch.setattr(run, "choose", choose)


def metrics_without_times(folder):
    lines = (folder / folders.METRICS).read_text().splitlines()
    times = ("seconds", "test_seconds", "images_per_second", "idle_share")
    return [{name: value for name, value in json.loads(line).items() if name not in times} for line in lines]


def assert_same_run(folder, expected):
    for name in (checkpoint.LAST, checkpoint.BEST):
        got, want = checkpoint.load(folder / name), checkpoint.load(expected / name)
        assert got.weights.keys() == want.weights.keys()
        for key, a in want.weights.items():
            np.testing.assert_array_equal(got.weights[key], a, err_msg=key)
        assert got.position == want.position
        assert got.optimizer["param_groups"] == want.optimizer["param_groups"]
        for index, entries in want.optimizer["state"].items():
            for key, value in entries.items():
                np.testing.assert_array_equal(got.optimizer["state"][index][key], value)
        assert got.schedule == want.schedule
        assert got.average.keys() == want.average.keys()
        for key, a in want.average.items():
            np.testing.assert_array_equal(got.average[key], a, err_msg=key)
    assert metrics_without_times(folder) == metrics_without_times(expected)


def test_run_folder_holds_everything(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "plan.json", "curves.png", "confusion.png", "filters.png", "features.png",
        "gradients.png", "last.safetensors", "best.safetensors",
    }  # fmt: skip
    lines = metrics_without_times(finished.folder)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    assert finished.accuracy == lines[1]["test_accuracy"]
    assert finished.best_accuracy == max(line["test_accuracy"] for line in lines)
    rows = json.loads((finished.folder / "plan.json").read_text())
    assert any(key.startswith("conv.forward") for key in rows)
    assert any(key.startswith("conv.weight_grad") for key in rows)


def test_every_step_has_its_images_and_its_learning_rate(config, monkeypatch):
    steps = []
    real = loop.Trainer._step

    def watched(trainer, x, labels):
        result = real(trainer, x, labels)
        steps.append((x, labels, trainer.optimizer.param_groups[0]["lr"]))
        return result

    monkeypatch.setattr(loop.Trainer, "_step", watched)
    train(config, quiet=True)
    some = ck.data.load("sample", "train").subset(slice(0, TRAIN))
    mean, std = ck.data.channel_stats(some)
    epochs = []
    for epoch in (0, 1):
        order = ck.data.rng(0, 0, epoch).permutation(TRAIN)  # purpose 0 is shuffling
        x, labels, rates = zip(*steps[4 * epoch : 4 * epoch + 4], strict=True)
        assert [len(part) for part in labels] == [32, 32, 32, 4]
        np.testing.assert_array_equal(np.concatenate(labels), some.labels[order])
        np.testing.assert_allclose(np.concatenate(x), (some.images[order] / 255 - mean[0]) / std[0], rtol=1e-6)
        epochs.append(order)
        assert rates == pytest.approx([0.001 * (1 + np.cos(np.pi * (4 * epoch + step) / 8)) for step in range(4)])
    assert not np.array_equal(*epochs)


def test_weights_really_moved_and_were_kept(finished):
    first = ck.models.lenet5(seed=0).state_dict()
    last = checkpoint.load(finished.folder / checkpoint.LAST).weights
    assert first.keys() == last.keys()
    assert all(not np.array_equal(first[name], last[name]) for name in first)


def test_runs_with_the_same_seed_are_equal(config, finished):
    assert_same_run(train(config, quiet=True).folder, finished.folder)


def test_seed_decides_the_weights(config, finished):
    other = train(dataclasses.replace(config, seed=1, epochs=1), quiet=True)
    a, b = (checkpoint.load(f / checkpoint.LAST).weights for f in (other.folder, finished.folder))
    assert all(not np.array_equal(a[name], b[name]) for name in a)


# 4 steps an epoch: 1 and 6 stop in mid-epoch, 4 after the last step of an epoch, before its evaluation
@pytest.mark.parametrize("steps", [1, 4, 6])
def test_resumed_run_equals_uninterrupted(config, finished, monkeypatch, steps):
    interrupt_after(steps, monkeypatch)
    with pytest.raises(Interrupted) as caught:
        train(config)
    saved = checkpoint.load(caught.value.folder / checkpoint.LAST)
    assert saved.position.epoch * 4 + saved.position.step == steps
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resume(caught.value.folder, quiet=True)
    assert_same_run(caught.value.folder, finished.folder)


def test_resumed_twice(config, finished, monkeypatch):
    interrupt_after(3, monkeypatch)
    with pytest.raises(Interrupted) as caught:
        train(config)
    with pytest.raises(Interrupted):
        resume(caught.value.folder)
    monkeypatch.undo()
    leftover = caught.value.folder / ".last.safetensors.123.tmp"
    leftover.write_bytes(b"of a killed process")
    resume(caught.value.folder, quiet=True)
    assert not leftover.exists()
    assert_same_run(caught.value.folder, finished.folder)


def test_resume_between_epochs_with_sgd(config, monkeypatch):
    config = dataclasses.replace(config, optimizer="sgd", lr=0.02, weight_decay=1e-4, schedule="constant")
    whole = train(config, quiet=True)
    half = train(dataclasses.replace(config, epochs=1), quiet=True)
    resume(half.folder, epochs=2, quiet=True)
    assert_same_run(half.folder, whole.folder)
    assert Config.load(half.folder / folders.CONFIG).epochs == 2


def test_second_ctrl_c_ends_at_once_and_the_old_checkpoint_stands(config, monkeypatch):
    def twice(self, position):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(CtrlC, "step", twice)
    interrupt_after(1, monkeypatch)
    with pytest.raises(Interrupted) as caught:
        train(config)
    assert checkpoint.load(caught.value.folder / checkpoint.LAST).position == checkpoint.Position()


def test_ctrl_c_within_the_evaluation(config, finished, monkeypatch):
    real = loop.evaluate_model

    def pressed(*args, **options):
        signal.raise_signal(signal.SIGINT)
        return real(*args, **options)

    monkeypatch.setattr(loop, "evaluate_model", pressed)
    with pytest.raises(Interrupted) as caught:
        train(config, quiet=True)
    assert checkpoint.load(caught.value.folder / checkpoint.LAST).position.step == 4
    monkeypatch.undo()
    resume(caught.value.folder, quiet=True)
    assert_same_run(caught.value.folder, finished.folder)


@pytest.mark.parametrize("name", [checkpoint.BEST, checkpoint.LAST])
def test_crash_between_the_files_of_an_epoch(config, finished, monkeypatch, name):
    real = checkpoint.save

    def crash(path, state):
        if path.name == name and state.position.epoch == 2:
            raise RuntimeError("power cut")
        real(path, state)

    monkeypatch.setattr(checkpoint, "save", crash)
    if name == checkpoint.BEST and finished.best_epoch != 2:
        pytest.fail("the second epoch must be the better one for this test to reach its point")
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, quiet=True)
    monkeypatch.undo()
    assert len(metrics_without_times(folders.existing(config.out))) == 2  # one line too many, dropped on resuming
    resume(config.out, quiet=True)
    assert_same_run(folders.existing(config.out), finished.folder)


def test_resuming_a_finished_run_changes_nothing(config, finished):
    folder = train(config, quiet=True).folder
    (folder / folders.CURVES).unlink()
    again = resume(folder, quiet=True)
    assert_same_run(folder, finished.folder)
    assert again.accuracy == finished.accuracy
    assert (folder / folders.CURVES).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed cannot change when a run is resumed: it was 0, got 1"),
        ({"lr": 0.1}, "lr cannot change when a run is resumed: it was 0.002, got 0.1"),
        ({"model": "another"}, "model cannot change when a run is resumed: it was 'lenet5', got 'another'"),
        ({"batch_size": 8}, "batch_size cannot change"),
        ({"optimizer": "sgd"}, "optimizer cannot change"),
        ({"out": "elsewhere"}, "out cannot change"),
        ({"epochs": 3}, "epochs cannot change when a run is resumed, for its cosine schedule depends on them"),
    ],
)
def test_changes_that_alter_results_are_refused(finished, monkeypatch, change, message):
    monkeypatch.setattr(ck.models, "NAMES", (*ck.models.NAMES, "another"))
    with pytest.raises(ValueError, match=message):
        resume(finished.folder, **change)


def test_epochs_cannot_shrink(config):
    folder = train(dataclasses.replace(config, schedule="constant"), quiet=True).folder
    with pytest.raises(ValueError, match="epochs can only grow when a run is resumed: it was 2, got 1"):
        resume(folder, epochs=1)


def test_same_values_and_moved_data_are_no_change(config, finished, data_dir, tmp_path, monkeypatch):
    interrupt_after(2, monkeypatch)
    with pytest.raises(Interrupted):
        train(config)
    monkeypatch.undo()
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in data_dir.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    resume(config.out, quiet=True, seed=0, device="auto", epochs=2, data_dir=str(moved))
    assert_same_run(folders.existing(config.out), finished.folder)


def test_other_data_are_refused(finished, data_dir, tmp_path):
    for path in data_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    labels = ck.data.load("mnist", "test", data_dir).labels.copy()
    labels[0] = (labels[0] + 1) % 10
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels.astype(np.uint8))
    with pytest.raises(ValueError, match=r"cannot be resumed: .* \(data_crc differ\)"):
        resume(finished.folder, data_dir=str(tmp_path))


def test_missing_plan_is_refused(config, monkeypatch):
    interrupt_after(2, monkeypatch)
    with pytest.raises(Interrupted):
        train(config)
    (folders.existing(config.out) / folders.PLAN).unlink()
    with pytest.raises(ValueError, match=r"plan\.json does not exist"):
        resume(config.out)


def test_the_stored_plan_is_used(config, monkeypatch):
    interrupt_after(2, monkeypatch)
    with pytest.raises(Interrupted):
        train(config)
    monkeypatch.undo()
    used = []
    monkeypatch.setattr(ck.plan, "use", used.append)
    resume(config.out, quiet=True)
    assert used == [json.loads((folders.existing(config.out) / folders.PLAN).read_text())]


def test_warm_up_touches_nothing_and_meets_every_problem(config):
    trainer = loop.Trainer(config)
    before = {name: a.tobytes() for name, a in trainer.model.state_dict().items()}
    state = repr(trainer.optimizer.state_dict())
    trainer.warm_up(Progress(2, 4))
    assert {name: a.tobytes() for name, a in trainer.model.state_dict().items()} == before
    assert repr(trainer.optimizer.state_dict()) == state
    planned = ck.plan.choices()
    trainer.folder = folders.create(config)
    trainer.run(Progress(2, 4))
    new = set(ck.plan.choices()) - set(planned)
    assert all(" n=1," in f"{key.replace('n=1,', ' n=1,')}" for key in new)  # the feature picture's single image


def test_batches_of_one_image_are_possible(config):
    some = dataclasses.replace(config, epochs=1, batch_size=TRAIN - 1)  # the last batch has one image
    assert train(some, quiet=True).best_epoch == 1


def test_images_that_do_not_fit_the_model(data_dir, tmp_path):
    for prefix, count in (("train", 4), ("t10k", 2)):
        write_idx(
            tmp_path / f"{prefix}-images-idx3-ubyte.gz", np.arange(count * 260, dtype=np.uint8).reshape(count, 20, 13)
        )
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.zeros(count, np.uint8))
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="'lenet5' cannot learn from the 1x20x13 images of 'mnist': "):
        train(Config(data="mnist", data_dir=str(tmp_path), out=str(out)), quiet=True)
    assert not out.exists()


def test_evaluate_agrees_with_the_metrics(finished):
    found = evaluate(finished.folder)
    assert found.accuracy == finished.best_accuracy
    assert found.epoch == finished.best_epoch
    assert found.confusion.sum() == TEST
    assert found.confusion.trace() / TEST == found.accuracy
    assert evaluate(finished.folder, which="last").accuracy == finished.accuracy


def test_evaluate_asks_about_every_image(finished, data_dir):
    model, _, saved = load_model(finished.folder)
    some = ck.data.load("mnist", "test", data_dir)
    x = ((some.images / 255 - saved.facts.mean[0]) / saved.facts.std[0]).astype(np.float32)
    logits = model(x).data.astype(np.float64)
    found = evaluate(finished.folder)
    np.testing.assert_array_equal(found.predictions, logits.argmax(axis=1))
    right = np.take_along_axis(logits, some.labels[:, None], axis=1)[:, 0]
    assert found.loss == pytest.approx(np.mean(np.log(np.exp(logits).sum(axis=1)) - right), rel=1e-5)


def test_load_model_refuses(finished, config, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="checkpoint must be one of best, last; got 'first'"):
        load_model(finished.folder, "first")
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load_model(tmp_path)
    interrupt_after(1, monkeypatch)
    with pytest.raises(Interrupted):
        train(config)
    with pytest.raises(ValueError, match=r"has no best\.safetensors yet: no epoch of the run has ended"):
        load_model(config.out)


def test_predict_names_the_likeliest_classes(finished, tmp_path):
    Image = pytest.importorskip("PIL.Image")
    pixels = ck.data.load("sample", "test").images[3, 0]
    Image.fromarray(pixels).save(tmp_path / "one.png")
    (answer,) = predict(finished.folder, [tmp_path / "one.png"])
    assert len(answer.classes) == 3
    assert not answer.inverted
    assert list(answer.probabilities) == sorted(answer.probabilities, reverse=True)
    model, _, saved = load_model(finished.folder)
    x = ((pixels / 255 - saved.facts.mean[0]) / saved.facts.std[0]).astype(np.float32)[None, None]
    logits = model(x).data[0].astype(np.float64)
    likely = np.exp(logits) / np.exp(logits).sum()
    assert answer.classes[0] == saved.facts.classes[likely.argmax()]
    assert answer.probabilities[0] == pytest.approx(likely.max(), rel=1e-5)
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        predict(finished.folder, [tmp_path / "one.png"], top=0)


@pytest.mark.full
def test_default_run_learns(tmp_path):
    """The main job: at least 84% on the sample, within 60 seconds of training on two cores."""
    result = train(Config(out=str(tmp_path / "run")), quiet=True)
    records = [json.loads(line) for line in (result.folder / folders.METRICS).read_text().splitlines()]
    assert result.accuracy >= 0.84
    assert sum(record["seconds"] + record["test_seconds"] for record in records) <= 60
