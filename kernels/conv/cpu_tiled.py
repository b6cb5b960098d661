"""Direct convolution with register tiles: forward and input gradient, for any stride, padding, dilation and groups.

In a strip of the source (see lattice.py) a tile of ROWS result channels x COLUMNS vectors of pixels is a sum of outer
products over channels and taps: packed weights times shifted pixels. A tile stays in registers from the first product to
the last. One job is a strip of one image and one group.

The weights of a tile's rows are read one by one where they lie: packing them gained nothing (Zen 5). Only for the input
gradient, whose weights of a result lie far apart, are they gathered first, where enough results use them.

Scratch: the gathered weights, shared; then a strip and a block of results for each thread.

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
    add_outer_rows,
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
    CLASS_FIELDS,
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
    strips_wanted,
)  # fmt: skip

# A strip takes half of the second-level cache; less costs up to 15% on 3x3 layers (Zen 5, 192 KiB against 512 KiB).
STRIP_BYTES = host.l2_bytes() // 2
# (rows, columns) of the tiles: as many sums as leave registers for the operands.
TILES = (
    ((8, 3), (8, 2), (12, 2), (6, 4), (6, 2), (4, 6), (3, 7), (1, 16))
    if simd.REGISTERS == 32
    else ((6, 2), (4, 3), (3, 4), (2, 5), (1, 8))
)
GATHERING = 512  # uses of a weight that pay for gathering it (it saves 12% on 128 channels and 28x28 results, Zen 5)
WRITING = 3, 12  # products in whose time a vector of results is written: straight, or by way of scratch


WEIGHTS, INNER = CLASS_FIELDS, CLASS_FIELDS + 1  # of a class: its first weight, from a summed channel to the next


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
    group_weights: int  # elements from a group's weights to the next group's
    filter: int  # and from those of a produced channel to the next one's
    activation: int


class _Work(NamedTuple):
    """A problem ready to run."""

    layout: _Layout
    strip: Strip
    tile: Pair
    phases: np.ndarray
    classes: np.ndarray  # with WEIGHTS and INNER
    shifts: np.ndarray
    taps: np.ndarray  # numbers in the kernel
    places: np.ndarray  # of the taps' weights behind the first of a class and channel
    gathered: int  # elements of the gathered weights; 0: they are read where they lie

    @property
    def jobs(self) -> int:
        a = self.layout
        return a.n * a.groups * -(-a.results // self.strip.results)

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


def _choose_tile(outer: int, ways: list[_Run], terms: int, lanes: int) -> tuple[Pair, _Run]:
    """The tile and the way that compute the fewest sums for nothing; a low tile loads more for each product, which counts
    too."""

    def cost(choice: tuple[Pair, _Run]) -> float:
        (rows, columns), way = choice
        sums = -(-outer // rows) * rows * way.runs * -(-way.run // (columns * lanes)) * columns * lanes
        few = max(1, 8 / (rows * columns))  # four cycles from a sum to the next
        return sums * (few + 1 / rows + 0.1 / columns + WRITING[not way.plain] / terms)

    tiles = [tile for tile in TILES if tile[0] <= outer]  # the last tile overlaps the one before
    return min(product(tiles, ways), key=cost)


def _work(
    spec: ConvSpec, axes: tuple[Axis, Axis], inner: int, outer: int, result: Pair, weights: Pair, inner_step: int,
    activation: int, itemsize: int,
) -> _Work:  # fmt: skip
    strip = make_strip(axes, inner, itemsize, STRIP_BYTES, strips_wanted(spec.n * spec.groups))
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    step = (axes[0].step, axes[1].step)
    flat = (strip.results - 1) * strip.pitch + axes[1].results
    ways = [_Run(1, flat, step == (1, 1) and strip.pitch == axes[1].results)]
    if step == (1, 1):
        ways.append(_Run(strip.results, axes[1].results, True))
    tile, way = _choose_tile(outer, ways, inner * most_taps(axes), lanes)
    length = -(-way.run // (tile[1] * lanes)) * tile[1] * lanes
    overhang = max(0, axes[1].span + (way.runs - 1) * strip.pitch + length - strip.results * strip.pitch)
    layout = _Layout(
        spec.n, spec.groups, inner, outer, result, step, axes[0].results, way.runs, way.run, length, overhang,
        way.plain, *weights, activation,
    )  # fmt: skip
    classes, shifts, taps = class_tables(axes, strip, spec.kernel[1])
    classes = np.pad(classes, ((0, 0), (0, 2)))  # WEIGHTS is 0
    classes[:, INNER] = inner_step
    return _Work(layout, strip, tile, phase_table(axes, strip), classes, shifts, taps, taps, 0)


@lru_cache(maxsize=1024)
def forward_work(spec: ConvSpec, itemsize: int) -> _Work:
    axes = (forward_axis(spec, 0), forward_axis(spec, 1))
    inner, outer, size = spec.c // spec.groups, spec.k // spec.groups, math.prod(spec.kernel)
    weights = (outer * inner * size, inner * size)
    return _work(spec, axes, inner, outer, spec.out, weights, size, spec.activation, itemsize)


@lru_cache(maxsize=1024)
def gradient_work(spec: ConvSpec, itemsize: int) -> _Work:
    axes = (gradient_axis(spec, 0), gradient_axis(spec, 1))
    inner, outer, size = spec.k // spec.groups, spec.c // spec.groups, math.prod(spec.kernel)
    work = _work(spec, axes, inner, outer, spec.size, (inner * outer * size, size), outer * size, 0, itemsize)
    if spec.n * spec.out[0] * spec.out[1] < GATHERING:
        return work
    classes, terms = work.classes.copy(), inner * len(work.taps)
    classes[:, WEIGHTS], classes[:, INNER] = classes[:, FIRST_TAP] * inner, classes[:, TAPS]
    places = np.arange(len(work.taps)) - np.repeat(classes[:, FIRST_TAP], classes[:, TAPS])
    layout = work.layout._replace(group_weights=outer * terms, filter=terms)
    return work._replace(layout=layout, classes=classes, places=places, gathered=spec.groups * outer * terms)


@parallel
def _gather(job, worker, w, inner, outer, filter_size, classes, taps, gathered):
    # w (groups * inner, outer, R * S) to gathered (groups * outer, class, inner, taps of the class), flat; a job is one
    # group's produced channel.
    group, o = job // outer, job % outer
    to = job * inner * taps.size
    for index in range(classes.shape[0]):
        first, count = classes[index, FIRST_TAP], classes[index, TAPS]
        come = (group * inner * outer + o) * filter_size
        for _ in range(inner):
            for t in range(first, first + count):
                gathered[to] = w[come + taps[t]]
                to += 1
            come += outer * filter_size


def _tile_kernel(rows: int, columns: int) -> ParallelKernel:
    """The kernel for one tile size."""

    def body(job, worker, source, w, places, bias, layout, strip, phases, classes, shifts, scratch, result):
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
                o = min(block * rows, layout.outer - rows)
                filters = group * layout.group_weights + o * layout.filter + classes[index, WEIGHTS]
                vectors = layout.length // (columns * lanes_of(result))
                for turn in range((p1 - p0 if layout.runs > 1 else 1) * vectors):
                    run, first = turn // vectors, turn % vectors * columns * lanes_of(result)
                    tile = zero_tile(result, rows, columns)
                    weight = filters
                    for channel in range(layout.inner):
                        base = channel * channel_planes + run * strip.pitch + first
                        for t in range(first_tap, first_tap + taps):
                            a, b = weight + places[t], base + shifts[t]
                            tile = add_outer_rows(tile, w, a, layout.filter, mine, b)
                        weight += classes[index, INNER]
                    if layout.plain:
                        if bias.size:
                            tile = add_bias(tile, bias, group * layout.outer + o)
                        if layout.activation:
                            tile = relu_tile(tile)
                        size = layout.result[0] * layout.result[1]
                        to = (image * layout.outer + o) * size + (p0 + run) * layout.result[1] + first
                        pixels = (layout.run if layout.runs > 1 else (p1 - p0) * layout.result[1]) - first
                        store_tile_part(result, to, size, tile, rows, pixels)
                    else:
                        store_tile(mine, sums + first, layout.length, tile)
                if layout.plain:
                    continue
                for row in range(rows):
                    add = bias[group * layout.outer + o + row] if bias.size else result.dtype.type(0)
                    target = (image * layout.outer + o + row) * layout.result[0] * layout.result[1]
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
    work: _Work, source: np.ndarray, w: np.ndarray, bias: np.ndarray, workspace: np.ndarray, out: np.ndarray
) -> None:
    layout = work.layout
    room = workspace.view(out.dtype)
    gathered, filters = room[: work.gathered], w.reshape(-1)
    scratch = thread_rows(room[work.gathered :], work.scratch)
    if work.gathered:
        size = w.shape[2] * w.shape[3]
        _gather(
            layout.groups * layout.outer, filters, layout.inner, layout.outer, size, work.classes, work.taps, gathered
        )
        filters = gathered
    tables = (work.phases, work.classes, work.shifts, scratch, out.reshape(-1))
    kernel = _KERNELS[work.tile]
    kernel(
        work.jobs, source.reshape(-1), filters, work.places, bias, layout, work.strip, *tables, limit=scratch.shape[0]
    )


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k] = bias[k] + sum over c, r, s of w[k, c, r, s] times x[n, c] shifted."""
    _run(forward_work(spec, x.itemsize), x, w, bias, workspace, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over k, r, s of w[k, c, r, s] times gy[n, k] shifted the other way."""
    _run(gradient_work(spec, gy.itemsize), gy, w, np.empty(0, out.dtype), workspace, out)


def workspace_bytes(problem: Problem) -> int:
    """The gathered weights, and a strip with its results for each thread."""
    itemsize = problem.itemsize
    work = (forward_work if problem.direction == "forward" else gradient_work)(problem.spec, itemsize)
    elements = work.gathered + num_threads() * work.scratch
    return -(-elements * itemsize // 8) * 8
