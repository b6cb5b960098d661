"""Direct convolution with vectors of result channels: forward and input gradient, for any stride, padding and dilation.

A tile holds GROUPS images x WIDTH neighbouring pixels of a result row, and for each of them COLUMNS vectors of result
channels: a sum of outer products, single pixels of the source times packed vectors of weights, over channels and taps. No
lane is wasted on the ends of rows, so this suits small and odd planes with many result channels; the last tile of a row
overlaps the one before. Results are transposed in registers when they are written.

Pixels are read from a strip (see lattice.py), or in place where nothing is padded across. Taps that meet rows of padding
are left out. One job is a strip of some images and one group, for some blocks of result channels.

Scratch: the packed weights and biases, shared; then a strip for each thread.

Source of the blocking: Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures",
2018; here the images stay NCHW.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from .. import host, simd
from ..rows import SLACK
from ..simd import lanes_of, load_tile, relu_tile, store_tile
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..tiles import add_outer_groups, load_transposed, store_transposed
from ..variant import Problem
from .lattice import (
    FIRST_TAP,
    RESULTS_H,
    RESULTS_W,
    START_H,
    START_W,
    TAPS,
    Axis,
    Strip,
    class_tables,
    copy_strip,
    dense_axis,
    forward_axis,
    gradient_axis,
    is_inside,
    make_strip,
    most_taps,
    phase_table,
    tap_ranges,
)  # fmt: skip

SQUARE = 92  # cycles in which a square of results is written
CONFLICT = 4  # and a vector of them more where planes lie a multiple of 4096 bytes apart
STRIP_BYTES = host.l2_bytes() // 2
# Rejected: blocks of summed channels whose weights stay in the first-level cache, sums in scratch between: 2% slower.
JOBS = 8  # jobs wanted before the result channels are cut into parts


class Tile(NamedTuple):
    """Shape of a register tile."""

    groups: int  # images
    width: int  # pixels of a row
    columns: int  # vectors of channels


# images x width x columns; few enough that a network compiles few of them, and every width has one that fits.
_SHAPES = (
    "1x14x2 1x13x2 1x11x2 1x10x2 1x8x2 1x7x2 1x4x2 1x1x2 2x7x2 2x6x2 2x5x2 3x4x2 4x3x2 4x2x2 8x1x2 2x3x2 2x2x2 1x9x3 1x7x3 "
    "1x28x1 1x20x1 1x16x1 1x10x1 1x4x1 1x2x1 1x1x1 2x10x1 2x7x1 4x4x1 8x2x1 8x1x1"
    if simd.REGISTERS == 32
    else "1x6x2 1x5x2 1x4x2 1x2x2 1x1x2 2x3x2 3x2x2 6x1x2 1x13x1 1x8x1 1x7x1 1x4x1 1x2x1 1x1x1 2x7x1 4x3x1 6x2x1 8x1x1"
)
TILES = tuple(Tile(*map(int, shape.split("x"))) for shape in _SHAPES.split())


class _Layout(NamedTuple):
    """Plain numbers for the kernel: source (N, groups * inner, …), result (N, groups * outer, …)."""

    n: int
    groups: int
    inner: int  # channels summed over, in a group
    outer: int  # channels produced, in a group
    result: Pair  # height and width
    step: Pair  # between the results of a class
    results: int  # rows of results over all strips, at most
    parts: int  # of the result channels
    in_place: bool
    down: int  # elements from the pixels of a row of results, in the strip, to those of the next
    image: int  # elements from one image of the source, or of the strip, to the next
    activation: int


@dataclass(frozen=True)
class _Work:
    """A problem ready to run."""

    layout: _Layout
    strip: Strip
    tile: Tile
    lanes: int
    across: int  # elements from pixel to pixel
    phases: np.ndarray
    classes: np.ndarray
    ranges: np.ndarray  # of the taps that meet the source
    shifts: np.ndarray
    # (3, taps): for every tap of the kernel its class's first tap, the class's taps, its number there
    places: np.ndarray

    @cached_property
    def block(self) -> int:
        """Result channels of a tile."""
        return self.tile.columns * self.lanes

    @cached_property
    def blocks(self) -> int:
        """Blocks of result channels, over all groups."""
        return self.layout.groups * -(-self.layout.outer // self.block)

    @cached_property
    def weights(self) -> int:
        """Elements of the packed weights."""
        return self.blocks * self.layout.inner * len(self.shifts) * self.block

    @cached_property
    def packed(self) -> int:
        """Elements of the packed weights and biases."""
        return self.weights + self.blocks * self.block

    @cached_property
    def scratch(self) -> int:
        """Elements for each thread."""
        images = 0 if self.layout.in_place else self.tile.groups * self.layout.image
        return max(images, self.lanes * self.lanes) + SLACK

    @cached_property
    def jobs(self) -> int:
        a = self.layout
        return -(-a.n // self.tile.groups) * a.groups * -(-a.results // self.strip.results) * a.parts


def choose_tile(
    n: int, outer: int, widths: list[int], terms: int, lanes: int, writing: Callable[[Tile], float]
) -> Tile:
    """The tile with the fewest cycles; ``writing`` gives those of a tile's results when they are summed."""

    def cost(tile: Tile) -> float:
        images, width, columns = tile
        rows = images * width
        tiles = sum(-(-w // width) for w in widths) * -(-n // images) * -(-outer // (columns * lanes))
        # Two products or nearly two loads a cycle, and four cycles from a sum to the next.
        cycles = max(rows * columns / 2, 0.535 * (rows + columns), 4) + 0.06 * images + 0.19 * columns
        return tiles * (terms * cycles + writing(tile))

    return min((tile for tile in TILES if tile.width <= min(widths) and tile.groups <= n), key=cost)


def _writing(tile: Tile, plane_bytes: int, lanes: int) -> float:
    """Cycles in which a tile's results are transposed and written to planes of this size."""
    rows = tile.groups * tile.width
    squares = max(tile.groups, -(-rows // lanes)) * tile.columns
    # Planes 4096 bytes apart meet in one set of the first-level cache, and drive out lines that were half written.
    conflicts = rows * tile.columns if plane_bytes % 4096 == 0 and tile.width % lanes else 0
    return SQUARE * squares + CONFLICT * conflicts


def _work(
    spec: ConvSpec, axes: tuple[Axis, Axis], inner: int, outer: int, result: Pair, activation: int, itemsize: int
) -> _Work:
    # Single pixels are multiplied, so neighbours across need no sorting by phase; rows do, to copy only those that are used.
    stride = spec.stride if axes[0].phases > 1 or axes[1].phases > 1 else (1, 1)
    dense = (dense_axis(spec, 0), dense_axis(spec, 1)) if stride != (1, 1) else axes
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    widths = [c.results for c in axes[1].classes]
    plane_bytes = result[0] * result[1] * itemsize
    terms = inner * most_taps(axes)
    tile = choose_tile(max(spec.n, 1), outer, widths, terms, lanes, lambda tile: _writing(tile, plane_bytes, lanes))
    copied = (axes[0], dense[1])
    strip = make_strip(copied, inner * tile.groups, itemsize, STRIP_BYTES)
    height, width = strip.source
    in_place = is_inside(dense[1])
    if in_place:
        strip = strip._replace(used=(1, 1), first=(dense[0].first, 0), pitch=width, plane=height * width)
    down = (stride[0] if in_place else 1) * strip.pitch
    image = (spec.groups if in_place else 1) * inner * strip.planes * strip.plane
    jobs = -(-spec.n // tile.groups) * spec.groups * -(-axes[0].results // strip.results)
    blocks = -(-outer // (tile.columns * lanes))
    parts = max(1, min(blocks, -(-JOBS // max(jobs, 1))))
    classes, shifts, taps = class_tables(dense if in_place else copied, strip, spec.kernel[1])
    if stride != (1, 1):
        classes[:, [RESULTS_H, RESULTS_W]] = result
    layout = _Layout(
        spec.n, spec.groups, inner, outer, result, (axes[0].step, axes[1].step), axes[0].results,
        parts, in_place, down, image, activation,
    )  # fmt: skip
    places = np.full((3, math.prod(spec.kernel)), -1, np.int64)
    for first, count in classes[:, [FIRST_TAP, TAPS]]:
        for number in range(count):
            places[:, taps[first + number]] = first, count, number
    tables = (phase_table(copied, strip), classes, tap_ranges(axes), shifts, places)
    return _Work(layout, strip, tile, lanes, stride[1], *tables)


@lru_cache(maxsize=1024)
def _forward_work(spec: ConvSpec, itemsize: int) -> _Work:
    axes = (forward_axis(spec, 0), forward_axis(spec, 1))
    work = _work(spec, axes, spec.c // spec.groups, spec.k // spec.groups, spec.out, spec.activation, itemsize)
    # All taps of all channels follow each other in w as in the packed weights: they are packed like one channel's.
    terms = work.layout.inner * len(work.shifts)
    places = np.stack([np.zeros(terms), np.full(terms, terms), np.arange(terms)]).astype(np.int64)
    return replace(work, places=places)


@lru_cache(maxsize=1024)
def _gradient_work(spec: ConvSpec, itemsize: int) -> _Work:
    axes = (gradient_axis(spec, 0), gradient_axis(spec, 1))
    return _work(spec, axes, spec.k // spec.groups, spec.c // spec.groups, spec.size, 0, itemsize)


@parallel
def pack(job, worker, w, bias, columns, inner, outer, strides, places, scratch, biases, packed):
    # packed (class, group * block, inner, taps of the class, columns, lanes); a job packs one block of result channels,
    # missing ones as zeros. w is flat; the strides say where its groups, summed and produced channels lie.
    lanes = lanes_of(packed)
    block = columns * lanes
    blocks, all_blocks = (outer + block - 1) // block, biases.size // block
    group, first = job // blocks, job % blocks * block
    mine = scratch[worker]
    for i in range(block):
        o = first + i
        biases[job * block + i] = bias[group * outer + o] if o < outer and bias.size else 0
    for column in range(columns):
        o = first + column * lanes
        for i in range(inner):
            for t0 in range(0, places.shape[1], lanes):
                taps = min(lanes, places.shape[1] - t0)
                start = group * strides[0] + o * strides[2] + i * strides[1] + t0
                store_tile(mine, 0, lanes, load_transposed(w, start, strides[2], outer - o, taps))
                for t in range(taps):
                    base, count, number = places[0, t0 + t], places[1, t0 + t], places[2, t0 + t]
                    if base >= 0:
                        at = (base * all_blocks + job * count) * inner + i * count + number
                        store_tile(packed, (at * columns + column) * lanes, 0, load_tile(mine, t * lanes, 0, 1, 1))


def _tile_kernel(images: int, width: int, columns: int, step: int, across: int) -> ParallelKernel:
    """The kernel for one tile, one step (0: any) between the results of a class, and one between their pixels."""
    rows = images * width

    def body(job, worker, source, packed, biases, layout, strip, phases, classes, ranges, shifts, scratch, result):
        # source (N, groups * inner, H, W) flat; scratch (threads, …); result (N, groups * outer, …) flat
        block = columns * lanes_of(result)
        blocks = (layout.outer + block - 1) // block
        strips = (layout.results + strip.results - 1) // strip.results
        part, job = job % layout.parts, job // layout.parts
        p0, job = job % strips * strip.results, job // strips
        group, n = job % layout.groups, min(job // layout.groups * images, layout.n - images)
        plane = strip.used[0] * strip.used[1] * strip.plane
        source_image = layout.inner * strip.source[0] * strip.source[1]
        begin = (n * layout.groups + group) * source_image
        if layout.in_place:
            pixels, origin = source, begin + p0 * layout.down + strip.first[0] * strip.pitch
        else:
            pixels, origin = scratch[worker], 0
            for image in range(images):
                start = begin + image * layout.groups * source_image
                copy_strip(source, start, layout.inner, p0, strip, phases, pixels, image * layout.image)

        size = layout.result[0] * layout.result[1]
        apart = layout.groups * layout.outer * size
        for b in range(part * blocks // layout.parts, (part + 1) * blocks // layout.parts):
            target = ((n * layout.groups + group) * layout.outer + b * block) * size
            channels = layout.outer - b * block
            for index in range(classes.shape[0]):
                first_tap, taps = classes[index, FIRST_TAP], classes[index, TAPS]
                weights = (first_tap * layout.groups * blocks + (group * blocks + b) * taps) * layout.inner * block
                results_w = classes[index, RESULTS_W]
                for p in range(p0, min(p0 + strip.results, classes[index, RESULTS_H])):
                    t0, t1 = ranges[index, p, 0], ranges[index, p, 1]
                    row = target + (classes[index, START_H] + p * layout.step[0]) * layout.result[1]
                    for ideal in range(0, results_w, width):
                        q = min(ideal, results_w - width)  # the last tile overlaps the one before
                        here = origin + (p - p0) * layout.down + q * across
                        tile = load_tile(biases, (group * blocks + b) * block, 0, rows, columns)
                        weight = weights + t0 * block
                        for channel in range(layout.inner):
                            base = here + channel * plane
                            for t in range(first_tap + t0, first_tap + t1):
                                tile = add_outer_groups(
                                    tile, pixels, base + shifts[t], across, layout.image, images, packed, weight
                                )
                                weight += block
                            weight += (taps - t1 + t0) * block
                        if layout.activation:
                            tile = relu_tile(tile)
                        to, between = row + classes[index, START_W] + q * layout.step[1], layout.step[1]
                        if step == 1:
                            store_transposed(result, to, 1, size, apart, images, tile, channels, width)
                        elif step == 2:
                            store_transposed(result, to, 2, size, apart, images, tile, channels, width)
                        else:
                            store_transposed(result, to, between, size, apart, images, tile, channels, width)

    body.__name__ = f"_channels_{images}x{width}x{columns}_{step}_{across}"
    return parallel(body)


_kernel = cache(_tile_kernel)


def _run(
    work: _Work, source: np.ndarray, w: np.ndarray, bias: np.ndarray, inner: int, strides: tuple[int, int, int],
    workspace: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    layout = work.layout
    room = workspace.view(out.dtype)
    packed, biases = room[: work.weights], room[work.weights : work.packed]
    scratch = thread_rows(room[work.packed :], work.scratch)
    pack(
        work.blocks, w.reshape(-1), bias, work.tile.columns, inner, layout.outer, strides, work.places, scratch,
        biases, packed, limit=scratch.shape[0],
    )  # fmt: skip
    tables = (work.phases, work.classes, work.ranges, work.shifts, scratch, out.reshape(-1))
    kernel = _kernel(*work.tile, layout.step[1] if layout.step[1] < 3 else 0, work.across)
    kernel(work.jobs, source.reshape(-1), packed, biases, layout, work.strip, *tables, limit=scratch.shape[0])


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k] = bias[k] + sum over c, r, s of w[k, c, r, s] times x[n, c] shifted."""
    filter_size = math.prod(spec.w_shape[1:])
    strides = (spec.k // spec.groups * filter_size, 0, filter_size)
    _run(_forward_work(spec, x.itemsize), x, w, bias, 1, strides, workspace, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over k, r, s of w[k, c, r, s] times gy[n, k] shifted the other way."""
    taps, filter_size = spec.kernel[0] * spec.kernel[1], math.prod(spec.w_shape[1:])
    inner = spec.k // spec.groups
    strides = (inner * filter_size, filter_size, taps)
    _run(_gradient_work(spec, gy.itemsize), gy, w, np.empty(0, out.dtype), inner, strides, workspace, out)


def workspace_bytes(problem: Problem) -> int:
    """The packed weights and biases, and a strip for each thread."""
    itemsize = problem.itemsize
    work = (_forward_work if problem.direction == "forward" else _gradient_work)(problem.spec, itemsize)
    elements = work.packed + num_threads() * work.scratch
    return -(-elements * itemsize // 8) * 8
