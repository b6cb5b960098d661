"""Pointwise convolution as a matrix product over packed panels.

A panel is some pixels with all their channels, copied so that channel follows channel: then a tile's loads run straight
through memory, and a panel that lies in the first-level cache serves every block of output channels. Panels are cut from
the pixels of the whole batch, so that small images waste no lanes. While one panel is multiplied, the next one is
fetched: its lines lie a whole plane apart, which no hardware prefetcher follows.

One job is a group of panels and some blocks of output channels. Tiles are finished (bias, ReLU) in registers and written
straight to the output; those that meet several images, or a strided grid, pass through scratch.

Scratch: the packed weights, shared; then a panel and, where it is needed, a panel of results for each thread.

Source: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import simd
from ..host import LINE_BYTES, odd_lines
from ..rows import SLACK
from ..simd import (
    add_bias,
    add_outer,
    add_outer_row,
    lanes_of,
    load_tile,
    prefetch,
    relu_tile,
    store_tile,
    store_tile_part,
    zero_tile,
)
from ..spec import Pair, PointwiseSpec
from ..squares import load_square_part, turn_square
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..variant import Problem, cpu_only, too_large
from .grid import Grid, address_of, collect, gather, scatter, tabulate, whole

# (rows, columns) of the tiles.
TILES = ((8, 3), (6, 4), (12, 2)) if simd.REGISTERS == 32 else ((6, 2), (4, 3))
PANELS = 4  # in a job
EARLY_PANELS = 16  # in a job whose pixels are all copied first, at most, and in its images at least
EARLY_BLOCKS = 6  # fewer blocks are too short a time to fetch the next panel (128 to 24 channels: 15%, Zen 5)
EARLY_BYTES = 256 * 1024  # of pixels copied first
JOBS = 32  # jobs wanted before the output channels are cut
BLOCKS = 8  # blocks of output channels that make packing a panel cheap
RESULT_BYTES = 256 * 1024  # results that pass through scratch at a time


class _Work(NamedTuple):
    """Plain numbers for the kernel."""

    inner: int
    outer: int
    source: Grid
    target: Grid
    pixels: int  # of the whole batch
    panels: int  # in a job
    groups: int  # of panels
    cuts: int  # of the output channels
    line: int  # pixels on a cache line
    lines: int  # cache lines of a channel that a panel meets
    early: int  # elements from channel to channel where a job's pixels are all copied first, 0: panel by panel
    length: int  # results of a channel that pass through scratch at a time, 0: all go straight to the output
    table: int  # elements that the places of a panel's pixels take, 8 bytes each
    activation: int


class _Layout(NamedTuple):
    """A problem ready to run."""

    work: _Work
    tile: Pair
    packed: int  # elements of the packed weights, in whole cache lines
    scratch: int  # elements for each thread, in whole cache lines


def _choose_tile(outer: int, pixels: int, lanes: int) -> Pair:
    """The tile that computes the fewest sums for nothing; where they are alike, the one that packs the longest panel."""

    def cost(tile: Pair) -> float:
        rows, columns = tile
        sums = -(-outer // rows) * rows * -(-pixels // (columns * lanes)) * columns * lanes
        return sums * (1 + 0.5 / rows + 0.1 / columns)

    return min(TILES, key=cost)


@lru_cache(maxsize=1024)
def layout(n: int, inner: int, outer: int, source: Grid, target: Grid, activation: int, itemsize: int) -> _Layout:
    """Cut the product of (outer, inner) weights with the ``inner`` channels of n images."""
    lanes, pixels = simd.VECTOR_BITS // (8 * itemsize), n * source.pixels
    tile = _choose_tile(outer, pixels, lanes)
    rows, width = tile[0], tile[1] * lanes
    blocks, all_panels = -(-outer // rows), -(-pixels // width)
    straight = target.dense and target.pixels % width == 0
    cuts = max(1, min(blocks // BLOCKS, JOBS // max(1, all_panels)))
    channels = -(-blocks // cuts) * rows
    panels = PANELS
    early = blocks // cuts < EARLY_BLOCKS and source.dense and source.pixels >= EARLY_PANELS * width
    if early:
        panels = min(EARLY_PANELS, max(1, EARLY_BYTES // (inner * width * itemsize)))
    if not straight:
        panels = min(panels, max(1, RESULT_BYTES // (channels * width * itemsize)))
    panels = max(1, min(panels, all_panels // JOBS))
    # An odd number of cache lines from channel to channel reaches every set of the first-level cache.
    pitch = odd_lines(panels * width, itemsize)
    line = max(1, LINE_BYTES // (itemsize * source.step))
    length = 0 if straight else panels * width
    work = _Work(
        inner, outer, source, target, pixels, panels, -(-all_panels // panels), cuts, line, width // line + 1,
        pitch if early else 0, length, width * 8 // itemsize, activation,
    )  # fmt: skip
    copied = inner * (pitch if early else width)
    mine = work.table + copied + channels * length + SLACK
    whole_lines = lambda elements: -(-elements * itemsize // LINE_BYTES) * LINE_BYTES // itemsize  # noqa: E731
    return _Layout(work, tile, whole_lines(blocks * inner * rows), whole_lines(mine))


@parallel
def _pack(job, worker, w, rows, inner, outer, inner_stride, outer_stride, packed):
    # packed (blocks, inner, rows); a job packs one block of output channels, missing ones as zeros
    lanes = lanes_of(w)
    for row in range(0, rows, lanes):
        o, to = job * rows + row, job * inner * rows + row
        count = min(lanes, rows - row)
        for i in range(0, inner, lanes):
            start, wanted = o * outer_stride + i * inner_stride, min(lanes, inner - i)
            if inner_stride == 1:
                square = turn_square(load_square_part(w, start, outer_stride, min(count, outer - o), wanted))
            else:
                square = load_square_part(w, start, inner_stride, wanted, min(count, outer - o))
            store_tile_part(packed, to + i * rows, rows, square, wanted, count)


def _tile_kernel(rows: int, columns: int) -> ParallelKernel:
    """The kernel for one tile size."""

    def body(job, worker, x, packed, bias, work, tables, scratch, y):
        # x (N, inner, source plane), y (N, outer, target plane), flat; scratch (threads, …), each with
        # the places of a panel's pixels in front, which tables shows as integers
        width = columns * lanes_of(y)
        group, cut = job // work.cuts, job % work.cuts
        blocks = (work.outer + rows - 1) // rows
        first_block, last_block = cut * blocks // work.cuts, (cut + 1) * blocks // work.cuts
        places, mine = tables[worker], scratch[worker, work.table :]
        results = work.inner * max(work.early, width)
        plane, pitch = work.source.size, work.target.size
        first = group * work.panels * width
        last = min(first + work.panels * width, work.pixels)
        step = work.early or width  # elements from channel to channel of what is copied
        if work.early:
            gather(x, work.source, work.inner, first, last - first, mine, step)
        for pixel in range(first, last, width):
            base = pixel - first if work.early else 0
            alone = pixel % work.source.pixels + width <= work.source.pixels and pixel + width <= last  # in its image
            plain = alone and work.source.dense
            straight = alone and work.target.dense
            start = address_of(work.source, work.inner, pixel)
            if not plain and not work.early:
                count = min(width, last - pixel)
                tabulate(work.source, work.inner, pixel, count, places)
                collect(x, start, plane, work.inner, places, count, mine, width)
            for block in range(first_block, last_block):
                tile = zero_tile(y, rows, columns)
                weights = block * work.inner * rows
                turn = block - first_block
                ahead = address_of(work.source, work.inner, pixel + width + turn % work.lines * work.line)
                if plain and turn == 0 and not work.early:
                    # Copying on the way hides the wait for memory: packing first costs 10% (Zen 5, 256 to 64 channels).
                    for i in range(work.inner):
                        prefetch(x, ahead + i * plane, 1, 2)
                        row = load_tile(x, start + i * plane, 0, 1, columns)
                        store_tile(mine, i * width, 0, row)
                        tile = add_outer_row(tile, packed, weights + i * rows, row)
                else:
                    for i in range(work.inner):
                        prefetch(x, ahead + i * plane, 1, 2)
                        tile = add_outer(tile, packed, weights + i * rows, mine, base + i * step)
                if bias.size:
                    tile = add_bias(tile, bias, block * rows)
                if work.activation:
                    tile = relu_tile(tile)
                if not straight:
                    store_tile(mine, results + turn * rows * work.length + pixel - first, work.length, tile)
                elif (block + 1) * rows <= work.outer:
                    store_tile(y, address_of(work.target, work.outer, pixel) + block * rows * pitch, pitch, tile)
                else:
                    to = address_of(work.target, work.outer, pixel) + block * rows * pitch
                    store_tile_part(y, to, pitch, tile, work.outer - block * rows, width)
            # On a grid the whole job's results are written at once: longer runs in every line.
            if not straight and (work.target.dense or pixel + width >= last):
                begin, end = (pixel if work.target.dense else first), min(pixel + width, last)
                c0 = first_block * rows
                channels = min(last_block * rows, work.outer) - c0
                at = results + begin - first
                scatter(y, work.target, work.outer, c0, channels, begin, end - begin, mine, at, work.length)

    body.__name__ = f"_panels_{rows}x{columns}"
    return parallel(body)


_KERNELS = {tile: _tile_kernel(*tile) for tile in TILES}


def run(
    plan: _Layout, x: np.ndarray, w: np.ndarray, bias: np.ndarray, strides: Pair, workspace: np.ndarray, out: np.ndarray
) -> None:
    """Multiply; ``strides`` say how far the summed and the produced channels lie apart in w."""
    work, rows = plan.work, plan.tile[0]
    room = workspace.view(out.dtype)
    packed, scratch = room[: plan.packed], thread_rows(room[plan.packed :], plan.scratch)
    _pack(-(-work.outer // rows), w.reshape(-1), rows, work.inner, work.outer, *strides, packed)
    arrays = (x.reshape(-1), packed, bias, work, scratch.view(np.uint64), scratch, out.reshape(-1))
    _KERNELS[plan.tile](work.groups * work.cuts, *arrays, limit=scratch.shape[0])


def room_bytes(plan: _Layout, itemsize: int) -> int:
    """The packed weights, and the panels of each thread."""
    return (plan.packed + num_threads() * plan.scratch) * itemsize


def _forward_layout(spec: PointwiseSpec, itemsize: int) -> _Layout:
    grid = whole(spec.pixels)
    return layout(spec.n, spec.c, spec.k, grid, grid, spec.activation, itemsize)


def _gradient_layout(spec: PointwiseSpec, itemsize: int) -> _Layout:
    grid = whole(spec.pixels)
    return layout(spec.n, spec.k, spec.c, grid, grid, 0, itemsize)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: PointwiseSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k, l] = bias[k] + sum over c of w[k, c] · x[n, c, l]."""
    run(_forward_layout(spec, x.itemsize), x, w, bias, (1, spec.c), workspace, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: PointwiseSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c, l] = sum over k of w[k, c] · gy[n, k, l]: the same product with the transposed matrix."""
    run(_gradient_layout(spec, gy.itemsize), gy, w, np.empty(0, out.dtype), (spec.c, 1), workspace, out)


def workspace_bytes(problem: Problem) -> int:
    """As :func:`room_bytes`."""
    itemsize = problem.itemsize
    plan = (_forward_layout if problem.direction == "forward" else _gradient_layout)(problem.spec, itemsize)
    return room_bytes(plan, itemsize)


def refuses(problem: Problem) -> str:
    """Takes weights of which a packed copy fits into shared scratch."""
    plan = (_forward_layout if problem.direction == "forward" else _gradient_layout)(problem.spec, problem.itemsize)
    return cpu_only(problem) or too_large(plan.packed, problem.itemsize)
