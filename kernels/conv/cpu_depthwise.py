"""Depthwise convolution (one input channel a group), row by row, for small kernels; all three directions.

There is no sum over channels to block for, so nothing is packed or copied: a plane lies in the first-level cache and rows
are read where they are, with masked lanes beyond the image. Every row that is read meets R results, kept in a tile of R
rows that rolls on with the rows of the image: forward the oldest row has met all of its inputs and is written; the input
gradient spreads a row of gradients over R rows of the image; the weight gradient rolls through R rows of gradients and
keeps all R x S sums, a vector each, in registers over the images of a channel.

With a stride of 2 the image rows that a kernel meets with its even rows follow those of its odd rows in turn, and tiles
hold the results of every second row only.

A tile is one or two vectors wide. The last tile of a long row overlaps the one before it; short rows are written in whole
vectors too, and the next row overwrites what was too much. A horizontal stride of 2 reads every second element; its
input gradient computes even and odd columns apart and interleaves them. Planes are small and many, so the rows of the
next one are prefetched (a quarter of the time of 28x28 planes on Zen 5).

Non-finite inputs can reach every tap of their channel's weight gradient, not only those that they met.

The idea of keeping a few rows of results in registers: Zhang, Lo and Lu, "High performance depthwise and pointwise
convolutions on mobile devices", 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from .. import simd
from ..compiler import helper
from ..parts import add_parts, even_parts
from ..simd import (
    add_lane_sums,
    add_scalar,
    lanes_of,
    load_tile,
    prefetch,
    relu_tile,
    store_tile,
    store_tile_part,
    zero_tile,
)
from ..simd_shift import (
    add_correlation,
    add_shift_products,
    add_spread,
    interleave,
    load_row,
    next_rows,
    splat_tile,
    store_window,
    tile_row,
)
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..variant import Problem, cpu_only

LARGEST = 7  # kernel height and width: larger ones would need too many registers
PIXELS = 16384  # that make a job: several planes where they are small
AHEAD = 4096  # pixels that are prefetched ahead at most
JOBS = 16  # of a weight gradient, at least; the batch is cut into parts where there are fewer filters


def refuses(problem: Problem) -> str:
    """Takes what this file's idea needs."""
    spec = problem.spec
    if spec.c != spec.groups:
        return "takes one input channel a group"
    if max(spec.kernel) > LARGEST:
        return f"takes kernels of at most {LARGEST}x{LARGEST}"
    if spec.dilation != (1, 1) or spec.stride not in ((1, 1), (2, 2)):
        return "takes dilation 1 and strides of 1 or 2"
    return cpu_only(problem)


class _Layout(NamedTuple):
    """Plain numbers for the kernels."""

    n: int
    k: int
    multiplier: int  # K / C
    size: Pair
    out: Pair
    padding: Pair  # top and left
    planes: int  # of the result in a job
    filters: int  # of a weight gradient in a job
    ahead: int  # pixels of the image in whole rows, and of the result, that prefetching runs ahead
    ahead_out: int
    parts: int
    activation: int


@lru_cache(maxsize=1024)
def _layout(spec: ConvSpec) -> _Layout:
    pixels = max(spec.size[0] * spec.size[1], spec.out[0] * spec.out[1])
    planes = max(1, PIXELS // pixels)
    filters = min(planes, -(-spec.k // JOBS) if spec.k >= JOBS else spec.k)
    parts = even_parts(min(spec.n, JOBS // -(-spec.k // filters)))
    padding = (spec.padding[0][0], spec.padding[1][0])
    ahead, ahead_out = (min(rows, AHEAD // columns) * columns for rows, columns in (spec.size, spec.out))
    return _Layout(
        spec.n,
        spec.k,
        spec.k // spec.c,
        spec.size,
        spec.out,
        padding,
        planes,
        filters,
        ahead,
        ahead_out,
        parts,
        spec.activation,
    )


@helper
def store_row(y, at, tile, columns, limit):
    """Write a row of ``columns`` vectors at y[at], but nothing from y[limit] on."""
    if at + columns * lanes_of(y) > limit:
        store_tile_part(y, at, 0, tile, 1, limit - at)
    else:
        store_tile(y, at, 0, tile)


def _forward_kernel(rows: int, columns: int, step: int, vectors: int) -> ParallelKernel:
    even = -(-rows // step)  # kernel rows that meet every step-th image row; the others are met in between
    odd = rows - even
    read = vectors * step  # vectors of the image for a row of results
    last_is_odd = odd == even  # the kernel row that completes a result

    def body(job, worker, x, w, bias, layout, y):
        # x (N*C, H, W), w (K, R, S), y (N*K, P, Q), all flat
        height, width = layout.size
        top, left = layout.padding
        pixels = layout.out[0] * layout.out[1]
        zero = zero_tile(y, 1, vectors)
        for plane in range(job * layout.planes, min((job + 1) * layout.planes, layout.n * layout.k)):
            k = plane % layout.k
            source = plane // layout.multiplier * height * width
            # The last kernel rows come first: the first row of the tile is the oldest.
            start, down = k * rows * columns, step * columns
            even_kernel = splat_tile(w, start + (even - 1) * down, -down, 1, even, columns)
            odd_kernel = splat_tile(w, start + (odd - 1) * down + columns, -down, 1, odd, columns)
            for block in range(0, layout.out[1], vectors * lanes_of(y)):
                q = max(0, min(block, layout.out[1] - vectors * lanes_of(y)))
                v = q * step - left
                tile = zero_tile(y, even, vectors)
                to = plane * pixels + q
                for p in range(layout.out[0] + even - 1):  # the newest result
                    h = p * step - top
                    row = source + h * width + v
                    if 0 <= h < height:
                        prefetch(x, row + layout.ahead, read, 1)
                        tile = add_correlation(tile, even_kernel, x, row, -v, width - v, step)
                    if last_is_odd and 0 <= h + 1 < height:
                        row += width
                        prefetch(x, row + layout.ahead, read, 1)
                        tile = add_correlation(tile, odd_kernel, x, row, -v, width - v, step)
                    if p >= even - 1:
                        finished = tile_row(tile, 0)
                        if bias.size:
                            finished = add_scalar(finished, bias[k])
                        if layout.activation:
                            finished = relu_tile(finished)
                        store_row(y, to, finished, vectors, (plane + 1) * pixels)
                        to += layout.out[1]
                    tile = next_rows(tile, zero)
                    if odd and not last_is_odd and 0 <= h + 1 < height:
                        row += width
                        prefetch(x, row + layout.ahead, read, 1)
                        tile = add_correlation(tile, odd_kernel, x, row, -v, width - v, step)

    body.__name__ = f"_forward_{rows}x{columns}_step_{step}_by_{vectors}"
    return parallel(body)


def _input_kernel(rows: int, columns: int, step: int, vectors: int) -> ParallelKernel:
    read = vectors // step  # with a step of 2 there is a vector of even and one of odd pixels

    def body(job, worker, gy, w, layout, gx):
        # gy (N*K, P, Q), w (K, R, S), gx (N*C, H, W), all flat
        height, width = layout.size
        top, left = layout.padding
        pixels, size = layout.out[0] * layout.out[1], rows * columns
        channels = layout.k // layout.multiplier
        # With a step of 1 the kernel's rows are turned and correlated, with 2 they are spread as they are.
        start, turn = (0, 1) if step == 2 else (columns - 1, -1)
        zero = zero_tile(gx, 1, vectors)
        span = vectors * lanes_of(gx)
        for plane in range(job * layout.planes, min((job + 1) * layout.planes, layout.n * channels)):
            first = plane % channels * layout.multiplier
            kernel = splat_tile(w, first * size + start, columns, turn, rows, columns)
            for block in range(0, width + (left if step == 2 else 0), span):
                if step == 2:  # pixels from v on, v + padding even, so that even pixels meet even kernel columns
                    v = block - left
                    q = block // 2
                else:
                    v = max(0, min(block, width - span))
                    q = v + left - (columns - 1)
                tile = zero_tile(gx, rows, vectors)
                to = (plane * height - top) * width + v
                for p in range((height + top + step - 1) // step):
                    if p < layout.out[0]:
                        for i in range(layout.multiplier):
                            if layout.multiplier > 1:
                                kernel = splat_tile(w, (first + i) * size + start, columns, turn, rows, columns)
                            row = (plane * layout.multiplier + i) * pixels + p * layout.out[1] + q
                            prefetch(gy, row + layout.ahead_out, read, 1)
                            if step == 2:
                                tile = add_spread(tile, kernel, gy, row, -q, layout.out[1] - q)
                            else:
                                tile = add_correlation(tile, kernel, gy, row, -q, layout.out[1] - q, 1)
                    for h in range(p * step - top, (p + 1) * step - top):
                        if 0 <= h < height:
                            if step == 2:
                                store_window(gx, to, -v, width - v, interleave(tile_row(tile, 0)))
                            else:
                                store_row(gx, to, tile_row(tile, 0), vectors, (plane + 1) * height * width)
                        to += width
                        tile = next_rows(tile, zero)

    body.__name__ = f"_input_{rows}x{columns}_step_{step}_by_{vectors}"
    return parallel(body)


def _weight_kernel(rows: int, columns: int, step: int, vectors: int) -> ParallelKernel:
    even = -(-rows // step)
    odd = rows - even
    read = vectors * step  # vectors of the image for a row of results

    def body(job, worker, x, gy, layout, scratch, gw):
        # x (N*C, H, W), gy (N*K, P, Q), gw (parts, K, R, S), all flat; scratch (threads, …)
        height, width = layout.size
        top, left = layout.padding
        jobs = (layout.k + layout.filters - 1) // layout.filters
        part, k0 = job // jobs, job % jobs * layout.filters
        k1 = min(k0 + layout.filters, layout.k)
        sums = scratch[worker]  # (filters, R, S, lanes): planes are taken in the order of memory
        pitch = columns * lanes_of(gw)
        zero = zero_tile(gw, 1, vectors)
        for at in range(0, (k1 - k0) * rows * pitch, rows * pitch):
            store_tile(sums, at, pitch, zero_tile(gw, rows, columns))
        for n in range(part * layout.n // layout.parts, (part + 1) * layout.n // layout.parts):
            for k in range(k0, k1):
                plane = n * layout.k + k
                source = plane // layout.multiplier * height * width
                at = (k - k0) * rows * pitch
                even_sums = load_tile(sums, at, pitch, even, columns)
                odd_sums = load_tile(sums, at + even * pitch, pitch, odd, columns)
                for block in range(0, layout.out[1], vectors * lanes_of(gw)):
                    v = block * step - left
                    tile = zero_tile(gw, even, vectors)  # its last row meets the first kernel row
                    come = plane * layout.out[0] * layout.out[1] + block
                    for p in range(layout.out[0] + even - 1):
                        if p < layout.out[0]:
                            prefetch(gy, come + layout.ahead_out, vectors, 1)
                            tile = next_rows(tile, load_row(gy, come, 0, layout.out[1] - block, vectors))
                            come += layout.out[1]
                        else:
                            tile = next_rows(tile, zero)
                        h = p * step - top
                        row = source + h * width + v
                        if 0 <= h < height:
                            prefetch(x, row + layout.ahead, read, 1)
                            even_sums = add_shift_products(even_sums, tile, x, row, -v, width - v, step)
                        if odd and 0 <= h + 1 < height:
                            row += width
                            prefetch(x, row + layout.ahead, read, 1)
                            odd_sums = add_shift_products(odd_sums, tile, x, row, -v, width - v, step)
                store_tile(sums, at, pitch, even_sums)
                store_tile(sums, at + even * pitch, pitch, odd_sums)
        for k in range(k0, k1):
            to = (part * layout.k + k) * rows * columns
            for i in range(rows * columns):
                gw[to + i] = 0
            at = (k - k0) * rows * pitch
            down = step * columns
            totals = load_tile(sums, at, pitch, even, columns)
            add_lane_sums(gw, to + (even - 1) * down, -down, totals, even, columns)
            odd_totals = load_tile(sums, at + even * pitch, pitch, odd, columns)
            add_lane_sums(gw, to + (odd - 1) * down + columns, -down, odd_totals, odd, columns)

    body.__name__ = f"_weight_{rows}x{columns}_step_{step}_by_{vectors}"
    return parallel(body)


@cache
def _kernel(
    make: Callable[[int, int, int, int], ParallelKernel], size: Pair, step: int, vectors: int
) -> ParallelKernel:
    """The kernel for one size, made when it is first needed."""
    return make(*size, step, vectors)


def _vectors(width: int, itemsize: int) -> int:
    """Vectors in a row of a tile: two need many registers."""
    return 2 if simd.REGISTERS == 32 and width > simd.VECTOR_BITS // (8 * itemsize) else 1


def vectors_of(spec: ConvSpec, itemsize: int, direction: str) -> int:
    """Vectors in a row of a problem's tiles."""
    if direction == "input_grad":
        return 2 if spec.stride[1] == 2 else _vectors(spec.size[1], itemsize)
    return _vectors(spec.out[1], itemsize)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k] = bias[k] + sum over r, s of w[k, r, s] times its channel of x[n] shifted."""
    layout = _layout(spec)
    kernel = _kernel(_forward_kernel, spec.kernel, spec.stride[1], _vectors(spec.out[1], out.itemsize))
    jobs = -(-spec.n * spec.k // layout.planes)
    kernel(jobs, x.reshape(-1), w.reshape(-1), bias, layout, out.reshape(-1))


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over the filters k of c and r, s of w[k, r, s] times gy[n, k] shifted the other way."""
    layout = _layout(spec)
    step = spec.stride[1]
    kernel = _kernel(_input_kernel, spec.kernel, step, 2 if step == 2 else _vectors(spec.size[1], out.itemsize))
    jobs = -(-spec.n * spec.c // layout.planes)
    kernel(jobs, gy.reshape(-1), w.reshape(-1), layout, out.reshape(-1))


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, 0, r, s] = sum over n, p, q of gy[n, k] times its channel of x[n] shifted."""
    layout = _layout(spec)
    kernel = _kernel(_weight_kernel, spec.kernel, spec.stride[1], _vectors(spec.out[1], out.itemsize))
    room = workspace.view(out.dtype)
    partial, sums = _sums(layout, spec, out.itemsize)
    scratch = thread_rows(room[partial:], sums)
    parts = room[:partial] if partial else out.reshape(-1)
    jobs = layout.parts * -(-spec.k // layout.filters)
    kernel(jobs, x.reshape(-1), gy.reshape(-1), layout, scratch, parts, limit=scratch.shape[0])
    if partial:
        add_parts(parts.reshape(layout.parts, -1), out.reshape(-1))


def _sums(layout: _Layout, spec: ConvSpec, itemsize: int) -> Pair:
    """Elements of the weight gradient's parts, where the batch is cut, and of each thread's sums."""
    taps = spec.kernel[0] * spec.kernel[1]
    partial = layout.parts * spec.k * taps if layout.parts > 1 else 0
    return partial, layout.filters * taps * simd.VECTOR_BITS // (8 * itemsize)


def workspace_bytes(problem: Problem) -> int:
    """Partial sums of the weight gradient, where the batch is cut, and the sums of each thread."""
    itemsize = problem.itemsize
    partial, sums = _sums(_layout(problem.spec), problem.spec, itemsize)
    return -(-(partial + num_threads() * sums) * itemsize // 8) * 8
