"""Convolution and its gradients on tensor cores in TF32: the implicit GEMMs of :mod:`.cuda_direct`, any shape.

Operands are rounded to 10 fraction bits, to nearest; products and sums are float32. Accuracy "tf32": γ with TF32_TERMS more
terms (kernels/cuda/tiles.py). Needs compute capability 8.0.

Layout: NCHW, C-contiguous. out never aliases an input.
"""

from __future__ import annotations

import numpy as np

from ..cuda.kernel import CudaKernel
from ..cuda.sums import add_parts
from ..cuda.tensor_gemm import tensor_kernel
from ..cuda.tiles import TENSOR_TILES, choose_tile, make_grid, product_of, product_parts
from ..spec import ConvSpec
from .cuda_direct import (
    Geometry,
    filter_at,
    geometry_of,
    gradient_at,
    input_place,
    pixel_place,
    reaching_at,
    tap_at,
    turned_at,
    weight_place,
    window_at,
)  # fmt: skip


def _kernels(direction: str, a_at, b_at, place, t_fastest: bool = False, added: bool = False) -> list[CudaKernel]:
    """One kernel for each tile."""
    return [
        tensor_kernel(f"conv-tensor-{direction}-{t.rows}x{t.columns}", t, a_at, b_at, place, Geometry, t_fastest, added)
        for t in TENSOR_TILES
    ]


_FORWARD = _kernels("forward", filter_at, window_at, pixel_place)
_FORWARD_RESIDUAL = _kernels("forward_residual", filter_at, window_at, pixel_place, added=True)
_INPUT_GRAD = _kernels("input_grad", turned_at, reaching_at, input_place)
_WEIGHT_GRAD = _kernels("weight_grad", gradient_at, tap_at, weight_place, t_fastest=True)


def forward(x, w, bias, spec: ConvSpec, workspace, out) -> None:
    """Cross-correlation of x (N, C, H, W) and w (K, C/groups, R, S), plus bias, through the activation."""
    _forward(_FORWARD, x, w, bias, out, spec, out)


def forward_residual(x, w, bias, residual, spec: ConvSpec, workspace, out) -> None:
    """As :func:`forward`, with residual (N, K, P, Q) added before the activation."""
    _forward(_FORWARD_RESIDUAL, x, w, bias, residual, spec, out)


def _forward(kernels: list[CudaKernel], x, w, bias, residual, spec: ConvSpec, out) -> None:
    """Both of them; the kernels of the first never read the residual."""
    inner, outer = spec.c // spec.groups, spec.k // spec.groups
    number = choose_tile(outer, TENSOR_TILES)
    terms = inner * spec.kernel[0] * spec.kernel[1]
    pixels, extras = spec.n * spec.out[0] * spec.out[1], dict(biased=bias.size > 0, relu=spec.activation)
    grid = make_grid(TENSOR_TILES[number], outer, pixels, terms, spec.groups, **extras)
    kernels[number](grid.blocks, w, x, bias if bias.size else w, residual, out, geometry_of(spec, False), grid)


def input_grad(gy, w, spec: ConvSpec, workspace, out) -> None:
    """Gradient with respect to x, from gy (N, K, P, Q) and w (K, C/groups, R, S)."""
    inner, outer = spec.c // spec.groups, spec.k // spec.groups
    number = choose_tile(inner, TENSOR_TILES)
    terms = outer * spec.kernel[0] * spec.kernel[1]
    grid = make_grid(TENSOR_TILES[number], inner, spec.n * spec.size[0] * spec.size[1], terms, spec.groups)
    _INPUT_GRAD[number](grid.blocks, w, gy, w, out, out, geometry_of(spec, True), grid)


def weight_grad(x, gy, spec: ConvSpec, workspace, out) -> None:
    """Gradient with respect to w, from x (N, C, H, W) and gy (N, K, P, Q)."""
    inner, outer = spec.c // spec.groups, spec.k // spec.groups
    number = choose_tile(outer, TENSOR_TILES)
    columns, terms = inner * spec.kernel[0] * spec.kernel[1], spec.n * spec.out[0] * spec.out[1]
    parts = product_parts("weight_grad", product_of("weight_grad", spec))
    grid = make_grid(TENSOR_TILES[number], outer, columns, terms, spec.groups, parts)
    sums = out if grid.parts == 1 else workspace[: 4 * grid.parts * out.size].view(np.float32)
    _WEIGHT_GRAD[number](grid.blocks, gy, x, gy, sums, sums, geometry_of(spec, False), grid)
    if grid.parts > 1:
        add_parts(sums, out, grid.parts)
