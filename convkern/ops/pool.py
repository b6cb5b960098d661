"""Max and average pooling: the public functions; pooling.py has what they share."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import arguments as arg
from .convolution import batched
from .pooling import avg_pool, max_pool, pool_spec


def _max_pool(
    axes: int, x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool,
    return_indices: bool, out: np.ndarray | None, precision: str,
) -> Any:  # fmt: skip
    function = f"max_pool{axes}d"
    (xa,) = arg.float_arrays(function, x=x)
    shape = batched(xa.shape, function, "x", axes)
    spec = pool_spec(function, shape, kernel_size, stride, padding, dilation, ceil_mode)
    return max_pool(function, axes, x, spec, return_indices, out, precision)


def _avg_pool(
    axes: int, x: Any, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool,
    divisor_override: int | None, out: np.ndarray | None, precision: str,
) -> Any:  # fmt: skip
    function = f"avg_pool{axes}d"
    (xa,) = arg.float_arrays(function, x=x)
    shape = batched(xa.shape, function, "x", axes)
    spec = pool_spec(function, shape, kernel_size, stride, padding, 1, ceil_mode, count_include_pad, divisor_override)
    return avg_pool(function, axes, x, spec, out, precision)


def max_pool1d(
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
    """The largest value of each window, see :func:`max_pool2d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, W) or (C, W)
    kernel_size : int or (int,)
    stride, padding, dilation, ceil_mode, return_indices, out, precision
        As in :func:`max_pool2d`.

    Returns
    -------
    y : array or Tensor, (N, C, Q) or (C, Q)
    indices : int64 array of the same shape, with ``return_indices``
        The place of each winner along the width: the first of equals.
    """
    return _max_pool(1, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, out, precision)


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
    return _max_pool(2, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, out, precision)


def max_pool3d(
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
    """The largest value of each window, see :func:`max_pool2d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, T, H, W) or (C, T, H, W)
    kernel_size : int or (int, int, int)
    stride, padding, dilation, ceil_mode, return_indices, out, precision
        As in :func:`max_pool2d`.

    Returns
    -------
    y : array or Tensor, (N, C, O, P, Q) or (C, O, P, Q)
    indices : int64 array of the same shape, with ``return_indices``
        (t * H + h) * W + w of each winner in the unpadded volume: the first of equals.
    """
    return _max_pool(3, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, out, precision)


def avg_pool1d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """The mean of each window, see :func:`avg_pool2d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, W) or (C, W)
    kernel_size : int or (int,)
    stride, padding, ceil_mode, count_include_pad, out, precision
        As in :func:`avg_pool2d`.

    Returns
    -------
    array or Tensor, (N, C, Q) or (C, Q)
    """
    options = (ceil_mode, count_include_pad, None)
    return _avg_pool(1, x, kernel_size, stride, padding, *options, out, precision)


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
    options = (ceil_mode, count_include_pad, divisor_override)
    return _avg_pool(2, x, kernel_size, stride, padding, *options, out, precision)


def avg_pool3d(
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
    """The mean of each window, see :func:`avg_pool2d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, T, H, W) or (C, T, H, W)
    kernel_size : int or (int, int, int)
    stride, padding, ceil_mode, count_include_pad, divisor_override, out, precision
        As in :func:`avg_pool2d`.

    Returns
    -------
    array or Tensor, (N, C, O, P, Q) or (C, O, P, Q)
    """
    options = (ceil_mode, count_include_pad, divisor_override)
    return _avg_pool(3, x, kernel_size, stride, padding, *options, out, precision)
