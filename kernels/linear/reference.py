"""The linear layer by definition; x (N, I), w (O, I), y (N, O)."""

from __future__ import annotations

import numpy as np

from ..spec import LinearSpec


def forward(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, spec: LinearSpec) -> np.ndarray:
    """y[n, o] = bias[o] + sum over i of x[n, i] · w[o, i]."""
    y = np.zeros((spec.n, spec.outputs), x.dtype)
    for o in range(spec.outputs):
        for i in range(spec.inputs):
            y[:, o] += x[:, i] * w[o, i]
    if bias is not None:
        y += bias
    return np.maximum(y, 0) if spec.activation else y


def input_grad(gy: np.ndarray, w: np.ndarray, spec: LinearSpec) -> np.ndarray:
    """gx[n, i] = sum over o of gy[n, o] · w[o, i]."""
    gx = np.zeros((spec.n, spec.inputs), gy.dtype)
    for o in range(spec.outputs):
        gx += gy[:, o, None] * w[o]
    return gx


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: LinearSpec) -> np.ndarray:
    """gw[o, i] = sum over n of gy[n, o] · x[n, i]."""
    gw = np.zeros((spec.outputs, spec.inputs), x.dtype)
    for n in range(spec.n):
        gw += gy[n, :, None] * x[n]
    return gw
