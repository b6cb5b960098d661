"""The 1x1 convolution by definition: each pixel's channels are mixed by the same matrix.

x (N, C, L), w (K, C), y (N, K, L), where L runs over the pixels.
"""

from __future__ import annotations

import numpy as np

from ..spec import PointwiseSpec


def forward(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, spec: PointwiseSpec) -> np.ndarray:
    """y[n, k, l] = bias[k] + sum over c of w[k, c] · x[n, c, l]."""
    y = np.zeros((spec.n, spec.k, spec.pixels), x.dtype)
    for n in range(spec.n):
        for k in range(spec.k):
            for c in range(spec.c):
                y[n, k] += w[k, c] * x[n, c]
    if bias is not None:
        y += bias[None, :, None]
    if spec.activation:
        y = np.maximum(y, 0)
    return y


def forward_residual(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, residual: np.ndarray, spec: PointwiseSpec
) -> np.ndarray:
    """The same with an array of y's shape added before the activation."""
    y = forward(x, w, bias, spec._replace(activation=0)) + residual
    return np.maximum(y, 0) if spec.activation else y


def input_grad(gy: np.ndarray, w: np.ndarray, spec: PointwiseSpec) -> np.ndarray:
    """gx[n, c, l] = sum over k of w[k, c] · gy[n, k, l]: a 1x1 kernel turned by 180 degrees is itself."""
    return forward(gy, w.T, None, spec._replace(c=spec.k, k=spec.c, activation=0))


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: PointwiseSpec) -> np.ndarray:
    """gw[k, c] = sum over n, l of gy[n, k, l] · x[n, c, l]."""
    gw = np.zeros((spec.k, spec.c), x.dtype)
    for k in range(spec.k):
        for c in range(spec.c):
            gw[k, c] = np.sum(gy[:, k] * x[:, c])
    return gw
