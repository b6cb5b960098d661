"""Strips of scratch with a vector for each pixel: the same pixel of as many planes as a vector has lanes.

The planes of all images, N * C of them, are taken a vector's lanes at a time, whatever image they belong to. Some rows of
such a block are transposed in registers into a strip, with zeros for the padding and sorted by phase (see lattice.py), so
that every tap of any stride and dilation is a shift by whole vectors. A table of places says where each pixel goes; a
second one, which pixel the first tap of each result meets.
"""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

import numpy as np

from .. import host, simd
from ..compiler import helper
from ..lanes import inlined, load_turned, store_tile_at
from ..simd import lanes_of, store_tile, zero_tile
from ..spec import ConvSpec, Pair
from ..tiles import load_transposed
from .lattice import FIRST_TAP, TAPS, Axis, Strip, class_tables, make_strip, phase_table

PIXELS = simd.REGISTERS // 2  # sums in a tile of results
STRIP_BYTES = host.l2_bytes() // 2  # of a strip and its results
JOBS = 8  # jobs wanted before a strip is cut into several
CHUNK_BYTES = 24 * 1024  # of pixels that are wanted in the first-level cache
FAR = 1.5  # times that products take where they are not there
ANYWHERE = 1.6  # times that the products of a tile of pixels on two rows take
AHEAD = 6  # vectors of a plane that are fetched ahead, where not the same ones of the next block are
BLOCK_BYTES = host.l2_bytes() // 4  # of a block of planes that is fetched while the one before is computed
END = 16  # entries behind a table that whole tiles may read
TOGETHER = 3  # neighbouring taps that share the pixels they load, at most


class Layout(NamedTuple):
    """Plain numbers for the kernels."""

    planes: int  # N * C
    channels: int
    inner: int  # planes of the source for one of them
    outer: int  # planes of the result
    result: Pair  # height and width
    step: Pair  # between the results of a class
    results: int  # rows of results over all strips, at most
    image: int  # elements of scratch for a strip, and a vector for what belongs nowhere
    pitch: int  # elements of packed weights from tap to tap: all channels and a vector more
    direct: bool  # tiles are written straight to the result
    all_rows: bool  # every row of the source meets a tap
    chunk: int  # rows of results that are computed at a time, when the pixels that they meet have just been read
    ahead: int  # elements of the source, and of the result, that are fetched ahead
    ahead_result: int
    activation: int


class Work(NamedTuple):
    """A problem ready to run."""

    layout: Layout
    strip: Strip
    lanes: int
    phases: np.ndarray
    kept: np.ndarray  # 1 for the phases of rows that a tap meets
    places: np.ndarray  # in the strip, of every pixel in the rows of the source that it spans
    classes: np.ndarray  # (classes, CLASS_FIELDS)
    cuts: np.ndarray  # (classes, 2): first entry in the tables that follow; 1 if tiles keep to a row
    bases: np.ndarray  # in the strip, of the pixel that a shift of zero meets, for the results of a class
    targets: np.ndarray  # in the scratch of results, of the same
    shifts: np.ndarray  # of the taps of all classes
    taps: np.ndarray  # their numbers in the kernel
    spans: np.ndarray  # how many taps from each on meet neighbouring pixels, TOGETHER at most

    @property
    def blocks(self) -> int:
        return -(-self.layout.planes // self.lanes)

    @property
    def strips(self) -> int:
        return -(-self.layout.results // self.strip.results)

    @property
    def scratch(self) -> int:
        """Elements for each thread: a strip, and its results where they are kept."""
        layout = self.layout
        rows = self.strip.results * layout.step[0] * layout.result[1] + PIXELS + 1
        return layout.inner * layout.image + (0 if layout.direct else rows * self.lanes)


def lane_work(
    spec: ConvSpec, axes: tuple[Axis, Axis], inner: int, outer: int, result: Pair, beside: int, itemsize: int
) -> Work:
    """The tables of a problem.

    Parameters
    ----------
    spec, axes
        The problem and its geometry.
    inner, outer : int
        Planes of the source and of the result for each of the N * C.
    result : pair of int
        Height and width.
    beside : int
        Vectors that are kept for every row of results that is not kept itself.
    itemsize : int
        Bytes of an element.
    """
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    step, planes, size = (axes[0].step, axes[1].step), spec.n * spec.c, (axes[0].size, axes[1].size)
    direct = len(axes[0].classes) * len(axes[1].classes) == 1 and step == (1, 1)
    strip = _cut(axes, inner, beside if direct else step[0] * result[1], -(-planes // lanes), itemsize * lanes)
    classes, shifts, taps = class_tables(axes, strip, spec.kernel[1])
    for first, count in classes[:, [FIRST_TAP, TAPS]]:  # in the order of memory
        order = first + np.argsort(shifts[first : first + count])
        shifts[first : first + count], taps[first : first + count] = shifts[order], taps[order]
    rows_kept = np.zeros(axes[0].phases, np.int64)
    rows_kept[list(axes[0].used)] = 1
    chunk = _chunk(axes, strip, inner * itemsize * lanes)
    # Taps an odd number of vectors apart lie in different sets of the cache.
    pitch = (-(-(spec.c + lanes - 1) // lanes) | 1) * lanes
    ahead, ahead_result = (
        _ahead(count * math.prod(area), lanes, itemsize) for count, area in ((inner, size), (outer, result))
    )
    layout = Layout(
        planes, spec.c, inner, outer, result, step, axes[0].results, (strip.planes * strip.plane + 1) * lanes, pitch,
        direct, len(axes[0].used) == axes[0].phases, chunk, ahead,
        ahead_result, spec.activation,
    )  # fmt: skip
    return Work(
        layout, strip, lanes, phase_table(axes, strip), rows_kept, _places(axes, strip, lanes), classes,
        *_class_places(axes, strip, result[1], chunk, lanes), shifts * lanes, taps, _spans(classes, shifts),
    )  # fmt: skip


def _cut(axes: tuple[Axis, Axis], inner: int, row: int, blocks: int, vector_bytes: int) -> Strip:
    """The strip of so many planes a lane, beside whose every row of results ``row`` vectors are kept."""
    source = inner * len(axes[0].used) * len(axes[1].used) * (axes[1].results + axes[1].span)
    most = STRIP_BYTES // ((source + row) * vector_bytes)
    wanted = -(-axes[0].results // max(1, JOBS // max(1, blocks)))
    return make_strip(axes, inner, vector_bytes, source * vector_bytes * (axes[0].span + max(1, min(most, wanted))))


def _ahead(apart: int, lanes: int, itemsize: int) -> int:
    """Elements to fetch ahead of planes ``apart`` elements apart: hardware foresees no short runs of many planes."""
    return apart * lanes if apart * lanes * itemsize <= BLOCK_BYTES else AHEAD * lanes


def _tiles(rows: int, width: int) -> tuple[float, bool]:
    """Tiles for so many rows of results, in the time of one whose pixels lie side by side; and if they keep to a row,
    where the last one overlaps the one before."""
    across, flat = -(-width // PIXELS), -(-rows * width // PIXELS)
    broken = 0 if width % PIXELS == 0 else min(flat, rows) if width % 2 else 0
    cost = flat + broken * (ANYWHERE - 1)
    return (rows * across, True) if width >= PIXELS and rows * across < cost else (cost, False)


def _chunk(axes: tuple[Axis, Axis], strip: Strip, vector_bytes: int) -> int:
    """Rows of results for whose sums the tiles are full, and whose pixels fit the first-level cache."""

    def cost(rows: int) -> tuple[float, int]:
        pixels = (rows + axes[0].span) * strip.planes * strip.pitch
        tiles = sum(_tiles(rows, c.results)[0] for c in axes[1].classes)
        return tiles / rows * (1 if pixels * vector_bytes <= CHUNK_BYTES else FAR), -rows

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
    axes: tuple[Axis, Axis], strip: Strip, width: int, chunk: int, lanes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts, bases and targets of all classes, see Work."""
    cuts, bases, targets, first = [], [], [], 0
    step, nowhere = (axes[0].step, axes[1].step), strip.results * axes[0].step * width
    for v, h in product(axes[0].classes, axes[1].classes):
        p, q = np.arange(strip.results)[:, None], np.arange(h.results)
        base = (p * strip.pitch + q).reshape(-1)
        target = ((v.start + p * step[0]) * width + h.start + q * step[1]).reshape(-1)
        bases.append(np.pad(base, (0, END), constant_values=base[-1]))
        targets.append(np.pad(target, (0, END), constant_values=nowhere))
        cuts.append((first, int(_tiles(chunk, h.results)[1])))
        first += len(bases[-1])
    tables = [np.concatenate(table).astype(np.int64) * lanes for table in (bases, targets)]
    return np.array(cuts, np.int64), tables[0], tables[1]


def _spans(classes: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """For every tap how many from it on, of its class and TOGETHER at most, meet neighbouring pixels."""
    spans = np.ones(len(shifts), np.int64)
    for first, count in classes[:, [FIRST_TAP, TAPS]]:
        for t in range(first, first + count):
            while spans[t] < min(TOGETHER, first + count - t) and shifts[t + spans[t]] == shifts[t] + spans[t]:
                spans[t] += 1
    return spans


@helper
def pad_strip(p0, strip, phases, scratch, at):
    """Zeros for the padding of the strip at scratch[at], for the results from p0 on."""
    height = strip.source[0]
    zero, lanes = zero_tile(scratch, 1, 1), lanes_of(scratch)
    for a in range(strip.used[0]):
        for b in range(strip.used[1]):
            low, high = phases[2, b], phases[3, b]
            for i in range(strip.rows):
                h = (p0 + i + strip.first[0]) * strip.phases[0] + phases[0, a]
                before = low if 0 <= h < height else strip.pitch
                for j in range(before):
                    store_tile(scratch, at + j * lanes, 0, zero)
                for j in range(max(high, before), strip.pitch):
                    store_tile(scratch, at + j * lanes, 0, zero)
                at += strip.pitch * lanes


@inlined
def read_square(source, at, apart, wanted, count, ahead):
    """The first ``count`` pixels of the first ``wanted`` planes from source[at], ``apart`` elements apart, transposed; those
    ``ahead`` elements behind are fetched into the second-level cache."""
    lanes = lanes_of(source)
    if wanted >= lanes and count >= lanes:
        return load_turned(source, at, apart, ahead)
    return load_transposed(source, at, apart, wanted, count)


@helper
def load_pixels(source, begin, apart, wanted, loaded, end, limit, width, ahead, all_rows, kept, places, scratch, at):
    """Transpose pixels ``loaded`` … ``end`` - 1 of the first ``wanted`` planes, ``apart`` elements apart, to their places
    in the strip at scratch[at], and some more; gives how many are there now. None is read from ``limit`` on.

    Pixels are counted from source[begin], where the rows that the strip spans begin. The last square writes zeros to the
    places that follow: those are written later, or are padding, or none.
    """
    lanes = lanes_of(scratch)
    if all_rows:
        while loaded < end:
            square = read_square(source, begin + loaded, apart, wanted, limit - loaded, ahead)
            store_tile_at(scratch, at, places, loaded, square)
            loaded += lanes
    else:
        while loaded < end:
            if kept[loaded // width % kept.size]:
                for f in range(loaded, loaded + width, lanes):
                    square = read_square(source, begin + f, apart, wanted, loaded + width - f, ahead)
                    store_tile_at(scratch, at, places, f, square)
            loaded += width
    return loaded
