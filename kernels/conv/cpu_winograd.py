"""Winograd's convolution for stride 1: forward and input gradient of 3x3 and 5x5 kernels.

The result is cut into blocks of m x m pixels. Block, kernel (r x r) and patch (m + r - 1 = 6 pixels each way) are taken as
polynomials; their values at 36 pairs of points are multiplied instead of their coefficients::

    y = A^T [ (G w G^T) * (B^T x B) ] A        36 products, where the direct sum takes m*m * r*r: 144 for m = 4, r = 3

Summed over channels, that is one matrix product per point: (K x C) times (C x blocks). A job transforms the patches of some
lines of blocks, multiplies point by point, and transforms back; kernels are transformed once before. Where there are few
blocks and many channels ("wide"), the patches are transformed once before, and a job transforms its own kernels.

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
from ..simd import lanes_of, store_tile, zero_tile
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..variant import Problem, cpu_only
from .blocks import Blocks, Lines, channels_together, copy_lines, make_blocks, whole

POINTS = SIZE * SIZE
ROWS, COLUMNS = (8, 3) if simd.REGISTERS == 32 else (6, 2)
OUTER = 64  # channels produced at a time: their products stay in the second-level cache
OUTER_WIDE = 2 * ROWS
BLOCKS = 112  # in a job, about
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
        return POINTS * self.layout.filters * self.layout.filter_pitch + SLACK

    @property
    def patches(self) -> int:
        return POINTS * (self.layout.inner * self.layout.room + SLACK)

    @property
    def scratch(self) -> int:
        """Elements for each thread."""
        outer = OUTER_WIDE if self.wide else min(OUTER, self.layout.filters)
        return self.layout.products + POINTS * (outer * self.layout.used + SLACK)


@lru_cache(maxsize=1024)
def _work(spec: ConvSpec, gradient: bool, itemsize: int) -> _Work:
    r = spec.kernel[0]
    step = SIZE + 1 - r
    if gradient:
        inner, outer, source, result = spec.k, spec.c, spec.out, spec.size
        pad = (r - 1 - spec.padding[0][0], r - 1 - spec.padding[1][0])
    else:
        inner, outer, source, result = spec.c, spec.k, spec.size, spec.out
        pad = (spec.padding[0][0], spec.padding[1][0])
    filter_pitch = whole(inner, simd.VECTOR_BITS // (8 * itemsize)) + SLACK
    filters = whole(outer, ROWS)
    few = spec.n * -(-result[0] // step) * -(-result[1] // step) <= BLOCKS_WIDE // 2
    wide = POINTS * filters * filter_pitch * itemsize > FILTER_BYTES or (few and filters >= 4 * OUTER_WIDE)
    blocks = make_blocks(spec.n, result, step, itemsize, BLOCKS_WIDE if wide else BLOCKS)
    lines = blocks.lines_of(inner, source, pad, SIZE, step)
    finished = blocks.in_row * blocks.share * step
    places = blocks.places((SIZE, lines.pitch, step), (step, finished, step))
    if wide:
        filters = OUTER_WIDE
    head = max(blocks.rows * SIZE * lines.pitch, blocks.rows * step * finished, r * r * filter_pitch) + SLACK
    layout = _Layout(
        inner, channels_together(inner), outer, *result, step, blocks.down, blocks.lines, blocks.rows, blocks.segments,
        finished, blocks.used, blocks.room if wide else blocks.used, filter_pitch, filters,
        0 if gradient else spec.activation, head, 0,
    )  # fmt: skip
    work = _Work(layout, lines, blocks, places, wide)
    own = work.filters if wide else work.patches
    return work._replace(layout=layout._replace(products=head + own))


@helper
def multiply(filters, u, layout, patches, v, products, m, outer):
    """The products of one point: (outer x inner) times (inner x blocks)."""
    vector = lanes_of(products)
    t = 0
    while t < layout.used:
        left = (layout.used - t) // vector
        for k in range(0, outer, ROWS):
            a, b, to = u + k * layout.filter_pitch, v + t, m + k * layout.used + t
            if left >= COLUMNS:
                tile = zero_tile(products, ROWS, COLUMNS)
                for c in range(layout.inner):
                    tile = add_outer_apart(tile, filters, a + c, layout.filter_pitch, patches, b + c * layout.room)
                store_tile(products, to, layout.used, tile)
            elif left >= 2:
                pair = zero_tile(products, ROWS, 2)
                for c in range(layout.inner):
                    pair = add_outer_apart(pair, filters, a + c, layout.filter_pitch, patches, b + c * layout.room)
                store_tile(products, to, layout.used, pair)
            else:
                single = zero_tile(products, ROWS, 1)
                for c in range(layout.inner):
                    single = add_outer_apart(single, filters, a + c, layout.filter_pitch, patches, b + c * layout.room)
                store_tile(products, to, layout.used, single)
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
    def make_filter(w, first, inner_stride, tap_step, layout, row, filters, nowhere, scratch):
        # The weights of a tap are gathered first, channel by channel, so that lanes are channels.
        for t in range(taps * taps):
            gathered = scratch[t * layout.filter_pitch : (t + 1) * layout.filter_pitch]
            for i in range(layout.inner):
                gathered[i] = w[first + t * tap_step + i * inner_stride]
        apart = layout.filters * layout.filter_pitch
        for i in range(0, layout.inner, lanes_of(filters)):
            g = load_planes(scratch, i, nowhere, 0, layout.filter_pitch, taps, taps, 1)
            to = row * layout.filter_pitch + i
            store_planes(filters, to, nowhere, 0, apart, filter_transform(g), 1, lanes_of(filters))

    @helper
    def make_patches(source, channel, line, rows, layout, lines, places, scratch, patches, ahead):
        copy_lines(source, channel, line, rows, lines, scratch)
        apart = layout.inner * layout.room + SLACK
        for s in range(0, layout.segments, parts):
            d = load_patches(scratch, 0, places[1], s, lines.pitch, SIZE, step, parts)
            at = channel * layout.room
            store_planes(patches, at, places[0], s, apart, transform_input(d), parts, ahead)

    @helper
    def make_results(filters, first, outer, k0, patches, line, layout, bias, places, scratch, result):
        # scratch: rows to finish, …, products; filters of rows first … first + outer - 1 make channels k0 …
        rows = min(layout.rows, layout.lines - line)
        products = scratch[layout.products :]
        apart = min(OUTER, layout.filters) * layout.used + SLACK
        for e in range(POINTS):
            u = (e * layout.filters + first) * layout.filter_pitch
            v = e * (layout.inner * layout.room + SLACK)
            multiply(filters, u, layout, patches, v, products, e * apart, outer)
        for k in range(outer):
            for s in range(0, layout.segments, parts):
                values = load_planes(products, k * layout.used, places[0], s, apart, SIZE, SIZE, parts)
                store_patches(scratch, 0, places[2], s, layout.finished, output_transform(values), parts)
            finish_blocks(scratch, line, rows, k0 + k, layout, bias, result)

    def all_filters(job, worker, w, strides, first_tap, tap_step, layout, places, scratch, filters):
        first = job * strides[0] + first_tap
        make_filter(w, first, strides[1], tap_step, layout, job, filters, places[1], scratch[worker])

    def some_lines(job, worker, source, filters, bias, layout, lines, places, scratch, result):
        mine = scratch[worker]
        patches = mine[layout.head :]
        line = job * layout.rows
        rows = min(layout.rows, layout.lines - line)
        for c in range(layout.inner):
            make_patches(source, c, line, rows, layout, lines, places, mine, patches, layout.room)
        for k in range(0, layout.outer, OUTER):
            outer = min(OUTER, layout.outer - k)
            make_results(filters, k, outer, k, patches, line, layout, bias, places, mine, result)

    def all_patches(job, worker, source, line, layout, lines, places, scratch, patches):
        rows = min(layout.rows, layout.lines - line)
        first, last = job * layout.inner_job, min((job + 1) * layout.inner_job, layout.inner)
        for c in range(first, last):
            ahead = layout.room if c + 1 < last else 0
            make_patches(source, c, line, rows, layout, lines, places, scratch[worker], patches, ahead)

    def some_channels(
        job, worker, w, strides, first_tap, tap_step, patches, line, bias, layout, places, scratch, result
    ):
        mine = scratch[worker]
        filters = mine[layout.head :]
        k0 = job * OUTER_WIDE
        outer = min(OUTER_WIDE, layout.outer - k0)
        for k in range(outer):
            first = (k0 + k) * strides[0] + first_tap
            make_filter(w, first, strides[1], tap_step, layout, k, filters, places[1], mine)
        make_results(filters, 0, outer, k0, patches, line, layout, bias, places, mine, result)

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
    tap = (taps * taps - 1, -1) if turned else (0, 1)
    all_filters, some_lines, all_patches, some_channels = _KERNELS[taps, work.blocks.parts]
    source, w, result = source.reshape(-1), w.reshape(-1), out.reshape(-1)
    if work.wide:
        jobs = -(-layout.outer // OUTER_WIDE)
        for line in range(0, layout.lines, layout.rows):
            tables = (layout, lines, places, scratch, shared)
            all_patches(-(-layout.inner // layout.inner_job), source, line, *tables, limit=limit)
            arrays = (shared, line, bias, layout, places, scratch, result)
            some_channels(jobs, w, strides, *tap, *arrays, limit=limit)
    else:
        all_filters(layout.outer, w, strides, *tap, layout, places, scratch, shared, limit=limit)
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
    step = SIZE + 1 - spec.kernel[0]
    blocks = spec.n * -(-spec.out[0] // step) * -(-spec.out[1] // step)
    if 0 < blocks < min_blocks:
        return f"pays from {min_blocks} blocks of {step}x{step} results, here are {blocks}"
    direct = spec.n * spec.out[0] * spec.out[1] * spec.kernel[0] ** 2
    if direct < LEAST_SAVING * blocks * POINTS:
        return f"blocks of {step}x{step} results that reach beyond {spec.out[0]}x{spec.out[1]} save too little"
    return cpu_only(problem)


def refuses(problem: Problem) -> str:
    return refusal(problem, MIN_CHANNELS, MIN_BLOCKS)
