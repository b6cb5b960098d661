"""Winograd's convolution for the weight gradient of 3x3 and 5x5 kernels at stride 1.

gw[k, c] is the cross-correlation of x[n, c] with gy[n, k], cut into blocks: a block of m x m gradients over a patch of
m + r - 1 = 6 x 6 inputs gives r x r sums. That is the forward formula (see cpu_winograd.py), block and kernel changed over::

    gw = A^T [ sum over blocks of (G gy G^T) * (B^T x B) ] A

so the products of each of the 36 points are one matrix product, (K x blocks) times (blocks x C), transformed back once at
the end. Gradients and patches of some lines of blocks are transformed, then multiplied point by point; channels are
produced in groups that keep the products in the caches.

Where there are many blocks the products are dot products, lanes being blocks. Their sums over lanes would take most of the
time where there are few: then the patches of a point are turned, so that lanes are input channels.

Scratch: transformed patches, transformed gradients, and products, shared; copied rows or turned patches for each thread.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016.
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
    add_all_lane_sums,
    add_dots,
    add_outer_apart,
    load_patches,
    load_planes,
    store_planes,
    transform_filter,
    transform_input,
    transform_output,
)  # fmt: skip
from ..rows import SLACK
from ..simd import lanes_of, load_tile, store_tile, store_tile_part, zero_tile
from ..spec import ConvSpec
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..tiles import load_transposed
from ..variant import Problem
from . import cpu_winograd
from .blocks import Blocks, Lines, channels_together, copy_lines, count_blocks, make_blocks, whole

POINTS = SIZE * SIZE
ROWS = cpu_winograd.ROWS  # output channels of a tile whose lanes are input channels
# Sums of a tile: as many as a vector of float32 or of float64 has lanes, so that one vector takes them all.
TILES = {16: (4, 4), 8: (2, 4), 4: (2, 2), 2: (1, 2)}
TURN = 11  # blocks for each output channel up to which turning takes less time than the sums over lanes (Zen 5)
TRANSFORMED_BYTES = 12 * 1024 * 1024  # patches and gradients at a time: they lie in the third-level cache
PRODUCT_BYTES = 10 * 1024 * 1024
MIN_CHANNELS, MIN_BLOCKS = 16, 16  # fewer do not pay for the transforms
CHANNELS = 64  # block of input and of output channels whose rows of blocks stay in the second-level cache


class _Layout(NamedTuple):
    """Plain numbers for the kernels."""

    c: int
    k: int
    k_group: int  # output channels at a time
    c_job: int  # channels transformed in a job
    k_job: int
    c_rows: int  # in whole tiles
    k_rows: int
    lines: int
    rows: int
    across: int
    segments: int
    step: int
    room: int  # elements from channel to channel of patches and gradients
    apart: int  # elements from point to point of the products
    turned: int  # 1: lanes of the products are input channels


class _Work(NamedTuple):
    """A problem ready to run."""

    layout: _Layout
    blocks: Blocks
    x_lines: Lines
    gy_lines: Lines
    places: np.ndarray  # of blocks, patches and gradients

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Elements of patches, gradients and products."""
        a = self.layout
        return (
            POINTS * (a.c_rows * a.room + SLACK),
            POINTS * (a.k_rows * a.room + SLACK),
            POINTS * a.apart,
        )

    @property
    def scratch(self) -> int:
        """Elements for each thread."""
        a, lanes = self.layout, self.blocks.share * self.blocks.parts
        rows = a.rows * max(SIZE * self.x_lines.pitch, a.step * self.gy_lines.pitch)
        turned = self.blocks.used * CHANNELS if a.turned else 0
        return max(rows, (POINTS + lanes) * lanes, turned) + SLACK


@lru_cache(maxsize=1024)
def _work(spec: ConvSpec, itemsize: int) -> _Work:
    step = SIZE + 1 - spec.kernel[0]
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    few = count_blocks(spec.n, spec.out, step) < TURN * spec.k
    tile_rows, tile_columns = (ROWS, lanes) if few else TILES[lanes]
    c_rows = whole(spec.c, tile_columns)
    unit = max(CHANNELS, tile_rows)
    k_group = min(spec.k, max(unit, PRODUCT_BYTES // (POINTS * c_rows * itemsize) // unit * unit))
    k_rows = whole(k_group, tile_rows)
    most = TRANSFORMED_BYTES // (POINTS * (c_rows + k_rows) * itemsize)
    blocks = make_blocks(spec.n, spec.out, step, itemsize, max(most, 1))
    pad = (spec.padding[0][0], spec.padding[1][0])
    x_lines = blocks.lines_of(spec.c, spec.size, pad, SIZE, step)
    gy_lines = blocks.lines_of(spec.k, spec.out, (0, 0), step, step)
    places = blocks.places((SIZE, x_lines.pitch, step), (step, gy_lines.pitch, step))
    layout = _Layout(
        spec.c, spec.k, k_group, channels_together(spec.c), channels_together(k_group), c_rows, k_rows, blocks.lines,
        blocks.rows, blocks.across, blocks.segments, step, blocks.room,
        odd_lines(c_rows * k_rows, itemsize), int(few),
    )  # fmt: skip
    return _Work(layout, blocks, x_lines, gy_lines, places)


@helper
def zero_end(planes, channel, apart, layout, used):
    """Zero a channel behind its last block, up to the end of the vector, at every point: whole vectors are multiplied."""
    end = (used + lanes_of(planes) - 1) // lanes_of(planes) * lanes_of(planes)
    for e in range(POINTS):
        for t in range(used, end):
            planes[e * apart + channel * layout.room + t] = 0


def _makers(taps: int, parts: int) -> tuple[ParallelKernel, ParallelKernel, ParallelKernel, ParallelKernel]:
    """Kernels that transform patches and gradients, and that transform the products back."""
    step = SIZE + 1 - taps
    gradient_transform, output_transform = transform_filter[step], transform_output[taps]

    def patches(job, worker, x, line, layout, lines, places, scratch, out):
        # out (POINTS, c_rows, room); a job is some input channels
        mine = scratch[worker]
        rows = min(layout.rows, layout.lines - line)
        apart = layout.c_rows * layout.room + SLACK
        first, last = job * layout.c_job, min((job + 1) * layout.c_job, layout.c)
        for c in range(first, last):
            copy_lines(x, c, line, rows, lines, mine)
            ahead = layout.room if c + 1 < last else 0
            for s in range(0, layout.segments, parts):
                d = load_patches(mine, 0, places[1], s, lines.pitch, SIZE, step, parts)
                store_planes(out, c * layout.room, places[0], s, apart, transform_input(d), parts, ahead)
            zero_end(out, c, apart, layout, rows * layout.across)

    def gradients(job, worker, gy, k0, channels, line, layout, lines, places, scratch, out):
        # out (POINTS, k_rows, room); a job is some output channels, counted from k0
        mine = scratch[worker]
        rows = min(layout.rows, layout.lines - line)
        apart = layout.k_rows * layout.room + SLACK
        first, last = job * layout.k_job, min((job + 1) * layout.k_job, channels)
        for k in range(first, last):
            copy_lines(gy, k0 + k, line, rows, lines, mine)
            ahead = layout.room if k + 1 < last else 0
            for s in range(0, layout.segments, parts):
                g = load_patches(mine, 0, places[2], s, lines.pitch, step, step, parts)
                store_planes(out, k * layout.room, places[0], s, apart, gradient_transform(g), parts, ahead)
            zero_end(out, k, apart, layout, rows * layout.across)

    def results(job, worker, products, k0, layout, tile_rows, tile_columns, nowhere, scratch, gw):
        # gw (K, C, taps, taps) flat; a job is tile_rows output channels
        mine = scratch[worker]
        lanes = tile_rows * tile_columns
        for c0 in range(0, layout.c, tile_columns):
            at = (job * (layout.c_rows // tile_columns) + c0 // tile_columns) * lanes
            q = load_planes(products, at, nowhere, 0, layout.apart, SIZE, SIZE, 1)
            store_planes(mine, 0, nowhere, 0, lanes, output_transform(q), 1, 0)
            for i in range(tile_rows):
                for j in range(tile_columns):
                    k, c = job * tile_rows + i, c0 + j
                    if k0 + k < layout.k and k < layout.k_group and c < layout.c:
                        to = ((k0 + k) * layout.c + c) * taps * taps
                        for t in range(taps * taps):
                            gw[to + t] = mine[t * lanes + i * tile_columns + j]

    def turned_results(job, worker, products, k0, layout, nowhere, scratch, gw):
        # products (POINTS, k_rows, c_rows), gw (K, C, taps, taps) flat; a job is one output channel
        mine, lanes = scratch[worker], lanes_of(gw)
        for c in range(0, layout.c, lanes):
            q = load_planes(products, job * layout.c_rows + c, nowhere, 0, layout.apart, SIZE, SIZE, 1)
            store_planes(mine, 0, nowhere, 0, lanes, output_transform(q), 1, 0)
            to = ((k0 + job) * layout.c + c) * taps * taps
            for t in range(0, taps * taps, lanes):
                count = min(lanes, taps * taps - t)
                square = load_transposed(mine, t * lanes, lanes, count, lanes)
                store_tile_part(gw, to + t, taps * taps, square, layout.c - c, count)

    kernels = []
    for body in (patches, gradients, results, turned_results):
        body.__name__ = f"_{body.__name__}_{taps}x{taps}_{parts}"
        kernels.append(parallel(body))
    return tuple(kernels)  # type: ignore[return-value]


def _multiply_kernel(rows: int, columns: int) -> ParallelKernel:
    """The kernel that adds products, for one tile size."""

    def body(job, worker, patches, gradients, line, layout, products):
        # products (POINTS, k tiles, c tiles, rows * columns); a job is a point, a block of output and one of input channels
        c_blocks = (layout.c_rows + CHANNELS - 1) // CHANNELS
        k_blocks = (layout.k_rows + CHANNELS - 1) // CHANNELS
        e, block = job // (c_blocks * k_blocks), job % (c_blocks * k_blocks)
        k0, c0 = block // c_blocks * CHANNELS, block % c_blocks * CHANNELS
        lanes = lanes_of(products)
        used = (min(layout.rows, layout.lines - line) * layout.across + lanes - 1) // lanes * lanes
        v = e * (layout.c_rows * layout.room + SLACK)
        u = e * (layout.k_rows * layout.room + SLACK)
        for c in range(c0, min(c0 + CHANNELS, layout.c_rows), columns):
            for k in range(k0, min(k0 + CHANNELS, layout.k_rows), rows):
                tile = zero_tile(products, rows, columns)
                a, b = u + k * layout.room, v + c * layout.room
                for t in range(0, used, lanes):
                    tile = add_dots(tile, gradients, a + t, layout.room, patches, b + t, layout.room)
                to = e * layout.apart + (k // rows * (layout.c_rows // columns) + c // columns) * lanes
                if line == 0:
                    store_tile(products, to, 0, zero_tile(products, 1, 1))
                add_all_lane_sums(products, to, tile)

    body.__name__ = f"_multiply_{rows}x{columns}"
    return parallel(body)


@helper
def add_turned(columns, gradients, a, patches, b, layout, used, products, to, onto):
    """One tile of a point's products whose lanes are input channels."""
    tile = load_tile(products, to, layout.c_rows, ROWS, columns) if onto else zero_tile(products, ROWS, columns)
    for t in range(used):
        tile = add_outer_apart(tile, gradients, a + t, layout.room, patches, b + t * CHANNELS)
    store_tile(products, to, layout.c_rows, tile)


@parallel
def _multiply_turned(job, worker, patches, gradients, line, layout, scratch, products):
    # products (POINTS, k_rows, c_rows); a job is a point and a block of input channels
    c_blocks = (layout.c_rows + CHANNELS - 1) // CHANNELS
    e, c0 = job // c_blocks, job % c_blocks * CHANNELS
    mine, lanes = scratch[worker], lanes_of(products)
    used = min(layout.rows, layout.lines - line) * layout.across
    v = e * (layout.c_rows * layout.room + SLACK)
    u = e * (layout.k_rows * layout.room + SLACK)
    c1 = min(c0 + CHANNELS, layout.c_rows)
    for c in range(c0, c1, lanes):
        for t in range(0, used, lanes):
            square = load_transposed(patches, v + c * layout.room + t, layout.room, lanes, lanes)
            store_tile(mine, t * CHANNELS + c - c0, CHANNELS, square)
    for k in range(0, layout.k_rows, ROWS):
        a, to = u + k * layout.room, e * layout.apart + k * layout.c_rows
        for c in range(c0, c1, 2 * lanes):
            if c + 2 * lanes <= c1:
                add_turned(2, gradients, a, mine, c - c0, layout, used, products, to + c, line > 0)
            else:
                add_turned(1, gradients, a, mine, c - c0, layout, used, products, to + c, line > 0)


_KERNELS = {(taps, parts): _makers(taps, parts) for taps in (3, 5) for parts in (1, 2, 4) if parts <= SIZE + 1 - taps}
_MULTIPLY = {tile: _multiply_kernel(*tile) for tile in TILES.values()}


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, c, r, s] = sum over n, p, q of gy[n, k] times x[n, c] shifted."""
    work = _work(spec, x.itemsize)
    layout, places = work.layout, work.places
    tile = TILES[simd.VECTOR_BITS // (8 * x.itemsize)]
    make_patches, make_gradients, make_results, make_turned_results = _KERNELS[spec.kernel[0], work.blocks.parts]
    room = workspace.view(out.dtype)
    ends = np.cumsum(work.sizes)
    patches, gradients, products = room[: ends[0]], room[ends[0] : ends[1]], room[ends[1] : ends[2]]
    scratch = thread_rows(room[ends[2] :], work.scratch)
    limit = scratch.shape[0]
    x, gy, gw = x.reshape(-1), gy.reshape(-1), out.reshape(-1)
    blocks = -(-layout.c_rows // CHANNELS) * -(-layout.k_rows // CHANNELS)
    for k0 in range(0, layout.k, layout.k_group):
        for line in range(0, layout.lines, layout.rows):
            if k0 == 0 or layout.rows < layout.lines:
                tables = (layout, work.x_lines, places, scratch, patches)
                make_patches(-(-layout.c // layout.c_job), x, line, *tables, limit=limit)
            channels = min(layout.k_group, layout.k - k0)
            tables = (layout, work.gy_lines, places, scratch, gradients)
            make_gradients(-(-channels // layout.k_job), gy, k0, channels, line, *tables, limit=limit)
            if layout.turned:
                arrays = (patches, gradients, line, layout, scratch, products)
                _multiply_turned(POINTS * -(-layout.c_rows // CHANNELS), *arrays, limit=limit)
            else:
                _MULTIPLY[tile](POINTS * blocks, patches, gradients, line, layout, products)
        if layout.turned:
            make_turned_results(channels, products, k0, layout, places[1], scratch, gw, limit=limit)
        else:
            jobs = -(-layout.k_rows // tile[0])
            make_results(jobs, products, k0, layout, *tile, places[1], scratch, gw, limit=limit)


def workspace_bytes(problem: Problem) -> int:
    """Transformed patches and gradients, products, and copied rows for each thread."""
    itemsize = problem.itemsize
    work = _work(problem.spec, itemsize)
    return -(-(sum(work.sizes) + num_threads() * work.scratch) * itemsize // 8) * 8


def refuses(problem: Problem) -> str:
    channels = MIN_CHANNELS if problem.spec.kernel == (3, 3) else MIN_CHANNELS * 5 // 4  # larger patches cost more
    return cpu_winograd.refusal(problem, channels, MIN_BLOCKS)
