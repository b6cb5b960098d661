"""Batch normalisation by definition, channel by channel; x (N, C, L), where L runs over the pixels.

Ioffe and Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", 2015.
"""

from __future__ import annotations

import numpy as np

from ..spec import NormSpec


def statistics(x: np.ndarray, spec: NormSpec) -> np.ndarray:
    """Mean and biased variance of every channel over images and pixels, (2, C)."""
    found = np.empty((2, spec.c), np.float64)
    for c in range(spec.c):
        found[0, c] = np.mean(x[:, c])
        found[1, c] = np.mean((x[:, c] - found[0, c]) ** 2)
    return found


def forward(x: np.ndarray, residual: np.ndarray, affine: np.ndarray, spec: NormSpec) -> np.ndarray:
    """y = (x - center[c]) · scale[c] + shift[c] + residual, through the ReLU if there is one; affine (3, C)."""
    center, scale, shift = affine
    y = np.empty_like(x)
    for c in range(spec.c):
        y[:, c] = (x[:, c] - center[c]) * scale[c] + shift[c]
    if spec.residual:
        y += residual
    return np.maximum(y, 0) if spec.activation else y


def _masked(x: np.ndarray, gy: np.ndarray, y: np.ndarray, affine: np.ndarray, spec: NormSpec) -> np.ndarray:
    if not spec.activation:
        return gy
    result = y if spec.residual else forward(x, y, affine, spec)
    return np.where(result <= 0, 0, gy)


def sums(
    x: np.ndarray, gy: np.ndarray, y: np.ndarray, affine: np.ndarray, spec: NormSpec
) -> tuple[np.ndarray, np.ndarray]:
    """For every channel Σ g and Σ g·(x - center), (2, C), and g itself if there is a residual, whose gradient it is.

    g is what the ReLU lets through of gy: where y, its result, is positive.
    """
    g = _masked(x, gy, y, affine, spec)
    found = np.empty((2, spec.c), np.float64)
    for c in range(spec.c):
        found[0, c] = np.sum(g[:, c])
        found[1, c] = np.sum(g[:, c] * (x[:, c] - affine[0, c]))
    return found, g if spec.residual and spec.activation else g[:0]


def input_grad(x: np.ndarray, gy: np.ndarray, affine: np.ndarray, spec: NormSpec) -> np.ndarray:
    """gx = g · scale[c] + (x - center[c]) · slope[c] + offset[c]; affine (5, C) = center, scale, shift, slope, offset.

    slope and offset carry what the mean and the variance owe to x: see :func:`convkern.ops.norm.batch_norm`.
    """
    g = _masked(x, gy, gy[:0], affine[:3], spec)
    center, scale, _, slope, offset = affine
    gx = np.empty_like(x)
    for c in range(spec.c):
        gx[:, c] = g[:, c] * scale[c] + (x[:, c] - center[c]) * slope[c] + offset[c]
    return gx
