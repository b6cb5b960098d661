"""The 1x1 convolution: the table of its rows, tried in this order."""

from __future__ import annotations

from typing import Any

from ..cuda import cuda_only, half_only, tf32_only, warpgroup_only, warpgroup_tf32_only
from ..cuda import row as cuda_row
from ..cuda.tiles import parts_bytes
from ..residual import with_residual
from ..variant import Problem, Variant, cpu_only, no_workspace, too_large
from . import cpu_blocked, cpu_panels, cpu_patches, cpu_weight


def _weight_bytes(problem: Problem) -> int:
    return problem.spec.k * problem.spec.c * problem.itemsize


def _partial_sums(problem: Problem) -> int:
    parts = cpu_blocked.weight_grad_parts(problem.spec)
    return 0 if parts == 1 else parts * _weight_bytes(problem)


def _cuda_halves(problem: Problem) -> int:
    from ..conv.half_products import workspace_bytes
    from .grid import as_convolution

    return workspace_bytes(problem.direction, as_convolution(problem.spec), problem.dtype != "float32")


def _cuda_tf32(problem: Problem) -> int:
    from ..conv.half_products import workspace_bytes
    from .grid import as_convolution

    return workspace_bytes(problem.direction, as_convolution(problem.spec), False, kind="tf32")


def _copied(problem: Problem) -> str:
    return cpu_only(problem) or too_large(problem.spec.k * problem.spec.c, problem.itemsize)


def _row(name: str, direction: str, module: Any) -> Variant:
    """The row of a module that patches may be faster than."""
    run, slower = getattr(module, direction), cpu_patches.other_is_slower
    return Variant(name, direction, "cpu", module.refuses, run, module.workspace_bytes, slower=slower)


_CPU = (
    _row("panels", "forward", cpu_panels),
    _row("panels", "input_grad", cpu_panels),
    _row("outer", "weight_grad", cpu_weight),
    Variant("patches", "forward", "cpu", cpu_only, cpu_patches.forward, cpu_patches.workspace_bytes),
    Variant("patches", "input_grad", "cpu", cpu_only, cpu_patches.input_grad, cpu_patches.workspace_bytes),
    Variant("patches", "weight_grad", "cpu", cpu_only, cpu_patches.weight_grad, cpu_patches.workspace_bytes),
    Variant("blocked", "forward", "cpu", cpu_only, cpu_blocked.forward, no_workspace, tunables={"PIXELS": 512}),
    Variant("blocked", "input_grad", "cpu", _copied, cpu_blocked.input_grad, _weight_bytes, tunables={"PIXELS": 512}),
    Variant("blocked", "weight_grad", "cpu", cpu_only, cpu_blocked.weight_grad, _partial_sums, tunables={"PARTS": 32}),
)

_READ_NCHW = (("blocked", cuda_only),)

VARIANTS = (
    *_CPU,
    *(with_residual(row) for row in _CPU if row.direction == "forward"),
    *(
        cuda_row(
            f"warpgroup_{kind}",
            direction,
            f"pointwise.cuda_warpgroup_{kind}.{direction}",
            _cuda_halves,
            warpgroup_only(kind),
            kind,
            _READ_NCHW,
        )
        for kind in ("float16", "bfloat16")
        for direction in ("forward", "forward_residual", "input_grad", "weight_grad")
    ),
    *(
        cuda_row(kind, direction, f"pointwise.cuda_{kind}.{direction}", _cuda_halves, half_only(kind), kind, _READ_NCHW)
        for kind in ("float16", "bfloat16")
        for direction in ("forward", "forward_residual", "input_grad", "weight_grad")
    ),
    *(
        cuda_row(name, direction, f"pointwise.cuda_{name}.{direction}", _cuda_tf32, refuses, "tf32", _READ_NCHW)
        for name, refuses in (("warpgroup_tf32", warpgroup_tf32_only), ("tensor", tf32_only))
        for direction in ("forward", "forward_residual", "input_grad", "weight_grad")
    ),
    cuda_row("blocked", "forward", "pointwise.cuda_blocked.forward", parts_bytes),
    cuda_row("blocked", "forward_residual", "pointwise.cuda_blocked.forward_residual", parts_bytes),
    cuda_row("blocked", "input_grad", "pointwise.cuda_blocked.input_grad", parts_bytes),
    cuda_row("blocked", "weight_grad", "pointwise.cuda_blocked.weight_grad", parts_bytes),
)
