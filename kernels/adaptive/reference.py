"""Pooling to a given size by definition.

x (N, C, T, H, W), y (N, C, O, P, Q). Window i of ``out`` along an axis of ``size`` goes from floor(i · size / out) to
ceil((i + 1) · size / out) - 1, so neighbours may share a pixel. Indices are flat positions (t * H + h) * W + w.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..spec import AdaptiveSpec, Triple


def _windows(spec: AdaptiveSpec) -> Iterator[tuple[Triple, tuple[slice, slice, slice]]]:
    for o, p, q in np.ndindex(spec.out):
        t, h, v = (
            slice(i * size // out, -(-(i + 1) * size // out))
            for i, size, out in zip((o, p, q), spec.size, spec.out, strict=True)
        )
        yield (o, p, q), (t, h, v)


def max_forward(x: np.ndarray, spec: AdaptiveSpec) -> tuple[np.ndarray, np.ndarray]:
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


def max_backward(gy: np.ndarray, indices: np.ndarray, spec: AdaptiveSpec) -> np.ndarray:
    """Each output gradient goes to the pixel that won its window."""
    gx = np.zeros((spec.n, spec.c, math.prod(spec.size)), gy.dtype)
    for place in np.ndindex(spec.y_shape):
        gx[place[0], place[1], indices[place]] += gy[place]
    return gx.reshape(spec.x_shape)


def avg_forward(x: np.ndarray, spec: AdaptiveSpec) -> np.ndarray:
    """The mean of each window."""
    y = np.empty(spec.y_shape, x.dtype)
    for (o, p, q), (t, h, v) in _windows(spec):
        y[:, :, o, p, q] = x[:, :, t, h, v].mean(axis=(2, 3, 4))
    return y


def avg_backward(gy: np.ndarray, spec: AdaptiveSpec) -> np.ndarray:
    """Each output gradient is shared out evenly over its window."""
    gx = np.zeros(spec.x_shape, gy.dtype)
    for (o, p, q), (t, h, v) in _windows(spec):
        window = gx[:, :, t, h, v]
        window += (gy[:, :, o, p, q] / math.prod(window.shape[2:]))[:, :, None, None, None]
    return gx
