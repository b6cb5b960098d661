"""The kernels of :mod:`.cuda_direct` over channels-last images: the same products, whose terms count channels first.

So neighbouring threads, which copy neighbouring terms of x or gy (the weight gradient: columns), read neighbouring channels
of a pixel; and the rows of a thread's results, four neighbours each, are neighbouring channels of y or x in memory.
"""

from __future__ import annotations

from ..cuda.gemm import gemm_kernel
from ..cuda.language import inlined, int32, quotient, uint32
from ..cuda.tiles import TILES
from .direct_geometry import Geometry


@inlined
def _filter_at(group, m, t, g):
    """Where w of filter m of the group lies at t = position · channels + channel."""
    position = quotient(t, g.by_taps, g.by_taps_shift)
    return int32(((group * g.outer + m) * g.inner + t - position * g.inner) * g.taps + position)


@inlined
def _met_at(group, tap, pixel, g):
    """Where in x a tap meets an output pixel."""
    position = quotient(tap, g.by_taps, g.by_taps_shift)
    channel = int32(tap - position * g.inner)
    r = quotient(position, g.by_kernel_width, g.by_kernel_width_shift)
    s = int32(position - r * g.kernel_width)
    n = quotient(pixel, g.by_pixels, g.by_pixels_shift)
    rest = int32(pixel - n * g.pixels)
    p = quotient(rest, g.by_row, g.by_row_shift)
    q = int32(rest - p * g.row)
    h = int32(p * g.stride_h - g.top + r * g.dilation_h)
    v = int32(q * g.stride_w - g.left + s * g.dilation_w)
    if uint32(h) < uint32(g.height) and uint32(v) < uint32(g.width):
        return int32(((n * g.height + h) * g.width + v) * g.channels + group * g.inner + channel)
    return int32(-1)


@inlined
def _window_at(group, t, j, g):
    return _met_at(group, t, j, g)


@inlined
def _pixel_place(part, group, m, j, g):
    """Where y of filter m lies at pixel j, or one part of its sums."""
    return int32(part * g.results + j * g.filters + group * g.outer + m)


@inlined
def _turned_at(group, m, t, g):
    """Where w of input channel m lies at t = position · filters + filter."""
    position = quotient(t, g.by_taps, g.by_taps_shift)
    return int32(((group * g.outer + t - position * g.outer) * g.inner + m) * g.taps + position)


@inlined
def _reaching_at(group, t, j, g):
    """Where gy of the output pixel that met pixel j of x through tap t lies, if there is one."""
    position = quotient(t, g.by_taps, g.by_taps_shift)
    k = int32(t - position * g.outer)
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
    return int32(((n * g.out_height + p) * g.out_width + q) * g.filters + group * g.outer + k)


@inlined
def _input_place(part, group, m, j, g):
    return int32(part * g.results + j * g.channels + group * g.inner + m)


@inlined
def _gradient_at(group, m, t, g):
    """Where gy of filter m lies at pixel t."""
    return int32(t * g.filters + group * g.outer + m)


@inlined
def _tap_at(group, t, j, g):
    return _met_at(group, j, t, g)


@inlined
def _weight_place(part, group, m, j, g):
    """Where one part's gradient of w of filter m lies at tap j = position · channels + channel."""
    position = quotient(j, g.by_taps, g.by_taps_shift)
    return int32(((part * g.filters + group * g.outer + m) * g.inner + j - position * g.inner) * g.taps + position)


def _kernels(direction: str, a_at, b_at, place, t_fastest: bool = True, added: bool = False):
    """One kernel for each tile."""
    return [
        gemm_kernel(
            f"conv-direct-last-{direction}-{t.rows}x{t.columns}", t, a_at, b_at, place, Geometry, t_fastest, added
        )
        for t in TILES
    ]


FORWARD = {
    False: _kernels("forward", _filter_at, _window_at, _pixel_place),
    True: _kernels("forward_residual", _filter_at, _window_at, _pixel_place, added=True),
}
INPUT_GRAD = {False: _kernels("input_grad", _turned_at, _reaching_at, _input_place)}
WEIGHT_GRAD = {False: _kernels("weight_grad", _gradient_at, _tap_at, _weight_place, t_fastest=False)}
