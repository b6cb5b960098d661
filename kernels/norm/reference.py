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


def affine(
    mean: np.ndarray, variance: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None,
    running: tuple[np.ndarray, ...], count: int, momentum: float, eps: float,
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:  # fmt: skip
    """1 / sqrt(variance + eps); center, scale and shift (3, C); the running mean and unbiased variance, moved by momentum."""
    inverse = 1 / np.sqrt(variance + eps)
    scale = inverse if weight is None else inverse * weight
    shift = np.zeros_like(mean) if bias is None else bias
    batch = (mean, variance * count / max(count - 1, 1))
    moved = tuple((1 - momentum) * old + momentum * new for old, new in zip(running, batch, strict=False))
    return inverse, np.stack([mean, scale, shift]), moved


def slopes(
    sums: np.ndarray, inverse: np.ndarray, affine: np.ndarray, count: int, training: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What :func:`input_grad` takes, (5, C), and the gradients of weight and bias.

    With x̂ = (x - mean) · inverse, gx = scale · (g - Σg/m - x̂ · Σ(g·x̂)/m) over the m values of a channel; out of training,
    where mean and variance are constants, gx = scale · g.
    """
    total, products = sums
    slope = -affine[1] * inverse**2 * products / count * training
    offset = -affine[1] * total / count * training
    return np.concatenate([affine, slope[None], offset[None]]), products * inverse, total
