"""The 1x1 convolution on a GPU: the matrix product of :mod:`convkern.kernels.cuda.gemm` over pixels that lie side by side.

x (N, C, L), w (K, C), y (N, K, L); columns of the product are the pixels of all images.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..cuda.gemm import gemm_kernel
from ..cuda.kernel import CudaKernel
from ..cuda.language import divider, inlined, int32, quotient
from ..cuda.sums import add_parts
from ..cuda.tiles import TILES, choose_tile, make_grid, product_parts
from ..spec import PointwiseSpec


class Geometry(NamedTuple):
    """The numbers of a PointwiseSpec that a kernel needs, and how to divide by the pixels of an image."""

    c: int
    k: int
    pixels: int
    by_pixels: int
    by_pixels_shift: int


@lru_cache(maxsize=1024)
def _geometry(spec: PointwiseSpec) -> Geometry:
    return Geometry(spec.c, spec.k, spec.pixels, *divider(max(spec.pixels, 1)))


@inlined
def _at(channels, channel, pixel, g):
    """Where a channel's pixel, counted over all images, lies in an array (N, channels, L)."""
    n = quotient(pixel, g.by_pixels, g.by_pixels_shift)
    return int32((n * channels + channel) * g.pixels + pixel - n * g.pixels)


@inlined
def _weight_at(group, m, t, g):
    return int32(m * g.c + t)


@inlined
def _turned_at(group, m, t, g):
    return int32(t * g.c + m)


@inlined
def _pixel_of_x_at(group, t, j, g):
    return _at(g.c, t, j, g)


@inlined
def _pixel_of_gy_at(group, t, j, g):
    return _at(g.k, t, j, g)


@inlined
def _row_of_gy_at(group, m, t, g):
    return _at(g.k, m, t, g)


@inlined
def _column_of_x_at(group, t, j, g):
    return _at(g.c, j, t, g)


@inlined
def _y_place(part, group, m, j, g):
    return _at(g.k, m, j, g)


@inlined
def _gx_place(part, group, m, j, g):
    return _at(g.c, m, j, g)


@inlined
def _gw_place(part, group, m, j, g):
    return int32((part * g.k + m) * g.c + j)


def _kernels(direction: str, a_at, b_at, place, t_fastest: bool = False, added: bool = False) -> list[CudaKernel]:
    """One kernel for each tile."""
    return [
        gemm_kernel(f"pointwise-{direction}-{t.rows}x{t.columns}", t, a_at, b_at, place, Geometry, t_fastest, added)
        for t in TILES
    ]


_FORWARD = _kernels("forward", _weight_at, _pixel_of_x_at, _y_place)
_FORWARD_RESIDUAL = _kernels("forward_residual", _weight_at, _pixel_of_x_at, _y_place, added=True)
_INPUT_GRAD = _kernels("input_grad", _turned_at, _pixel_of_gy_at, _gx_place)
_WEIGHT_GRAD = _kernels("weight_grad", _row_of_gy_at, _column_of_x_at, _gw_place, t_fastest=True)


def forward(x, w, bias, spec: PointwiseSpec, workspace, out) -> None:
    """y[n, k, l] = bias[k] + sum over c of w[k, c] · x[n, c, l], through the activation."""
    _forward(_FORWARD, x, w, bias, out, spec, out)


def forward_residual(x, w, bias, residual, spec: PointwiseSpec, workspace, out) -> None:
    """As :func:`forward`, with residual (N, K, L) added before the activation."""
    _forward(_FORWARD_RESIDUAL, x, w, bias, residual, spec, out)


def _forward(kernels: list[CudaKernel], x, w, bias, residual, spec: PointwiseSpec, out) -> None:
    """Both of them; the kernels of the first never read the residual."""
    number = choose_tile(spec.k)
    extras = dict(biased=bias.size > 0, relu=spec.activation)
    grid = make_grid(TILES[number], spec.k, spec.n * spec.pixels, spec.c, **extras)
    kernels[number](grid.blocks, w, x, bias if bias.size else w, residual, out, _geometry(spec), grid)


def input_grad(gy, w, spec: PointwiseSpec, workspace, out) -> None:
    """gx[n, c, l] = sum over k of w[k, c] · gy[n, k, l]."""
    number = choose_tile(spec.c)
    grid = make_grid(TILES[number], spec.c, spec.n * spec.pixels, spec.k)
    _INPUT_GRAD[number](grid.blocks, w, gy, w, out, out, _geometry(spec), grid)


def weight_grad(x, gy, spec: PointwiseSpec, workspace, out) -> None:
    """gw[k, c] = sum over n, l of gy[n, k, l] · x[n, c, l]."""
    number, terms = choose_tile(spec.k), spec.n * spec.pixels
    grid = make_grid(TILES[number], spec.k, spec.c, terms, parts=product_parts(spec.k, spec.c, terms))
    sums = out if grid.parts == 1 else workspace[: 4 * grid.parts * out.size].view(np.float32)
    _WEIGHT_GRAD[number](grid.blocks, gy, x, gy, sums, sums, _geometry(spec), grid)
    if grid.parts > 1:
        add_parts(sums, out, grid.parts)
