"""The 1x1 convolution on a GPU: the matrix product of :mod:`convkern.kernels.cuda.gemm` over pixels that lie side by side.

x (N, C, L), w (K, C), y (N, K, L); columns of the product are the pixels of all images. Where blocks are few, sums are
cut into parts, which are added in order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..cuda.gemm import gemm_kernel, multiply
from ..cuda.kernel import CudaKernel
from ..cuda.language import divider, inlined, int32, quotient
from ..cuda.tiles import TILES, product_of
from ..spec import PointwiseSpec


class Geometry(NamedTuple):
    """The numbers of a PointwiseSpec that a kernel needs, and how to divide by the pixels of an image."""

    n: int
    c: int
    k: int
    pixels: int
    by_pixels: int
    by_pixels_shift: int


@lru_cache(maxsize=1024)
def _geometry(spec: PointwiseSpec) -> Geometry:
    return Geometry(spec.n, spec.c, spec.k, spec.pixels, *divider(max(spec.pixels, 1)))


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
    return int32(part * g.n * g.k * g.pixels + _at(g.k, m, j, g))


@inlined
def _gx_place(part, group, m, j, g):
    return int32(part * g.n * g.c * g.pixels + _at(g.c, m, j, g))


@inlined
def _gw_place(part, group, m, j, g):
    return int32((part * g.k + m) * g.c + j)


def _kernels(direction: str, a_at, b_at, place, t_fastest: bool = False, added: bool = False) -> list[CudaKernel]:
    """One kernel for each tile."""
    return [
        gemm_kernel(f"pointwise-{direction}-{t.rows}x{t.columns}", t, a_at, b_at, place, Geometry, t_fastest, added)
        for t in TILES
    ]


_FORWARD = {
    False: _kernels("forward", _weight_at, _pixel_of_x_at, _y_place),
    True: _kernels("forward_residual", _weight_at, _pixel_of_x_at, _y_place, added=True),
}
_INPUT_GRAD = {False: _kernels("input_grad", _turned_at, _pixel_of_gy_at, _gx_place)}
_WEIGHT_GRAD = {False: _kernels("weight_grad", _row_of_gy_at, _column_of_x_at, _gw_place, t_fastest=True)}


def forward(x, w, bias, spec: PointwiseSpec, workspace, out) -> None:
    """y[n, k, l] = bias[k] + sum over c of w[k, c] · x[n, c, l], through the activation."""
    forward_residual(x, w, bias, None, spec, workspace, out)


def forward_residual(x, w, bias, residual, spec: PointwiseSpec, workspace, out) -> None:
    """As :func:`forward`, with residual (N, K, L) added before the activation, unless it is None."""
    product, geometry = product_of("forward", spec), _geometry(spec)
    multiply(
        _FORWARD,
        "forward",
        product,
        w,
        x,
        bias,
        residual,
        geometry,
        workspace,
        out,
        spec.k,
        spec.pixels,
        spec.activation,
    )


def input_grad(gy, w, spec: PointwiseSpec, workspace, out) -> None:
    """gx[n, c, l] = sum over k of w[k, c] · gy[n, k, l]."""
    product = product_of("input_grad", spec)
    multiply(_INPUT_GRAD, "input_grad", product, w, gy, None, None, _geometry(spec), workspace, out)


def weight_grad(x, gy, spec: PointwiseSpec, workspace, out) -> None:
    """gw[k, c] = sum over n, l of gy[n, k, l] · x[n, c, l]."""
    product = product_of("weight_grad", spec)
    multiply(_WEIGHT_GRAD, "weight_grad", product, gy, x, None, None, _geometry(spec), workspace, out)
