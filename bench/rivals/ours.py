"""convkern itself: the public functions, and single rows of the kernel tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import convkern as ck

from ... import plan
from ...kernels.threads import workspace
from ...kernels.variant import Problem, Variant
from ..cases import Case, ConvCase, PointwiseCase, PoolCase
from ..report import OURS
from .rival import Function, Rival

Call = Callable[..., Any]


def conv_forward(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: ConvCase, precision: str) -> Any:
    return ck.conv2d(x, w, None, case.stride, case.padding, case.dilation, case.groups, precision=precision)


def conv_input_grad(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: ConvCase, precision: str) -> Any:
    options = (case.stride, case.padding, case.dilation, case.groups)
    return ck.conv2d_input_grad(gy, w, x.shape, *options, precision=precision)


def conv_weight_grad(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: ConvCase, precision: str) -> Any:
    options = (case.stride, case.padding, case.dilation, case.groups)
    return ck.conv2d_weight_grad(x, gy, case.kernel, *options, precision=precision)


def pointwise_forward(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: PointwiseCase, precision: str) -> Any:
    return ck.pointwise(x, w, precision=precision)


def pointwise_input_grad(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: PointwiseCase, precision: str) -> Any:
    return ck.pointwise_input_grad(gy, w, precision=precision)


def pointwise_weight_grad(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: PointwiseCase, precision: str) -> Any:
    return ck.pointwise_weight_grad(x, gy, precision=precision)


def max_forward(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: PoolCase, precision: str) -> Any:
    window = (case.kernel, case.stride, case.padding, case.dilation, case.ceil_mode)
    return ck.max_pool2d(x, *window, precision=precision)


def max_backward(x: np.ndarray, indices: np.ndarray, gy: np.ndarray, case: PoolCase, precision: str) -> np.ndarray:
    return _pool_grad("max_backward", case, precision, gy, indices)


def avg_forward(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: PoolCase, precision: str) -> Any:
    window = (case.kernel, case.stride, case.padding, case.ceil_mode)
    return ck.avg_pool2d(x, *window, case.count_include_pad, case.divisor, precision=precision)


def avg_backward(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: PoolCase, precision: str) -> np.ndarray:
    return _pool_grad("avg_backward", case, precision, gy)


def _pool_grad(direction: str, case: PoolCase, precision: str, *arrays: np.ndarray) -> np.ndarray:
    # Pool gradients have no public function of their own, so this goes in by the planner's door.
    gx = np.empty(case.spec().x_shape, np.float32)
    plan.execute(Problem("pool", direction, "cpu", "float32", precision, case.spec()), *arrays, out=gx)
    return gx


_PUBLIC: dict[tuple[str, str], Call] = {
    ("conv", "forward"): conv_forward,
    ("conv", "input_grad"): conv_input_grad,
    ("conv", "weight_grad"): conv_weight_grad,
    ("pointwise", "forward"): pointwise_forward,
    ("pointwise", "input_grad"): pointwise_input_grad,
    ("pointwise", "weight_grad"): pointwise_weight_grad,
    ("pool", "max_forward"): max_forward,
    ("pool", "max_backward"): max_backward,
    ("pool", "avg_forward"): avg_forward,
    ("pool", "avg_backward"): avg_backward,
}


def _public(precision: str, about: str) -> Rival:
    functions: dict[tuple[str, str], Function] = {
        name: partial(function, precision=precision) for name, function in _PUBLIC.items()
    }
    return Rival(OURS, about, functions)


PUBLIC = _public("default", "convkern's public functions")
STRICT = _public("strict", "convkern's public functions under precision='strict'")


def rows(case: Case, direction: str, precision: str = "default") -> list[Rival]:
    """One rival for every CPU row of the kernel tables that takes the case, whether the planner would choose it or not."""
    problem = Problem(case.operation, direction, "cpu", "float32", precision, case.spec())
    found = []
    for row in plan.rows(case.operation, direction):
        if row.device == "cpu" and not plan.refusal(row, problem):
            functions = {(case.operation, direction): partial(run_row, row, problem)}
            found.append(Rival(f"row:{row.name}", f"row {row.name} of convkern's {case.operation} table", functions))
    return found


def run_row(row: Variant, problem: Problem, x: Any, w: Any, gy: Any, case: Case) -> np.ndarray:
    """Run one row as the public functions do, its result newly allocated."""
    x_shape, y_shape = x.shape, gy.shape
    if isinstance(case, PointwiseCase):  # its rows take all pixels as one axis
        x, gy = x.reshape(case.n, case.c, -1), gy.reshape(case.n, case.k, -1)
    no_bias = np.empty(0, x.dtype)
    arguments, shape = {
        "forward": ((x, w, no_bias), y_shape),
        "input_grad": ((gy, w), x_shape),
        "weight_grad": ((x, gy), w.shape),
        "max_forward": ((x,), y_shape),
        "max_backward": ((gy, w), x_shape),
        "avg_forward": ((x,), y_shape),
        "avg_backward": ((gy,), x_shape),
    }[row.direction]
    out = np.empty(shape, x.dtype)
    written = out.reshape(*out.shape[:2], -1) if isinstance(case, PointwiseCase) and out.ndim == 4 else out
    outs = (np.empty(shape, np.int64), written) if row.direction == "max_forward" else (written,)
    row.run(*arguments, problem.spec, workspace(row.workspace(problem)), *outs)
    return out
