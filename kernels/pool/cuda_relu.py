"""Backward through average pooling, the ReLU before it and the bias before that, in one pass; see cpu_relu.py.

A block goes over a part of one channel: each thread finds the window of its pixel, and the block adds up what it wrote.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..cuda.images import CHANNELS_LAST, NCHW, flat, is_last
from ..cuda.kernel import CudaKernel
from ..cuda.language import cuda, divider, float32, inlined, int32, quotient
from ..cuda.sums import THREADS, add_parts, block_sum, column_place, column_sum
from ..cuda.tiles import Columns, cut_channels, cut_columns, side_by_side
from ..spec import PoolSpec


class Pixels(NamedTuple):
    """The pixels of y (N, C, H, W), of which each channel's are cut into parts, and the windows (P, Q) over them."""

    channels: int
    pixels: int
    by_pixels: int
    by_pixels_shift: int
    width: int
    by_width: int
    by_width_shift: int
    by_down: int
    by_down_shift: int
    by_across: int
    by_across_shift: int
    out_height: int
    out_width: int
    divisor: int
    terms: int
    chunk: int


@inlined
def _share(gy, y, plane, pixel, channel, on, place, lines):
    """Where an element of y lies, and what its window and the ReLU let through to it."""
    h = quotient(pixel, on.by_width, on.by_width_shift)
    p = quotient(h, on.by_down, on.by_down_shift)
    q = quotient(int32(pixel - h * on.width), on.by_across, on.by_across_shift)
    at = place(int32(plane * on.pixels + pixel), channel, lines)
    v = float32(0)
    if p < on.out_height and q < on.out_width and not y[at] <= float32(0):  # NaN passes
        v = gy[place(int32((plane * on.out_height + p) * on.out_width + q), channel, lines)] / float32(on.divisor)
    return at, v


_at_nchw, _at_last = NCHW.place, CHANNELS_LAST.place


def _body(gy, y, g, sums, on):
    partial = cuda.shared.array(THREADS, float32)
    me = int32(cuda.threadIdx.x)
    part = int32(int32(cuda.blockIdx.x) // on.channels)
    channel = int32(int32(cuda.blockIdx.x) - part * on.channels)
    last = int32(min(int32(part * on.chunk + on.chunk), on.terms))
    total = float32(0)
    e = int32(part * on.chunk + me)
    while e < last:
        n = quotient(e, on.by_pixels, on.by_pixels_shift)
        at, v = _share(gy, y, int32(n * on.channels + channel), int32(e - n * on.pixels), channel, on, _at_nchw, on)
        g[at] = v
        total += v
        e = int32(e + THREADS)
    total = block_sum(partial, me, total)
    if me == 0:
        sums[int32(part * on.channels + channel)] = total


def _last_body(gy, y, g, sums, on, columns):
    # channels-last: a row of the columns is a pixel
    partial = cuda.shared.array(THREADS, float32)
    part, channel, row, last = column_place(columns)
    total = float32(0)
    if channel < on.channels:
        while row < last:
            n = quotient(row, on.by_pixels, on.by_pixels_shift)
            at, v = _share(gy, y, n, int32(row - n * on.pixels), channel, on, _at_last, on)
            g[at] = v
            total += v
            row = int32(row + (int32(THREADS) >> columns.shift))
    total = column_sum(partial, columns.shift, total)
    if int32(cuda.threadIdx.x) >> columns.shift == 0 and channel < on.channels:
        sums[int32(part * on.channels + channel)] = total


_F = "float32"
_PASS = CudaKernel("avg_relu_bias_backward", _body, (_F, _F, _F, _F, Pixels), THREADS)
_PASS_LAST = CudaKernel("avg_relu_bias_backward-last", _last_body, (_F, _F, _F, _F, Pixels, Columns), THREADS)


@lru_cache(maxsize=1024)
def _cut(spec: PoolSpec) -> tuple[int, Pixels]:
    """Parts of a channel, and the kernel's numbers."""
    pixels = spec.size[0] * spec.size[1]
    terms = spec.n * pixels
    chunk, parts = cut_channels(spec.c, terms)
    divisors = (*divider(spec.size[1]), *divider(spec.kernel[0]), *divider(spec.kernel[1]))
    divisor = spec.divisor or spec.kernel[0] * spec.kernel[1]
    on = Pixels(spec.c, pixels, *divider(pixels), spec.size[1], *divisors, *spec.out, divisor, terms, chunk)
    return parts, on


def avg_relu_bias_backward(gy, y, spec: PoolSpec, workspace, out, sums) -> None:
    """out = each window's gy shared out evenly where the ReLU's result y is positive or NaN, else 0; its sums (C,)."""
    parts, on = _cut(spec)
    last = side_by_side(spec.c, on.pixels) or any(map(is_last, (gy, y, out)))
    columns = cut_columns(spec.c, on.terms)
    parts = columns.parts if last else parts
    partial = sums if parts == 1 else workspace[: 4 * parts * spec.c].view(np.float32)
    if last:
        _PASS_LAST(columns.blocks, flat(gy), flat(y), flat(out), partial, on, columns)
    else:
        _PASS(parts * spec.c, gy, y, out, partial, on)
    if parts > 1:
        add_parts(partial, sums, parts)
