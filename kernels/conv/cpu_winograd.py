"""Winograd's convolution for stride 1: forward and input gradient of 3x3 and 5x5 kernels.

The result is cut into blocks of m x m pixels. Block, kernel (r x r) and patch (m + r - 1 = 6 pixels each way) are taken as
polynomials; their values at 36 pairs of points are multiplied instead of their coefficients::

    y = A^T [ (G w G^T) * (B^T x B) ] A        36 products, where the direct sum takes m*m * r*r: 144 for m = 4, r = 3

Summed over channels, that is one matrix product per point: (K x C) times (C x blocks). A job transforms the patches of some
lines of blocks, multiplies point by point, and transforms back; kernels are transformed once before. Where there are few
blocks and many channels ("wide"), the patches are transformed once before, and a job transforms its own kernels, some
summed channels at a time, so that they are multiplied while they are cached.

The points 0, ±1, ±2 and infinity make sums of quantities that cancel, so rounding errors grow: the error is bounded by that
of the same formula over magnitudes, |A^T| [ ... ] |A|.

Scratch: the transformed kernels (wide: patches), shared; then patches, products and rows for each thread.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016; bound: Barabasz et al., "Error analysis and
improving the accuracy of Winograd convolution for deep neural networks", 2020.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import simd
from ..compiler import helper
from ..host import odd_lines
from ..patches import (
    SIZE,
    add_outer_apart,
    load_patches,
    load_planes,
    store_patches,
    store_planes,
    transform_filter,
    transform_input,
    transform_output,
)  # fmt: skip
from ..rows import SLACK, finish_row
from ..simd import lanes_of, load_tile, store_tile, zero_tile
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..tiles import load_transposed
from ..variant import SHARED_BYTES, Problem, cpu_only
from .blocks import Blocks, Lines, channels_together, copy_lines, count_blocks, make_blocks, whole

POINTS = SIZE * SIZE
ROWS, COLUMNS = (8, 3) if simd.REGISTERS == 32 else (6, 2)
OUTER = 64 // ROWS * ROWS  # channels produced at a time, in whole tiles: their products stay in the second-level cache
OUTER_WIDE = (4 * ROWS, 2 * ROWS)  # the same where kernels are transformed by the job, many or few
WIDE_BYTES = 320 * 1024  # of products, and of transformed kernels at a time, of such a job: both stay in that cache
FILTERS = 8  # produced channels whose kernels a job transforms
BLOCKS = 112  # in a job, about
JOBS = 4  # of which they are a multiple, so that few of them share out well
BLOCKS_WIDE = 256
FILTER_BYTES = 16 * 1024 * 1024  # more transformed kernels than this are made in pieces
MIN_CHANNELS = 12  # fewer do not pay for the transforms of patches and blocks
MIN_BLOCKS = 16  # fewer do not pay for the transform of the kernels
LEAST_SAVING = (
    2  # times fewer multiplications than the definition; less does not pay (2x2 planes: half the speed, Zen 5)
)


class _Layout(NamedTuple):
    """Plain numbers for the kernels."""

    inner: int  # channels summed over
    inner_job: int  # of them in a job that transforms patches only
    part: int  # of them whose kernels a wide job transforms at a time
    outer: int  # channels produced
    height: int  # of the result
    width: int
    step: int  # m
    down: int
    lines: int
    rows: int
    segments: int
    finished: int  # elements of a finished row
    used: int  # blocks
    room: int  # elements from channel to channel of the patches
    filter_pitch: int
    filters: int  # transformed at a time, in whole tiles
    filter_point: int  # elements from one point of them to the next: cache lines in an odd number reach every set
    activation: int
    head: int  # elements for copied rows; then the job's patches or kernels, then products
    products: int  # first element of the products


class _Work(NamedTuple):
    """A problem ready to run."""

    layout: _Layout
    source: Lines
    blocks: Blocks
    places: np.ndarray  # of blocks, patches and finished blocks
    wide: bool

    @property
    def shared(self) -> int:
        """Elements of what is transformed once."""
        return self.patches if self.wide else self.filters

    @property
    def filters(self) -> int:
        return POINTS * self.layout.filter_point + SLACK

    @property
    def patches(self) -> int:
        return POINTS * (self.layout.inner * self.layout.room + SLACK)

    @property
    def scratch(self) -> int:
        """Elements for each thread."""
        return self.layout.products + POINTS * (min(OUTER, self.layout.filters) * self.layout.used + SLACK)


@lru_cache(maxsize=1024)
def _work(spec: ConvSpec, gradient: bool, itemsize: int) -> _Work:
    r = spec.kernel[0]
    step = SIZE + 1 - r
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    if gradient:
        inner, outer, source, result = spec.k, spec.c, spec.out, spec.size
        pad = (r - 1 - spec.padding[0][0], r - 1 - spec.padding[1][0])
    else:
        inner, outer, source, result = spec.c, spec.k, spec.size, spec.out
        pad = (spec.padding[0][0], spec.padding[1][0])
    filter_pitch = whole(inner, lanes) + SLACK
    filters = whole(outer, ROWS)
    few = count_blocks(spec.n, result, step) <= BLOCKS_WIDE // 2
    wide = POINTS * filters * filter_pitch * itemsize > FILTER_BYTES or (few and filters >= 8 * ROWS)
    most = min(BLOCKS_WIDE, SHARED_BYTES // (POINTS * inner * itemsize))
    blocks = make_blocks(spec.n, result, step, itemsize, *((most,) if wide else (BLOCKS, JOBS)))
    lines = blocks.lines_of(inner, source, pad, SIZE, step)
    finished = blocks.in_row * blocks.share * step
    places = blocks.places((SIZE, lines.pitch, step), (step, finished, step))
    part = inner
    if wide:
        fits = [rows for rows in OUTER_WIDE if POINTS * rows * blocks.used * itemsize <= WIDE_BYTES]
        filters = min(filters, max(fits, default=min(OUTER_WIDE)))
        part = min(inner, max(1, WIDE_BYTES // (POINTS * filters * lanes * itemsize)) * lanes)
        filter_pitch = whole(part, lanes) + SLACK
    turned = (2 * lanes + whole(r * r, lanes)) * lanes  # kernels, with room for what a square reaches beyond
    head = max(blocks.rows * SIZE * lines.pitch, blocks.rows * step * finished, turned) + SLACK
    layout = _Layout(
        inner, channels_together(inner), part, outer, *result, step, blocks.down, blocks.lines, blocks.rows, blocks.segments,
        finished, blocks.used, blocks.room if wide else blocks.used, filter_pitch, filters,
        odd_lines(filters * filter_pitch, itemsize),
        0 if gradient else spec.activation, head, 0,
    )  # fmt: skip
    work = _Work(layout, lines, blocks, places, wide)
    own = work.filters if wide else work.patches
    return work._replace(layout=layout._replace(products=head + own))


@helper
def multiply_tile(columns, filters, a, layout, channels, patches, b, products, to, onto):
    """One tile of a point's products."""
    tile = load_tile(products, to, layout.used, ROWS, columns) if onto else zero_tile(products, ROWS, columns)
    for c in range(channels):
        tile = add_outer_apart(tile, filters, a + c, layout.filter_pitch, patches, b + c * layout.room)
    store_tile(products, to, layout.used, tile)


@helper
def multiply(filters, u, layout, channels, patches, v, products, m, outer, onto):
    """The products of one point: (outer x channels) times (channels x blocks), added to what is there or not."""
    vector = lanes_of(products)
    t = 0
    while t < layout.used:
        left = (layout.used - t) // vector
        for k in range(0, outer, ROWS):
            a, b, to = u + k * layout.filter_pitch, v + t, m + k * layout.used + t
            if left >= COLUMNS:
                multiply_tile(COLUMNS, filters, a, layout, channels, patches, b, products, to, onto)
            elif left >= 2:
                multiply_tile(2, filters, a, layout, channels, patches, b, products, to, onto)
            else:
                multiply_tile(1, filters, a, layout, channels, patches, b, products, to, onto)
        t += min(left, COLUMNS) * vector


@helper
def finish_blocks(scratch, line, rows, channel, layout, bias, result):
    """Write the finished lines of one channel to the result, with bias and ReLU."""
    add = bias[channel] if bias.size else result.dtype.type(0)
    for g in range(rows):
        n, i = (line + g) // layout.down, (line + g) % layout.down
        plane = (n * layout.outer + channel) * layout.height * layout.width
        last = min((i + 1) * layout.step, layout.height)
        for p in range(i * layout.step, last):
            come = (g * layout.step + p - i * layout.step) * layout.finished
            limit = plane + last * layout.width  # behind it another job may write
            finish_row(result, plane + p * layout.width, scratch, come, layout.width, add, layout.activation, limit)


def _makers(taps: int, parts: int) -> tuple[ParallelKernel, ParallelKernel, ParallelKernel, ParallelKernel]:
    """The kernels for one kernel size: filters once, a job's lines; patches once, a job's channels."""
    step = SIZE + 1 - taps
    filter_transform, output_transform = transform_filter[taps], transform_output[step]

    @helper
    def make_filters(w, k0, count, strides, i0, channels, turned, layout, row, filters, nowhere, scratch):
        # Kernels of neighbouring summed channels are turned in squares, so that lanes are channels. Of an input gradient
        # the produced channels' kernels follow each other in memory, so they are the inner loop.
        lanes, last = lanes_of(filters), taps * taps - 1
        apart = layout.filter_point
        for i in range(0, channels, lanes):
            for o in range(count):
                for t in range(0, taps * taps, lanes):
                    at = (k0 + o) * strides[0] + (i0 + i) * strides[1] + t
                    square = load_transposed(w, at, strides[1], channels - i, min(lanes, taps * taps - t))
                    if turned:
                        store_tile(scratch, (last + lanes - t) * lanes, -lanes, square)
                    else:
                        store_tile(scratch, (t + lanes) * lanes, lanes, square)
                g = load_planes(scratch, lanes * lanes, nowhere, 0, lanes, taps, taps, 1)
                to = (row + o) * layout.filter_pitch + i
                store_planes(filters, to, nowhere, 0, apart, filter_transform(g), 1, lanes)

    @helper
    def make_patches(source, channel, line, rows, layout, lines, places, scratch, patches, ahead):
        copy_lines(source, channel, line, rows, lines, scratch)
        apart = layout.inner * layout.room + SLACK
        for s in range(0, layout.segments, parts):
            d = load_patches(scratch, 0, places[1], s, lines.pitch, SIZE, step, parts)
            at = channel * layout.room
            store_planes(patches, at, places[0], s, apart, transform_input(d), parts, ahead)

    @helper
    def add_products(filters, first, outer, i0, channels, patches, layout, products):
        apart = min(OUTER, layout.filters) * layout.used + SLACK
        for e in range(POINTS):
            u = e * layout.filter_point + first * layout.filter_pitch
            v = e * (layout.inner * layout.room + SLACK) + i0 * layout.room
            multiply(filters, u, layout, channels, patches, v, products, e * apart, outer, i0 > 0)

    @helper
    def make_results(outer, k0, line, layout, bias, places, scratch, result):
        # scratch: rows to finish, …, products
        rows = min(layout.rows, layout.lines - line)
        products = scratch[layout.products :]
        apart = min(OUTER, layout.filters) * layout.used + SLACK
        for k in range(outer):
            for s in range(0, layout.segments, parts):
                values = load_planes(products, k * layout.used, places[0], s, apart, SIZE, SIZE, parts)
                store_patches(scratch, 0, places[2], s, layout.finished, output_transform(values), parts)
            finish_blocks(scratch, line, rows, k0 + k, layout, bias, result)

    def all_filters(job, worker, w, strides, turned, layout, places, scratch, filters):
        k0 = job * FILTERS
        count, inner = min(FILTERS, layout.outer - k0), layout.inner
        make_filters(w, k0, count, strides, 0, inner, turned, layout, k0, filters, places[1], scratch[worker])

    def some_lines(job, worker, source, filters, bias, layout, lines, places, scratch, result):
        mine = scratch[worker]
        patches = mine[layout.head :]
        line = job * layout.rows
        rows = min(layout.rows, layout.lines - line)
        for c in range(layout.inner):
            make_patches(source, c, line, rows, layout, lines, places, mine, patches, layout.room)
        for k in range(0, layout.outer, OUTER):
            outer = min(OUTER, layout.outer - k)
            add_products(filters, k, outer, 0, layout.inner, patches, layout, mine[layout.products :])
            make_results(outer, k, line, layout, bias, places, mine, result)

    def all_patches(job, worker, source, line, layout, lines, places, scratch, patches):
        rows = min(layout.rows, layout.lines - line)
        first, last = job * layout.inner_job, min((job + 1) * layout.inner_job, layout.inner)
        for c in range(first, last):
            ahead = layout.room if c + 1 < last else 0
            make_patches(source, c, line, rows, layout, lines, places, scratch[worker], patches, ahead)

    def some_channels(job, worker, w, strides, turned, patches, line, bias, layout, places, scratch, result):
        mine = scratch[worker]
        filters = mine[layout.head :]
        k0 = job * layout.filters
        outer = min(layout.filters, layout.outer - k0)
        for i0 in range(0, layout.inner, layout.part):
            channels = min(layout.part, layout.inner - i0)
            make_filters(w, k0, outer, strides, i0, channels, turned, layout, 0, filters, places[1], mine)
            add_products(filters, 0, outer, i0, channels, patches, layout, mine[layout.products :])
        make_results(outer, k0, line, layout, bias, places, mine, result)

    kernels = []
    for body in (all_filters, some_lines, all_patches, some_channels):
        body.__name__ = f"_{body.__name__}_{taps}x{taps}_{parts}"
        kernels.append(parallel(body))
    return tuple(kernels)  # type: ignore[return-value]


_KERNELS = {(taps, parts): _makers(taps, parts) for taps in (3, 5) for parts in (1, 2, 4) if parts <= SIZE + 1 - taps}


def _run(
    work: _Work, source: np.ndarray, w: np.ndarray, bias: np.ndarray, strides: Pair, taps: int, turned: bool,
    workspace: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    layout, lines, places = work.layout, work.source, work.places
    room = workspace.view(out.dtype)
    shared = room[: work.shared]
    scratch = thread_rows(room[work.shared :], work.scratch)
    limit = scratch.shape[0]
    all_filters, some_lines, all_patches, some_channels = _KERNELS[taps, work.blocks.parts]
    source, w, result = source.reshape(-1), w.reshape(-1), out.reshape(-1)
    if work.wide:
        jobs = -(-layout.outer // layout.filters)
        for line in range(0, layout.lines, layout.rows):
            tables = (layout, lines, places, scratch, shared)
            all_patches(-(-layout.inner // layout.inner_job), source, line, *tables, limit=limit)
            arrays = (shared, line, bias, layout, places, scratch, result)
            some_channels(jobs, w, strides, turned, *arrays, limit=limit)
    else:
        all_filters(-(-layout.outer // FILTERS), w, strides, turned, layout, places, scratch, shared, limit=limit)
        jobs = -(-layout.lines // layout.rows)
        some_lines(jobs, source, shared, bias, layout, lines, places, scratch, result, limit=limit)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k] = bias[k] + sum over c of the blocks of x[n, c] times the kernel w[k, c]."""
    r = spec.kernel[0]
    _run(_work(spec, False, x.itemsize), x, w, bias, (spec.c * r * r, r * r), r, False, workspace, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over k of the blocks of gy[n, k] times the turned kernel w[k, c]."""
    r = spec.kernel[0]
    none = np.empty(0, out.dtype)
    _run(_work(spec, True, gy.itemsize), gy, w, none, (r * r, spec.c * r * r), r, True, workspace, out)


def workspace_bytes(problem: Problem) -> int:
    """The transformed kernels or patches, then patches or kernels and products for each thread."""
    itemsize = problem.itemsize
    work = _work(problem.spec, problem.direction == "input_grad", itemsize)
    return -(-(work.shared + num_threads() * work.scratch) * itemsize // 8) * 8


def refusal(problem: Problem, min_channels: int, min_blocks: int) -> str:
    """Takes 3x3 and 5x5 kernels without stride, dilation and groups, where there is enough to multiply."""
    spec = problem.spec
    if spec.kernel not in ((3, 3), (5, 5)) or (spec.stride, spec.dilation, spec.groups) != ((1, 1), (1, 1), 1):
        return "takes 3x3 and 5x5 kernels without stride, dilation and groups"
    if min(spec.c, spec.k) < min_channels:
        return f"pays from {min_channels} channels on both sides"
    if spec.n == 0:
        return "there are no images to cut into blocks"
    step = SIZE + 1 - spec.kernel[0]
    blocks = count_blocks(spec.n, spec.out, step)
    if blocks < min_blocks:
        return f"pays from {min_blocks} blocks of {step}x{step} results, here are {blocks}"
    direct = spec.n * spec.out[0] * spec.out[1] * spec.kernel[0] ** 2
    if direct < LEAST_SAVING * blocks * POINTS:
        return f"blocks of {step}x{step} results that reach beyond {spec.out[0]}x{spec.out[1]} save too little"
    return cpu_only(problem)


def operations(problem: Problem) -> int:
    """Arithmetic of the products; the transforms around them are not counted."""
    spec = problem.spec
    plane = spec.size if problem.direction == "input_grad" else spec.out
    return 2 * POINTS * spec.c * spec.k * count_blocks(spec.n, plane, SIZE + 1 - spec.kernel[0])


def refuses(problem: Problem) -> str:
    return refusal(problem, MIN_CHANNELS, MIN_BLOCKS)
