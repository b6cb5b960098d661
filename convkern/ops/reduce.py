"""Sums, means and maxima along axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..device import is_cupy, whole
from ..graph import record
from . import arguments as arg
from .arithmetic import div
from .shape import expand, reshape, total


def axes_of(dim: Any, ndim: int) -> tuple[int, ...]:
    """The axes that ``dim`` names, counted from 0: None means all."""
    if dim is None:
        return tuple(range(ndim))
    axes = dim if isinstance(dim, (tuple, list)) else (dim,)
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(f"dim={dim} does not fit an array of {ndim} axes")
    return tuple(a % ndim for a in axes)


def _kept(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with reduced axes of length 1."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def largest(xa: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The largest elements along axes, which stay with length 1; NumPy's minus infinity where there are none."""
    if is_cupy(xa):
        return xa.max(axis=axes, keepdims=True)
    return np.asarray(xa.max(axis=axes, keepdims=True, initial=-np.inf))


def sum(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Sum over all elements, or along ``dim`` (an int or several)."""
    xa = arg.array_of(x, "x")
    shape, axes = xa.shape, axes_of(dim, xa.ndim)
    y = total(xa, axes, keepdim)

    def vjp(needs: list[bool], gy: Any) -> list[Any]:
        return [expand(reshape(gy, _kept(shape, axes)), shape)]

    return record("sum", y, (x,), vjp)


def mean(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Mean over all elements, or along ``dim`` (an int or several)."""
    xa = arg.array_of(x, "x")
    count = math.prod(xa.shape[a] for a in axes_of(dim, xa.ndim))
    if count == 0:
        raise ValueError(f"mean: nothing to average in shape {xa.shape} along dim={dim}")
    return div(sum(x, dim, keepdim), xa.dtype.type(count))


def max(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Largest element, or largest along ``dim``; the gradient goes in equal shares to all that reach it (``amax``)."""
    xa = arg.array_of(x, "x")
    shape, axes = xa.shape, axes_of(dim, xa.ndim)
    if 0 in (shape[a] for a in axes):
        raise ValueError(f"max: nothing to compare in shape {shape} along dim={dim}")
    y = whole(xa.max(axis=axes, keepdims=keepdim))

    def vjp(needs: list[bool], gy: Any, x: Any, y: Any) -> list[Any]:
        xa, top = arg.array_of(x, "x"), arg.array_of(y, "y").reshape(_kept(shape, axes))
        winners = (xa == top) | ((xa != xa) & (top != top))
        share = (winners / winners.sum(axis=axes, keepdims=True)).astype(xa.dtype)
        return [expand(reshape(gy, top.shape), shape) * share]

    return record("max", y, (x,), vjp, (x, y))
