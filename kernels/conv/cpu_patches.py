"""Convolution as products with whole patches, for layers of few result pixels and many weights.

The patches that the result pixels see are copied out, each as one row in the order of a filter's weights (im2col). Then no
weight has to be packed: filters are read once, as they lie.

- forward: rows times rows. A tile of sums, each a vector along the weights, whose lanes are added at the end of a strip.
- input gradient: a gradient for every patch, a sum of outer products over the filters, then added to the pixels that the
  patch was read from (col2im).
- weight gradient: a sum of outer products over the patches.

Patches are taken in chunks that fit into CHUNK_BYTES, whatever the batch, so no layer is too large.

Scratch, shared by all threads: a chunk's patches, and its results (or gradients), filter by filter.

Source: Chellapilla, Puri, Simard, "High performance convolutional neural networks for document processing", 2006.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from .. import simd
from ..compiler import helper
from ..rows import zero_pixels
from ..simd import lanes_of, load_tile, load_window, store_tile, store_tile_part, zero_tile
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, parallel
from ..tile_math import add_row_products, add_scaled_rows, add_sums, load_part, load_rows_part
from ..variant import Problem

CHUNK_BYTES = 16 * 1024 * 1024
STRIP = 1024  # weights of a filter that are multiplied before the next filter's: patches stay in the nearest cache
TERMS = 64  # outer products that are summed in registers before the next tile's: their rows stay in the nearest cache
FILTERS = 64  # of a forward job at most
PIXELS = 4  # whose patches a job copies
ROOM = 64  # patches of a job of the input gradient
JOBS = 8  # wanted
CHANNELS = 16  # whose pixels a job adds patches to

# Filters and pixels of a forward tile; rows and vectors of a tile of outer products.
TILES = ((4, 6), (8, 3), (12, 1)) if simd.REGISTERS == 32 else ((2, 4), (4, 2), (6, 1))
ROWS, COLUMNS = (8, 3) if simd.REGISTERS == 32 else (4, 2)


class _Layout(NamedTuple):
    """Plain numbers that the kernels need."""

    groups: int
    inner: int  # channels of a group
    filters: int  # of a group
    size: Pair
    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: Pair  # at the top and at the left
    out: Pair
    pitch: int  # elements from a patch to the next
    length: int  # of a patch that are not filling
    room: int  # patches of a chunk: their rows and those of the gradients


class Work(NamedTuple):
    """A problem ready to run."""

    layout: _Layout
    pixels: int  # of all images
    tile: tuple[int, int]
    filters: int  # of a forward job
    slots: int  # elements that a tile's sums take
    lanes: int

    @property
    def chunks(self) -> range:
        return range(0, self.pixels, self.layout.room)

    @property
    def tiles(self) -> int:
        """Forward tiles of a chunk and a group."""
        rows, columns = self.tile
        return self.filters // rows * -(-self.layout.filters // self.filters) * -(-self.layout.room // columns)

    @property
    def patches(self) -> int:
        """Elements of a chunk's patches."""
        return self.layout.groups * self.layout.room * self.layout.pitch

    @property
    def sums(self) -> int:
        """Elements of a chunk's results."""
        return self.layout.groups * self.tiles * self.slots

    @property
    def gradients(self) -> int:
        """Elements of a chunk's gradients."""
        return self.layout.groups * self.layout.filters * self.layout.room


@lru_cache(maxsize=1024)
def patch_work(spec: ConvSpec, itemsize: int) -> Work:
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    inner, filters = spec.c // spec.groups, spec.k // spec.groups
    length = inner * math.prod(spec.kernel)
    pitch = -(-length // lanes) * lanes + lanes  # vectors may reach beyond a patch's end
    if pitch * itemsize % 4096 == 0:
        pitch += lanes  # patches that meet in one set of the nearest cache drive each other out
    pixels = spec.n * math.prod(spec.out)
    # Two products or two loads a cycle; filters come from the second-level cache.
    rows, columns = min(TILES, key=lambda t: -(-pixels // t[1]) * (max(t[0] * t[1], t[0] + t[1]) / t[0] + 0.5))
    together = min(FILTERS, max(1, spec.k // JOBS), filters)
    together = -(-together // rows) * rows
    slots = -(-rows * columns // lanes) * lanes
    sums = max(-(-filters // together) * together // rows * slots / columns, filters)
    room = max(1, min(pixels, int(CHUNK_BYTES / (spec.groups * (pitch + sums) * itemsize))))
    layout = _Layout(
        spec.groups, inner, filters, spec.size, spec.kernel, spec.stride, spec.dilation,
        (spec.padding[0][0], spec.padding[1][0]), spec.out, pitch, length, room,
    )  # fmt: skip
    return Work(layout, pixels, (rows, columns), together, slots, lanes)


@helper
def _window(pixel, layout):
    """Of a result pixel counted through all images: its image, the row and column where its patch begins, and which of the
    kernel's columns meet pixels, the first and the end."""
    results, across = layout.out[0] * layout.out[1], layout.out[1]
    top = pixel // across % layout.out[0] * layout.stride[0] - layout.padding[0]
    left = pixel % across * layout.stride[1] - layout.padding[1]
    low, high = 0, layout.kernel[1]
    while low < high and left + low * layout.dilation[1] < 0:
        low += 1
    while high > low and left + (high - 1) * layout.dilation[1] >= layout.size[1]:
        high -= 1
    return pixel // results, top, left, low, high


@parallel
def _gather(job, worker, x, layout, first, count, patches):
    # x (N, groups * inner, H, W), patches (groups, room, pitch), flat; a job is PIXELS pixels
    lanes, plane = lanes_of(x), layout.size[0] * layout.size[1]
    for i in range(job * PIXELS, min((job + 1) * PIXELS, count)):
        n, top, left, low, high = _window(first + i, layout)
        for group in range(layout.groups):
            at = (group * layout.room + i) * layout.pitch
            source = (n * layout.groups + group) * layout.inner * plane + left
            for _c in range(layout.inner):
                for r in range(layout.kernel[0]):
                    row = top + r * layout.dilation[0]
                    rest = layout.kernel[1]
                    if not 0 <= row < layout.size[0]:
                        row, rest = 0, 0
                    start = source + row * layout.size[1]
                    # Whole vectors, overwritten by what comes behind.
                    if layout.dilation[1] == 1:
                        for s in range(0, layout.kernel[1], lanes):
                            store_tile(patches, at + s, 0, load_window(x, start + s, low - s, min(high, rest) - s))
                    else:
                        for s in range(layout.kernel[1]):
                            patches[at + s] = x[start + s * layout.dilation[1]] if low <= s < min(high, rest) else 0
                    at += layout.kernel[1]
                source += plane


@parallel
def _scatter(job, worker, patches, layout, first, count, gx):
    # patches (groups, room, pitch), gx (N, groups * inner, H, W), flat; a job is CHANNELS channels of one image
    plane, results = layout.size[0] * layout.size[1], layout.out[0] * layout.out[1]
    taps, blocks = layout.kernel[0] * layout.kernel[1], (layout.inner + CHANNELS - 1) // CHANNELS
    n, group = first // results + job // (blocks * layout.groups), job // blocks % layout.groups
    c0 = job % blocks * CHANNELS
    channels = min(CHANNELS, layout.inner - c0)
    to = ((n * layout.groups + group) * layout.inner + c0) * plane
    if first <= n * results:
        zero_pixels(gx, to, channels * plane)
    # Rejected: rows of taps as masked vectors, which cannot be read again as soon as they are written: 1.4 times the time.
    for pixel in range(max(first, n * results), min(first + count, (n + 1) * results)):
        _, top, left, low, high = _window(pixel, layout)
        at = (group * layout.room + pixel - first) * layout.pitch + c0 * taps
        for c in range(channels):
            for r in range(layout.kernel[0]):
                row = top + r * layout.dilation[0]
                start = to + c * plane + row * layout.size[1] + left
                if 0 <= row < layout.size[0]:
                    for s in range(low, high):
                        gx[start + s * layout.dilation[1]] += patches[at + s]
                at += layout.kernel[1]


@parallel
def _turn(job, worker, gy, layout, first, count, gradients):
    # gy (N, groups * filters, P * Q), gradients (groups * filters, room), flat; a job is one filter
    results, filters = layout.out[0] * layout.out[1], layout.groups * layout.filters
    at, end = job * layout.room, job * layout.room + count
    n, i = first // results, first % results
    while at < end:
        start = (n * filters + job) * results
        pieces = min(results - i, end - at)
        for j in range(pieces):
            gradients[at + j] = gy[start + i + j]
        at, n, i = at + pieces, n + 1, 0


def _dot_kernel(rows: int, columns: int) -> ParallelKernel:
    """The forward kernel for one tile."""

    def body(job, worker, w, patches, layout, together, count, sums):
        # w (groups * filters, length), patches (groups, room, pitch), sums (jobs, tiles, slots), flat
        lanes = lanes_of(w)
        blocks = (layout.filters + together - 1) // together
        group, k0 = job // blocks, job % blocks * together
        filters = min(together, layout.filters - k0)
        slots = (rows * columns + lanes - 1) // lanes * lanes
        all_sums = together // rows * ((layout.room + columns - 1) // columns) * slots
        for i in range(job * all_sums, (job + 1) * all_sums):
            sums[i] = 0
        for begin in range(0, layout.length, STRIP):
            end = min(begin + STRIP, layout.length)
            whole = end - (end - begin) % lanes
            to = job * all_sums
            for pixel in range(0, count, columns):
                b = (group * layout.room + pixel) * layout.pitch
                pixels = min(columns, count - pixel)
                for k in range(0, filters, rows):
                    a = (group * layout.filters + k0 + k) * layout.length
                    some = min(rows, filters - k)
                    tile = zero_tile(w, rows, columns)
                    for i in range(begin, whole, lanes):
                        tile = add_row_products(
                            tile, w, a + i, layout.length, some, patches, b + i, layout.pitch, pixels, lanes, 1
                        )
                    if whole < end:
                        tile = add_row_products(
                            tile,
                            w,
                            a + whole,
                            layout.length,
                            some,
                            patches,
                            b + whole,
                            layout.pitch,
                            pixels,
                            end - whole,
                            0,
                        )
                    add_sums(sums, to, tile)
                    to += slots

    body.__name__ = f"_dots_{rows}x{columns}"
    return parallel(body)


_dots = cache(_dot_kernel)


@parallel
def _finish(job, worker, sums, bias, layout, tile, together, first, count, activation, y):
    # sums as above, y (N, groups * filters, P * Q), flat; a job is one filter
    lanes = lanes_of(y)
    rows, columns = tile
    blocks = (layout.filters + together - 1) // together
    group, k = job // layout.filters, job % layout.filters
    block, k = k // together, k % together
    slots = (rows * columns + lanes - 1) // lanes * lanes
    begin = (group * blocks + block) * (together // rows) * ((layout.room + columns - 1) // columns) * slots
    begin += k // rows * slots + k % rows * columns
    apart = (
        (min(together, layout.filters - block * together) + rows - 1) // rows * slots
    )  # from pixels to the next ones
    results = layout.out[0] * layout.out[1]
    add = bias[job] if bias.size else 0
    n, pixel = first // results, first % results
    to = (n * layout.groups * layout.filters + job) * results + pixel
    for i in range(0, count, columns):
        for j in range(min(columns, count - i)):
            total = sums[begin + j] + add
            y[to] = 0 if activation and total < 0 else total
            to, pixel = to + 1, pixel + 1
            if pixel == results:
                to, pixel = to + (layout.groups * layout.filters - 1) * results, 0
        begin += apart


class _Product(NamedTuple):
    """out[r, j] = sum over t of a[r * row_step + t * term_step] * b[t * b_pitch + j] for each group."""

    rows: int
    terms: int
    width: int
    row_step: int
    term_step: int
    a_group: int
    b_pitch: int
    b_group: int
    out_pitch: int
    out_group: int
    together: int  # rows of a job
    onto: int  # whether out is added to


@parallel
def _outer(job, worker, a, b, product, out):
    lanes = lanes_of(out)
    wide = COLUMNS * lanes
    tiles, blocks = (product.width + wide - 1) // wide, (product.rows + product.together - 1) // product.together
    column, job = job % tiles * wide, job // tiles
    first, group = job % blocks * product.together, job // blocks
    last, room = min(first + product.together, product.rows), product.width - column
    for t0 in range(0, product.terms, TERMS):
        t1 = min(t0 + TERMS, product.terms)
        for row in range(first, last, ROWS):
            count = min(ROWS, last - row)
            to = group * product.out_group + row * product.out_pitch + column
            start = group * product.a_group + row * product.row_step + t0 * product.term_step
            line = group * product.b_group + t0 * product.b_pitch + column
            tile = zero_tile(out, ROWS, COLUMNS)
            if t0 > 0 or product.onto:
                tile = load_rows_part(out, to, product.out_pitch, ROWS, COLUMNS, count, room)
            if room >= wide:
                for _t in range(t0, t1):
                    tile = add_scaled_rows(tile, a, start, product.row_step, count, load_tile(b, line, 0, 1, COLUMNS))
                    start, line = start + product.term_step, line + product.b_pitch
            else:
                nothing = zero_tile(out, 1, COLUMNS)
                for _t in range(t0, t1):
                    vectors = load_part(b, line, room, nothing)
                    tile = add_scaled_rows(tile, a, start, product.row_step, count, vectors)
                    start, line = start + product.term_step, line + product.b_pitch
            if room >= wide and count == ROWS:
                store_tile(out, to, product.out_pitch, tile)
            else:
                store_tile_part(out, to, product.out_pitch, tile, count, room)


def _outer_products(a: np.ndarray, b: np.ndarray, product: _Product, groups: int, out: np.ndarray) -> None:
    wide = COLUMNS * simd.VECTOR_BITS // (8 * out.itemsize)
    _outer(groups * -(-product.rows // product.together) * -(-product.width // wide), a, b, product, out)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k] = bias[k] + sum over c, r, s of w[k, c, r, s] times x[n, c] shifted."""
    work = patch_work(spec, out.itemsize)
    layout, room = work.layout, workspace.view(out.dtype)
    patches, sums = room[: work.patches], room[work.patches : work.patches + work.sums]
    jobs = layout.groups * -(-layout.filters // work.filters)
    for first in work.chunks:
        count = min(layout.room, work.pixels - first)
        _gather(-(-count // PIXELS), x.reshape(-1), layout, first, count, patches)
        _dots(*work.tile)(jobs, w.reshape(-1), patches, layout, work.filters, count, sums)
        parts = (work.tile, work.filters, first, count, spec.activation)
        _finish(spec.k, sums, bias, layout, *parts, out.reshape(-1))


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over k, r, s of w[k, c, r, s] times gy[n, k] shifted the other way."""
    work = patch_work(spec, out.itemsize)
    layout, room = work.layout, workspace.view(out.dtype)
    patches, gradients = room[: work.patches], room[work.patches : work.patches + work.gradients]
    blocks, results = layout.groups * -(-layout.inner // CHANNELS), math.prod(spec.out)
    for first in work.chunks:
        count = min(layout.room, work.pixels - first)
        _turn(spec.k, gy.reshape(-1), layout, first, count, gradients)
        product = _Product(
            rows=count, terms=layout.filters, width=layout.length, row_step=1, term_step=layout.room,
            a_group=layout.filters * layout.room, b_pitch=layout.length, b_group=layout.filters * layout.length,
            out_pitch=layout.pitch, out_group=layout.room * layout.pitch, together=ROOM, onto=0,
        )  # fmt: skip
        _outer_products(gradients, w.reshape(-1), product, layout.groups, patches)
        images = (first + count - 1) // results - first // results + 1
        _scatter(images * blocks, patches, layout, first, count, out.reshape(-1))


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, c, r, s] = sum over n, p, q of gy[n, k] times x[n, c] shifted."""
    work = patch_work(spec, out.itemsize)
    layout, room = work.layout, workspace.view(out.dtype)
    patches, gradients = room[: work.patches], room[work.patches : work.patches + work.gradients]
    if work.pixels == 0:
        out.fill(0)
    for first in work.chunks:
        count = min(layout.room, work.pixels - first)
        _gather(-(-count // PIXELS), x.reshape(-1), layout, first, count, patches)
        _turn(spec.k, gy.reshape(-1), layout, first, count, gradients)
        product = _Product(
            rows=layout.filters, terms=count, width=layout.length, row_step=layout.room, term_step=1,
            a_group=layout.filters * layout.room, b_pitch=layout.pitch, b_group=layout.room * layout.pitch,
            out_pitch=layout.length, out_group=layout.filters * layout.length, together=layout.filters, onto=int(first > 0),
        )  # fmt: skip
        _outer_products(gradients, patches, product, layout.groups, out.reshape(-1))


def workspace_bytes(problem: Problem) -> int:
    """A chunk's patches, and its results or gradients."""
    work = patch_work(problem.spec, problem.itemsize)
    elements = work.patches + (work.sums if problem.direction == "forward" else work.gradients)
    return -(-elements * problem.itemsize // 8) * 8
