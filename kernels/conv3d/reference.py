"""Three-dimensional convolution by definition, the way the books write it.

x (N, C, T, H, W), w (K, C/groups, U, R, S), y (N, K, O, P, Q); every function works in the dtype it is given.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..spec import Conv3dSpec


def _windows(spec: Conv3dSpec) -> Iterator[tuple[tuple[int, int, int], tuple[slice, slice, slice]]]:
    """Every place of the output, and what its window sees of the padded input."""
    for place in np.ndindex(spec.out):
        starts = [place[i] * spec.stride[i] for i in range(3)]
        t, h, v = (slice(a, a + d * (k - 1) + 1, d) for a, k, d in zip(starts, spec.kernel, spec.dilation, strict=True))
        yield place, (t, h, v)


def _pad(x: np.ndarray, spec: Conv3dSpec) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 0), *spec.padding))


def _channels(k: int, spec: Conv3dSpec) -> slice:
    """The input channels that output channel k sees."""
    cg, kg = spec.c // spec.groups, spec.k // spec.groups
    return slice(k // kg * cg, (k // kg + 1) * cg)


def forward(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, spec: Conv3dSpec) -> np.ndarray:
    """Cross-correlation: slide each kernel over the padded input, multiply, sum."""
    xp = _pad(x, spec)
    y = np.zeros(spec.y_shape, x.dtype)
    for (o, p, q), window in _windows(spec):
        for n in range(spec.n):
            for k in range(spec.k):
                y[n, k, o, p, q] = np.sum(xp[(n, _channels(k, spec), *window)] * w[k])
    if bias is not None:
        y += bias[None, :, None, None, None]
    return np.maximum(y, 0) if spec.activation else y


def input_grad(gy: np.ndarray, w: np.ndarray, spec: Conv3dSpec) -> np.ndarray:
    """Each output lays its multiple of the kernel down where its window was; what fell on the padding is lost."""
    (front, _), (top, _), (left, _) = spec.padding
    t, h, v = spec.size
    gxp = np.zeros(
        (spec.n, spec.c, *(size + sum(p) for size, p in zip(spec.size, spec.padding, strict=True))), gy.dtype
    )
    for (o, p, q), window in _windows(spec):
        for n in range(spec.n):
            for k in range(spec.k):
                gxp[(n, _channels(k, spec), *window)] += gy[n, k, o, p, q] * w[k]
    return gxp[:, :, front : front + t, top : top + h, left : left + v]


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: Conv3dSpec) -> np.ndarray:
    """Each weight met one pixel of every window, and gave it to that window's output."""
    xp = _pad(x, spec)
    gw = np.zeros(spec.w_shape, x.dtype)
    for (o, p, q), window in _windows(spec):
        for n in range(spec.n):
            for k in range(spec.k):
                gw[k] += gy[n, k, o, p, q] * xp[(n, _channels(k, spec), *window)]
    return gw
