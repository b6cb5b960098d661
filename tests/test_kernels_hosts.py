"""The proofs of all CPU kernels again, with the vectors, registers and instructions of lesser hosts."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROOFS = (
    "test_kernels.py", "test_winograd.py", "test_conv3d.py", "test_norm.py", "test_linear.py", "test_pool3d.py",
    "test_pad.py",
)  # fmt: skip
HOSTS = {
    "4 lanes": {"CONVKERN_VECTOR_BITS": "128"},
    "8 lanes": {"CONVKERN_VECTOR_BITS": "256"},
    "x86-64 baseline": {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""},
}
# Vectors of 4 lanes with the instructions of AVX-512 are on no host unless somebody forces them, and the x86-64 baseline has
# 4 lanes, too; what differs is how parts of vectors are loaded and stored, and that each row shows on its case table.
FEWER = {"4 lanes": "not float64 and (case_table or elementwise or not test_kernels.py)"}
if platform.machine() not in ("x86_64", "AMD64"):
    del HOSTS["x86-64 baseline"]
    FEWER.clear()


@pytest.mark.full
@pytest.mark.parametrize("host", HOSTS)
def test_kernels_as_on_other_hosts(host, tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= HOSTS[host] | {"CONVKERN_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", FEWER.get(host, "")]
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # as many again, lest the last host keeps one core busy
        command += ["-n", workers, "--dist", "worksteal"]
    files = [str(Path(__file__).with_name(name)) for name in PROOFS]
    run = subprocess.run([*command, *files], capture_output=True, text=True, env=env, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stdout
