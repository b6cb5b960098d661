"""Two-dimensional convolution: the table of its rows, tried in this order."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..cuda import cuda_only, either_layout, half_only, tf32_only, warpgroup_only, warpgroup_tf32_only
from ..cuda import row as cuda_row
from ..cuda.tiles import channel_bytes, parts_bytes
from ..residual import with_residual
from ..variant import Problem, Variant, as_defined, cpu_only, never, no_workspace
from . import (
    costs,
    cpu_channels,
    cpu_channels_weight,
    cpu_depthwise,
    cpu_depthwise_lanes,
    cpu_depthwise_lanes_weight,
    cpu_direct,
    cpu_images,
    cpu_images_weight,
    cpu_patches,
    cpu_pointwise,
    cpu_spread,
    cpu_tiled,
    cpu_tiled_weight,
    cpu_winograd,
    cpu_winograd_weight,
    windowed,
)
from .windowed import READ_NCHW as _READ_NCHW


def _partial_sums(problem: Problem) -> int:
    spec = problem.spec
    parts = cpu_direct.weight_grad_parts(spec)
    size = spec.k * (spec.c // spec.groups) * spec.kernel[0] * spec.kernel[1] * problem.itemsize
    return 0 if parts == 1 else parts * size


def _cuda_direct(problem: Problem) -> str:
    spec = problem.spec
    if reason := either_layout(problem):
        return reason
    small = spec.groups > 1 and min(spec.c, spec.k) < windowed.FEW_FILTERS * spec.groups
    return cuda_only(problem) if small else ""  # what the rows by windows leave is cheaper turned to NCHW and back


def _cuda_halves(problem: Problem) -> int:
    from .half_products import workspace_bytes

    last = problem.layout == "channels_last"
    return workspace_bytes(problem.direction, problem.spec, problem.dtype != "float32", last)


def _cuda_tf32(problem: Problem) -> int:
    from .half_products import workspace_bytes

    return workspace_bytes(problem.direction, problem.spec, False, problem.layout == "channels_last", "tf32")


def _row(name: str, direction: str, module: Any, accuracy: str = "exact") -> Variant:
    """The row of a module that has workspace_bytes and a function of the direction's name; it may have refuses."""
    counted = name in costs.ROWS
    refuses = partial(costs.refuses, name) if counted else module.refuses
    slower = partial(costs.slower, name) if counted else never
    run, workspace = getattr(module, direction), module.workspace_bytes
    operations = cpu_winograd.operations if name == "winograd" else as_defined
    return Variant(name, direction, "cpu", refuses, run, workspace, accuracy, slower=slower, operations=operations)


_CPU = (
    _row("pointwise", "forward", cpu_pointwise),
    _row("pointwise", "input_grad", cpu_pointwise),
    _row("pointwise", "weight_grad", cpu_pointwise),
    _row("depthwise", "forward", cpu_depthwise),
    _row("depthwise", "input_grad", cpu_depthwise),
    _row("depthwise", "weight_grad", cpu_depthwise),
    _row("lanes", "forward", cpu_depthwise_lanes),
    _row("lanes", "input_grad", cpu_depthwise_lanes),
    _row("lanes", "weight_grad", cpu_depthwise_lanes_weight),
    _row("winograd", "forward", cpu_winograd, "winograd"),
    _row("winograd", "input_grad", cpu_winograd, "winograd"),
    _row("winograd", "weight_grad", cpu_winograd_weight, "winograd"),
    _row("images", "forward", cpu_images),
    _row("images", "input_grad", cpu_images),
    _row("images", "weight_grad", cpu_images_weight),
    _row("spread", "input_grad", cpu_spread),
    _row("channels", "forward", cpu_channels),
    _row("channels", "input_grad", cpu_channels),
    _row("channels", "weight_grad", cpu_channels_weight),
    _row("patches", "forward", cpu_patches),
    _row("patches", "input_grad", cpu_patches),
    _row("patches", "weight_grad", cpu_patches),
    _row("tiled", "forward", cpu_tiled),
    _row("tiled", "input_grad", cpu_tiled),
    _row("tiled", "weight_grad", cpu_tiled_weight),
    Variant("direct", "forward", "cpu", cpu_only, cpu_direct.forward, no_workspace, tunables={"K_BLOCK": 4}),
    Variant("direct", "input_grad", "cpu", cpu_only, cpu_direct.input_grad, no_workspace),
    Variant("direct", "weight_grad", "cpu", cpu_only, cpu_direct.weight_grad, _partial_sums, tunables={"PARTS": 32}),
    Variant("rows", "bias_grad", "cpu", cpu_only, cpu_direct.bias_grad, no_workspace),
)

VARIANTS = (
    *_CPU,
    *(with_residual(row) for row in _CPU if row.direction == "forward"),
    # Before those that round: these are as exact as strict asks for, and faster than they are on such layers.
    *(
        cuda_row("depthwise", direction, f"conv.cuda_depthwise.{direction}", workspace, windowed.depthwise)
        for direction, workspace in (
            ("forward", no_workspace),
            ("forward_residual", no_workspace),
            ("input_grad", no_workspace),
            ("weight_grad", windowed.depthwise_sums),
        )
    ),
    *(
        cuda_row(
            "tiled", direction, f"conv.{where}.{direction}", workspace, windowed.tiled, slower=windowed.tiled_slower
        )
        for direction, where, workspace in (
            ("forward", "cuda_tiled", no_workspace),
            ("forward_residual", "cuda_tiled", no_workspace),
            ("input_grad", "cuda_tiled", no_workspace),
            ("weight_grad", "cuda_tiled_weight", windowed.tiled_sums),
        )
    ),
    *(
        cuda_row(
            f"warpgroup_{kind}",
            direction,
            f"conv.cuda_warpgroup_{kind}.{direction}",
            _cuda_halves,
            warpgroup_only(kind),
            kind,
            _READ_NCHW,
        )
        for kind in ("float16", "bfloat16")
        for direction in ("forward", "forward_residual", "input_grad", "weight_grad")
    ),
    *(
        cuda_row(kind, direction, f"conv.cuda_{kind}.{direction}", _cuda_halves, half_only(kind), kind, _READ_NCHW)
        for kind in ("float16", "bfloat16")
        for direction in ("forward", "forward_residual", "input_grad", "weight_grad")
    ),
    *(
        cuda_row(name, direction, f"conv.cuda_{name}.{direction}", _cuda_tf32, refuses, "tf32", _READ_NCHW)
        for name, refuses in (("warpgroup_tf32", warpgroup_tf32_only), ("tensor", tf32_only))
        for direction in ("forward", "forward_residual", "input_grad", "weight_grad")
    ),
    cuda_row("direct", "forward", "conv.cuda_direct.forward", parts_bytes, _cuda_direct),
    cuda_row("direct", "forward_residual", "conv.cuda_direct.forward_residual", parts_bytes, _cuda_direct),
    cuda_row("direct", "input_grad", "conv.cuda_direct.input_grad", parts_bytes, _cuda_direct),
    cuda_row("direct", "weight_grad", "conv.cuda_direct.weight_grad", parts_bytes, _cuda_direct),
    cuda_row("rows", "bias_grad", "conv.cuda_direct.bias_grad", channel_bytes),
)
