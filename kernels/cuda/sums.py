"""Sums in an order that the shape decides: partial results added up, and one number for each channel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .kernel import CudaKernel
from .language import cuda, divider, float32, int32, quotient, thread
from .tiles import channel_parts

THREADS = 256


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
        partial[me] = total
        cuda.syncthreads()
        half = int32(THREADS // 2)
        while half > 0:  # a tree
            if me < half:
                partial[me] += partial[me + half]
            cuda.syncthreads()
            half = half >> 1
        if me == 0:
            sums[int32(part * planes.channels + channel)] = partial[0]

    return CudaKernel(name, body, ("float32", "float32", "float32", "float32", Planes), THREADS)


_SUMS = _channel_kernel("channel_sums", False)
_MASKED_SUMS = _channel_kernel("relu_channel_sums", True)


def channel_sums(gy, n: int, channels: int, pixels: int, workspace, out, y=None, g=None) -> None:
    """out[c] = the sum of gy (N, C, L) over images and pixels; with y, of g, which is gy where y is positive or NaN, else 0.

    workspace holds a float32 for every channel in every part, see :func:`.tiles.channel_parts`.
    """
    terms = n * pixels
    chunk = max(1, -(-terms // channel_parts(channels, terms)))
    parts = max(1, -(-terms // chunk))
    sums = out if parts == 1 else workspace[: 4 * parts * channels].view(np.float32)
    planes = Planes(channels, pixels, *divider(max(pixels, 1)), terms, chunk)
    if y is None:
        _SUMS(parts * channels, gy, gy, gy, sums, planes)
    else:
        _MASKED_SUMS(parts * channels, gy, y, g, sums, planes)
    if parts > 1:
        add_parts(sums, out, parts)
