"""The 1x1 convolution in TF32 by single warps (mma.sync, compute capability 8.0): :mod:`..conv.half_products`."""

from __future__ import annotations

from ..conv import half_products
from ..spec import PointwiseSpec
from .grid import as_convolution


def forward(x, w, bias, spec: PointwiseSpec, workspace, out) -> None:
    """y[n, k, l] = bias[k] + sum over c of w[k, c] · x[n, c, l], through the activation."""
    half_products.forward("tf32", x, w, bias, as_convolution(spec), workspace, out, half_products.TF32_WARPS)


def forward_residual(x, w, bias, residual, spec: PointwiseSpec, workspace, out) -> None:
    """As :func:`forward`, with residual (N, K, L) added before the activation."""
    convolution = as_convolution(spec)
    half_products.forward("tf32", x, w, bias, convolution, workspace, out, half_products.TF32_WARPS, residual)


def input_grad(gy, w, spec: PointwiseSpec, workspace, out) -> None:
    """gx[n, c, l] = sum over k of w[k, c] · gy[n, k, l]."""
    half_products.input_grad("tf32", gy, w, as_convolution(spec), workspace, out, half_products.TF32_WARPS)


def weight_grad(x, gy, spec: PointwiseSpec, workspace, out) -> None:
    """gw[k, c] = sum over n, l of gy[n, k, l] · x[n, c, l]."""
    half_products.weight_grad("tf32", x, gy, as_convolution(spec), workspace, out, half_products.TF32_WARPS)
