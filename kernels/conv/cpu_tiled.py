"""Direct convolution with register tiles: forward and input gradient, for any stride, padding, dilation and groups.

In a strip of the source (see lattice.py) a tile of ROWS result channels x COLUMNS vectors of pixels is a sum of outer
products over channels and taps: packed weights times shifted pixels. A tile stays in registers from the first product to
the last. One job is a strip of one image and one group.

Scratch: the packed weights, shared; then a strip and a block of results for each thread.

Source of the tile: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from .. import host, simd
from ..rows import SLACK, finish_row, zero_row
from ..simd import (
    add_bias,
    add_outer,
    lanes_of,
    relu_tile,
    store_tile,
    store_tile_part,
    zero_tile,
)
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
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
    forward_axis,
    gradient_axis,
    make_strip,
    most_taps,
    phase_table,
)  # fmt: skip

# A strip takes half of the second-level cache; less costs up to 15% on 3x3 layers (Zen 5, 192 KiB against 512 KiB).
STRIP_BYTES = host.l2_bytes() // 2
# (rows, columns) of the tiles: as many sums as leave registers for the operands.
TILES = (
    ((8, 3), (8, 2), (12, 2), (6, 4), (6, 2), (4, 6), (3, 7), (2, 12), (1, 16))
    if simd.REGISTERS == 32
    else ((6, 2), (4, 3), (3, 4), (2, 5), (1, 8))
)
WRITING = 3, 12  # products in whose time a vector of results is written: straight, or by way of scratch


class _Layout(NamedTuple):
    """Plain numbers for the kernel: source (N, groups * inner, …), result (N, groups * outer, …)."""

    n: int
    groups: int
    inner: int  # channels summed over, in a group
    outer: int  # channels produced, in a group
    result: Pair  # height and width
    step: Pair  # between the results of a class
    results: int  # rows of results over all strips, at most
    runs: int  # of neighbouring results in a strip: its rows, or one of them all
    run: int  # results of a run
    length: int  # of a run in whole tiles
    overhang: int  # elements behind the strip that its last tile reads and drops
    plain: bool  # the results of a run lie in the output as they lie in the strip
    activation: int


class _Work(NamedTuple):
    """A problem ready to run."""

    layout: _Layout
    strip: Strip
    tile: Pair
    cost: float  # of a result, in the time of its products
    phases: np.ndarray
    classes: np.ndarray
    shifts: np.ndarray
    taps: np.ndarray

    @property
    def blocks(self) -> int:
        """Blocks of result channels, over all groups."""
        return self.layout.groups * -(-self.layout.outer // self.tile[0])

    @property
    def packed(self) -> int:
        """Elements of the packed weights."""
        return self.blocks * self.layout.inner * len(self.taps) * self.tile[0]

    @property
    def scratch(self) -> int:
        """Elements for each thread."""
        planes = self.layout.inner * self.strip.planes
        sums = 0 if self.layout.plain else self.tile[0] * self.layout.length
        return planes * self.strip.plane + self.layout.overhang + sums + SLACK


class _Run(NamedTuple):
    """How results are cut: ``runs`` runs of ``run`` results, straight to the output if ``plain``."""

    runs: int
    run: int
    plain: bool


def _choose_tile(outer: int, ways: list[_Run], terms: int, lanes: int) -> tuple[Pair, _Run, float]:
    """The tile and the way that compute the fewest sums for nothing, with their cost in sums; a low tile loads more for
    each product, which counts too."""

    def cost(choice: tuple[Pair, _Run]) -> float:
        (rows, columns), way = choice
        sums = -(-outer // rows) * rows * way.runs * -(-way.run // (columns * lanes)) * columns * lanes
        few = max(1, 8 / (rows * columns))  # four cycles from a sum to the next
        return sums * (few + 1 / rows + 0.1 / columns + WRITING[not way.plain] / terms)

    tile, way = min(product(TILES, ways), key=cost)
    return tile, way, cost((tile, way))


def _work(
    spec: ConvSpec, axes: tuple[Axis, Axis], inner: int, outer: int, result: Pair, activation: int, itemsize: int
) -> _Work:
    strip = make_strip(axes, inner, itemsize, STRIP_BYTES)
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    step = (axes[0].step, axes[1].step)
    flat = (strip.results - 1) * strip.pitch + axes[1].results
    ways = [_Run(1, flat, step == (1, 1) and strip.pitch == axes[1].results)]
    if step == (1, 1):
        ways.append(_Run(strip.results, axes[1].results, True))
    tile, way, cost = _choose_tile(outer, ways, inner * most_taps(axes), lanes)
    length = -(-way.run // (tile[1] * lanes)) * tile[1] * lanes
    overhang = max(0, axes[1].span + (way.runs - 1) * strip.pitch + length - strip.results * strip.pitch)
    layout = _Layout(
        spec.n, spec.groups, inner, outer, result, step, axes[0].results, way.runs, way.run, length, overhang,
        way.plain, activation,
    )  # fmt: skip
    cost /= outer * strip.results * axes[1].results
    return _Work(layout, strip, tile, cost, phase_table(axes), *class_tables(axes, strip, spec.kernel[1]))


@lru_cache(maxsize=1024)
def forward_work(spec: ConvSpec, itemsize: int) -> _Work:
    axes = (forward_axis(spec, 0), forward_axis(spec, 1))
    return _work(spec, axes, spec.c // spec.groups, spec.k // spec.groups, spec.out, spec.activation, itemsize)


@lru_cache(maxsize=1024)
def gradient_work(spec: ConvSpec, itemsize: int) -> _Work:
    axes = (gradient_axis(spec, 0), gradient_axis(spec, 1))
    return _work(spec, axes, spec.k // spec.groups, spec.c // spec.groups, spec.size, 0, itemsize)


@parallel
def _pack(job, worker, w, rows, inner, outer, group_stride, inner_stride, outer_stride, classes, taps, packed):
    # packed (class, group * block, inner, taps of the class, rows); a job packs one block of result channels,
    # missing ones as zeros. w is flat; the strides say where its groups, summed and produced channels lie.
    blocks = (outer + rows - 1) // rows
    group, block = job // blocks, job % blocks
    all_blocks = packed.size // (inner * taps.size * rows)
    for index in range(classes.shape[0]):
        first, count = classes[index, FIRST_TAP], classes[index, TAPS]
        to = (first * all_blocks + job * count) * inner * rows
        for i in range(inner):
            for t in range(first, first + count):
                for row in range(rows):
                    o = block * rows + row
                    if o < outer:
                        packed[to + row] = w[group * group_stride + o * outer_stride + i * inner_stride + taps[t]]
                    else:
                        packed[to + row] = 0
                to += rows


def _tile_kernel(rows: int, columns: int) -> ParallelKernel:
    """The kernel for one tile size."""

    def body(job, worker, source, packed, bias, layout, strip, phases, classes, shifts, scratch, result):
        # source (N, groups * inner, H, W) flat; scratch (threads, …); result (N, groups * outer, …) flat
        strips = (layout.results + strip.results - 1) // strip.results
        n, group, p0 = job // (strips * layout.groups), job // strips % layout.groups, job % strips * strip.results
        mine = scratch[worker]
        image = n * layout.groups + group
        begin = image * layout.inner * strip.source[0] * strip.source[1]
        end = copy_strip(source, begin, layout.inner, p0, strip, phases, mine, 0)
        zero_row(mine, end, layout.overhang)
        sums = end + layout.overhang

        channel_planes = strip.used[0] * strip.used[1] * strip.plane
        blocks = (layout.outer + rows - 1) // rows
        for index in range(classes.shape[0]):
            start_h, start_w = classes[index, START_H], classes[index, START_W]
            results_w, first_tap, taps = classes[index, RESULTS_W], classes[index, FIRST_TAP], classes[index, TAPS]
            p1 = min(p0 + strip.results, classes[index, RESULTS_H])
            for block in range(blocks):
                weights = first_tap * layout.groups * blocks + (group * blocks + block) * taps
                weights *= layout.inner * rows
                vectors = layout.length // (columns * lanes_of(result))
                for turn in range((p1 - p0 if layout.runs > 1 else 1) * vectors):
                    run, first = turn // vectors, turn % vectors * columns * lanes_of(result)
                    tile = zero_tile(result, rows, columns)
                    weight = weights
                    for channel in range(layout.inner):
                        base = channel * channel_planes + run * strip.pitch + first
                        for t in range(first_tap, first_tap + taps):
                            tile = add_outer(tile, packed, weight, mine, base + shifts[t])
                            weight += rows
                    if layout.plain:
                        if bias.size:
                            tile = add_bias(tile, bias, group * layout.outer + block * rows)
                        if layout.activation:
                            tile = relu_tile(tile)
                        size = layout.result[0] * layout.result[1]
                        to = (image * layout.outer + block * rows) * size + (p0 + run) * layout.result[1] + first
                        pixels = (layout.run if layout.runs > 1 else (p1 - p0) * layout.result[1]) - first
                        store_tile_part(result, to, size, tile, layout.outer - block * rows, pixels)
                    else:
                        store_tile(mine, sums + first, layout.length, tile)
                if layout.plain:
                    continue
                for row in range(min(rows, layout.outer - block * rows)):
                    add = bias[group * layout.outer + block * rows + row] if bias.size else result.dtype.type(0)
                    target = (image * layout.outer + block * rows + row) * layout.result[0] * layout.result[1]
                    for p in range(p0, p1):
                        to = target + (start_h + p * layout.step[0]) * layout.result[1]
                        come = sums + row * layout.length + (p - p0) * strip.pitch
                        if layout.step[1] == 1:
                            # Rows that lie behind each other are written in whole vectors up to the strip's end.
                            end_row = p1 if layout.step[0] == 1 else p + 1
                            limit = to + (end_row - p) * layout.result[1]
                            finish_row(result, to, mine, come, results_w, add, layout.activation, limit)
                        else:
                            here, done = result[to + start_w : to + layout.result[1]], mine[come : come + results_w]
                            for q in range(results_w):
                                here[q * layout.step[1]] = done[q] + add

    body.__name__ = f"_tile_{rows}x{columns}"
    return parallel(body)


_KERNELS = {tile: _tile_kernel(*tile) for tile in TILES}


def _run(
    work: _Work, source: np.ndarray, w: np.ndarray, bias: np.ndarray, strides: tuple[int, int, int],
    workspace: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    layout = work.layout
    room = workspace.view(out.dtype)
    packed = room[: work.packed]
    scratch = thread_rows(room[work.packed :], work.scratch)
    _pack(
        work.blocks, w.reshape(-1), work.tile[0], layout.inner, layout.outer, *strides, work.classes, work.taps, packed
    )
    jobs = layout.n * layout.groups * -(-layout.results // work.strip.results)
    tables = (work.phases, work.classes, work.shifts, scratch, out.reshape(-1))
    kernel = _KERNELS[work.tile]
    kernel(jobs, source.reshape(-1), packed, bias, layout, work.strip, *tables, limit=scratch.shape[0])


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k] = bias[k] + sum over c, r, s of w[k, c, r, s] times x[n, c] shifted."""
    taps, filter_size = spec.kernel[0] * spec.kernel[1], math.prod(spec.w_shape[1:])
    strides = (spec.k // spec.groups * filter_size, taps, filter_size)
    _run(forward_work(spec, x.itemsize), x, w, bias, strides, workspace, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over k, r, s of w[k, c, r, s] times gy[n, k] shifted the other way."""
    taps, filter_size = spec.kernel[0] * spec.kernel[1], math.prod(spec.w_shape[1:])
    strides = (spec.k // spec.groups * filter_size, filter_size, taps)
    _run(gradient_work(spec, gy.itemsize), gy, w, np.empty(0, out.dtype), strides, workspace, out)


def workspace_bytes(problem: Problem) -> int:
    """The packed weights, and a strip with its results for each thread."""
    itemsize = 8 if problem.dtype == "float64" else 4
    work = (forward_work if problem.direction == "forward" else gradient_work)(problem.spec, itemsize)
    elements = work.packed + num_threads() * work.scratch
    return -(-elements * itemsize // 8) * 8
