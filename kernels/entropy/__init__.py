"""The cross-entropy of labels: the table of its rows. On the CPU convkern/ops/entropy.py computes it with NumPy."""

from __future__ import annotations

from ..cuda import row as cuda_row
from ..variant import Problem
from .spec import parts_of


def _cuda_parts(problem: Problem) -> int:
    return 8 * parts_of(problem.spec)


VARIANTS = (
    cuda_row("pixels", "forward", "entropy.cuda_pixels.forward", _cuda_parts),
    cuda_row("pixels", "input_grad", "entropy.cuda_pixels.input_grad"),
)
