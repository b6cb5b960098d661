"""Resizing by definition.

x (planes, T, H, W), y (planes, O, P, Q). Along each axis a pixel of y is seen at a place of x: "nearest" takes the pixel
there, "linear" the two neighbours in proportion (bilinear over two axes, trilinear over three).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from ..spec import ResizeSpec


def taps(position: int, axis: int, spec: ResizeSpec) -> list[tuple[int, float]]:
    """The pixels of x that an output pixel is made of along one axis, and their shares."""
    size, scale = spec.size[axis], spec.scales[axis]
    if spec.mode == "nearest":
        # float32 whatever the dtype, as PyTorch has it: a place just below a whole number must not depend on the dtype.
        return [(min(math.floor(np.float32(position) * np.float32(scale)), size - 1), 1.0)]
    place = position * scale if spec.align_corners else max((position + 0.5) * scale - 0.5, 0.0)
    first = min(math.floor(place), size - 1)
    share = min(place - first, 1.0)
    return [(first, 1 - share), (min(first + 1, size - 1), share)]


def _pixels(spec: ResizeSpec) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """(place in y, pixel of x, its share) for all that meet."""
    for place in np.ndindex(spec.out):
        for along in itertools.product(*(taps(place[axis], axis, spec) for axis in range(3))):
            yield place, tuple(pixel for pixel, _ in along), math.prod(share for _, share in along)


def forward(x: np.ndarray, spec: ResizeSpec) -> np.ndarray:
    """Every output pixel from the input pixels around its place."""
    y = np.zeros(spec.y_shape, x.dtype)
    for (o, p, q), (t, h, v), share in _pixels(spec):
        y[:, o, p, q] += x[:, t, h, v] * share if spec.mode == "linear" else x[:, t, h, v]
    return y


def backward(gy: np.ndarray, spec: ResizeSpec) -> np.ndarray:
    """Every gradient goes back to the pixels in the same shares."""
    gx = np.zeros(spec.x_shape, gy.dtype)
    for (o, p, q), (t, h, v), share in _pixels(spec):
        gx[:, t, h, v] += gy[:, o, p, q] * share
    return gx
