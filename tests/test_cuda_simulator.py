"""The CUDA rows' Python source in Numba's own simulator, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .gpu import TABLES, cuda_rows, needs_compiler


@needs_compiler
def test_every_row_runs_in_the_simulator():
    env = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    command = [sys.executable, "-m", "tests.simulate"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    rows = [f"{operation} {row.name} {row.direction}" for operation in TABLES for row in cuda_rows(operation)]
    assert sorted(done.stdout.splitlines()) == sorted(rows)
