"""Depthwise convolution (one input channel a group) with channels as the lanes of vectors: any kernel, stride, padding
and dilation.

The planes of all images, N * C of them, are taken a vector's lanes at a time, whatever image they belong to. Some rows of
such a block are transposed in registers into a strip of scratch, a vector for each pixel, zeros for the padding. There
every tap is a shift by whole vectors, so no lane is lost to narrow planes, and no stride or dilation costs anything:
pixels are written to the strip sorted by phase (see lattice.py), through a table of places.

Forward and input gradient: a tile holds the sums of some results that follow each other in memory, of any rows; a second
table says which pixel the first tap of each meets. Tiles are transposed again and written, or with the input gradient of
a stride kept in scratch until all classes of results are there.
Weight gradient: a tile holds the sums of some taps, lane by lane. Every job adds those of its part of the blocks to
sums of its own; lanes of a block that belong to the next image lie behind the last channel, and are folded in the end.

Packed weights have a vector more than channels, the first ones again: a block may start at any channel.
Non-finite inputs can reach every tap of their channel's weight gradient, not only those that they met.

Vectors of channels for depthwise layers: Zhang, Lo and Lu, "High performance depthwise and pointwise convolutions on
mobile devices", 2020; there the images come that way, here NCHW is kept outside.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from .. import host, simd
from ..compiler import helper
from ..lanes import (
    add_lane_products,
    add_lane_products_at,
    add_row_sums,
    add_tap_products,
    load_turned,
    store_tile_at,
    store_turned,
)
from ..parts import even_parts
from ..simd import lanes_of, load_tile, relu_tile, store_tile, zero_tile
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..tiles import load_transposed, store_transposed
from ..variant import Problem, cpu_only
from .lattice import (
    FIRST_TAP,
    RESULTS_H,
    RESULTS_W,
    START_H,
    TAPS,
    Axis,
    Strip,
    class_tables,
    forward_axis,
    gradient_axis,
    make_strip,
    phase_table,
)  # fmt: skip

PIXELS = simd.REGISTERS // 2  # sums in a tile
# (pixels, taps) of the weight gradient's tiles
TAP_TILES = (
    ((1, 25), (1, 20), (1, 18), (1, 15), (1, 12), (2, 9), (2, 7), (3, 5), (4, 4), (4, 3), (8, 2), (8, 1))
    if simd.REGISTERS == 32
    else ((1, 12), (1, 9), (2, 6), (2, 4), (4, 3), (4, 2), (8, 1))
)
STRIP_BYTES = host.l2_bytes() // 2  # of a strip and its results
MOST_BYTES = host.l2_bytes()  # where a strip can have one row of results only
JOBS = 8  # jobs wanted before a strip is cut into several
PARTS = 16  # of a weight gradient at most
PART_PIXELS = 64  # that a channel has in each part at least: sums of a part are written and read as well
CHUNK_BYTES = 24 * 1024  # of pixels that are wanted in the first-level cache
FAR = 1.5  # times that products take where they are not there
AHEAD = 6  # vectors that reading squares fetches ahead
END = 16  # entries behind a table that whole tiles may read


class _Layout(NamedTuple):
    """Plain numbers for the kernels."""

    planes: int  # N * C
    channels: int
    inner: int  # planes of the source for one of them
    outer: int  # planes of the result
    result: Pair  # height and width
    step: Pair  # between the results of a class
    results: int  # rows of results over all strips, at most
    image: int  # elements of scratch for a strip, and a vector for what belongs nowhere
    pitch: int  # elements of the packed weights from tap to tap
    direct: bool  # tiles are written straight to the result
    all_rows: bool  # every row of the source meets a tap
    chunk: int  # rows of results that are computed at a time, when the pixels that they meet have just been read
    parts: int
    activation: int


class _Work(NamedTuple):
    """A problem ready to run."""

    layout: _Layout
    strip: Strip
    lanes: int
    phases: np.ndarray
    kept: np.ndarray  # 1 for the phases of rows that a tap meets
    places: np.ndarray  # in the strip, of every pixel in the rows of the source that it spans
    classes: np.ndarray  # (classes, CLASS_FIELDS)
    firsts: np.ndarray  # of each class in the tables that follow
    bases: np.ndarray  # in the strip, of the pixel that a shift of zero meets, for the results of a class
    targets: np.ndarray  # in the scratch of results, of the same
    shifts: np.ndarray  # of the taps of all classes
    taps: np.ndarray  # their numbers in the kernel

    @property
    def blocks(self) -> int:
        return -(-self.layout.planes // self.lanes)

    @property
    def jobs(self) -> int:
        return self.blocks * -(-self.layout.results // self.strip.results)

    @property
    def weights(self) -> int:
        """Elements of the packed weights."""
        return self.layout.inner * self.layout.outer * len(self.taps) * self.layout.pitch

    @property
    def packed(self) -> int:
        """Elements of the packed weights and biases."""
        return self.weights + self.layout.outer * self.layout.pitch

    @property
    def rows(self) -> int:
        """Elements for the results of a strip, where they are kept."""
        return self.strip.results * self.layout.step[0] * self.layout.result[1] * self.lanes

    @property
    def scratch(self) -> int:
        """Elements for each thread."""
        rows = 0 if self.layout.direct else self.rows + (PIXELS + 1) * self.lanes
        return self.layout.inner * self.layout.image + rows


def _cut(axes: tuple[Axis, Axis], inner: int, row: int, blocks: int, itemsize: int) -> Strip:
    """The strip of so many planes a lane, beside whose every row of results ``row`` elements are kept."""
    source = inner * len(axes[0].used) * len(axes[1].used) * (axes[1].results + axes[1].span)
    most = STRIP_BYTES // ((source + row) * itemsize)
    wanted = -(-axes[0].results // max(1, JOBS // max(1, blocks)))
    return make_strip(axes, inner, itemsize, source * itemsize * (axes[0].span + max(1, min(most, wanted))))


def _chunk(axes: tuple[Axis, Axis], strip: Strip, vector_bytes: int) -> int:
    """Rows of results for whose sums the tiles are full, and whose pixels fit the first-level cache."""

    def cost(rows: int) -> float:
        tiles = sum(-(-rows * c.results // PIXELS) for c in axes[1].classes)
        sums = rows * sum(c.results for c in axes[1].classes)
        pixels = (rows + axes[0].span) * strip.planes * strip.pitch
        return tiles * PIXELS / sums * (1 if pixels * vector_bytes <= CHUNK_BYTES else FAR)

    return min(range(1, strip.results + 1), key=cost)


def _places(axes: tuple[Axis, Axis], strip: Strip, lanes: int) -> np.ndarray:
    """Where the pixels of the source rows that a strip spans lie in it; behind the strip where no tap meets them."""
    vertical, horizontal = axes
    rows, columns = np.arange(strip.rows * vertical.phases), np.arange(horizontal.size)
    columns = columns - strip.first[1] * horizontal.phases
    number = np.full(max(vertical.phases, horizontal.phases), -1)
    number[list(vertical.used)] = np.arange(strip.used[0])
    down = number[rows % vertical.phases] * strip.used[1] * strip.plane
    down = np.where(down < 0, -1, down + rows // vertical.phases * strip.pitch)
    number[:] = -1
    number[list(horizontal.used)] = np.arange(strip.used[1])
    across, j = number[columns % horizontal.phases] * strip.plane, columns // horizontal.phases
    across = np.where((across < 0) | (j < 0) | (j >= strip.pitch), -1, across + j)
    nowhere = strip.planes * strip.plane
    places = np.where((down[:, None] < 0) | (across < 0), nowhere, down[:, None] + across).reshape(-1)
    return np.pad(places, (0, END), constant_values=nowhere).astype(np.int64) * lanes


def _class_places(
    axes: tuple[Axis, Axis], strip: Strip, width: int, lanes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every class its first entry in the tables of bases and targets, see _Work."""
    firsts, bases, targets, first = [], [], [], 0
    step, nowhere = (axes[0].step, axes[1].step), strip.results * axes[0].step * width
    for v, h in product(axes[0].classes, axes[1].classes):
        p, q = np.arange(strip.results)[:, None], np.arange(h.results)
        base = (p * strip.pitch + q).reshape(-1)
        target = ((v.start + p * step[0]) * width + h.start + q * step[1]).reshape(-1)
        bases.append(np.pad(base, (0, END), constant_values=base[-1] if base.size else 0))
        targets.append(np.pad(target, (0, END), constant_values=nowhere))
        firsts.append(first)
        first += len(bases[-1])
    as_numbers = [np.concatenate(table).astype(np.int64) * lanes for table in (bases, targets)]
    return np.array(firsts, np.int64), *as_numbers


def _work(
    spec: ConvSpec, axes: tuple[Axis, Axis], inner: int, outer: int, result: Pair, beside: int, itemsize: int
) -> _Work:
    """``beside``: vectors that are kept for every row of results that is not kept itself."""
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    step, planes = (axes[0].step, axes[1].step), spec.n * spec.c
    direct = len(axes[0].classes) * len(axes[1].classes) == 1 and step == (1, 1)
    row = beside if direct else step[0] * result[1]
    strip = _cut(axes, inner, row, -(-planes // lanes), itemsize * lanes)
    classes, shifts, taps = class_tables(axes, strip, spec.kernel[1])
    # Taps an odd number of vectors apart lie in different sets of the cache.
    pitch = (-(-(spec.c + lanes - 1) // lanes) | 1) * lanes
    strips = -(-axes[0].results // strip.results)
    pixels = spec.n * spec.out[0] * spec.out[1]
    parts = even_parts(min(PARTS, -(-planes // lanes) * strips, -(-pixels // PART_PIXELS)))
    layout = _Layout(
        planes, spec.c, inner, outer, result, step, axes[0].results, (strip.planes * strip.plane + 1) * lanes, pitch,
        direct, len(axes[0].used) == axes[0].phases, _chunk(axes, strip, inner * itemsize * lanes), parts, spec.activation,
    )  # fmt: skip
    rows_kept = np.zeros(axes[0].phases, np.int64)
    rows_kept[list(axes[0].used)] = 1
    tables = _class_places(axes, strip, result[1], lanes)
    places = _places(axes, strip, lanes)
    return _Work(
        layout, strip, lanes, phase_table(axes), rows_kept, places, classes, *tables, shifts * lanes, taps
    )  # fmt: skip


@lru_cache(maxsize=256)
def _forward_work(spec: ConvSpec, itemsize: int) -> _Work:
    axes = (forward_axis(spec, 0), forward_axis(spec, 1))
    return _work(spec, axes, 1, spec.k // spec.c, spec.out, 0, itemsize)


@lru_cache(maxsize=256)
def _gradient_work(spec: ConvSpec, itemsize: int) -> _Work:
    axes = (gradient_axis(spec, 0), gradient_axis(spec, 1))
    return _work(spec._replace(activation=0), axes, spec.k // spec.c, 1, spec.size, 0, itemsize)


@lru_cache(maxsize=256)
def _weight_work(spec: ConvSpec, itemsize: int) -> _Work:
    axes = (forward_axis(spec, 0), forward_axis(spec, 1))
    return _work(spec, axes, 1, spec.k // spec.c, spec.out, spec.out[1], itemsize)


@parallel
def _pack(job, worker, w, bias, taps, layout, biases, packed):
    # packed (filter of a channel, tap, channel), biases (filter, channel); w (C, filters, R, S), flat
    # A job packs a tap of every filter's first, second, …, or their biases.
    filters, c = layout.inner * layout.outer, 0
    if job < filters * taps.size:
        row, size = packed[job * layout.pitch : (job + 1) * layout.pitch], w.size // layout.channels
        at = job // taps.size * (size // filters) + taps[job % taps.size]
        for j in range(layout.pitch):
            row[j] = w[c * size + at]
            c = c + 1 if c + 1 < layout.channels else 0
    else:
        i = job - filters * taps.size
        for j in range(layout.pitch):
            biases[i * layout.pitch + j] = bias[c * layout.outer + i] if bias.size else 0
            c = c + 1 if c + 1 < layout.channels else 0


@helper
def pad_strip(p0, strip, phases, scratch, at):
    """Zeros for the padding of the strip at scratch[at], for the results from p0 on."""
    height, width = strip.source
    zero, lanes = zero_tile(scratch, 1, 1), lanes_of(scratch)
    for a in range(strip.used[0]):
        for b in range(strip.used[1]):
            left = strip.first[1] * strip.phases[1] + phases[1, b]  # column of the first pixel
            j0 = min(strip.pitch, max(0, (-left + strip.phases[1] - 1) // strip.phases[1]))
            j1 = max(j0, min(strip.pitch, (width - 1 - left) // strip.phases[1] + 1))
            for i in range(strip.rows):
                h = (p0 + i + strip.first[0]) * strip.phases[0] + phases[0, a]
                before = j0 if 0 <= h < height else strip.pitch
                for j in range(before):
                    store_tile(scratch, at + j * lanes, 0, zero)
                for j in range(max(j1, before), strip.pitch):
                    store_tile(scratch, at + j * lanes, 0, zero)
                at += strip.pitch * lanes


@helper
def load_pixels(source, begin, apart, wanted, loaded, end, limit, width, all_rows, kept, places, scratch, at):
    """Transpose pixels ``loaded`` … ``end`` - 1 of the first ``wanted`` planes, ``apart`` elements apart, to their places
    in the strip at scratch[at], and some more; gives how many are there now. None is read from ``limit`` on.

    Pixels are counted from source[begin], where the rows that the strip spans begin. The last square writes zeros to the
    places that follow: those are written later, or are padding, or none.
    """
    lanes = lanes_of(scratch)
    if all_rows:
        while loaded < end:
            if wanted >= lanes and loaded + lanes <= limit:
                square = load_turned(source, begin + loaded, apart, AHEAD * lanes)
            else:
                square = load_transposed(source, begin + loaded, apart, wanted, limit - loaded)
            store_tile_at(scratch, at, places, loaded, square)
            loaded += lanes
    else:
        while loaded < end:
            if kept[loaded // width % kept.size]:
                for f in range(loaded, loaded + width, lanes):
                    square = load_transposed(source, begin + f, apart, wanted, loaded + width - f)
                    store_tile_at(scratch, at, places, f, square)
            loaded += width
    return loaded


@helper
def store_results(y, at, apart, tile, wanted, count, pixels):
    """Write the first ``count`` pixels of a tile to the first ``wanted`` planes, ``apart`` elements apart."""
    if wanted >= lanes_of(y) and count >= pixels:
        store_turned(y, at, apart, tile)
    else:
        store_transposed(y, at, 1, apart, 0, 1, tile, wanted, count)


def _sum_kernel(pixels: int) -> ParallelKernel:
    """The forward kernel and the input gradient's, with so many sums in a tile."""

    def body(
        job, worker, source, packed, biases, layout, strip, phases, kept, places, classes, firsts, bases, targets,
        shifts, scratch, result,
    ):  # fmt: skip
        # source (N*C, inner, H, W), packed see _pack, scratch (threads, …), result (N*C, outer, …), all flat
        lanes = lanes_of(result)
        strips = (layout.results + strip.results - 1) // strip.results
        plane, p0 = job // strips * lanes, job % strips * strip.results
        channel, wanted = plane % layout.channels, layout.planes - plane
        height, width = strip.source
        size = layout.result[0] * layout.result[1]
        mine = scratch[worker]
        sums = layout.inner * layout.image
        top = (p0 + strip.first[0]) * strip.phases[0]
        limit = min(strip.rows * strip.phases[0], height - top) * width
        loaded = max(0, -top) * width
        for i in range(layout.inner):
            pad_strip(p0, strip, phases, mine, i * layout.image)
        for p in range(0, min(strip.results, layout.results - p0), layout.chunk):
            end = min(limit, (p + layout.chunk + strip.rows - strip.results) * strip.phases[0] * width)
            now = loaded
            for i in range(layout.inner):
                begin = ((plane * layout.inner + i) * height + top) * width
                now = load_pixels(
                    source, begin, layout.inner * height * width, wanted, loaded, end, limit, width, layout.all_rows,
                    kept, places, mine, i * layout.image,
                )  # fmt: skip
            loaded = now
            for o in range(layout.outer):
                to = (plane * layout.outer + o) * size + p0 * layout.step[0] * layout.result[1]
                for index in range(classes.shape[0]):
                    first_tap, taps, results_w = (
                        classes[index, FIRST_TAP],
                        classes[index, TAPS],
                        classes[index, RESULTS_W],
                    )
                    last = min(p + layout.chunk, strip.results, classes[index, RESULTS_H] - p0) * results_w
                    for f in range(p * results_w, last, pixels):
                        at = firsts[index] + f
                        in_a_row = bases[at + pixels - 1] - bases[at] == (pixels - 1) * lanes
                        in_fours = True
                        for j in range(0, pixels, 4):
                            in_fours &= bases[at + j + 3] - bases[at + j] == 3 * lanes
                        tile = load_tile(biases, o * layout.pitch + channel, 0, pixels, 1)
                        for i in range(layout.inner):
                            weight = ((o + i) * shifts.size + first_tap) * layout.pitch + channel
                            start = i * layout.image
                            if in_a_row:
                                for t in range(first_tap, first_tap + taps):
                                    tile = add_lane_products(tile, packed, weight, mine, start + bases[at] + shifts[t])
                                    weight += layout.pitch
                            elif in_fours:
                                for t in range(first_tap, first_tap + taps):
                                    here = start + shifts[t]
                                    tile = add_lane_products_at(tile, packed, weight, mine, here, bases, at, 4)
                                    weight += layout.pitch
                            else:
                                for t in range(first_tap, first_tap + taps):
                                    here = start + shifts[t]
                                    tile = add_lane_products_at(tile, packed, weight, mine, here, bases, at, 1)
                                    weight += layout.pitch
                        if layout.activation:
                            tile = relu_tile(tile)
                        if layout.direct:
                            store_results(result, to + f, layout.outer * size, tile, wanted, last - f, pixels)
                        else:
                            store_tile_at(mine, sums, targets, at, tile)
                if not layout.direct:
                    first = p * layout.step[0] * layout.result[1]
                    last = min(p + layout.chunk, strip.results) * layout.step[0]
                    last = min(last, layout.result[0] - p0 * layout.step[0]) * layout.result[1]
                    for f in range(first, last, pixels):
                        tile = load_tile(mine, sums + f * lanes, lanes, pixels, 1)
                        store_results(result, to + f, layout.outer * size, tile, wanted, last - f, pixels)

    body.__name__ = f"_sums_{pixels}"
    return parallel(body)


_sums = _sum_kernel(PIXELS)


def _tap_kernel(pixels: int, taps: int) -> ParallelKernel:
    """The weight gradient's kernel for one tile size."""

    def body(job, worker, x, gy, layout, strip, phases, kept, places, bases, shifts, scratch, sums):
        # x (N*C, H, W), gy (N*C, outer, P, Q), sums (parts, outer, taps in whole tiles, pitch), all flat
        lanes = lanes_of(sums)
        strips = (layout.results + strip.results - 1) // strip.results
        units = (layout.planes + lanes - 1) // lanes * strips
        height, width = strip.source
        size = layout.result[0] * layout.result[1]
        mine, gradients = scratch[worker], layout.image
        whole = shifts.size * layout.pitch
        own = job * layout.outer * whole
        zero = zero_tile(sums, 1, 1)
        for at in range(own, own + layout.outer * whole, lanes):
            store_tile(sums, at, 0, zero)
        for unit in range(job * units // layout.parts, (job + 1) * units // layout.parts):
            plane, p0 = unit // strips * lanes, unit % strips * strip.results
            channel, wanted = plane % layout.channels, layout.planes - plane
            top = (p0 + strip.first[0]) * strip.phases[0]
            limit = min(strip.rows * strip.phases[0], height - top) * width
            begin, loaded = (plane * height + top) * width, max(0, -top) * width
            pad_strip(p0, strip, phases, mine, 0)
            results = min(strip.results, layout.results - p0)
            for p in range(0, results, layout.chunk):
                # Pixels that the last tile sums too much meet zeros, but must be there.
                more = (pixels - 2 + layout.result[1]) // layout.result[1]
                end = (p + layout.chunk + more + strip.rows - strip.results) * strip.phases[0] * width
                end = limit if p + layout.chunk >= results else min(limit, end)
                loaded = load_pixels(
                    x, begin, height * width, wanted, loaded, end, limit, width, layout.all_rows, kept, places, mine, 0
                )
                first, last = p * layout.result[1], min(p + layout.chunk, results) * layout.result[1]
                for o in range(layout.outer):
                    come = (plane * layout.outer + o) * size + p0 * layout.result[1]
                    for f in range(first, last, lanes):
                        square = load_transposed(gy, come + f, layout.outer * size, wanted, last - f)
                        store_tile(mine, gradients + (f - first) * lanes, lanes, square)
                    behind = gradients + (last - first + lanes - 1) // lanes * lanes * lanes
                    store_tile(mine, behind, lanes, zero_tile(sums, pixels, 1))
                    for t in range(0, shifts.size, taps):
                        tile = zero_tile(sums, pixels, taps)
                        for f in range(first, last, pixels):
                            g = gradients + (f - first) * lanes
                            tile = add_tap_products(tile, mine, g, mine, 0, bases, f, shifts, t)
                        add_row_sums(sums, own + o * whole + t * layout.pitch + channel, layout.pitch, tile)

    body.__name__ = f"_taps_{pixels}x{taps}"
    return parallel(body)


_TAP_KERNELS = {tile: _tap_kernel(*tile) for tile in TAP_TILES}


@parallel
def _fold(job, worker, sums, layout, taps, whole, gw):
    # sums (parts, outer, whole, pitch), gw (C, outer, taps), flat; a job is a tap of every filter's first, second, …
    o, t = job // taps, job % taps
    part = layout.outer * whole * layout.pitch
    at = (o * whole + t) * layout.pitch
    total = sums[at : at + layout.pitch]
    for i in range(1, layout.parts):
        more = sums[i * part + at : i * part + at + layout.pitch]
        for j in range(layout.pitch):
            total[j] += more[j]
    for c in range(layout.channels):
        number = total[c]
        for j in range(c + layout.channels, layout.pitch, layout.channels):  # the same channel of a next image
            number += total[j]
        gw[(c * layout.outer + o) * taps + t] = number


def _run(
    work: _Work, source: np.ndarray, w: np.ndarray, bias: np.ndarray, workspace: np.ndarray, out: np.ndarray
) -> None:
    layout, room = work.layout, workspace.view(out.dtype)
    packed, biases = room[: work.weights], room[work.weights : work.packed]
    scratch = thread_rows(room[work.packed :], work.scratch)
    jobs = layout.inner * layout.outer * len(work.taps) + layout.outer
    _pack(jobs, w.reshape(-1), bias, work.taps, layout, biases, packed)
    _sums(
        work.jobs, source.reshape(-1), packed, biases, layout, work.strip, work.phases, work.kept, work.places,
        work.classes, work.firsts, work.bases, work.targets, work.shifts, scratch, out.reshape(-1),
        limit=scratch.shape[0],
    )  # fmt: skip


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k] = bias[k] + sum over r, s of w[k, r, s] times its channel of x[n] shifted."""
    _run(_forward_work(spec, x.itemsize), x, w, bias, workspace, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over the filters k of c and r, s of w[k, r, s] times gy[n, k] shifted the other way."""
    _run(_gradient_work(spec, gy.itemsize), gy, w, np.empty(0, out.dtype), workspace, out)


def _tap_tile(taps: int) -> Pair:
    """The (pixels, taps) that take the fewest cycles: two products or loads each, and four from a sum to the next."""

    def cost(tile: Pair) -> float:
        pixels, columns = tile
        return -(-taps // columns) * (max(pixels * (columns + 1) / 2, 4) + 1) / pixels

    return min(TAP_TILES, key=cost)


def _weight_room(work: _Work) -> tuple[Pair, np.ndarray, int, int]:
    """The weight gradient's tile, shifts in whole tiles, elements of all sums, and of each thread's scratch."""
    tile, layout = _tap_tile(len(work.taps)), work.layout
    shifts = np.pad(work.shifts, (0, -len(work.shifts) % tile[1]), mode="edge")
    sums = layout.parts * layout.outer * len(shifts) * layout.pitch
    gradients = (-(-layout.chunk * layout.result[1] // work.lanes) * work.lanes + tile[0]) * work.lanes
    return tile, shifts, sums, layout.image + gradients


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, 0, r, s] = sum over n, p, q of gy[n, k] times its channel of x[n] shifted."""
    work = _weight_work(spec, x.itemsize)
    tile, shifts, elements, own = _weight_room(work)
    layout, room = work.layout, workspace.view(out.dtype)
    sums, scratch = room[:elements], thread_rows(room[elements:], own)
    _TAP_KERNELS[tile](
        layout.parts, x.reshape(-1), gy.reshape(-1), layout, work.strip, work.phases, work.kept, work.places,
        work.bases, shifts, scratch, sums, limit=scratch.shape[0],
    )  # fmt: skip
    taps = len(work.taps)
    _fold(layout.outer * taps, sums, layout, taps, len(shifts), out.reshape(-1))


def _problem_work(problem: Problem) -> _Work:
    itemsize = 8 if problem.dtype == "float64" else 4
    makers = {"forward": _forward_work, "input_grad": _gradient_work, "weight_grad": _weight_work}
    return makers[problem.direction](problem.spec, itemsize)


def refuses(problem: Problem) -> str:
    """Takes what this file's idea needs, where a strip fits the cache."""
    spec = problem.spec
    if reason := cpu_only(problem):
        return reason
    if spec.c != spec.groups:
        return "takes one input channel a group"
    work = _problem_work(problem)
    itemsize = 8 if problem.dtype == "float64" else 4
    if work.scratch * itemsize > MOST_BYTES:
        return f"takes rows short enough for a strip of {MOST_BYTES >> 10} KiB"
    return ""


def workspace_bytes(problem: Problem) -> int:
    """The packed weights or the sums of the weight gradient's parts, and a strip with its results for each thread."""
    work = _problem_work(problem)
    shared, own = work.packed, work.scratch
    if problem.direction == "weight_grad":
        _, _, shared, own = _weight_room(work)
    return -(-(shared + num_threads() * own) * (8 if problem.dtype == "float64" else 4) // 8) * 8
