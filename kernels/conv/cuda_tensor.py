"""Convolution and its gradients in TF32 by single warps (mma.sync, compute capability 8.0): :mod:`.half_products`."""

from __future__ import annotations

from ..spec import ConvSpec
from . import half_products


def forward(x, w, bias, spec: ConvSpec, workspace, out) -> None:
    """Cross-correlation of x (N, C, H, W) and w (K, C/groups, R, S), plus bias, through the activation."""
    half_products.forward("tf32", x, w, bias, spec, workspace, out, half_products.TF32_WARPS)


def forward_residual(x, w, bias, residual, spec: ConvSpec, workspace, out) -> None:
    """As :func:`forward`, with residual (N, K, P, Q) added before the activation."""
    half_products.forward("tf32", x, w, bias, spec, workspace, out, half_products.TF32_WARPS, residual)


def input_grad(gy, w, spec: ConvSpec, workspace, out) -> None:
    """Gradient with respect to x, from gy (N, K, P, Q) and w (K, C/groups, R, S)."""
    half_products.input_grad("tf32", gy, w, spec, workspace, out, half_products.TF32_WARPS)


def weight_grad(x, gy, spec: ConvSpec, workspace, out) -> None:
    """Gradient with respect to w, from x (N, C, H, W) and gy (N, K, P, Q)."""
    half_products.weight_grad("tf32", x, gy, spec, workspace, out, half_products.TF32_WARPS)
