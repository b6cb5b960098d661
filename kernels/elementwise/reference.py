"""Elementwise operations by definition, over flat arrays."""

from __future__ import annotations

import math

import numpy as np

from ..spec import ChannelSpec


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b."""
    with np.errstate(invalid="ignore"):  # infinities of both signs
        return np.array([x + y for x, y in zip(a, b, strict=True)], a.dtype)


def relu(x: np.ndarray) -> np.ndarray:
    """x where it is positive, else 0; NaN stays."""
    return np.array([0 if v <= 0 else v for v in x], x.dtype)


def relu_grad(gy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """gy where the ReLU's result y is positive (or NaN), else 0, whatever gy is."""
    return np.array([0 if v <= 0 else g for g, v in zip(gy, y, strict=True)], gy.dtype)


def erf(x: np.ndarray) -> np.ndarray:
    """2/√π times the integral of exp(-t²) from 0 to x."""
    return np.array([math.erf(v) for v in x], x.dtype)


def relu_bias_grad(gy: np.ndarray, y: np.ndarray, spec: ChannelSpec) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the ReLU's argument (N, C, L), and of a bias (C,) that was added to it."""
    g = relu_grad(gy.reshape(-1), y.reshape(-1)).reshape(gy.shape)
    return g, np.array([np.sum(g[:, c]) for c in range(spec.c)], gy.dtype)
