"""Pooling of volumes by definition.

x (N, C, T, H, W), y (N, C, O, P, Q). Indices are flat positions (t * H + h) * W + w in the unpadded volume.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..spec import Pool3dSpec, Triple


def _window(position: int, axis: int, spec: Pool3dSpec) -> list[int]:
    """Input coordinates along one axis that a window covers, padding left out."""
    start = position * spec.stride[axis] - spec.padding[axis][0]
    reached = (start + i * spec.dilation[axis] for i in range(spec.kernel[axis]))
    return [i for i in reached if 0 <= i < spec.size[axis]]


def _windows(spec: Pool3dSpec) -> Iterator[tuple[Triple, tuple[np.ndarray, ...]]]:
    """Every place of the output, and what its window covers, as an index of a volume."""
    for o, p, q in np.ndindex(spec.out):
        yield (o, p, q), np.ix_(_window(o, 0, spec), _window(p, 1, spec), _window(q, 2, spec))


def max_forward(x: np.ndarray, spec: Pool3dSpec) -> tuple[np.ndarray, np.ndarray]:
    """The largest value of each window and where it was; the first of equals; NaN wins (the last one, as in PyTorch)."""
    y, indices = np.empty(spec.y_shape, x.dtype), np.empty(spec.y_shape, np.int64)
    numbers = np.arange(math.prod(spec.size)).reshape(spec.size)
    for place, window in _windows(spec):
        for n, c in np.ndindex(spec.n, spec.c):
            best, where = -math.inf, numbers[window].flat[0]
            for value, number in zip(x[n, c][window].flat, numbers[window].flat, strict=True):
                if value > best or math.isnan(value):
                    best, where = value, number
            y[(n, c, *place)], indices[(n, c, *place)] = best, where
    return y, indices


def max_backward(gy: np.ndarray, indices: np.ndarray, spec: Pool3dSpec) -> np.ndarray:
    """Each output gradient goes to the pixel that won its window."""
    gx = np.zeros((spec.n, spec.c, math.prod(spec.size)), gy.dtype)
    for place in np.ndindex(spec.y_shape):
        gx[place[0], place[1], indices[place]] += gy[place]
    return gx.reshape(spec.x_shape)


def divisor(place: Triple, spec: Pool3dSpec) -> int:
    """What a window's sum is divided by: a given number, or its pixels with or without those in the padding."""
    if spec.divisor:
        return spec.divisor
    if not spec.count_include_pad:
        return math.prod(len(_window(place[axis], axis, spec)) for axis in range(3))
    return whole(place, spec)


def whole(place: Triple, spec: Pool3dSpec) -> int:
    """The pixels of a window, those in the padding counted, those beyond it in ceil mode not."""
    sizes = []
    for axis, position in enumerate(place):
        start = position * spec.stride[axis] - spec.padding[axis][0]
        sizes.append(min(start + spec.kernel[axis], spec.size[axis] + spec.padding[axis][1]) - start)
    return math.prod(sizes)


def avg_forward(x: np.ndarray, spec: Pool3dSpec) -> np.ndarray:
    """The mean of each window."""
    y = np.empty(spec.y_shape, x.dtype)
    for place, window in _windows(spec):
        for n, c in np.ndindex(spec.n, spec.c):
            y[(n, c, *place)] = x[n, c][window].sum() / divisor(place, spec)
    return y


def avg_backward(gy: np.ndarray, spec: Pool3dSpec) -> np.ndarray:
    """Each output gradient is shared out evenly over its window."""
    gx = np.zeros(spec.x_shape, gy.dtype)
    for place, window in _windows(spec):
        for n, c in np.ndindex(spec.n, spec.c):
            gx[n, c][window] += gy[(n, c, *place)] / divisor(place, spec)
    return gx


def _times(place: Triple, spec: Pool3dSpec) -> float:
    """A sum over a window that hangs over the end is taken for a whole one's, as PyTorch does."""
    return math.prod(spec.kernel) / whole(place, spec)


def lp_forward(x: np.ndarray, spec: Pool3dSpec) -> np.ndarray:
    """The root of each window's sum of powers, (Σ x^p)^(1/p)."""
    y = np.empty(spec.y_shape, x.dtype)
    for place, window in _windows(spec):
        for n, c in np.ndindex(spec.n, spec.c):
            y[(n, c, *place)] = (np.sum(x[n, c][window] ** spec.power) * _times(place, spec)) ** (1 / spec.power)
    return y


def lp_backward(gy: np.ndarray, x: np.ndarray, y: np.ndarray, spec: Pool3dSpec) -> np.ndarray:
    """∂y/∂x = x^(p-1) · y^(1-p); nothing where y is 0, where there is no derivative."""
    gx = np.zeros(spec.x_shape, gy.dtype)
    for place, window in _windows(spec):
        for n, c in np.ndindex(spec.n, spec.c):
            root = y[(n, c, *place)]
            if root != 0:
                share = gy[(n, c, *place)] * _times(place, spec) * root ** (1 - spec.power)
                gx[n, c][window] += share * x[n, c][window] ** (spec.power - 1)
    return gx
