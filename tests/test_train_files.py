"""The files of a run: written whole or not at all, and read strictly."""

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convkern import files
from convkern.train import Config, accuracy, checkpoint, confusion_matrix
from convkern.train import folder as folders
from convkern.train.checkpoint import Checkpoint, Facts, Position
from convkern.train.metrics import MetricsFile, per_class

pytest.importorskip("safetensors")

FACTS = Facts("lenet5", (1, 28, 28), (0.25,), (0.5,), ("a", "b"), 7, 123)


def make_checkpoint(value=1.0, facts=FACTS):
    rng = np.random.default_rng(0)
    weights = {"0.weight": np.full((2, 3), value, np.float32), "0.bias": np.float32(rng.standard_normal(4))[::-1]}
    state = {
        0: {"step": 3, "exp_avg": rng.standard_normal((2, 3)).T},
        1: {"step": 3, "exp_avg": np.zeros((), np.float32)},
    }
    groups = [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1]}]
    position = Position(2, 5, 0.1 + 0.2, 17, 40, 1.5, 0.75, 1)
    return Checkpoint(facts, position, weights, {"state": state, "param_groups": groups})


def test_checkpoint_gives_back_what_was_saved(tmp_path):
    path = tmp_path / "c.safetensors"
    want = make_checkpoint()
    checkpoint.save(path, want)
    got = checkpoint.load(path, "lenet5")
    assert (got.facts, got.position) == (want.facts, want.position)
    assert got.optimizer["param_groups"] == want.optimizer["param_groups"]
    for name, a in want.weights.items():
        np.testing.assert_array_equal(got.weights[name], a)
        assert got.weights[name].dtype == a.dtype
    for index, entries in want.optimizer["state"].items():
        assert got.optimizer["state"][index].keys() == entries.keys()
        assert got.optimizer["state"][index]["step"] == 3
        np.testing.assert_array_equal(got.optimizer["state"][index]["exp_avg"], entries["exp_avg"])
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_checkpoint_of_another_model(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, make_checkpoint())
    with pytest.raises(ValueError, match=r"c\.safetensors holds the model 'lenet5', expected 'vgg11'"):
        checkpoint.load(path, "vgg11")


def damage(kind, content):
    middle = len(content) - 10
    return {
        "cut": content[:middle],
        "flipped bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "text": b"not a checkpoint at all, only some text",
        "no length": content[:4],
    }[kind]


@pytest.mark.parametrize("kind", ["cut", "flipped bit", "empty", "text", "no length"])
def test_damaged_checkpoint_is_named(tmp_path, kind):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, make_checkpoint())
    path.write_bytes(damage(kind, path.read_bytes()))
    with pytest.raises(ValueError, match=r"c\.safetensors is damaged or not a convkern checkpoint: "):
        checkpoint.load(path)


def test_foreign_safetensors_are_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "c.safetensors"
    save_file({"w": np.zeros(3, np.float32)}, path)
    with pytest.raises(ValueError, match=r"c\.safetensors is damaged or not a convkern checkpoint"):
        checkpoint.load(path)


def test_missing_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"last\.safetensors does not exist: is .* a run folder"):
        checkpoint.load(tmp_path / "last.safetensors")


def fail(code):
    def raising(*args):
        raise OSError(code, os.strerror(code))

    return raising


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "reason"), [(errno.ENOSPC, "no space left on the disk"), (errno.EIO, os.strerror(errno.EIO))]
)
def test_failing_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, call, code, reason):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, make_checkpoint(1.0))
    monkeypatch.setattr(os, call, fail(code))
    message = re.escape(f"cannot write {path}: {reason}; the previous last.safetensors is untouched")
    with pytest.raises(OSError, match=message) as caught:
        checkpoint.save(path, make_checkpoint(2.0))
    assert caught.value.errno == code
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]
    assert checkpoint.load(path).weights["0.weight"][0, 0] == 1.0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_metrics_on_a_full_disk(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot write .*metrics\.jsonl: no space left on the disk"):
        MetricsFile(tmp_path / "metrics.jsonl").append({"epoch": 1})


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_killed_while_writing_a_checkpoint(tmp_path, call):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, make_checkpoint(1.0))
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from tests.test_train_files import checkpoint, make_checkpoint\n"
        f"os.{call} = lambda *args: os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.save(Path(sys.argv[1]), make_checkpoint(2.0))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path), str(Path(__file__).parent.parent)], check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2  # the half-written temporary file is there, under its own name
    assert checkpoint.load(path).weights["0.weight"][0, 0] == 1.0
    files.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_interrupted_write_removes_its_temporary_file(tmp_path, monkeypatch):
    def pressed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", pressed)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(tmp_path / "a.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_config_goes_to_json_and_back(tmp_path):
    config = Config(epochs=3, lr=0.1, data="mnist", data_dir="somewhere", out="there")
    config.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("model", "lenet6", ValueError, "model must be one of .*lenet5.*; got 'lenet6'"),
        (
            "data",
            "imagenet",
            ValueError,
            "data must be one of sample, fashion-mnist, mnist, cifar10, .*; got 'imagenet'",
        ),
        ("image_size", 32, ValueError, "image_size must be given for the data 'folder' alone, got 32"),
        ("image_size", 0, ValueError, "image_size must be at least 1, got 0"),
        ("workers", -1, ValueError, "workers must be at least 0, got -1"),
        ("workers", 1.0, TypeError, "workers must be an integer, got 1.0"),
        ("augment", "rotate", ValueError, "augment must be none or some of crop, .*, erase; got 'rotate' in 'rotate'"),
        ("augment", "", ValueError, "augment must be none or some of crop, .*, erase; got '' in ''"),
        ("augment", None, TypeError, "augment must be words between commas, got None"),
        ("data", "folder", ValueError, "data_dir must be given for the data 'folder'"),
        ("data_dir", 3, TypeError, "data_dir must be a folder's name or None, got 3"),
        ("data_dir", "", TypeError, "data_dir must be a folder's name or None, got ''"),
        ("out", b"x", TypeError, "out must be a folder's name or None, got b'x'"),
        ("epochs", 0, ValueError, "epochs must be at least 1, got 0"),
        ("epochs", 1.5, TypeError, "epochs must be an integer, got 1.5"),
        ("epochs", True, TypeError, "epochs must be an integer, got True"),
        ("batch_size", -1, ValueError, "batch_size must be at least 1, got -1"),
        ("lr", 0, ValueError, "lr must be a finite number above 0, got 0"),
        ("lr", float("nan"), ValueError, "lr must be a finite number above 0, got nan"),
        ("lr", "fast", TypeError, "lr must be a number, got 'fast'"),
        ("schedule", "stairs", ValueError, "schedule must be one of cosine, constant, .*; got 'stairs'"),
        ("optimizer", "lion", ValueError, "optimizer must be one of sgd, .*adamw; got 'lion'"),
        ("weight_decay", -0.1, ValueError, "weight_decay must be a finite number of at least 0, got -0.1"),
        ("weight_decay", float("inf"), ValueError, "weight_decay must be a finite number of at least 0, got inf"),
        ("seed", -1, ValueError, "seed must be from 0 to 9223372036854775807, got -1"),
        ("seed", 2**63, ValueError, "seed must be from 0 to 9223372036854775807, got 9223372036854775808"),
        ("device", "tpu", ValueError, "device must be one of auto, cpu, cuda; got 'tpu'"),
    ],
)
def test_config_refuses(field, value, error, message):
    with pytest.raises(error, match=message):
        Config(**{field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields | {"speed": 1, "colour": 2}, r"config\.json: unknown field 'colour', 'speed'"),
        (lambda fields: {k: v for k, v in fields.items() if k != "lr"}, r"config\.json: missing field 'lr'"),
        (lambda fields: fields | {"epochs": 0}, r"config\.json: epochs must be at least 1, got 0"),
        (lambda fields: [1], r"config\.json must hold a JSON object, got a list"),
    ],
)
def test_config_file_is_read_strictly(tmp_path, change, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(change(dataclasses.asdict(Config()))))
    with pytest.raises(ValueError, match=message):
        Config.load(path)


def test_config_file_that_is_not_json(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read: "):
        Config.load(path)


def test_run_folders_are_never_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second, third = (folders.create(Config()) for _ in range(3))
    assert re.fullmatch(r"runs/lenet5-sample-\d{8}-\d{6}", first.as_posix())
    assert len({first, second, third}) == 3
    named = [folders.create(Config(out="mine")).name for _ in range(1)]
    (tmp_path / "mine" / "config.json").write_text("{}")
    named += [folders.create(Config(out="mine")).name for _ in range(2)]
    assert named == ["mine", "mine-2", "mine-3"]
    (tmp_path / "empty").mkdir()
    assert folders.create(Config(out="empty")).name == "empty"


def test_accuracy_and_confusion_matrix():
    labels = np.array([0, 0, 1, 2, 2, 2])
    predictions = np.array([0, 1, 1, 2, 0, 2])
    assert accuracy(predictions, labels) == 4 / 6
    counts = confusion_matrix(predictions, labels, 4)
    np.testing.assert_array_equal(counts, [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]])
    rows = per_class(counts)
    assert rows[0] == {"precision": 0.5, "recall": 0.5, "count": 2}
    assert rows[2] == {"precision": 1.0, "recall": 2 / 3, "count": 3}
    assert np.isnan(rows[3]["precision"])
    assert np.isnan(rows[3]["recall"])


def test_metrics_refuse():
    with pytest.raises(ValueError, match=r"must be \(N,\), got \(2,\) and \(3,\)"):
        accuracy(np.zeros(2, int), np.zeros(3, int))
    with pytest.raises(ValueError, match="accuracy needs at least one label"):
        accuracy(np.zeros(0, int), np.zeros(0, int))
    with pytest.raises(ValueError, match="labels must be from 0 to 1, got 0 to 2"):
        confusion_matrix(np.array([0, 1]), np.array([0, 2]), 2)


def test_metrics_file_rewinds(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    assert metrics.rewind(0) == []
    for epoch in (1, 2, 3):
        metrics.append({"epoch": epoch, "loss": epoch / 3})
    with open(metrics.path, "a") as file:
        file.write('{"epoch": 4, "lo')  # a crash in mid-write
    assert [record["epoch"] for record in metrics.read()] == [1, 2, 3]
    assert metrics.rewind(2) == [{"epoch": 1, "loss": 1 / 3}, {"epoch": 2, "loss": 2 / 3}]
    assert metrics.path.read_text() == f'{{"epoch": 1, "loss": {1 / 3}}}\n{{"epoch": 2, "loss": {2 / 3}}}\n'
    with pytest.raises(ValueError, match=r"must begin with one line for each of epochs 1 to 3, got \[1, 2\]"):
        metrics.rewind(3)


@pytest.mark.parametrize(("line", "message"), [("oops", "line 1 is not JSON"), ("[1]", "line 1 must be a JSON object")])
def test_damaged_metrics_are_named(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line}\n{{"epoch": 1}}\n')
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, {message}"):
        MetricsFile(path).read()


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None if name == "matplotlib" else object())
    files.require("safetensors")
    with pytest.raises(ModuleNotFoundError, match=r'this needs matplotlib: pip install "convkern\[train\]"'):
        files.require("safetensors", "matplotlib")
