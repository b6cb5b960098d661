"""The residual add behind rows that do not fuse it: those of the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from .threads import parallel
from .variant import Problem, Variant, never

CHUNK = 16384  # elements of a job


@parallel
def _add(job, worker, residual, relu, y):
    first = job * CHUNK
    more, there = residual[first : first + CHUNK], y[first : first + CHUNK]
    for i in range(there.size):
        v = there[i] + more[i]
        there[i] = y.dtype.type(0) if relu and v <= 0 else v


def with_residual(row: Variant) -> Variant:
    """The row of direction "forward_residual" that a row of direction "forward" gives.

    Its result, without the activation, is read and written once more, in place: to fuse the add, which a GPU's rows do,
    each of the CPU's ways to end a tile would have to take another array.
    """

    def as_forward(problem: Problem) -> Problem:
        return problem._replace(direction="forward")

    def run(
        x: np.ndarray, w: np.ndarray, bias: np.ndarray, residual: np.ndarray, spec: Any, workspace: np.ndarray,
        out: np.ndarray,
    ) -> None:  # fmt: skip
        row.run(x, w, bias, spec._replace(activation=0), workspace, out)
        _add(-(-out.size // CHUNK), residual.reshape(-1), spec.activation, out.reshape(-1))

    return row._replace(
        direction="forward_residual",
        refuses=lambda problem: row.refuses(as_forward(problem)),
        run=run,
        workspace=lambda problem: row.workspace(as_forward(problem)),
        slower=row.slower if row.slower is never else lambda problem: row.slower(as_forward(problem)),
        operations=lambda problem: row.operations(as_forward(problem)),
    )
