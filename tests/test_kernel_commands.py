"""`convkern explain` and `convkern tune`, and what the words behind them stand for."""

from __future__ import annotations

import re

import numpy as np
import pytest

import convkern as ck
from convkern import models, optim, plan, subjects, tuning
from convkern.kernels import compiler
from convkern.train import options

pytest.importorskip("typer")
from convkern import cli


def printed(capsys, line: str) -> list[str]:
    assert cli.main(line.split()) == 0
    return capsys.readouterr().out.splitlines()


def refused(capsys, line: str) -> str:
    assert cli.main(line.split()) == 2
    return capsys.readouterr().err


def directions(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines if re.match(r"\w+\.\w+ cpu ", line)]


def test_explain_a_call(capsys):
    lines = printed(
        capsys, "explain conv2d --x 2,4,9,8 --w 6,2,3,2 --padding 1,0 --stride 2 --groups 2 --dtype float64"
    )
    assert lines[0] == "# conv2d"
    assert lines[1].startswith("this machine, float64, ")
    assert directions(lines) == ["conv.forward", "conv.input_grad", "conv.weight_grad"]
    spec = "n=2,c=4,k=6,groups=2,size=(9,8),kernel=(3,2),stride=(2,2),padding=((1,1),(0,0)),dilation=(1,1),out=(5,4)"
    assert all(f"cpu float64 default {spec}" in line for line in lines if line.startswith("conv."))
    assert (
        sum(bool(re.fullmatch(r"  direct +[\d.]+ +[\d.]+ +[\d.]+   possible, not chosen", line)) for line in lines) == 3
    )
    assert not any(" ms " in line for line in lines)


def test_explain_a_convolution_of_volumes(capsys):
    lines = printed(capsys, "explain conv3d --x 1,2,4,6,6 --w 3,2,3,3,3 --padding 1")
    assert directions(lines) == ["conv3d.forward", "conv3d.input_grad", "conv3d.weight_grad"]
    assert sum(bool(re.match(r"  frames +[\d.]+ +[\d.]+ +[\d.]+   chosen: ", line)) for line in lines) == 3
    assert any(re.match(r"  lines +refused: takes kernels of one pixel", line) for line in lines)
    lines = printed(capsys, "explain max_pool1d --x 2,3,8 --kernel-size 2")
    assert directions(lines) == ["pool.max_forward", "pool.max_backward"]


def test_explain_measures(capsys):
    lines = printed(capsys, "explain max_pool2d --x 2,3,8,8 --kernel-size 2 --measure")
    assert directions(lines) == ["pool.max_forward", "pool.max_backward"]
    assert (
        sum(bool(re.match(r"  \w+ +- +[\d.]+ +- +[\d.]+ ms +[\d.]+ GB/s +\d+%   chosen: ", line)) for line in lines)
        == 2
    )


def test_summary(capsys):
    lines = printed(capsys, "summary lenet5")
    assert lines[0] == "input (1, 1, 28, 28)"
    assert lines[1].split() == ["layer", "kind", "output", "shape", "parameters", "multiply-adds", "KiB", "sees"]
    assert lines[-1].split()[:3] == ["total", "61,706", "416,520"]
    assert printed(capsys, "summary resnet20 --image 1,16,16")[0] == "input (1, 1, 16, 16)"
    unet = printed(capsys, "summary unet --image 3,16,32")
    assert unet[-1].split()[:2] == ["total", "31,037,698"]
    assert "(1, 2, 16, 32)" in unet[-3]
    assert "model must be one of alexnet" in refused(capsys, "summary lenet6 --image 1,8,8")
    assert "model must be one of alexnet" in refused(capsys, "warmup unet")  # trained by pixels, not by labels


def test_explain_a_model_and_a_case(capsys):
    lines = printed(capsys, "explain lenet5 one-pixel --batch 2")
    assert lines[0] == "# lenet5, a training step of 2 images 1x28x28"
    second = lines.index("# one-pixel")
    assert {"conv.forward", "conv.input_grad", "conv.weight_grad", "pool.avg_relu_bias_backward"} < set(
        directions(lines[:second])
    )
    assert directions(lines[second:]) == ["conv.forward", "conv.input_grad", "conv.weight_grad"]
    strict = printed(capsys, "explain one-pixel --precision strict")
    assert all(" cpu float32 strict " in line for line in strict if line.startswith("conv."))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("explain lenet6", "'lenet6' must be a model (alexnet"),
        ("explain conv2d", "conv2d needs --x N,C,H,W"),
        ("explain conv2d --x 1,2,3,4", "conv2d: w must be given"),
        ("explain max_pool2d --x 1,2,3,4 --w 1,2,3,4 --kernel-size 2", "max_pool2d: w must not be given"),
        ("explain conv2d --x 1,2,x --w 1,2,3,4", "--x must be integers between commas, got '1,2,x'"),
        (
            "explain conv2d --x 1,2,3,4 --w 1,2,3,4 --padding some",
            "--padding must be integers between commas, got 'some'",
        ),
        ("explain conv2d --x 1,2,3,4 --w 1,2,9,9", "does not fit into the input's height 3"),
        ("explain conv2d --x 1,2,3,4 --w 1,2,1,1 --dtype half", "dtype must be float32 or float64, got 'half'"),
        ("explain conv2d --x 1,2,3,4 --w 1,2,1,1 --precision fast", "precision must be"),
        ("explain lenet5 --image 28,28", "--image must be 3 integers between commas, got '28,28'"),
        ("warmup lenet6", "model must be one of alexnet"),
    ],
)
def test_wrong_words_are_one_line(capsys, line, message):
    error = refused(capsys, line)
    assert message in error
    assert error.startswith("convkern: ")
    assert error.count("\n") == 1


def test_tune_keeps_what_it_measured(capsys, tmp_path, monkeypatch):
    x, w = np.zeros((2, 3, 9, 9), np.float32), np.zeros((4, 3, 3, 3), np.float32)
    ck.conv2d(x, w)  # compiled in the folder of all tests
    monkeypatch.setenv("CONVKERN_CACHE_DIR", str(tmp_path))
    line = "tune conv2d --x 2,3,9,9 --w 4,3,3,3"
    try:
        lines = printed(capsys, line)
        assert lines[-1] == f"kept in {tuning.path()}"
        assert tuning.path().parent == tmp_path
        problems = [line for line in lines if " cpu float32 " in line]
        assert directions(problems) == ["conv.forward", "conv.input_grad", "conv.weight_grad"]
        times = [line for line in lines if re.fullmatch(r"  \w+( \(was \w+\))? +(\w+ [\d.]+ ms *)+", line)]
        assert len(times) == 3
        assert all("tiled" in line and "direct" in line for line in times)
        assert set(tuning._load(tuning.path(), tuning._host())) == set(problems)
        # conftest.py has turned the use of such files off, and the command says so
        assert cli.main(line.split()) == 0
        assert "CONVKERN_TUNE is 0: these choices are not used" in capsys.readouterr().err
        assert tuning.choices() == {}
    finally:
        tuning.forget()


def test_every_model_says_what_images_it_takes():
    for name in models.NAMES:
        channels, height, width = subjects.image_shape(name)
        assert channels in (1, 3)
        assert height == width >= 28
    assert subjects.image_shape("lenet5") == (1, 28, 28)


def test_warmup_runs_every_optimizer_of_train(capsys, monkeypatch):
    stepped = set()
    step = optim.Optimizer.step

    def watched(optimizer):
        stepped.add(type(optimizer).__name__)
        return step(optimizer)

    monkeypatch.setattr(optim.Optimizer, "step", watched)
    assert tuple(subjects.OPTIMIZERS) == options.OPTIMIZERS
    with plan.traced() as trace:
        lines = printed(capsys, "warmup lenet5 --batch 2")
    assert lines[-1].endswith(f"kernels kept in {compiler.kernel_cache()}")
    done = {(problem.operation, problem.direction) for problem, _ in trace}
    assert done >= {("conv", "forward"), ("conv", "input_grad"), ("conv", "weight_grad")}
    assert stepped == {"SGD", "Adagrad", "RMSprop", "Adam", "AdamW"}


def test_a_training_step_of_what_is_not_known():
    with pytest.raises(ValueError, match="optimizers must be of sgd, adagrad, rmsprop, adam, adamw, got 'lion'"):
        subjects.training_step("lenet5", 2, optimizers=["sgd", "lion"])
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        subjects.training_step("lenet5", 0)
