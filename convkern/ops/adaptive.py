"""Pooling to a given size, whatever the size of the input."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.spec import AdaptiveSpec, PoolSpec
from . import arguments as arg
from .convolution import batched
from .pooling import Spec, avg_pool, max_pool


def _spec(function: str, axes: int, x: Any, output_size: Any) -> Spec:
    """Even windows of pictures have rows of their own, the rest has those for windows of any kind."""
    (xa,) = arg.float_arrays(function, x=x)
    n, c, *size = batched(xa.shape, function, "x", axes)
    given = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * axes
    if len(given) != axes:
        raise ValueError(f"{function}: output_size must be an int or {axes} ints, got {output_size!r}")
    wanted = [
        length if value is None else arg.integer(value, f"{function}: output_size", 1)
        for value, length in zip(given, size, strict=True)
    ]
    if min(size) < 1 or c < 1:
        raise ValueError(f"{function}: x must have channels and pixels, got shape {xa.shape}")
    if axes < 3 and all(length % out == 0 for length, out in zip(size, wanted, strict=True)):
        once = (1,) * (2 - axes)
        kernel = (*once, *(length // out for length, out in zip(size, wanted, strict=True)))
        ends = ((0, 0), (0, 0)), (1, 1), (*once, *wanted)  # padding, dilation, output
        return PoolSpec._make((n, c, (*once, *size), kernel, kernel, *ends, 1, 0))
    if wanted == [1, 1, 1]:  # a volume's frames below each other are a picture
        plane = (size[0] * size[1], size[2])
        return PoolSpec(n, c, plane, plane, plane, ((0, 0), (0, 0)), (1, 1), (1, 1))
    once = (1,) * (3 - axes)
    return AdaptiveSpec._make((n, c, (*once, *size), (*once, *wanted)))


def adaptive_avg_pool1d(x: Any, output_size: Any, *, out: np.ndarray | None = None, precision: str = "default") -> Any:
    """The mean of each of as many windows as ``output_size`` says, see :func:`adaptive_avg_pool2d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, W) or (C, W)
    output_size : int, None or (int or None,)
        None keeps the size.
    out, precision
        As in :func:`convkern.conv2d`.

    Returns
    -------
    array or Tensor, (N, C, Q) or (C, Q)
    """
    function = "adaptive_avg_pool1d"
    return avg_pool(function, 1, x, _spec(function, 1, x, output_size), out, precision)


def adaptive_avg_pool2d(x: Any, output_size: Any, *, out: np.ndarray | None = None, precision: str = "default") -> Any:
    """The mean of each of as many windows as ``output_size`` says, which are as even as they can be.

    Window i of P goes from floor(i·H / P) to ceil((i + 1)·H / P) - 1, so neighbours may share pixels. With 1 it is the mean
    of everything: global average pooling.

    Parameters
    ----------
    x : array or Tensor, (N, C, H, W) or (C, H, W)
    output_size : int, None, or one of both per axis
        None keeps the size.
    out, precision
        As in :func:`convkern.conv2d`.

    Returns
    -------
    array or Tensor, (N, C, P, Q) or (C, P, Q)
    """
    function = "adaptive_avg_pool2d"
    return avg_pool(function, 2, x, _spec(function, 2, x, output_size), out, precision)


def adaptive_avg_pool3d(x: Any, output_size: Any, *, out: np.ndarray | None = None, precision: str = "default") -> Any:
    """The mean of each of as many windows as ``output_size`` says, see :func:`adaptive_avg_pool2d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, T, H, W) or (C, T, H, W)
    output_size : int, None, or one of both per axis
        None keeps the size.
    out, precision
        As in :func:`convkern.conv2d`.

    Returns
    -------
    array or Tensor, (N, C, O, P, Q) or (C, O, P, Q)
    """
    function = "adaptive_avg_pool3d"
    return avg_pool(function, 3, x, _spec(function, 3, x, output_size), out, precision)


def adaptive_max_pool1d(
    x: Any,
    output_size: Any,
    return_indices: bool = False,
    *,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """The largest value of each of as many windows as ``output_size`` says, which are those of :func:`adaptive_avg_pool1d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, W) or (C, W)
    output_size : int, None or (int or None,)
        None keeps the size.
    return_indices : bool
        Give the winners' positions too, as :func:`max_pool1d` does.
    out, precision
        As in :func:`convkern.conv2d`.

    Returns
    -------
    y : array or Tensor, (N, C, Q) or (C, Q)
    indices : int64 array of the same shape, with ``return_indices``
    """
    function = "adaptive_max_pool1d"
    return max_pool(function, 1, x, _spec(function, 1, x, output_size), return_indices, out, precision)


def adaptive_max_pool2d(
    x: Any,
    output_size: Any,
    return_indices: bool = False,
    *,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """The largest value of each of as many windows as ``output_size`` says, which are those of :func:`adaptive_avg_pool2d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, H, W) or (C, H, W)
    output_size : int, None, or one of both per axis
        None keeps the size.
    return_indices : bool
        Give the winners' positions too, as :func:`max_pool2d` does.
    out, precision
        As in :func:`convkern.conv2d`.

    Returns
    -------
    y : array or Tensor, (N, C, P, Q) or (C, P, Q)
    indices : int64 array of the same shape, with ``return_indices``
    """
    function = "adaptive_max_pool2d"
    return max_pool(function, 2, x, _spec(function, 2, x, output_size), return_indices, out, precision)


def adaptive_max_pool3d(
    x: Any,
    output_size: Any,
    return_indices: bool = False,
    *,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """The largest value of each of as many windows as ``output_size`` says, which are those of :func:`adaptive_avg_pool3d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, T, H, W) or (C, T, H, W)
    output_size : int, None, or one of both per axis
        None keeps the size.
    return_indices : bool
        Give the winners' positions too, as :func:`max_pool3d` does.
    out, precision
        As in :func:`convkern.conv2d`.

    Returns
    -------
    y : array or Tensor, (N, C, O, P, Q) or (C, O, P, Q)
    indices : int64 array of the same shape, with ``return_indices``
    """
    function = "adaptive_max_pool3d"
    return max_pool(function, 3, x, _spec(function, 3, x, output_size), return_indices, out, precision)
