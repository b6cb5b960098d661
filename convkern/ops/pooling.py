"""Max and average pooling along one, two or three axes: checked, planned, run and recorded.

One axis is two with height 1, which costs no copy.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .. import device
from ..device import dtype_name
from ..graph import Folded, record
from ..kernels.spec import AdaptiveSpec, Pair, Pool3dSpec, PoolSpec, empty_window, output_size, reach
from ..kernels.variant import Problem
from ..plan import execute, refusal, rows
from ..tensor import Tensor
from . import arguments as arg
from .convolution import NAMES, image_arrays, image_result, in_shape, user_shape
from .shape import reshape, take_flat

PASS = "avg_relu_bias_backward"
Spec = PoolSpec | Pool3dSpec | AdaptiveSpec
FOLDERS = {PoolSpec: "pool", Pool3dSpec: "pool3d", AdaptiveSpec: "adaptive"}  # of the kernels


def pool_spec(
    function: str,
    x_shape: tuple[int, ...],
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: Any = None,
) -> Any:
    """Check the shapes and options of a pooling over x (N, C, …)."""
    axes = len(x_shape) - 2
    kernel = arg.per_axis(kernel_size, f"{function}: kernel_size", 1, axes)
    strides = kernel if stride is None else arg.per_axis(stride, f"{function}: stride", 1, axes)
    dilations = arg.per_axis(dilation, f"{function}: dilation", 1, axes)
    pads = arg.sides(padding, kernel, strides, dilations)
    divisor = 0 if divisor is None else arg.integer(divisor, f"{function}: divisor_override", 1)
    counting = int(bool(count_include_pad)), divisor
    return _fitting(function, x_shape, kernel, strides, pads, dilations, bool(ceil_mode), counting)


@lru_cache(maxsize=4096)  # of checked ints only: 1, 1.0 and True are one key
def _fitting(
    function: str,
    x_shape: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[Pair, ...],
    dilations: tuple[int, ...],
    ceil_mode: bool,
    counting: Pair,
) -> PoolSpec | Pool3dSpec:
    """Check that every window fits."""
    n, c, *size = x_shape
    if c < 1:
        raise ValueError(f"{function}: x must have channels, got shape {x_shape}")
    out = []
    for axis, name in enumerate(NAMES[len(kernel)]):
        if max(pads[axis]) > reach(kernel[axis], dilations[axis]) // 2:
            raise ValueError(
                f"{function}: padding must be at most half the kernel, got {pads[axis]} for {name} {kernel[axis]}"
                f" (dilation {dilations[axis]})"
            )
        positions = output_size(size[axis], kernel[axis], strides[axis], pads[axis], dilations[axis], ceil_mode)
        if size[axis] < 1 or positions < 1:
            raise ValueError(
                f"{function}: the window's {name} {kernel[axis]} (dilation {dilations[axis]}) does not fit into the "
                f"input's {name} {size[axis]} with padding {pads[axis]}"
            )
        window = empty_window(size[axis], kernel[axis], strides[axis], pads[axis][0], dilations[axis], positions)
        if window is not None:
            raise ValueError(
                f"{function}: window {window} along the {name} lies wholly in the padding: {name} {size[axis]}, "
                f"kernel_size {kernel[axis]}, dilation {dilations[axis]}, padding {pads[axis]}"
            )
        out.append(positions)
    shape: tuple[Any, ...] = (tuple(size), kernel, strides, pads, dilations, tuple(out))
    if len(kernel) == 3:
        return Pool3dSpec._make((n, c, *shape, *counting, 0.0))
    if len(kernel) == 1:
        once = (1, 1, 1, (0, 0), 1, 1)  # the height
        shape = tuple((first, *rest) for first, rest in zip(once, shape, strict=True))
    return PoolSpec._make((n, c, *shape, *counting))


def problem(direction: str, x: np.ndarray, precision: Any, spec: Any) -> Problem:
    """What a pooling asks of its kernels."""
    return Problem(
        FOLDERS[type(spec)], direction, device.of(x), dtype_name(x.dtype), arg.check_precision(precision), spec
    )


def _lying(problem: Problem, last: bool) -> Problem:
    """The problem over channels-last images, with ``last``."""
    return problem._replace(layout="channels_last") if last else problem


def max_pool(
    function: str, axes: int, x: Any, spec: Spec, return_indices: bool, out: np.ndarray | None, precision: Any
) -> Any:
    """The largest value of each window of x (N, C, …) or (C, …), and where it was if that is wanted."""
    (xa,) = arg.kernel_inputs(function, x=x)
    x_shape, y_shape = xa.shape, user_shape(spec.y_shape, axes, xa.ndim)
    asked, given = image_arrays(problem("max_forward", xa, precision, spec), out, xa)
    last = asked.layout == "channels_last"
    y = image_result(asked, y_shape, out, xa.dtype, (x,))
    indices = arg.image_array(y_shape, np.int64, xa, last)
    execute(asked, in_shape(given, spec.x_shape), out=(in_shape(indices, spec.y_shape), in_shape(y, spec.y_shape)))
    y = arg.deliver(y, out, xa)

    def vjp(needs: list[bool], gy: Any, indices: np.ndarray) -> list[Any]:
        return [_max_pool_grad(function, axes, gy, indices, x_shape, spec, precision, last)]

    y = record(function, y, (x,), vjp, (indices,))
    if not return_indices:
        return y
    return y, indices.copy("K") if isinstance(y, Tensor) else indices  # backward must find its own as they were


def _max_pool_grad(
    function: str,
    axes: int,
    gy: Any,
    indices: np.ndarray,
    shape: tuple[int, ...],
    spec: Spec,
    precision: Any,
    last: bool,
) -> Any:
    """Add each gy to the pixel of x that won its window; ``last`` where indices and x are channels-last."""
    (ga,) = arg.float_arrays(f"{function} backward", gy=gy)
    gx = arg.image_array(shape, ga.dtype, ga, last)
    inputs = in_shape(device.laid_out(ga, last), spec.y_shape), in_shape(indices, spec.y_shape)
    execute(_lying(problem("max_backward", ga, precision, spec), last), *inputs, out=in_shape(gx, spec.x_shape))

    def vjp(needs: list[bool], ggx: Any, indices: np.ndarray) -> list[Any]:
        lead = indices.shape[:-axes]
        line = reshape(ggx, (*lead, 1, math.prod(shape[-axes:])))  # (…, pixels in a row)
        places = indices.reshape(*lead, 1, math.prod(indices.shape[-axes:]))
        return [reshape(take_flat(line, places), indices.shape)]

    return record(f"{function} backward", gx, (gy,), vjp, (indices,))


def avg_pool(function: str, axes: int, x: Any, spec: Spec, out: np.ndarray | None, precision: Any) -> Any:
    """The mean of each window of x (N, C, …) or (C, …)."""
    (xa,) = arg.kernel_inputs(function, x=x)
    x_shape = xa.shape
    asked, given = image_arrays(problem("avg_forward", xa, precision, spec), out, xa)
    last = asked.layout == "channels_last"
    y = image_result(asked, user_shape(spec.y_shape, axes, xa.ndim), out, xa.dtype, (x,))
    execute(asked, in_shape(given, spec.x_shape), out=in_shape(y, spec.y_shape))
    y = arg.deliver(y, out, xa)

    def vjp(needs: list[bool], gy: Any) -> list[Any]:
        if axes == 2 and not isinstance(gy, Tensor):
            folded = _lying(problem(PASS, gy, precision, spec), last)
            if _passes(folded):
                parts = in_shape(device.laid_out(gy, last), spec.y_shape), folded
                unfold = partial(avg_pool_grad, function, 2, gy, x_shape, spec, precision, last)
                return [Folded(x_shape, gy.dtype, parts, unfold)]
        return [avg_pool_grad(function, axes, gy, x_shape, spec, precision, last)]

    return record(function, y, (x,), vjp)


@lru_cache(maxsize=4096)
def _passes(problem: Problem) -> bool:
    """Whether a row goes back through the pooling and a ReLU before it in one pass."""
    return any(not refusal(row, problem) for row in rows(problem.operation, problem.direction, problem.device))


def avg_pool_grad(
    function: str, axes: int, gy: Any, shape: tuple[int, ...], spec: Spec, precision: Any, last: bool = False
) -> Any:
    """Share each gy out evenly over its window; with ``last`` over channels-last images."""
    (ga,) = arg.float_arrays(f"{function} backward", gy=gy)
    gx = arg.image_array(shape, ga.dtype, ga, last)
    inputs = in_shape(device.laid_out(ga, last), spec.y_shape)
    execute(_lying(problem("avg_backward", ga, precision, spec), last), inputs, out=in_shape(gx, spec.x_shape))

    def vjp(needs: list[bool], ggx: Any) -> list[Any]:
        return [avg_pool(function, axes, ggx, spec, None, precision)]

    return record(f"{function} backward", gx, (gy,), vjp)
