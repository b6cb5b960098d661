"""Power-average (Lp) pooling: the root of each window's sum of powers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..device import kernel_array
from ..graph import record
from ..kernels.spec import Pool3dSpec
from ..memory import empty
from ..plan import execute
from ..tensor import Tensor
from . import arguments as arg
from .arithmetic import mul, pow
from .convolution import batched, user_shape
from .pooling import avg_pool_grad, pool_spec, problem


def _lp_pool(
    axes: int, x: Any, norm_type: Any, kernel_size: Any, stride: Any, ceil_mode: bool, out: np.ndarray | None,
    precision: Any,
) -> Any:  # fmt: skip
    function = f"lp_pool{axes}d"
    if isinstance(norm_type, bool) or not isinstance(norm_type, (int, float)):
        raise TypeError(f"{function}: norm_type must be a number, got {norm_type!r}")
    if not 0 < norm_type < math.inf:
        raise ValueError(f"{function}: norm_type must be positive and finite, got {norm_type!r}")
    (xa,) = arg.float_arrays(function, x=x)
    found = pool_spec(function, batched(xa.shape, function, "x", axes), kernel_size, stride, 0, 1, ceil_mode)
    once = (1,) * (3 - axes)  # the rows take volumes: a picture has one frame
    size, kernel, strides, out_size = (
        (*once, *field[-axes:]) for field in (found.size, found.kernel, found.stride, found.out)
    )
    none = (((0, 0),) * 3, (1, 1, 1))  # padding and dilation
    spec = Pool3dSpec._make((found.n, found.c, size, kernel, strides, *none, out_size, 1, 0, float(norm_type)))
    x_shape = xa.shape
    y = arg.result_array(out, user_shape(spec.y_shape, axes, xa.ndim), xa.dtype, (x,))
    inputs = kernel_array(xa.reshape(spec.x_shape))
    execute(problem("lp_forward", xa, precision, spec), inputs, out=y.reshape(spec.y_shape))
    y = arg.deliver(y, out, xa)

    def vjp(needs: list[bool], gy: Any, x: Any, y: Any) -> list[Any]:
        if isinstance(gy, Tensor):
            return [_grad_of_parts(function, axes, gy, x, y, spec, precision)]
        gx = empty(x_shape, gy.dtype)
        arrays = [kernel_array(arg.array_of(a, "saved value")) for a in (gy, x, y)]
        shapes = spec.y_shape, spec.x_shape, spec.y_shape
        inputs = [array.reshape(shape) for array, shape in zip(arrays, shapes, strict=True)]
        execute(problem("lp_backward", gx, precision, spec), *inputs, out=gx.reshape(spec.x_shape))
        return [gx]

    return record(function, y, (x,), vjp, (x, y))


def _grad_of_parts(function: str, axes: int, gy: Any, x: Any, y: Any, spec: Pool3dSpec, precision: Any) -> Any:
    """∂y/∂x = x^(p-1) · y^(1-p), of operations that can be differentiated again; nothing comes from windows of root 0."""
    nothing = arg.array_of(y, "y") == 0
    root = pow(y + nothing.astype(y.dtype), 1 - spec.power)
    share = mul(mul(gy, root), (~nothing).astype(y.dtype) * math.prod(spec.kernel))
    return mul(avg_pool_grad(function, axes, share, x.shape, spec, precision), pow(x, spec.power - 1))


def lp_pool1d(
    x: Any,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """The root of each window's sum of powers, see :func:`lp_pool2d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, W) or (C, W)
    norm_type : float
        p, above 0.
    kernel_size : int or (int,)
    stride, ceil_mode, out, precision
        As in :func:`lp_pool2d`.

    Returns
    -------
    array or Tensor, (N, C, Q) or (C, Q)
    """
    return _lp_pool(1, x, norm_type, kernel_size, stride, ceil_mode, out, precision)


def lp_pool2d(
    x: Any,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """The root of each window's sum of powers, (Σ x^p)^(1/p): between the sum (p = 1) and the maximum (p large).

    Parameters
    ----------
    x : array or Tensor, (N, C, H, W) or (C, H, W)
    norm_type : float
        p, above 0. As in PyTorch x is not made positive first, so an odd p wants x that is not negative.
    kernel_size : int or (int, int)
    stride : int or (int, int), optional
        Pixels between windows; the kernel size by default.
    ceil_mode : bool
        As in :func:`max_pool2d`; the sum over a window that hangs over the end is scaled up to a whole one's.
    out, precision
        As in :func:`convkern.conv2d`.

    Returns
    -------
    array or Tensor, (N, C, P, Q) or (C, P, Q)
        Where it is 0 the gradient is taken as 0.

    Raises
    ------
    ValueError, TypeError
        Naming the argument that does not fit.
    """
    return _lp_pool(2, x, norm_type, kernel_size, stride, ceil_mode, out, precision)


def lp_pool3d(
    x: Any,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """The root of each window's sum of powers, see :func:`lp_pool2d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, T, H, W) or (C, T, H, W)
    norm_type : float
        p, above 0.
    kernel_size : int or (int, int, int)
    stride, ceil_mode, out, precision
        As in :func:`lp_pool2d`.

    Returns
    -------
    array or Tensor, (N, C, O, P, Q) or (C, O, P, Q)
    """
    return _lp_pool(3, x, norm_type, kernel_size, stride, ceil_mode, out, precision)
