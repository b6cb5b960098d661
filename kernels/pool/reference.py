"""Two-dimensional pooling by definition.

x (N, C, H, W), y (N, C, P, Q). Indices are flat positions h * W + w in the unpadded input plane.
"""

from __future__ import annotations

import math

import numpy as np

from ..spec import PoolSpec


def _window(position: int, axis: int, spec: PoolSpec) -> list[int]:
    """Input coordinates along one axis that a window covers, padding left out."""
    start = position * spec.stride[axis] - spec.padding[axis][0]
    reached = (start + i * spec.dilation[axis] for i in range(spec.kernel[axis]))
    return [i for i in reached if 0 <= i < spec.size[axis]]


def max_forward(x: np.ndarray, spec: PoolSpec) -> tuple[np.ndarray, np.ndarray]:
    """The largest value of each window and where it was; the first of equals; NaN wins (the last one, as in PyTorch)."""
    y = np.empty(spec.y_shape, x.dtype)
    indices = np.empty(spec.y_shape, np.int64)
    for n, c, p, q in np.ndindex(spec.y_shape):
        rows, columns = _window(p, 0, spec), _window(q, 1, spec)
        best, where = -math.inf, rows[0] * spec.size[1] + columns[0]
        for h in rows:
            for v in columns:
                value = x[n, c, h, v]
                if value > best or math.isnan(value):
                    best, where = value, h * spec.size[1] + v
        y[n, c, p, q], indices[n, c, p, q] = best, where
    return y, indices


def max_backward(gy: np.ndarray, indices: np.ndarray, spec: PoolSpec) -> np.ndarray:
    """Each output gradient goes to the pixel that won its window."""
    gx = np.zeros((spec.n, spec.c, spec.size[0] * spec.size[1]), gy.dtype)
    for n, c, p, q in np.ndindex(spec.y_shape):
        gx[n, c, indices[n, c, p, q]] += gy[n, c, p, q]
    return gx.reshape(spec.x_shape)


def divisor(p: int, q: int, spec: PoolSpec) -> int:
    """What a window's sum is divided by: a given number, or its pixels with or without those in the padding."""
    if spec.divisor:
        return spec.divisor
    if not spec.count_include_pad:
        return len(_window(p, 0, spec)) * len(_window(q, 1, spec))
    sizes = []
    for axis, position in enumerate((p, q)):
        start = position * spec.stride[axis] - spec.padding[axis][0]
        # A window may hang over the padding's end in ceil mode; what lies beyond counts for nothing.
        sizes.append(min(start + spec.kernel[axis], spec.size[axis] + spec.padding[axis][1]) - start)
    return sizes[0] * sizes[1]


def avg_forward(x: np.ndarray, spec: PoolSpec) -> np.ndarray:
    """The mean of each window."""
    y = np.empty(spec.y_shape, x.dtype)
    for n, c, p, q in np.ndindex(spec.y_shape):
        window = x[n, c][np.ix_(_window(p, 0, spec), _window(q, 1, spec))]
        y[n, c, p, q] = window.sum() / divisor(p, q, spec)
    return y


def avg_relu_bias_backward(gy: np.ndarray, y: np.ndarray, spec: PoolSpec) -> tuple[np.ndarray, np.ndarray]:
    """`avg_backward` through a ReLU whose result y was pooled, and the sum over every channel."""
    g = np.where(y <= 0, 0, avg_backward(gy, spec))
    return g, g.sum(axis=(0, 2, 3))


def avg_backward(gy: np.ndarray, spec: PoolSpec) -> np.ndarray:
    """Each output gradient is shared out evenly over its window."""
    gx = np.zeros(spec.x_shape, gy.dtype)
    for p, q in np.ndindex(spec.out):
        rows, columns = np.ix_(_window(p, 0, spec), _window(q, 1, spec))
        gx[:, :, rows, columns] += gy[:, :, p, q, None, None] / divisor(p, q, spec)
    return gx
