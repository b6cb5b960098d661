"""Sums over all axes but some neighbouring ones: the table of its rows. On the CPU they are NumPy's."""

from __future__ import annotations

from ..cuda import row as cuda_row
from ..cuda.tiles import channel_parts
from ..variant import Problem


def _cuda_parts(problem: Problem) -> int:
    spec = problem.spec
    return 4 * spec.c * channel_parts(spec.c, spec.n * spec.pixels)


VARIANTS = (cuda_row("planes", "sum", "reduce.cuda_planes.sum", _cuda_parts),)
