"""Two-dimensional pooling: the table of its rows, tried in this order."""

from __future__ import annotations

from ..cuda import either_layout
from ..cuda import row as cuda_row
from ..cuda.tiles import channel_bytes
from ..variant import Problem, Variant, cpu_only, no_workspace
from . import cpu_average, cpu_global, cpu_planes, cpu_relu, cpu_windows


def _cuda_pass(problem: Problem) -> str:
    return either_layout(problem) or cpu_relu.overlapping(problem.spec)


VARIANTS = (
    Variant("global", "max_forward", "cpu", cpu_global.refuses, cpu_global.max_forward, no_workspace),
    Variant("windows", "max_forward", "cpu", cpu_windows.refuses_max, cpu_windows.max_forward, no_workspace),
    Variant("planes", "max_forward", "cpu", cpu_only, cpu_planes.max_forward, no_workspace, tunables={"PIXELS": 16384}),
    Variant("planes", "max_backward", "cpu", cpu_only, cpu_planes.max_backward, no_workspace),
    Variant("windows", "avg_forward", "cpu", cpu_windows.refuses_average, cpu_windows.avg_forward, no_workspace),
    Variant("windows", "avg_backward", "cpu", cpu_windows.refuses_average, cpu_windows.avg_backward, no_workspace),
    Variant("global", "avg_forward", "cpu", cpu_global.refuses, cpu_global.avg_forward, no_workspace),
    Variant("global", "avg_backward", "cpu", cpu_global.refuses, cpu_global.avg_backward, no_workspace),
    Variant("rows", "avg_forward", "cpu", cpu_average.refuses, cpu_average.forward, no_workspace),
    Variant("rows", "avg_backward", "cpu", cpu_average.refuses, cpu_average.backward, no_workspace),
    Variant("planes", "avg_forward", "cpu", cpu_only, cpu_planes.avg_forward, no_workspace),
    Variant("planes", "avg_backward", "cpu", cpu_only, cpu_planes.avg_backward, no_workspace),
    Variant(
        "passed", "avg_relu_bias_backward", "cpu", cpu_relu.refuses, cpu_relu.avg_relu_bias_backward,
        cpu_relu.workspace_bytes,
    ),
    cuda_row("planes", "max_forward", "pool.cuda_planes.max_forward", refuses=either_layout),
    cuda_row("planes", "max_backward", "pool.cuda_planes.max_backward", refuses=either_layout),
    cuda_row("planes", "avg_forward", "pool.cuda_planes.avg_forward", refuses=either_layout),
    cuda_row("planes", "avg_backward", "pool.cuda_planes.avg_backward", refuses=either_layout),
    cuda_row(
        "passed", "avg_relu_bias_backward", "pool.cuda_relu.avg_relu_bias_backward", channel_bytes, _cuda_pass
    ),
)  # fmt: skip
