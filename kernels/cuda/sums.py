"""Sums in an order that the shape decides: partial results added up and finished, and one number for each channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .kernel import CudaKernel
from .language import cuda, divider, float32, inlined, int32, quotient, thread, uint32
from .stored import STORED, bits, pointer, reader_and_writer, stored_as
from .tiles import COLUMN_THREADS, Columns, cut_channels, cut_columns, side_by_side

THREADS = COLUMN_THREADS


def _add_parts_body(sums, out, parts, size):
    i = thread()
    if i < size:
        total = float32(0)
        for part in range(parts):
            total += sums[int32(part * size + i)]
        out[i] = total


_ADD_PARTS = CudaKernel("add_parts", _add_parts_body, ("float32", "float32", "int", "int"), THREADS)


def add_parts(sums, out, parts: int) -> None:
    """out[i] = sums[0, i] + sums[1, i] + …, in that order; sums (parts, size of out)."""
    _ADD_PARTS(-(-out.size // THREADS), sums, out, parts, out.size)


class Finish(NamedTuple):
    """How parts of sums (parts, N, channels, pixels) become a result."""

    parts: int
    size: int
    channels: int
    pixels: int
    by_channels: int
    by_channels_shift: int
    by_pixels: int
    by_pixels_shift: int
    biased: int
    relu: int


def finish_kernel(stored: str, kind: str, read: Callable, write: Callable, added: bool) -> CudaKernel:
    """The kernel (sums, bias, residual, out, finish) for arrays of ``stored``, behind pointers to ``kind``.

    Inlined ``read`` makes a float32 of their element, ``write`` an element of a float32.
    """

    def body(sums, bias, residual, out, finish):
        i = thread()
        if i < finish.size:
            total = float32(0)
            for part in range(finish.parts):
                total += sums[int32(part * finish.size + i)]
            if finish.biased:
                plane = quotient(i, finish.by_pixels, finish.by_pixels_shift)
                image = quotient(plane, finish.by_channels, finish.by_channels_shift)
                total += read(bias[int32(plane - image * finish.channels)])
            if added:
                total += read(residual[i])
            if finish.relu and total <= float32(0):
                total = float32(0)
            out[i] = write(total)

    name = f"finish-{stored}{'-residual' * added}"
    return CudaKernel(name, body, ("float32", *(kind,) * 3, Finish), THREADS)


# For arrays of each kind: without and with a residual.
FINISH = {
    stored: {
        added: finish_kernel(stored, pointer(stored), *reader_and_writer(stored), added) for added in (False, True)
    }
    for stored in STORED
}


def finish(
    sums, bias, residual, out, parts: int, channels: int = 1, pixels: int = 1, relu: int = 0,
    kernels: dict[bool, Any] = FINISH["float32"],
) -> None:  # fmt: skip
    """out[n, c, l] = sums[0, n, c, l] + sums[1, n, c, l] + … in that order, + bias[c] + residual[n, c, l], through the
    activation; bias may be empty or None, residual None. ``kernels`` are those without and with a residual."""
    by_channels, by_pixels = divider(max(channels, 1)), divider(max(pixels, 1))
    biased, added = bias is not None and bias.size > 0, residual is not None
    given = Finish(parts, out.size, channels, pixels, *by_channels, *by_pixels, int(biased), relu)
    more = bias if biased else out, residual if added else out
    kernels[added](-(-out.size // THREADS), sums, *more, out, given)


def sums_of(workspace, out, parts: int) -> Any:
    """Where parts of the sums that ``out`` is made of come: to the workspace, or one of float32 to ``out`` itself."""
    direct = parts == 1 and stored_as(out) == "float32"
    return out if direct else workspace[: 4 * parts * out.size].view(np.float32)


def finish_sums(sums, out, parts: int) -> None:
    """Add up the parts, rounded to what ``out`` holds, where they are not ``out`` already."""
    stored = stored_as(out)
    if stored != "float32":
        finish(sums, None, None, bits(out), parts, kernels=FINISH[stored])
    elif parts > 1:
        add_parts(sums, out, parts)


@inlined
def block_sum(partial, me, value):
    """The sum of every thread's value, THREADS of them, in the order of a tree; all threads get it.

    ``partial`` is a shared array of THREADS float32.
    """
    cuda.syncthreads()  # the last sum has been read
    partial[me] = value
    cuda.syncthreads()
    half = int32(THREADS // 2)
    while half > 0:
        if me < half:
            partial[me] += partial[me + half]
        cuda.syncthreads()
        half = half >> 1
    return partial[0]


class Planes(NamedTuple):
    """Arrays (N, C, L) of which each channel's n · l elements are cut into parts."""

    channels: int
    pixels: int
    by_pixels: int
    by_pixels_shift: int
    terms: int
    chunk: int


def _channel_kernel(name: str, masked: bool) -> CudaKernel:
    """One block sums one part of one channel; ``masked`` leaves out what a ReLU with result y cut off, and writes g."""

    def body(gy, y, g, sums, planes):
        partial = cuda.shared.array(THREADS, float32)
        me = int32(cuda.threadIdx.x)
        part = int32(int32(cuda.blockIdx.x) // planes.channels)
        channel = int32(int32(cuda.blockIdx.x) - part * planes.channels)
        last = int32(min(int32(part * planes.chunk + planes.chunk), planes.terms))
        total = float32(0)
        e = int32(part * planes.chunk + me)
        while e < last:
            n = quotient(e, planes.by_pixels, planes.by_pixels_shift)
            at = int32((n * planes.channels + channel) * planes.pixels + e - n * planes.pixels)
            v = gy[at]
            if masked:
                if y[at] <= float32(0):
                    v = float32(0)
                g[at] = v
            total += v
            e = int32(e + THREADS)
        total = block_sum(partial, me, total)
        if me == 0:
            sums[int32(part * planes.channels + channel)] = total

    return CudaKernel(name, body, ("float32", "float32", "float32", "float32", Planes), THREADS)


_SUMS = _channel_kernel("channel_sums", False)
_MASKED_SUMS = _channel_kernel("relu_channel_sums", True)


@inlined
def column_sum(partial, shift, value):
    """As :func:`block_sum`, of the threads of a channel: lines of 2**shift threads are added in a tree."""
    me = uint32(cuda.threadIdx.x)
    cuda.syncthreads()  # the last sum has been read
    partial[me] = value
    cuda.syncthreads()
    half = uint32(THREADS // 2)
    while half >> uint32(shift) > uint32(0):
        if me < half:
            partial[me] += partial[me + half]
        cuda.syncthreads()
        half = half >> uint32(1)
    return partial[me & ((uint32(1) << uint32(shift)) - uint32(1))]


@inlined
def column_place(columns):
    """This thread's part and channel, which may be beyond the last one; its first row, and one past the part's last one."""
    me, block = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
    part = block // uint32(columns.wide)
    group = block - part * uint32(columns.wide)
    shift = uint32(columns.shift)
    channel = int32((group << shift) + (me & ((uint32(1) << shift) - uint32(1))))
    before = int32(int32(part) * columns.chunk)
    last = int32(min(int32(before + columns.chunk), columns.rows))
    return int32(part), channel, int32(before + int32(me >> shift)), last


def _column_kernel(name: str, masked: bool) -> CudaKernel:
    """As :func:`_channel_kernel` where channels lie side by side: a block sums one part of up to 32 channels."""

    def body(gy, y, g, sums, columns):
        partial = cuda.shared.array(THREADS, float32)
        part, channel, row, last = column_place(columns)
        total = float32(0)
        if channel < columns.channels:
            while row < last:
                at = int32(row * columns.channels + channel)
                v = gy[at]
                if masked:
                    if y[at] <= float32(0):
                        v = float32(0)
                    g[at] = v
                total += v
                row = int32(row + (int32(THREADS) >> columns.shift))
        total = column_sum(partial, columns.shift, total)
        if int32(cuda.threadIdx.x) >> columns.shift == 0 and channel < columns.channels:
            sums[int32(part * columns.channels + channel)] = total

    return CudaKernel(name, body, ("float32", "float32", "float32", "float32", Columns), THREADS)


_COLUMN_SUMS = _column_kernel("column_sums", False)
_MASKED_COLUMN_SUMS = _column_kernel("relu_column_sums", True)


def channel_sums(gy, n: int, channels: int, pixels: int, workspace, out, y=None, g=None) -> None:
    """out[c] = the sum of gy (N, C, L) over images and pixels; with y, of g, which is gy where y is positive or NaN, else 0.

    workspace holds a float32 for every channel in every part, see :func:`.tiles.channel_bytes`.
    """
    if side_by_side(channels, pixels):
        cut: Any = cut_columns(channels, n)
        parts, blocks, plain, masked = cut.parts, cut.blocks, _COLUMN_SUMS, _MASKED_COLUMN_SUMS
    else:
        terms = n * pixels
        chunk, parts = cut_channels(channels, terms)
        cut = Planes(channels, pixels, *divider(max(pixels, 1)), terms, chunk)
        blocks, plain, masked = parts * channels, _SUMS, _MASKED_SUMS
    sums = out if parts == 1 else workspace[: 4 * parts * channels].view(np.float32)
    if y is None:
        plain(blocks, gy, gy, gy, sums, cut)
    else:
        masked(blocks, gy, y, g, sums, cut)
    if parts > 1:
        add_parts(sums, out, parts)
