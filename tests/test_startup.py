"""Starting up: with kernels kept on disk a first result is there at once, without them a first training step is not far."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("typer")
from convkern.train.progress import COMPILING

from .test_train import write_data

ROOT = Path(__file__).parents[1]
FIRST = """
import numpy as np, convkern as ck
x, w = np.ones((8, 3, 32, 32), np.float32), np.ones((16, 3, 3, 3), np.float32)
assert ck.conv2d(x, w, padding=1)[0, 0, 1, 1] == 27
"""


def seconds(*command: str, **env: str) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env}, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - began, done.stdout


@pytest.mark.alone
def test_a_first_convolution_with_kernels_on_disk(tmp_path):
    """Python, import, loading the kernels and the result; the best of several, for a machine that is busy."""
    seconds("-c", FIRST, CONVKERN_CACHE_DIR=str(tmp_path))  # compiles
    assert min(seconds("-c", FIRST, CONVKERN_CACHE_DIR=str(tmp_path))[0] for _ in range(4)) < 1.5


def test_warmup_compiles_all_that_training_needs(tmp_path):
    """What `convkern warmup` has compiled, no training run, in whatever process, compiles again."""
    env = {"CONVKERN_CACHE_DIR": str(tmp_path / "cache")}
    _, text = seconds("-m", "convkern.cli", "warmup", "lenet5", **env)
    first, *names, last = text.splitlines()
    assert first == COMPILING
    assert any("conv" in name for name in names)
    assert last.startswith(f"{len(names)} kernels compiled, ")
    assert f"lenet5 ready, kernels kept in {tmp_path / 'cache'}" in last
    _, text = seconds("-m", "convkern.cli", "warmup", "lenet5", **env)
    assert text.startswith("nothing to compile, ")
    assert len(text.splitlines()) == 1
    write_data(tmp_path, 96, 40)
    options = f"--data mnist --data-dir {tmp_path} --epochs 1 --optimizer sgd --out {tmp_path / 'run'}".split()
    _, text = seconds("-m", "convkern.cli", "train", *options, **env)
    assert COMPILING not in text
    assert "epoch 1/1" in text


@pytest.mark.full
@pytest.mark.alone
def test_a_first_training_step_without_kernels_on_disk(tmp_path):
    """From the command to the end of an epoch of three steps, every kernel compiled on the way, with a message first."""
    write_data(tmp_path, 96, 40)
    options = f"--data mnist --data-dir {tmp_path} --epochs 1 --out {tmp_path / 'run'}".split()
    command = [sys.executable, "-u", "-m", "convkern.cli", "train", *options]
    env = {**os.environ, "CONVKERN_CACHE_DIR": str(tmp_path / "cache")}
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append((time.perf_counter() - began, line.rstrip()))
    assert process.returncode == 0
    assert lines[0][1] == COMPILING
    assert lines[0][0] < 5
    (epoch,) = [moment for moment, line in lines if line.startswith("epoch 1/1")]
    assert epoch < 30
