"""The benchmark of training steps: its steps are PyTorch's, and its results come back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from convkern import cli
from convkern.bench import report, steps
from convkern.bench.rivals.rival import Disagreement

SMALL = steps.Network("lenet5", 4, (1, 28, 28), 2)


def test_a_contest_and_its_table(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(steps, "NETWORKS", (SMALL,))
    path = tmp_path / "steps.json"
    assert cli.main(["bench", "--steps", "*", "--rounds", "2", "--seconds", "1", "--out", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "lenet5 batch 4" in printed
    result = json.loads(path.read_text())
    (record,) = result["steps"]
    assert set(record["seconds"]) == {report.OURS, *report.TORCH}
    assert record["ratios"][report.BETTER] == min(record["ratios"][name] for name in report.TORCH)
    for name, seconds in record["seconds"].items():
        assert seconds > 0
        assert record["ratios"][name] == pytest.approx(seconds / record["seconds"][report.OURS])
    assert record["losses"][1] < record["losses"][0]  # a step down on the same batch
    assert cli.main(["bench", "--show", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[:5] == printed.splitlines()[:5]


def test_other_steps_are_refused(monkeypatch):
    pytest.importorskip("torch")
    honest = steps.torch_step

    def other(network, x, labels, channels_last):
        return honest(network, x, labels + (1 if channels_last else 0) * (labels < 9), channels_last)

    monkeypatch.setattr(steps, "torch_step", other)
    with pytest.raises(Disagreement, match="lenet5 batch 4: torch-channels-last has losses"):
        steps.contest(SMALL, rounds=1, seconds=1, seed=0)


def test_names(capsys):
    assert steps.select(["*"]) == list(steps.NETWORKS)
    assert [network.name for network in steps.select(["vgg16_cifar"])] == ["vgg16_cifar"]
    assert cli.main(["bench", "--steps", "alexnet"]) == 2
    assert "networks must be among lenet5, vgg16_cifar, resnet18_cifar, got alexnet" in capsys.readouterr().err
    x, labels = steps.batch(steps.NETWORKS[1], 0)
    assert x.shape == (32, 3, 32, 32)
    assert x.dtype == np.float32
    assert labels.shape == (32,)


def test_another_benchmarks_file_is_left_to_it(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"kind": "other"}')
    assert steps.load(path) is None
    assert steps.load(tmp_path / "missing.json") is None
