"""The logs for TensorBoard, read back record by record and, where it is installed, by TensorBoard itself."""

import dataclasses
import json
import struct
import sys

import numpy as np
import pytest

import convkern as ck
from convkern.train import Config, Interrupted, checkpoint, resume, train
from convkern.train import folder as folders
from convkern.train.tensorboard import EVERY, filter_tiles

from .test_train import assert_same_run, interrupt_after, write_data

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")


@pytest.fixture
def config(tmp_path):
    write_data(tmp_path, 100, 40)
    return Config(
        data="mnist", data_dir=str(tmp_path), epochs=3, batch_size=16, lr=0.002, out=str(tmp_path / "run"),
        tensorboard=True,
    )  # fmt: skip


PER_EPOCH = 7  # steps


def events(folder):
    """All events of a run's files, oldest file first: records of a length, a checksum, the bytes, a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event()
            event.ParseFromString(content[at + 12 : at + 12 + length])
            found.append(event)
            at += 16 + length
    return found


def scalars(found, tag):
    return [(e.step, v.simple_value) for e in found for v in e.summary.value if v.tag == tag]


def records(folder):
    return [json.loads(line) for line in (folder / folders.METRICS).read_text().splitlines()]


def test_the_logs_hold_what_the_metrics_say(config):
    pytest.importorskip("tensorboardX")
    result = train(config, quiet=True)
    found, lines = events(result.folder), records(result.folder)
    assert [step for step, _ in scalars(found, "step/loss")] == list(range(EVERY, 3 * PER_EPOCH + 1, EVERY))
    rates = [0.001 * (1 + np.cos(np.pi * (step - 1) / (3 * PER_EPOCH))) for step in (10, 20)]
    assert [value for _, value in scalars(found, "step/lr")] == pytest.approx(rates)
    for tag, name in (
        ("loss/train", "train_loss"), ("accuracy/train", "train_accuracy"), ("loss/test", "test_loss"),
        ("accuracy/test", "test_accuracy"), ("epoch/lr", "lr"), ("epoch/images_per_second", "images_per_second"),
    ):  # fmt: skip
        points = scalars(found, tag)
        assert [step for step, _ in points] == [PER_EPOCH, 2 * PER_EPOCH, 3 * PER_EPOCH]
        assert [value for _, value in points] == pytest.approx([line[name] for line in lines], rel=1e-6)


def test_histograms_and_filters(config):
    pytest.importorskip("tensorboardX")
    result = train(config, quiet=True)
    weights = checkpoint.load(result.folder / checkpoint.LAST).weights
    last = [v for e in events(result.folder) if e.step == 3 * PER_EPOCH for v in e.summary.value]
    histograms = {v.tag: v.histo for v in last if v.HasField("histo")}
    for name, a in weights.items():
        histogram = histograms["weights/" + name.replace(".", "/")]
        assert histogram.num == a.size
        assert histogram.sum == pytest.approx(float(a.sum(dtype=np.float64)), abs=1e-4)
        assert (histogram.min, histogram.max) == pytest.approx((a.min(), a.max()))
        assert histograms["gradients/" + name.replace(".", "/")].num == a.size
    (image,) = (v.image for v in last if v.HasField("image"))
    assert (image.height, image.width) == (11, 17)  # six filters of 5x5 in two rows of three


def test_tensorboard_itself_reads_them(config):
    pytest.importorskip("tensorboardX")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(config, quiet=True)
    reader = EventAccumulator(str(result.folder))
    reader.Reload()
    assert [point.value for point in reader.Scalars("accuracy/test")] == pytest.approx(
        [line["test_accuracy"] for line in records(result.folder)]
    )
    assert {"weights/0/weight", "gradients/0/weight"} < set(reader.Tags()["histograms"])
    assert reader.Tags()["images"] == ["filters/first_layer"]


def test_a_resumed_run_takes_back_what_it_will_write_again(config, monkeypatch):
    pytest.importorskip("tensorboardX")
    whole = train(dataclasses.replace(config, tensorboard=False, out=f"{config.out}-whole"), quiet=True)
    assert not list(whole.folder.glob("events*"))
    with monkeypatch.context() as patch:
        interrupt_after(12, patch)
        with pytest.raises(Interrupted):
            train(config)
    resume(config.out, quiet=True)
    folder = folders.existing(config.out)
    assert_same_run(folder, whole.folder)
    found = events(folder)
    (start,) = (e.step for e in found if e.HasField("session_log"))
    assert start == 13
    assert [step for step, _ in scalars(found, "accuracy/test")] == [PER_EPOCH, 2 * PER_EPOCH, 3 * PER_EPOCH]
    assert [step for step, _ in scalars(found, "step/loss")] == [10, 20]


def test_logs_may_begin_and_end_when_a_run_is_resumed(config, monkeypatch):
    pytest.importorskip("tensorboardX")
    with monkeypatch.context() as patch:
        interrupt_after(9, patch)
        with pytest.raises(Interrupted):
            train(config)
    before = len(events(folders.existing(config.out)))
    resume(config.out, tensorboard=False, quiet=True)
    assert len(events(folders.existing(config.out))) == before
    assert not Config.load(folders.existing(config.out) / folders.CONFIG).tensorboard


def test_without_the_package_it_says_how_to_get_it(config, monkeypatch):
    from convkern import files

    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    real = files.find_spec
    monkeypatch.setattr(files, "find_spec", lambda name: None if name == "tensorboardX" else real(name))
    with pytest.raises(ModuleNotFoundError, match=r'this needs tensorboardX: pip install "convkern\[tensorboard\]"'):
        train(config, quiet=True)
    assert not folders.Path(config.out).exists()


def test_tiles_are_the_filters():
    model = ck.nn.Sequential(ck.nn.Conv2d(1, 3, 2), ck.nn.Conv2d(3, 2, 3))
    w = model[0].weight.data
    w[...] = np.arange(12).reshape(3, 1, 2, 2) - 4
    tiles = filter_tiles(model)
    assert tiles.shape == (5, 5, 3)
    np.testing.assert_array_equal(tiles[:2, :2, 0], np.round((w[0, 0] / 14 + 0.5) * 255))
    np.testing.assert_array_equal(tiles[:2, 3:, 1], np.round((w[1, 0] / 14 + 0.5) * 255))
    np.testing.assert_array_equal(tiles[3:, :2, 2], np.round((w[2, 0] / 14 + 0.5) * 255))
    assert (tiles[2] == 255).all()
    colours = filter_tiles(ck.nn.Sequential(model[1]))
    assert colours.shape == (3, 7, 3)
    limit = np.abs(model[1].weight.data).max()
    expected = np.round((np.moveaxis(model[1].weight.data[1], 0, 2) / (2 * limit) + 0.5) * 255)
    np.testing.assert_allclose(colours[:, 4:], expected, atol=1)
    assert filter_tiles(ck.models.mlp()) is None
