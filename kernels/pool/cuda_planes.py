"""Pooling on a GPU: a thread computes one pixel of the result, so nothing is added by two threads and the order is fixed.

Forward, the pixel is one of y. Backward it is one of gx, which collects from the windows that hold it.

Layout: all images NCHW, or all channels-last, whose threads lie over channels; out never aliases an input.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from ..cuda.images import CHANNELS_LAST, NCHW, Lines, flat, is_last, lines
from ..cuda.kernel import CudaKernel
from ..cuda.language import divider, float32, inlined, int32, int64, quotient, thread, uint32
from ..spec import PoolSpec

THREADS = 256


class Windows(NamedTuple):
    """The numbers of a PoolSpec that a kernel needs, and how to divide by some of them."""

    total: int  # pixels of the result over all planes
    height: int
    width: int
    out_height: int
    out_width: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    bottom: int
    right: int
    dilation_h: int
    dilation_w: int
    counted: int
    divisor: int
    plane: int  # pixels of a plane of the result
    by_plane: int
    by_plane_shift: int
    row: int
    by_row: int
    by_row_shift: int
    by_stride_h: int
    by_stride_h_shift: int
    by_stride_w: int
    by_stride_w_shift: int


@lru_cache(maxsize=1024)
def _windows(spec: PoolSpec, over_input: bool) -> Windows:
    height, width = spec.size if over_input else spec.out
    (top, bottom), (left, right) = spec.padding
    return Windows(
        spec.n * spec.c * height * width, *spec.size, *spec.out, *spec.kernel, *spec.stride, top, left, bottom, right,
        *spec.dilation, spec.count_include_pad, spec.divisor, height * width, *divider(height * width), width,
        *divider(width), *divider(spec.stride[0]), *divider(spec.stride[1]),
    )  # fmt: skip


@inlined
def _first(start, step):
    """The first of start, start + step, … that is not negative."""
    return start if start >= 0 else int32(start + int32(uint32(step - 1 - start) // uint32(step)) * step)


@inlined
def _count(start_h, start_w, g):
    """What the sum of the window at a corner is divided by."""
    if g.divisor:
        return float32(g.divisor)
    if g.counted:
        h = int32(min(start_h + g.kernel_h, g.height + g.bottom) - start_h)
        v = int32(min(start_w + g.kernel_w, g.width + g.right) - start_w)
    else:
        h = int32(min(start_h + g.kernel_h, g.height) - max(start_h, 0))
        v = int32(min(start_w + g.kernel_w, g.width) - max(start_w, 0))
    return float32(int32(h * v))


@inlined
def _windows_from(position, before, kernel, dilation, by_stride, by_stride_shift):
    """The first window that reaches a coordinate, counted from the padding's start."""
    lowest = int32(position + before - dilation * (kernel - 1))
    return int32(0) if lowest <= 0 else int32(quotient(int32(lowest - 1), by_stride, by_stride_shift) + 1)


@inlined
def _windows_to(position, before, by_stride, by_stride_shift, out):
    """One past the last window that reaches a coordinate."""
    return int32(min(quotient(int32(position + before), by_stride, by_stride_shift) + 1, out))


def _max_forward(split, place):
    def body(x, indices, y, g, lines):
        i = thread()
        if i < g.total:
            plane, channel, rest = split(i, g, lines)
            p = quotient(rest, g.by_row, g.by_row_shift)
            start_h, start_w = int32(p * g.stride_h - g.top), int32((rest - p * g.row) * g.stride_w - g.left)
            end_h = int32(min(start_h + g.dilation_h * (g.kernel_h - 1) + 1, g.height))
            end_w = int32(min(start_w + g.dilation_w * (g.kernel_w - 1) + 1, g.width))
            first_h, first_w = _first(start_h, g.dilation_h), _first(start_w, g.dilation_w)
            best, where = float32(-math.inf), int32(first_h * g.width + first_w)
            h = first_h
            while h < end_h:
                v = first_w
                while v < end_w:
                    value = x[place(int32((plane * g.height + h) * g.width + v), channel, lines)]
                    if value > best or value != value:
                        best, where = value, int32(h * g.width + v)
                    v = int32(v + g.dilation_w)
                h = int32(h + g.dilation_h)
            y[i] = best
            indices[i] = int64(where)

    return body


def _max_backward(split, place):
    def body(gy, indices, gx, g, lines):
        i = thread()
        if i < g.total:
            plane, channel, rest = split(i, g, lines)
            h = quotient(rest, g.by_row, g.by_row_shift)
            v = int32(rest - h * g.row)
            p = _windows_from(h, g.top, g.kernel_h, g.dilation_h, g.by_stride_h, g.by_stride_h_shift)
            p_end = _windows_to(h, g.top, g.by_stride_h, g.by_stride_h_shift, g.out_height)
            q_first = _windows_from(v, g.left, g.kernel_w, g.dilation_w, g.by_stride_w, g.by_stride_w_shift)
            q_end = _windows_to(v, g.left, g.by_stride_w, g.by_stride_w_shift, g.out_width)
            total = float32(0)
            while p < p_end:
                q = q_first
                while q < q_end:
                    window = place(int32((plane * g.out_height + p) * g.out_width + q), channel, lines)
                    if indices[window] == int64(rest):
                        total += gy[window]
                    q = int32(q + 1)
                p = int32(p + 1)
            gx[i] = total

    return body


def _avg_forward(split, place):
    def body(x, y, g, lines):
        i = thread()
        if i < g.total:
            plane, channel, rest = split(i, g, lines)
            p = quotient(rest, g.by_row, g.by_row_shift)
            start_h, start_w = int32(p * g.stride_h - g.top), int32((rest - p * g.row) * g.stride_w - g.left)
            total = float32(0)
            h = int32(max(start_h, 0))
            while h < min(start_h + g.kernel_h, g.height):
                v = int32(max(start_w, 0))
                while v < min(start_w + g.kernel_w, g.width):
                    total += x[place(int32((plane * g.height + h) * g.width + v), channel, lines)]
                    v = int32(v + 1)
                h = int32(h + 1)
            y[i] = total / _count(start_h, start_w, g)

    return body


def _avg_backward(split, place):
    def body(gy, gx, g, lines):
        i = thread()
        if i < g.total:
            plane, channel, rest = split(i, g, lines)
            h = quotient(rest, g.by_row, g.by_row_shift)
            v = int32(rest - h * g.row)
            p = _windows_from(h, g.top, g.kernel_h, int32(1), g.by_stride_h, g.by_stride_h_shift)
            p_end = _windows_to(h, g.top, g.by_stride_h, g.by_stride_h_shift, g.out_height)
            q_first = _windows_from(v, g.left, g.kernel_w, int32(1), g.by_stride_w, g.by_stride_w_shift)
            q_end = _windows_to(v, g.left, g.by_stride_w, g.by_stride_w_shift, g.out_width)
            total = float32(0)
            while p < p_end:
                q = q_first
                while q < q_end:
                    count = _count(int32(p * g.stride_h - g.top), int32(q * g.stride_w - g.left), g)
                    at = place(int32((plane * g.out_height + p) * g.out_width + q), channel, lines)
                    total += gy[at] / count
                    q = int32(q + 1)
                p = int32(p + 1)
            gx[i] = total

    return body


_BODIES = {
    "max_forward": (_max_forward, ("float32", "int64", "float32")),
    "max_backward": (_max_backward, ("float32", "int64", "float32")),
    "avg_forward": (_avg_forward, ("float32", "float32")),
    "avg_backward": (_avg_backward, ("float32", "float32")),
}
_KERNELS = {
    (name, layout is CHANNELS_LAST): CudaKernel(
        name + layout.suffix, body(layout.split, layout.place), (*arrays, Windows, Lines), THREADS
    )
    for name, (body, arrays) in _BODIES.items()
    for layout in (NCHW, CHANNELS_LAST)
}


def _run(name: str, spec: PoolSpec, over_input: bool, *images) -> None:
    windows = _windows(spec, over_input)
    kernel = _KERNELS[name, any(map(is_last, images))]
    kernel(-(-windows.total // THREADS), *map(flat, images), windows, lines(spec.c))


def max_forward(x, spec: PoolSpec, workspace, indices, out) -> None:
    """The largest value of each window, and its flat position in the input plane."""
    _run("max_forward", spec, False, x, indices, out)


def max_backward(gy, indices, spec: PoolSpec, workspace, out) -> None:
    """Each output gradient goes to the pixel that won its window."""
    _run("max_backward", spec, True, gy, indices, out)


def avg_forward(x, spec: PoolSpec, workspace, out) -> None:
    """The mean of each window."""
    _run("avg_forward", spec, False, x, out)


def avg_backward(gy, spec: PoolSpec, workspace, out) -> None:
    """Each output gradient is shared out evenly over its window."""
    _run("avg_backward", spec, True, gy, out)
