"""Direct convolution with vectors of images: forward and input gradient, for large batches of few channels.

Lane l holds image n + l. The same pixel of all these images lies in one vector, so every tap is a plain step over vectors:
no lane is lost at the ends of rows, whatever the stride or dilation, and no channel count leaves lanes empty. A tile of ROWS
result channels x COLUMNS neighbouring pixels is a sum of outer products of single weights and pixels. Taps that meet
padding in a whole tile are left out.

One job takes some rows of the results of one group and of as many images as a vector has lanes: it transposes the pixels
that they meet into its scratch, and the results on their way back.

Scratch for each thread: the pixels, and the results.

Source: images as the innermost dimension were cuda-convnet's layout, Krizhevsky, "One weird trick for parallelizing
convolutional neural networks", 2014.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from .. import host, simd
from ..compiler import helper
from ..simd import add_bias, lanes_of, relu_tile, store_tile, zero_tile
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..tiles import add_outer_pixels, load_square, load_transposed, store_pixels, store_transposed
from ..variant import Problem, cpu_only
from .lattice import (
    CLASS_FIELDS,
    FIRST_TAP,
    RESULTS_H,
    RESULTS_W,
    START_H,
    START_W,
    Axis,
    class_tables,
    dense_axis,
    gradient_axis,
    make_strip,
    strips_wanted,
    tap_ranges,
)

SCRATCH_BYTES = host.l2_bytes() * 3 // 4
TILES = (
    ((12, 2), (8, 3), (8, 2), (6, 4), (6, 2), (4, 6), (3, 7), (2, 8), (1, 8), (12, 1), (8, 1), (4, 2), (2, 2), (1, 1))
    if simd.REGISTERS == 32
    else ((6, 2), (4, 3), (3, 4), (2, 5), (1, 8), (8, 1), (4, 1), (2, 2), (1, 1))
)
LOOP = 6  # cycles that the taps of a row take, beside their products
ACROSS = CLASS_FIELDS  # of a class: its taps in a row


class Layout(NamedTuple):
    """Plain numbers for the kernel: source (N, groups * inner, …), result (N, groups * outer, …)."""

    n: int
    groups: int
    inner: int  # channels summed over, in a group
    outer: int  # channels produced, in a group
    source: Pair  # height and width
    result: Pair
    step: Pair  # between the results of a class
    down: int  # source rows from a row of results to the next
    rows: int  # rows of each class in a job
    strips: int
    first: Pair  # source row and column that the first tap of the first result meets
    height: int  # source rows of a strip
    pitch: int  # pixels from row to row
    results: int  # pixels of results of a strip
    group_weights: int  # elements from a group's weights to the next group's
    filter: int  # from those of a produced channel to the next one's
    inner_weights: int  # and of a summed channel to the next one's
    activation: int


class Work(NamedTuple):
    """A problem ready to run."""

    layout: Layout
    tile: Pair
    across: int  # pixels from a result to its neighbour's
    lanes: int
    classes: np.ndarray
    down_ranges: np.ndarray  # taps that meet the source, by class and row
    across_ranges: np.ndarray  # by class and tile of a row
    shifts: np.ndarray
    taps: np.ndarray

    @property
    def pixels(self) -> int:
        """Elements of the pixels of a job, with what whole vectors reach beyond."""
        a = self.layout
        return (a.inner * a.height * a.pitch + self.lanes) * self.lanes

    @property
    def scratch(self) -> int:
        """Elements for each thread."""
        return self.pixels + (self.layout.outer * self.layout.results + self.lanes) * self.lanes

    @property
    def jobs(self) -> int:
        a = self.layout
        return -(-a.n // self.lanes) * a.groups * a.strips


def _choose_tile(outer: int, axes: tuple[Axis, Axis], counts: list[int], stride: int) -> Pair:
    """The tile with the fewest cycles for the results of a row."""

    def cost(tile: Pair) -> float:
        rows, columns = tile
        met = np.ptp(across_ranges(axes, counts, stride, columns)[: len(counts)], axis=2)
        # Two products a cycle, two loads or nearly three with a row's address, four cycles from a sum to the next.
        cycles = max(rows * columns / 2, 0.75 * rows + columns / 2, 4) + 0.5
        return -(-outer // rows) * (int(met.sum()) * cycles + np.count_nonzero(met) * LOOP)

    return min((tile for tile in TILES if tile[0] <= outer and tile[1] <= min(counts)), key=cost)


def across_ranges(axes: tuple[Axis, Axis], counts: list[int], stride: int, columns: int) -> np.ndarray:
    """Of every class's taps in a row, those that meet columns of the source for some pixel of a tile: (classes, tiles, 2)."""
    vertical, horizontal = axes
    tiles = -(-max(counts) // columns)
    ranges = np.zeros((len(vertical.classes), len(horizontal.classes), tiles, 2), np.int64)
    for number, (c, count) in enumerate(zip(horizontal.classes, counts, strict=True)):
        if c.taps:
            first = np.minimum(np.arange(0, count, columns), count - columns)
            pixels = (first[:, None] + np.arange(columns)) * stride
            source = pixels[:, :, None] + [tap.shift for tap in c.taps]
            met = np.any((source >= 0) & (source < horizontal.size), axis=1)  # by tile and tap
            some = np.any(met, axis=1)
            ranges[:, number, : len(first), 0] = some * met.argmax(axis=1)
            ranges[:, number, : len(first), 1] = some * (len(c.taps) - met[:, ::-1].argmax(axis=1))
    return ranges.reshape(-1, tiles, 2)


def _work(
    spec: ConvSpec, axes: tuple[Axis, Axis], stride: Pair, channels: Pair, planes: tuple[Pair, Pair],
    weights: tuple[int, int, int], activation: int, itemsize: int,
) -> Work:  # fmt: skip
    (inner, outer), (source, result) = channels, planes
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    # The results of a dense axis lie ``stride`` apart.
    counts = [[(c.results - 1) // step + 1 for c in axis.classes] for axis, step in zip(axes, stride, strict=True)]
    tile = _choose_tile(outer, axes, counts[1], stride[1])
    step = (axes[0].step, axes[1].step)
    pitch = axes[1].results + axes[1].span
    rows_of_results = max(counts[0])
    row_bytes = lanes * itemsize * (inner * pitch * stride[0] + outer * step[0] * result[1])
    edge = lanes * itemsize * inner * pitch * (axes[0].span + 1 - stride[0])
    rows = max(1, min(rows_of_results, (SCRATCH_BYTES - edge) // row_bytes))
    strips = max(-(-rows_of_results // rows), strips_wanted(-(-spec.n // lanes) * spec.groups))
    rows = -(-rows_of_results // strips)
    strips = -(-rows_of_results // rows)
    height = (rows - 1) * stride[0] + axes[0].span + 1
    strip = make_strip(axes, 1, itemsize, 0)._replace(pitch=pitch, plane=height * pitch)
    classes, shifts, taps = class_tables(axes, strip, spec.kernel[1])
    classes = np.pad(classes, ((0, 0), (0, 1)))
    classes[:, RESULTS_H] = np.repeat(counts[0], len(counts[1]))
    classes[:, RESULTS_W] = np.tile(counts[1], len(counts[0]))
    classes[:, ACROSS] = np.tile([max(1, len(c.taps)) for c in axes[1].classes], len(counts[0]))
    layout = Layout(
        spec.n, spec.groups, inner, outer, source, result, step, stride[0], rows, strips,
        (axes[0].first, axes[1].first), height, pitch, rows * step[0] * result[1], *weights, activation,
    )  # fmt: skip
    met = tap_ranges(axes)[:, :: stride[0]]
    return Work(
        layout, tile, stride[1], lanes, classes, np.ascontiguousarray(met),
        across_ranges(axes, counts[1], stride[1], tile[1]), shifts * lanes, taps,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def forward_work(spec: ConvSpec, itemsize: int) -> Work:
    axes = (dense_axis(spec, 0), dense_axis(spec, 1))
    inner, outer, size = spec.c // spec.groups, spec.k // spec.groups, math.prod(spec.kernel)
    weights = (outer * inner * size, inner * size, size)
    planes = (spec.size, spec.out)
    return _work(spec, axes, spec.stride, (inner, outer), planes, weights, spec.activation, itemsize)


@lru_cache(maxsize=1024)
def gradient_work(spec: ConvSpec, itemsize: int) -> Work:
    axes = (gradient_axis(spec, 0), gradient_axis(spec, 1))
    inner, outer, size = spec.k // spec.groups, spec.c // spec.groups, math.prod(spec.kernel)
    weights = (inner * outer * size, size, outer * size)
    return _work(spec, axes, (1, 1), (inner, outer), (spec.out, spec.size), weights, 0, itemsize)


@helper
def copy_run(source, begin, apart, images, count, scratch, at):
    """Transpose ``count`` neighbouring pixels of images that lie ``apart``; up to a square of vectors more is zeroed."""
    lanes = lanes_of(scratch)
    for i in range(0, count, lanes):
        store_tile(scratch, at + i * lanes, lanes, load_transposed(source, begin + i, apart, images, count - i))


@helper
def copy_pixels(source, begin, apart, images, channels, size, first, height, pitch, scratch, at):
    """Pixel (h, w) of all images, one vector, for ``height`` rows and ``pitch`` columns from ``first`` on; channels follow
    each other. Columns beyond the image are zeros; rows beyond it are left out. Up to a square of vectors more is written.
    """
    lanes = lanes_of(scratch)
    zero = zero_tile(scratch, 1, 1)
    left, right = max(-first[1], 0), max(first[1], 0)  # columns of padding, or of the image that are not needed
    columns = min(size[1] - right, pitch - left)
    low, high = max(first[0], 0), min(first[0] + height, size[0])
    for channel in range(channels):
        come = begin + (channel * size[0] + low) * size[1] + right
        to = at + (channel * height + low - first[0]) * pitch * lanes
        if columns == pitch == size[1]:
            copy_run(source, come, apart, images, (high - low) * pitch, scratch, to)
            continue
        for _h in range(low, high):
            for j in range(left):
                store_tile(scratch, to + j * lanes, 0, zero)
            copy_run(source, come, apart, images, columns, scratch, to + left * lanes)
            for j in range(left + columns, pitch):
                store_tile(scratch, to + j * lanes, 0, zero)
            come += size[1]
            to += pitch * lanes


def _tile_kernel(rows: int, columns: int, across: int) -> ParallelKernel:
    """The kernel for one tile, and one step between the pixels that neighbouring results meet."""

    def body(job, worker, source, w, bias, layout, classes, down_met, across_met, shifts, taps, scratch, result):
        # source (N, groups * inner, H, W) flat; scratch (threads, …); result (N, groups * outer, …) flat
        lanes = lanes_of(result)
        mine = scratch[worker]
        p0, job = job % layout.strips * layout.rows, job // layout.strips
        group, n = job % layout.groups, job // layout.groups * lanes
        images = min(lanes, layout.n - n)
        plane = layout.source[0] * layout.source[1]
        begin = (n * layout.groups + group) * layout.inner * plane
        first = (layout.first[0] + p0 * layout.down, layout.first[1])
        apart = layout.groups * layout.inner * plane
        copy_pixels(
            source, begin, apart, images, layout.inner, layout.source, first, layout.height, layout.pitch, mine, 0
        )

        plane = layout.height * layout.pitch * lanes
        sums = (layout.inner * layout.height * layout.pitch + lanes) * lanes
        for index in range(classes.shape[0]):
            results_w, turn = classes[index, RESULTS_W], classes[index, ACROSS]
            tiles = (results_w + columns - 1) // columns
            for p in range(p0, min(p0 + layout.rows, classes[index, RESULTS_H])):
                t0, t1 = down_met[index, p, 0], down_met[index, p, 1]
                row = (classes[index, START_H] + (p - p0) * layout.step[0]) * layout.result[1] + classes[index, START_W]
                for block in range(0, layout.outer, rows):
                    o = min(block, layout.outer - rows)  # the last tile overlaps the one before
                    for number in range(tiles):
                        q = min(number * columns, results_w - columns)
                        s0, s1 = across_met[index, number, 0], across_met[index, number, 1]
                        here = ((p - p0) * layout.down * layout.pitch + q * across) * lanes
                        weight = group * layout.group_weights + o * layout.filter
                        tile = zero_tile(result, rows, columns)
                        for _channel in range(layout.inner):
                            for r in range(classes[index, FIRST_TAP] + t0, classes[index, FIRST_TAP] + t1, turn):
                                for t in range(r + s0, r + s1):
                                    a, b = weight + taps[t], here + shifts[t]
                                    tile = add_outer_pixels(tile, w, a, layout.filter, mine, b, across)
                            weight += layout.inner_weights
                            here += plane
                        if bias.size:
                            tile = add_bias(tile, bias, group * layout.outer + o)
                        if layout.activation:
                            tile = relu_tile(tile)
                        to = sums + (o * layout.results + row + q * layout.step[1]) * lanes
                        store_pixels(mine, to, layout.results * lanes, layout.step[1] * lanes, tile)

        size = layout.result[0] * layout.result[1]
        begin = p0 * layout.step[0] * layout.result[1]
        count = min(layout.results, size - begin)
        apart = layout.groups * layout.outer * size
        for o in range(layout.outer):
            to = ((n * layout.groups + group) * layout.outer + o) * size + begin
            at = sums + o * layout.results * lanes
            for i in range(0, count, lanes):
                square = load_square(mine, at + i * lanes)
                store_transposed(result, to + i, 1, apart, 0, 1, square, images, count - i)

    body.__name__ = f"_images_{rows}x{columns}_{across}"
    return parallel(body)


_kernel = cache(_tile_kernel)


def _run(
    work: Work, source: np.ndarray, w: np.ndarray, bias: np.ndarray, workspace: np.ndarray, out: np.ndarray
) -> None:
    scratch = thread_rows(workspace.view(out.dtype), work.scratch)
    tables = (work.classes, work.down_ranges, work.across_ranges, work.shifts, work.taps, scratch, out.reshape(-1))
    kernel = _kernel(*work.tile, work.across)
    kernel(work.jobs, source.reshape(-1), w.reshape(-1), bias, work.layout, *tables, limit=scratch.shape[0])


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k] = bias[k] + sum over c, r, s of w[k, c, r, s] times x[n, c] shifted."""
    _run(forward_work(spec, x.itemsize), x, w, bias, workspace, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over k, r, s of w[k, c, r, s] times gy[n, k] shifted the other way."""
    _run(gradient_work(spec, gy.itemsize), gy, w, np.empty(0, out.dtype), workspace, out)


def few_images(spec: ConvSpec, itemsize: int) -> str:
    """The refusal of a batch that leaves most lanes empty."""
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    return "" if 2 * spec.n >= -(-spec.n // lanes) * lanes else f"takes batches that fill half their vectors of {lanes}"


def refuses(problem: Problem) -> str:
    """Takes batches that fill vectors, of images of which some rows fit into the second-level cache."""
    itemsize = problem.itemsize
    if reason := cpu_only(problem) or few_images(problem.spec, itemsize):
        return reason
    work = (forward_work if problem.direction == "forward" else gradient_work)(problem.spec, itemsize)
    if work.scratch * itemsize > 2 * host.l2_bytes():
        return "takes images of which a row fits into the second-level cache for a whole vector of them"
    return ""


def workspace_bytes(problem: Problem) -> int:
    """The pixels and results of each thread."""
    itemsize = problem.itemsize
    work = (forward_work if problem.direction == "forward" else gradient_work)(problem.spec, itemsize)
    return num_threads() * work.scratch * itemsize
