"""Max and average pooling in two dimensions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .. import device
from ..device import dtype_name, kernel_array
from ..graph import record
from ..kernels.spec import Pair, PoolSpec, empty_window, output_size, reach
from ..kernels.variant import Problem
from ..memory import empty
from ..plan import execute
from ..tensor import Tensor
from . import arguments as arg
from .conv import _batched
from .shape import take_flat


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
) -> PoolSpec:
    """Check the shapes and options of a pooling over x (N, C, H, W)."""
    kernel = arg.per_axis(kernel_size, f"{function}: kernel_size", 1)
    strides = kernel if stride is None else arg.per_axis(stride, f"{function}: stride", 1)
    dilations = arg.per_axis(dilation, f"{function}: dilation", 1)
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
) -> PoolSpec:
    """Check that every window fits."""
    n, c, *size = x_shape
    if c < 1:
        raise ValueError(f"{function}: x must have channels, got shape {x_shape}")
    out = []
    for axis, name in enumerate(("height", "width")):
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
    return PoolSpec(n, c, tuple(size), kernel, strides, pads, dilations, tuple(out), *counting)  # type: ignore[arg-type]


def _problem(direction: str, x: np.ndarray, precision: str, spec: PoolSpec) -> Problem:
    return Problem("pool", direction, device.of(x), dtype_name(x.dtype), arg.check_precision(precision), spec)


def max_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """The largest value of each window; padding counts as minus infinity.

    Parameters
    ----------
    x : array or Tensor, (N, C, H, W) or (C, H, W)
    kernel_size : int or (int, int)
    stride : int or (int, int), optional
        Pixels between windows; the kernel size by default.
    padding : int, (int, int) or ((top, bottom), (left, right))
        At most half the kernel.
    dilation : int or (int, int)
        Pixels between the taps of a window.
    ceil_mode : bool
        Round the output size up, as PyTorch does: a window may hang over the end but must start in the input or before.
    return_indices : bool
        Give the winners' positions too.
    out, precision
        As in :func:`convkern.conv2d`.

    Returns
    -------
    y : array or Tensor, (N, C, P, Q) or (C, P, Q)
    indices : int64 array of the same shape, with ``return_indices``
        h * W + w of each winner in the unpadded plane: the first of equals. NaN wins over everything.
    """
    (xa,) = arg.float_arrays("max_pool2d", cuda=True, x=x)
    x_shape = xa.shape
    shape = _batched(x_shape, "max_pool2d", "x")
    spec = pool_spec("max_pool2d", shape, kernel_size, stride, padding, dilation, ceil_mode)
    y = arg.result_array(out, spec.y_shape[4 - xa.ndim :], xa.dtype, (x,))
    indices = arg.new_array(y.shape, np.int64, xa)
    flat = (kernel_array(xa.reshape(shape)), spec, indices.reshape(spec.y_shape), y.reshape(spec.y_shape))
    execute(_problem("max_forward", xa, precision, spec), flat[0], out=(flat[2], flat[3]))
    y = arg.deliver(y, out, xa)

    def vjp(needs: list[bool], gy: Any, indices: np.ndarray) -> list[Any]:
        return [_max_pool_grad(gy, indices, x_shape, spec, precision)]

    y = record("max_pool2d", y, (x,), vjp, (indices,))
    if not return_indices:
        return y
    return y, indices.copy() if isinstance(y, Tensor) else indices  # backward must find its own as they were


def _max_pool_grad(gy: Any, indices: np.ndarray, shape: tuple[int, ...], spec: PoolSpec, precision: str) -> Any:
    """Add each gy to the pixel of x that won its window."""
    (ga,) = arg.float_arrays("max_pool2d backward", gy=gy)
    gx = empty(shape, ga.dtype)
    problem = _problem("max_backward", ga, precision, spec)
    flat_indices = indices.reshape(spec.y_shape)
    execute(problem, kernel_array(ga.reshape(spec.y_shape)), flat_indices, out=gx.reshape(spec.x_shape))

    def vjp(needs: list[bool], ggx: Any, indices: np.ndarray) -> list[Any]:
        return [take_flat(ggx, indices)]

    return record("max_pool2d backward", gx, (gy,), vjp, (indices,))


def avg_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """The mean of each window.

    Parameters
    ----------
    x : array or Tensor, (N, C, H, W) or (C, H, W)
    kernel_size, stride, padding, ceil_mode, out, precision
        As in :func:`max_pool2d`.
    count_include_pad : bool
        Divide by the whole window, zeros of the padding counted, or by its pixels inside the input.
    divisor_override : int, optional
        Divide by this instead.

    Returns
    -------
    array or Tensor, (N, C, P, Q) or (C, P, Q)
    """
    (xa,) = arg.float_arrays("avg_pool2d", cuda=True, x=x)
    shape = _batched(xa.shape, "avg_pool2d", "x")
    options = (kernel_size, stride, padding, 1, ceil_mode, count_include_pad, divisor_override)
    spec = pool_spec("avg_pool2d", shape, *options)
    return _avg_pool(x, spec, out, precision)


def _avg_pool(x: Any, spec: PoolSpec, out: np.ndarray | None, precision: str) -> Any:
    (xa,) = arg.float_arrays("avg_pool2d", cuda=True, x=x)
    x_shape = xa.shape
    y = arg.result_array(out, spec.y_shape[4 - xa.ndim :], xa.dtype, (x,))
    problem = _problem("avg_forward", xa, precision, spec)
    execute(problem, kernel_array(xa.reshape(spec.x_shape)), out=y.reshape(spec.y_shape))
    y = arg.deliver(y, out, xa)

    def vjp(needs: list[bool], gy: Any) -> list[Any]:
        return [_avg_pool_grad(gy, x_shape, spec, precision)]

    return record("avg_pool2d", y, (x,), vjp)


def _avg_pool_grad(gy: Any, shape: tuple[int, ...], spec: PoolSpec, precision: str) -> Any:
    """Share each gy out evenly over its window."""
    (ga,) = arg.float_arrays("avg_pool2d backward", gy=gy)
    gx = empty(shape, ga.dtype)
    problem = _problem("avg_backward", ga, precision, spec)
    execute(problem, kernel_array(ga.reshape(spec.y_shape)), out=gx.reshape(spec.x_shape))

    def vjp(needs: list[bool], ggx: Any) -> list[Any]:
        return [_avg_pool(ggx, spec, None, precision)]

    return record("avg_pool2d backward", gx, (gy,), vjp)
