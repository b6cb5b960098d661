"""Batch normalisation on a GPU, in the passes of :mod:`.cpu_planes`; all numbers are float32, those of channels too.

The sums of a channel are cut into parts, a block for each, and added in an order that the shape decides. Statistics are those
of the distances from a channel's first element, so no mean is too large for float32. A part's variance is summed around its
own mean, in a second reading that the caches serve; the parts are put together by the formula of Chan, Golub and LeVeque,
"Algorithms for computing the sample variance", 1983.

Layout: x, y, gy, gx, residual (N, C, L); affine (3 or 5, C). Outputs never alias inputs. Channels-last images come as
(N·L, C, 1): then a block adds up some rows of 32 neighbouring channels, a warp's threads side by side over them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..cuda.kernel import CudaKernel
from ..cuda.language import cuda, divider, float32, inlined, int32, quotient, thread
from ..cuda.sums import THREADS, add_parts, block_sum, column_place, column_sum
from ..cuda.tiles import Columns, cut_channels, cut_columns, side_by_side
from ..spec import NormSpec


class Planes(NamedTuple):
    """A NormSpec, how each channel's n · pixels elements are cut into parts, and how to divide by some numbers."""

    channels: int
    pixels: int
    by_pixels: int
    by_pixels_shift: int
    by_channels: int
    by_channels_shift: int
    terms: int  # of a channel
    chunk: int  # terms of a part
    parts: int
    total: int  # elements of all channels
    activation: int
    residual: int


def _planes(spec: NormSpec) -> Planes:
    terms = spec.n * spec.pixels
    if side_by_side(spec.c, spec.pixels):
        columns = cut_columns(spec.c, terms)
        chunk, parts = columns.chunk, columns.parts
    else:
        chunk, parts = cut_channels(spec.c, terms)
    return Planes(
        spec.c, spec.pixels, *divider(max(spec.pixels, 1)), *divider(spec.c), terms, chunk,
        parts, terms * spec.c, spec.activation, spec.residual,
    )  # fmt: skip


@inlined
def _element(planes, channel, e):
    """Where the e-th element of a channel lies."""
    n = quotient(e, planes.by_pixels, planes.by_pixels_shift)
    return int32((n * planes.channels + channel) * planes.pixels + e - n * planes.pixels)


def _moments_body(x, sums, planes):
    # sums (parts, 2, C): mean distance from the channel's first element, and sum of squared differences from it, of a part
    partial = cuda.shared.array(THREADS, float32)
    me = int32(cuda.threadIdx.x)
    part = int32(int32(cuda.blockIdx.x) // planes.channels)
    channel = int32(int32(cuda.blockIdx.x) - part * planes.channels)
    first = int32(part * planes.chunk)
    last = int32(min(first + planes.chunk, planes.terms))
    origin = x[int32(channel * planes.pixels)]
    total = float32(0)
    e = int32(first + me)
    while e < last:
        total += x[_element(planes, channel, e)] - origin
        e = int32(e + THREADS)
    mean = block_sum(partial, me, total) / float32(int32(last - first))
    moved, squares = float32(0), float32(0)
    e = int32(first + me)
    while e < last:
        v = (x[_element(planes, channel, e)] - origin) - mean
        moved += v
        squares += v * v
        e = int32(e + THREADS)
    moved = block_sum(partial, me, moved)
    squares = block_sum(partial, me, squares)
    if me == 0:
        away = moved / float32(int32(last - first))  # what rounding took from the mean
        sums[int32(2 * part * planes.channels + channel)] = mean + away
        squares -= moved * away
        sums[int32((2 * part + 1) * planes.channels + channel)] = float32(0) if squares < float32(0) else squares


def _column_moments_body(x, sums, columns):
    # as _moments_body, for channels side by side
    partial = cuda.shared.array(THREADS, float32)
    part, channel, first, last = column_place(columns)
    step, count = int32(int32(THREADS) >> columns.shift), float32(int32(last - part * columns.chunk))
    inside = channel < columns.channels
    origin = x[channel] if inside else float32(0)
    last = last if inside else int32(0)
    total = float32(0)
    row = first
    while row < last:
        total += x[int32(row * columns.channels + channel)] - origin
        row = int32(row + step)
    mean = column_sum(partial, columns.shift, total) / count
    moved, squares = float32(0), float32(0)
    row = first
    while row < last:
        v = (x[int32(row * columns.channels + channel)] - origin) - mean
        moved += v
        squares += v * v
        row = int32(row + step)
    moved = column_sum(partial, columns.shift, moved)
    squares = column_sum(partial, columns.shift, squares)
    if int32(cuda.threadIdx.x) >> columns.shift == 0 and inside:
        away = moved / count
        sums[int32(2 * part * columns.channels + channel)] = mean + away
        squares -= moved * away
        sums[int32((2 * part + 1) * columns.channels + channel)] = float32(0) if squares < float32(0) else squares


def _join_body(x, sums, out, planes):
    # out (2, C): mean and variance of all parts together; a thread for each channel
    channel = thread()
    if channel < planes.channels:
        mean, squares = float32(0), float32(0)
        for part in range(planes.parts):
            before = int32(part * planes.chunk)
            more = int32(min(planes.chunk, int32(planes.terms - before)))
            share = float32(more) / float32(int32(before + more))
            step = sums[int32(2 * part * planes.channels + channel)] - mean
            squares += sums[int32((2 * part + 1) * planes.channels + channel)] + step * step * float32(before) * share
            mean += step * share
        out[channel] = x[int32(channel * planes.pixels)] + mean
        out[int32(planes.channels + channel)] = squares / float32(planes.terms)


def _forward_body(x, residual, affine, y, planes):
    i = thread()
    if i < planes.total:
        plane = quotient(i, planes.by_pixels, planes.by_pixels_shift)
        c = int32(plane - quotient(plane, planes.by_channels, planes.by_channels_shift) * planes.channels)
        moved = x[i] - affine[c]
        v = cuda.fma(moved, affine[int32(planes.channels + c)], affine[int32(2 * planes.channels + c)])
        if planes.residual:
            v += residual[i]
        if planes.activation:
            v = float32(0) if v <= float32(0) else v
        y[i] = v


@inlined
def _passed(g, moved, affine, c, planes):
    """What the ReLU lets through of g: its argument is computed again, to the last bit as _forward_body had it."""
    shown = cuda.fma(moved, affine[int32(planes.channels + c)], affine[int32(2 * planes.channels + c)])
    return float32(0) if shown <= float32(0) else g


def _sums_body(x, gy, y, affine, g, sums, planes):
    # sums (parts, 2, C): Σ g and Σ g·(x - center) of a part
    partial = cuda.shared.array(THREADS, float32)
    me = int32(cuda.threadIdx.x)
    part = int32(int32(cuda.blockIdx.x) // planes.channels)
    channel = int32(int32(cuda.blockIdx.x) - part * planes.channels)
    last = int32(min(int32(part * planes.chunk + planes.chunk), planes.terms))
    center = affine[channel]
    total, products = float32(0), float32(0)
    e = int32(part * planes.chunk + me)
    while e < last:
        at = _element(planes, channel, e)
        v, moved = gy[at], x[at] - center
        if planes.activation:
            if planes.residual:
                v = float32(0) if y[at] <= float32(0) else v
                g[at] = v
            else:
                v = _passed(v, moved, affine, channel, planes)
        total += v
        products += v * moved
        e = int32(e + THREADS)
    total = block_sum(partial, me, total)
    products = block_sum(partial, me, products)
    if me == 0:
        sums[int32(2 * part * planes.channels + channel)] = total
        sums[int32((2 * part + 1) * planes.channels + channel)] = products


def _column_sums_body(x, gy, y, affine, g, sums, columns, planes):
    # as _sums_body, for channels side by side
    partial = cuda.shared.array(THREADS, float32)
    part, channel, row, last = column_place(columns)
    total, products = float32(0), float32(0)
    if channel < columns.channels:
        center = affine[channel]
        while row < last:
            at = int32(row * columns.channels + channel)
            v, moved = gy[at], x[at] - center
            if planes.activation:
                if planes.residual:
                    v = float32(0) if y[at] <= float32(0) else v
                    g[at] = v
                else:
                    v = _passed(v, moved, affine, channel, planes)
            total += v
            products += v * moved
            row = int32(row + (int32(THREADS) >> columns.shift))
    total = column_sum(partial, columns.shift, total)
    products = column_sum(partial, columns.shift, products)
    if int32(cuda.threadIdx.x) >> columns.shift == 0 and channel < columns.channels:
        sums[int32(2 * part * columns.channels + channel)] = total
        sums[int32((2 * part + 1) * columns.channels + channel)] = products


def _input_grad_body(x, gy, affine, gx, planes):
    i = thread()
    if i < planes.total:
        plane = quotient(i, planes.by_pixels, planes.by_pixels_shift)
        c = int32(plane - quotient(plane, planes.by_channels, planes.by_channels_shift) * planes.channels)
        v, moved = gy[i], x[i] - affine[c]
        if planes.activation:
            v = _passed(v, moved, affine, c, planes)
        slope, offset = affine[int32(3 * planes.channels + c)], affine[int32(4 * planes.channels + c)]
        gx[i] = cuda.fma(moved, slope, cuda.fma(v, affine[int32(planes.channels + c)], offset))


_F = "float32"
_MOMENTS = CudaKernel("norm-moments", _moments_body, (_F, _F, Planes), THREADS)
_COLUMN_MOMENTS = CudaKernel("norm-column-moments", _column_moments_body, (_F, _F, Columns), THREADS)
_COLUMN_SUMS = CudaKernel("norm-column-sums", _column_sums_body, (_F, _F, _F, _F, _F, _F, Columns, Planes), THREADS)
_JOIN = CudaKernel("norm-join", _join_body, (_F, _F, _F, Planes), THREADS)
_FORWARD = CudaKernel("norm-forward", _forward_body, (_F, _F, _F, _F, Planes), THREADS)
_SUMS = CudaKernel("norm-sums", _sums_body, (_F, _F, _F, _F, _F, _F, Planes), THREADS)
_INPUT_GRAD = CudaKernel("norm-input_grad", _input_grad_body, (_F, _F, _F, _F, Planes), THREADS)


def _partial_sums(planes: Planes, workspace):
    return workspace[: 8 * planes.parts * planes.channels].view(np.float32)


def statistics(x, spec: NormSpec, workspace, out) -> None:
    """out (2, C) float32: mean and biased variance of every channel. The batch must not be empty."""
    planes = _planes(spec)
    sums = _partial_sums(planes, workspace)
    if side_by_side(spec.c, spec.pixels):
        columns = cut_columns(spec.c, spec.n)
        _COLUMN_MOMENTS(columns.blocks, x, sums, columns)
    else:
        _MOMENTS(planes.parts * planes.channels, x, sums, planes)
    _JOIN(-(-planes.channels // THREADS), x, sums, out, planes)


def forward(x, residual, affine, spec: NormSpec, workspace, out) -> None:
    """y = (x - center[c]) · scale[c] + shift[c] + residual, through the ReLU; residual is empty without ``spec.residual``."""
    planes = _planes(spec)
    _FORWARD(-(-planes.total // THREADS), x, residual if spec.residual else x, affine, out, planes)


def sums(x, gy, y, affine, spec: NormSpec, workspace, out, g) -> None:
    """out (2, C) float32: Σ g and Σ g·(x - center), where g is what the ReLU lets through of gy.

    With a residual and a ReLU, y is the forward result and g is written; otherwise both are empty.
    """
    planes = _planes(spec)
    found = out if planes.parts == 1 else _partial_sums(planes, workspace)
    masked = spec.residual and spec.activation
    arrays = x, gy, y if masked else gy, affine, g if masked else found, found
    if side_by_side(spec.c, spec.pixels):
        columns = cut_columns(spec.c, spec.n)
        _COLUMN_SUMS(columns.blocks, *arrays, columns, planes)
    else:
        _SUMS(planes.parts * planes.channels, *arrays, planes)
    if planes.parts > 1:
        add_parts(found, out, planes.parts)


def input_grad(x, gy, affine, spec: NormSpec, workspace, out) -> None:
    """gx = g · scale[c] + (x - center[c]) · slope[c] + offset[c], affine (5, C) = center, scale, shift, slope, offset.

    g is what the ReLU lets through of gy, found from x; a gy that is masked already comes without ``spec.activation``.
    """
    planes = _planes(spec)
    _INPUT_GRAD(-(-planes.total // THREADS), x, gy, affine, out, planes)
