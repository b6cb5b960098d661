"""Convolution and its gradients on a GPU as implicit GEMMs in float32: any stride, padding, dilation and groups.

Forward: c[k, pixel of y] = Σ w(k, tap) · x(tap, pixel); a tap is a channel and a kernel position. Input gradient: the same
over gy with the taps of each output channel, where a stride leaves out those that meet no pixel of y. Weight gradient:
c[k, tap] = Σ gy(k, pixel) · x(tap, pixel). Where blocks are few, sums are cut into parts, which are added in order.

Layout: all images NCHW, or all channels-last (:mod:`.direct_last`). out never aliases an input. Padding is never stored: what
lies outside reads as zero.

Source: Chetlur et al., "cuDNN: Efficient primitives for deep learning", 2014.
"""

from __future__ import annotations

from ..cuda.gemm import gemm_kernel, multiply
from ..cuda.images import flat, is_last
from ..cuda.kernel import CudaKernel
from ..cuda.language import inlined, int32, quotient, uint32
from ..cuda.sums import channel_sums
from ..cuda.tiles import TILES, product_of
from ..spec import ConvSpec
from . import direct_last
from .direct_geometry import Geometry, geometry_of, geometry_of_last


@inlined
def filter_at(group, m, t, g):
    """Where w of filter m of the group lies at tap t = channel · R·S + position: a row of memory."""
    return int32((group * g.outer + m) * g.inner * g.taps + t)


@inlined
def _met_at(group, tap, pixel, g):
    """Where in x a tap meets an output pixel."""
    channel = quotient(tap, g.by_taps, g.by_taps_shift)
    position = int32(tap - channel * g.taps)
    r = quotient(position, g.by_kernel_width, g.by_kernel_width_shift)
    s = int32(position - r * g.kernel_width)
    n = quotient(pixel, g.by_pixels, g.by_pixels_shift)
    rest = int32(pixel - n * g.pixels)
    p = quotient(rest, g.by_row, g.by_row_shift)
    q = int32(rest - p * g.row)
    h = int32(p * g.stride_h - g.top + r * g.dilation_h)
    v = int32(q * g.stride_w - g.left + s * g.dilation_w)
    if uint32(h) < uint32(g.height) and uint32(v) < uint32(g.width):
        return int32(((n * g.channels + group * g.inner + channel) * g.height + h) * g.width + v)
    return int32(-1)


@inlined
def window_at(group, t, j, g):
    return _met_at(group, t, j, g)


@inlined
def pixel_place(part, group, m, j, g):
    """Where y of filter m lies at pixel j, or one part of its sums."""
    n = quotient(j, g.by_pixels, g.by_pixels_shift)
    return int32(part * g.results + (n * g.filters + group * g.outer + m) * g.pixels + j - n * g.pixels)


@inlined
def turned_at(group, m, t, g):
    """Where w of input channel m lies at t = filter · R·S + position."""
    k = quotient(t, g.by_taps, g.by_taps_shift)
    return int32(((group * g.outer + k) * g.inner + m) * g.taps + t - k * g.taps)


@inlined
def reaching_at(group, t, j, g):
    """Where gy of the output pixel that met pixel j of x through tap t lies, if there is one."""
    k = quotient(t, g.by_taps, g.by_taps_shift)
    position = int32(t - k * g.taps)
    r = quotient(position, g.by_kernel_width, g.by_kernel_width_shift)
    s = int32(position - r * g.kernel_width)
    n = quotient(j, g.by_pixels, g.by_pixels_shift)
    rest = int32(j - n * g.pixels)
    h = quotient(rest, g.by_row, g.by_row_shift)
    v = int32(rest - h * g.row)
    down, across = int32(h + g.top - r * g.dilation_h), int32(v + g.left - s * g.dilation_w)
    if down < 0 or across < 0:
        return int32(-1)
    p, q = quotient(down, g.by_stride_h, g.by_stride_h_shift), quotient(across, g.by_stride_w, g.by_stride_w_shift)
    if int32(p * g.stride_h) != down or int32(q * g.stride_w) != across or p >= g.out_height or q >= g.out_width:
        return int32(-1)
    return int32(((n * g.filters + group * g.outer + k) * g.out_height + p) * g.out_width + q)


@inlined
def input_place(part, group, m, j, g):
    n = quotient(j, g.by_pixels, g.by_pixels_shift)
    return int32(part * g.results + (n * g.channels + group * g.inner + m) * g.pixels + j - n * g.pixels)


@inlined
def gradient_at(group, m, t, g):
    """Where gy of filter m lies at pixel t."""
    n = quotient(t, g.by_pixels, g.by_pixels_shift)
    return int32((n * g.filters + group * g.outer + m) * g.pixels + t - n * g.pixels)


@inlined
def tap_at(group, t, j, g):
    return _met_at(group, j, t, g)


@inlined
def weight_place(part, group, m, j, g):
    """Where one part's gradient of w of filter m lies at tap j."""
    return int32(((part * g.filters) + group * g.outer + m) * g.inner * g.taps + j)


def _kernels(direction: str, a_at, b_at, place, t_fastest: bool = False, added: bool = False) -> list[CudaKernel]:
    """One kernel for each tile."""
    return [
        gemm_kernel(f"conv-direct-{direction}-{t.rows}x{t.columns}", t, a_at, b_at, place, Geometry, t_fastest, added)
        for t in TILES
    ]


_FORWARD = {
    False: _kernels("forward", filter_at, window_at, pixel_place),
    True: _kernels("forward_residual", filter_at, window_at, pixel_place, added=True),
}
_INPUT_GRAD = {False: _kernels("input_grad", turned_at, reaching_at, input_place)}
_WEIGHT_GRAD = {False: _kernels("weight_grad", gradient_at, tap_at, weight_place, t_fastest=True)}


def forward(x, w, bias, spec: ConvSpec, workspace, out) -> None:
    """Cross-correlation of x (N, C, H, W) and w (K, C/groups, R, S), plus bias, through the activation."""
    forward_residual(x, w, bias, None, spec, workspace, out)


def forward_residual(x, w, bias, residual, spec: ConvSpec, workspace, out) -> None:
    """As :func:`forward`, with residual (N, K, P, Q) added before the activation, unless it is None."""
    product, pixels, kernels, geometry = product_of("forward", spec), spec.out[0] * spec.out[1], _FORWARD, geometry_of
    if is_last(x) or is_last(out):
        pixels, kernels, geometry = 1, direct_last.FORWARD, geometry_of_last
        x, out, residual = flat(x), flat(out), None if residual is None else flat(residual)
    multiply(
        kernels, "forward", product, w, x, bias, residual, geometry(spec, False), workspace, out, spec.k, pixels,
        spec.activation,
    )  # fmt: skip


def input_grad(gy, w, spec: ConvSpec, workspace, out) -> None:
    """Gradient with respect to x, from gy (N, K, P, Q) and w (K, C/groups, R, S)."""
    product, kernels, geometry = product_of("input_grad", spec), _INPUT_GRAD, geometry_of
    if is_last(gy) or is_last(out):
        kernels, geometry, gy, out = direct_last.INPUT_GRAD, geometry_of_last, flat(gy), flat(out)
    multiply(kernels, "input_grad", product, w, gy, None, None, geometry(spec, True), workspace, out)


def weight_grad(x, gy, spec: ConvSpec, workspace, out) -> None:
    """Gradient with respect to w, from x (N, C, H, W) and gy (N, K, P, Q)."""
    product, kernels, geometry = product_of("weight_grad", spec), _WEIGHT_GRAD, geometry_of
    if is_last(x) or is_last(gy):
        kernels, geometry, x, gy = direct_last.WEIGHT_GRAD, geometry_of_last, flat(x), flat(gy)
    multiply(kernels, "weight_grad", product, gy, x, None, None, geometry(spec, False), workspace, out)


def bias_grad(gy, spec: ConvSpec, workspace, out) -> None:
    """Gradient with respect to the bias: the sum of gy (N, K, P, Q) over images and pixels."""
    channel_sums(gy, spec.n, spec.k, spec.out[0] * spec.out[1], workspace, out)
