"""The proofs of all CPU kernels again, with the vectors, registers and instructions of lesser hosts."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

# Two halves of about the same length, for two processes.
PROOFS = {
    "convolution": ("test_kernels.py",),
    "others": (
        "test_winograd.py", "test_conv3d.py", "test_norm.py", "test_linear.py", "test_pool3d.py", "test_pad.py",
    ),
}  # fmt: skip
HOSTS = {
    "4 lanes": {"CONVKERN_VECTOR_BITS": "128"},
    "8 lanes": {"CONVKERN_VECTOR_BITS": "256"},
    "x86-64 baseline": {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""},
}
# Vectors of 4 lanes with the instructions of AVX-512 are on no host unless somebody forces them, and the x86-64 baseline has
# 4 lanes, too; what differs is how parts of vectors are loaded and stored, and that each row shows on its case table.
FEWER = {
    ("4 lanes", "convolution"): "(case_table or elementwise) and not float64",
    ("4 lanes", "others"): "not float64",
}
if platform.machine() not in ("x86_64", "AMD64"):
    del HOSTS["x86-64 baseline"]
    FEWER.clear()


@pytest.fixture
def kernels(tmp_path_factory):
    """Where the kernels of other hosts are kept, for every process of this test run."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"


@pytest.mark.full
@pytest.mark.parametrize("proofs", PROOFS)
@pytest.mark.parametrize("host", HOSTS)
def test_kernels_as_on_other_hosts(host, proofs, kernels):
    env = {**os.environ, **HOSTS[host], "CONVKERN_CACHE_DIR": str(kernels / host)}
    files = [str(Path(__file__).with_name(name)) for name in PROOFS[proofs]]
    some = ["-k", FEWER.get((host, proofs), "")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *some, *files]
    run = subprocess.run(command, capture_output=True, text=True, env=env, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stdout
