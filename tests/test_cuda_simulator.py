"""The CUDA rows' Python source in Numba's own simulator, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .gpu import TABLES, needs_compiler
from .simulate import simulated_rows


@needs_compiler
def test_every_row_without_tensor_cores_runs_in_the_simulator():
    env = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    command = [sys.executable, "-m", "tests.simulate"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    rows = [f"{operation} {row.name} {row.direction}" for operation in TABLES for row in simulated_rows(operation)]
    assert sorted(done.stdout.splitlines()) == sorted(rows)
