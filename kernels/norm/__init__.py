"""Batch normalisation: the table of its rows, tried in this order.

Forward in training is two passes over memory, "statistics" and "forward"; backward is two, "sums" and "input_grad".
The arithmetic between them is one of a few numbers for each channel, and is done by the caller.
"""

from __future__ import annotations

from ..cuda import row as cuda_row
from ..cuda.tiles import channel_bytes
from ..variant import Problem, Variant, cpu_only, no_workspace
from . import cpu_planes


def _cuda_channel_sums(problem: Problem) -> int:
    """Two float32 for every channel in every part."""
    return 2 * channel_bytes(problem)


VARIANTS = (
    Variant(
        "planes", "statistics", "cpu", cpu_only, cpu_planes.statistics, cpu_planes.workspace_bytes,
        tunables={"PART": cpu_planes.PART},
    ),
    Variant(
        "planes", "forward", "cpu", cpu_only, cpu_planes.forward, no_workspace, tunables={"BLOCK": cpu_planes.BLOCK}
    ),
    Variant(
        "planes", "sums", "cpu", cpu_only, cpu_planes.sums, cpu_planes.workspace_bytes,
        tunables={"PART": cpu_planes.PART},
    ),
    Variant(
        "planes", "input_grad", "cpu", cpu_only, cpu_planes.input_grad, no_workspace,
        tunables={"BLOCK": cpu_planes.BLOCK},
    ),
    cuda_row("planes", "statistics", "norm.cuda_planes.statistics", _cuda_channel_sums),
    cuda_row("planes", "forward", "norm.cuda_planes.forward"),
    cuda_row("planes", "sums", "norm.cuda_planes.sums", _cuda_channel_sums),
    cuda_row("planes", "input_grad", "norm.cuda_planes.input_grad"),
)  # fmt: skip
