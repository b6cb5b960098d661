"""Two-dimensional convolution: the table of its rows, tried in this order."""

from __future__ import annotations

from ..variant import Problem, Variant, cpu_only, no_workspace
from . import cpu_channels, cpu_channels_weight, cpu_direct, cpu_pointwise, cpu_tiled, cpu_tiled_weight


def _partial_sums(problem: Problem) -> int:
    spec = problem.spec
    parts = cpu_direct.weight_grad_parts(spec)
    size = spec.k * (spec.c // spec.groups) * spec.kernel[0] * spec.kernel[1] * (8 if problem.dtype == "float64" else 4)
    return 0 if parts == 1 else parts * size


VARIANTS = (
    Variant("pointwise", "forward", "cpu", cpu_pointwise.refuses, cpu_pointwise.forward, cpu_pointwise.workspace_bytes),
    Variant(
        "pointwise", "input_grad", "cpu", cpu_pointwise.refuses, cpu_pointwise.input_grad, cpu_pointwise.workspace_bytes
    ),
    Variant("channels", "forward", "cpu", cpu_channels.refuses, cpu_channels.forward, cpu_channels.workspace_bytes),
    Variant(
        "channels", "input_grad", "cpu", cpu_channels.refuses, cpu_channels.input_grad, cpu_channels.workspace_bytes
    ),
    Variant(
        "channels",
        "weight_grad",
        "cpu",
        cpu_channels_weight.refuses,
        cpu_channels_weight.weight_grad,
        cpu_channels_weight.workspace_bytes,
    ),
    Variant("tiled", "forward", "cpu", cpu_only, cpu_tiled.forward, cpu_tiled.workspace_bytes),
    Variant("tiled", "input_grad", "cpu", cpu_only, cpu_tiled.input_grad, cpu_tiled.workspace_bytes),
    Variant("tiled", "weight_grad", "cpu", cpu_only, cpu_tiled_weight.weight_grad, cpu_tiled_weight.workspace_bytes),
    Variant("direct", "forward", "cpu", cpu_only, cpu_direct.forward, no_workspace, tunables={"K_BLOCK": 4}),
    Variant("direct", "input_grad", "cpu", cpu_only, cpu_direct.input_grad, no_workspace),
    Variant("direct", "weight_grad", "cpu", cpu_only, cpu_direct.weight_grad, _partial_sums, tunables={"PARTS": 32}),
    Variant("rows", "bias_grad", "cpu", cpu_only, cpu_direct.bias_grad, no_workspace),
)
