"""Weight gradient with vectors of output channels, for any stride, padding and dilation.

gw[k, c, r, s] sums gy[n, k, p, q] times the input pixel that tap (r, s) meets there. A tile holds ROWS (channel, tap) pairs
x COLUMNS vectors of output channels, and every pixel (p, q) adds an outer product: single input pixels times vectors of
gradients, which were transposed so that the channels of a pixel lie together. Nothing is summed over lanes, and no lane
falls on the ends of rows. Pixels are read from a padded copy of some rows, or in place where nothing is padded.

A job sums a part of the batch for a block of output channels and a block of input channels. Sums wait in scratch while
the next images or rows are copied.

Scratch: partial results where the batch is cut; then input strip, gradients and sums for each thread.

Source of the outer products: Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD
architectures", 2018; here images stay NCHW.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from .. import simd
from ..compiler import helper
from ..parts import add_parts, even_parts
from ..rows import SLACK, zero_row
from ..simd import lanes_of, load_tile, store_tile, store_tile_part
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..tiles import add_outer_at, load_transposed
from ..variant import Problem
from .lattice import Strip, class_tables, copy_strip, dense_axis, is_inside, make_strip, phase_table

STRIP_BYTES = 384 * 1024  # of inputs and gradients at a time
SUM_BYTES = 320 * 1024  # of sums in a job
WIDTHS = (1, 2, 3, 4, 5, 7, 11) if simd.REGISTERS == 32 else (1, 2, 3, 4, 5)  # taps side by side that have tiles
SHIFTS = 6  # groups of taps whose shifts find registers
LOADED_SHIFT = 1.2  # cycles for each other one (Zen 5)
FILTERS = 128  # output channels in a job
RUN = 256  # pixels that make loading and storing a tile's sums cheap
JOBS = 16  # jobs wanted; else the batch is cut into parts
PART = 1600  # results that pay for another part's sums (fewer cost up to 20% on 7x7 planes, Zen 5)
FEW_JOBS, FEW_RESULTS = 4, 200  # but this many pay for a part more, up to so many jobs, where there would be one


class Tile(NamedTuple):
    """Shape of a register tile."""

    groups: int  # of taps
    width: int  # taps of a group, neighbours in the strip
    columns: int  # vectors of output channels

    @property
    def rows(self) -> int:
        return self.groups * self.width


class _Layout(NamedTuple):
    """Plain numbers for the kernel."""

    n: int
    groups: int
    cg: int
    kg: int
    taps: int
    out: Pair  # (P, Q)
    c_block: int
    k_block: int  # in whole tiles
    parts: int
    images: int  # at a time
    strips: int
    rows: int  # of gradients in a strip
    stride: Pair
    in_place: bool
    image: int  # elements from one image of the input, or of the strip, to the next
    pairs: int  # (channel, tap) pairs of a block in whole tiles


class _Work(NamedTuple):
    """A problem ready to run."""

    layout: _Layout
    strip: Strip
    tile: Tile
    lanes: int
    phases: np.ndarray
    shifts: np.ndarray  # per group of taps of a block of channels, the last repeated to a whole tile
    pixels: np.ndarray  # where the first tap of each result of a strip's images lies

    @property
    def jobs(self) -> int:
        a = self.layout
        return a.parts * a.groups * -(-a.kg // a.k_block) * -(-a.cg // a.c_block)

    @property
    def partial(self) -> int:
        """Elements of the partial results."""
        a = self.layout
        return 0 if a.parts == 1 else a.parts * a.groups * a.kg * a.cg * a.taps

    @property
    def scratch(self) -> int:
        """Elements for each thread: inputs, gradients and a block of what whole vectors reach beyond, sums."""
        a = self.layout
        inputs = 0 if a.in_place else a.images * a.image
        return inputs + (self.pixels.size + self.lanes + a.pairs + self.lanes) * a.k_block + SLACK


def _choose_tile(kg: int, groups: int, width: int, lanes: int) -> Tile:
    """The tile with the fewest cycles for each product."""

    def cost(tile: Tile) -> float:
        channels = -(-kg // (tile.columns * lanes)) * tile.columns * lanes / kg
        taps = -(-groups // tile.groups) * tile.groups / groups
        # Two products or two loads a cycle, four cycles from a sum to the next; shifts that find no register are loaded.
        cycles = max(tile.rows * tile.columns / 2, (tile.rows + tile.columns) / 2, 4) + 0.5
        cycles += LOADED_SHIFT * max(0, tile.groups - SHIFTS)
        return channels * taps * cycles / (tile.rows * tile.columns / 2)

    tiles = []
    for columns in range(1, min(3, -(-kg // lanes)) + 1):
        most = (simd.REGISTERS - 1 - columns) // (columns * width)
        tiles += [
            Tile(n, width, columns)
            for n in {1, SHIFTS, most - 1, most}
            if n > 0 and n * width * columns <= simd.REGISTERS
        ]
    return min(tiles, key=cost)


@lru_cache(maxsize=1024)
def _work(spec: ConvSpec, itemsize: int) -> _Work:
    axes = (dense_axis(spec, 0), dense_axis(spec, 1))
    cg, kg, (r, s) = spec.c // spec.groups, spec.k // spec.groups, spec.kernel
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    width = s if s in WIDTHS else 1
    tile = _choose_tile(kg, cg * r * s // width, width, lanes)
    k_tile = tile.columns * lanes
    k_block = min(-(-kg // k_tile), max(1, FILTERS // k_tile)) * k_tile
    c_block = max(1, min(cg, SUM_BYTES // (r * s * k_block * itemsize)))
    c_block = -(-cg // -(-cg // c_block))
    if spec.n == 1 and c_block == spec.c and k_block >= spec.k:  # one job: no batch to cut into parts
        c_block = -(-cg // 2)

    gradients = -(-k_block // (spec.stride[0] * spec.stride[1]))  # channels, were they as dense as the pixels
    strip = make_strip(axes, c_block + gradients, itemsize, STRIP_BYTES)
    whole_blocks = cg % c_block == 0  # a tile may read the block's last channels though none is there
    in_place = whole_blocks and all(map(is_inside, axes))
    if in_place:
        strip = strip._replace(pitch=spec.size[1], plane=spec.size[0] * spec.size[1])
    rows = (strip.results - 1) // spec.stride[0] + 1
    strips = -(-spec.out[0] // rows)
    pixels = rows * spec.out[1]
    image = (spec.c if in_place else c_block) * strip.planes * strip.plane
    room = STRIP_BYTES // ((c_block * strip.planes * strip.plane + pixels * k_block) * itemsize)
    images = max(1, min(spec.n, room, -(-RUN // pixels))) if strips == 1 else 1
    blocks = spec.groups * -(-kg // k_block) * -(-cg // c_block)
    results = spec.n * spec.out[0] * spec.out[1]
    worth = results // PART
    if blocks == 1:  # the other threads would idle
        worth = max(worth, min(2, results // 64), min(FEW_JOBS, results // FEW_RESULTS))
        images = max(1, min(images, -(-spec.n // max(1, worth))))
    parts = even_parts(min(-(-spec.n // images), -(-JOBS // blocks), worth))

    _, tap_shifts, _ = class_tables(axes, strip, s)
    shifts = (np.arange(c_block)[:, None] * strip.planes * strip.plane + tap_shifts[::width]).reshape(-1)
    whole = -(-len(shifts) // tile.groups) * tile.groups
    shifts = np.pad(shifts, (0, whole - len(shifts)), mode="edge").astype(np.int64)
    layout = _Layout(
        spec.n, spec.groups, cg, kg, r * s, spec.out, c_block, k_block, parts, images, strips, rows, spec.stride,
        in_place, image, whole * width,
    )  # fmt: skip
    down, across = (np.arange(count) * step for count, step in zip((rows, spec.out[1]), spec.stride, strict=True))
    places = (np.arange(images)[:, None, None] * image + down[:, None] * strip.pitch + across).reshape(-1)
    return _Work(layout, strip, tile, lanes, phase_table(axes, strip), shifts, places.astype(np.int64))


@helper
def transpose_gradients(gy, begin, plane, filters, pixels, images, apart, block, scratch, at):
    """scratch (blocks of filters, images, pixels, block) from gy (images, filters, pixels of planes), images ``apart``;
    zeros for missing filters. Writes up to a vector of pixels more."""
    lanes = lanes_of(gy)
    for k0 in range(0, filters, block):
        for image in range(images):
            for k in range(k0, k0 + block, lanes):
                for i in range(0, pixels, lanes):
                    start = begin + image * apart + k * plane + i
                    tile = load_transposed(gy, start, plane, filters - k, pixels - i)
                    store_tile(scratch, at + i * block + k - k0, block, tile)
            at += pixels * block


def _tile_kernel(groups: int, width: int, columns: int, dilation: int) -> ParallelKernel:
    """The kernel for one tile whose neighbouring taps lie ``dilation`` pixels apart."""
    rows = groups * width

    def body(job, worker, x, gy, layout, strip, phases, shifts, pixels, scratch, gw):
        # x (N, groups * cg, H, W), gy (N, groups * kg, P, Q), gw (parts, groups * kg, cg * taps), all flat
        block = columns * lanes_of(gw)
        c_blocks = (layout.cg + layout.c_block - 1) // layout.c_block
        k_blocks = (layout.kg + layout.k_block - 1) // layout.k_block
        c0 = job % c_blocks * layout.c_block
        k0 = job // c_blocks % k_blocks * layout.k_block
        group = job // (c_blocks * k_blocks) % layout.groups
        part = job // (c_blocks * k_blocks * layout.groups)
        channels = min(layout.c_block, layout.cg - c0)
        filters = min(layout.k_block, layout.kg - k0)
        wanted = channels * layout.taps
        turns = (filters + block - 1) // block

        mine = scratch[worker]
        gradients = 0 if layout.in_place else layout.images * layout.image
        sums = gradients + (pixels.size + lanes_of(gw)) * layout.k_block
        zero_row(mine, sums, turns * layout.pairs * block)

        source_plane = strip.source[0] * strip.source[1]
        gradient_plane = layout.out[0] * layout.out[1]
        steps = (layout.n + layout.images - 1) // layout.images
        first, last = part * steps // layout.parts, (part + 1) * steps // layout.parts
        for step in range(first * layout.strips, last * layout.strips):
            n0, p0 = step // layout.strips * layout.images, step % layout.strips * layout.rows
            images = min(layout.images, layout.n - n0)
            p1 = min(p0 + layout.rows, layout.out[0])
            here = (p1 - p0) * layout.out[1]
            begin = ((n0 * layout.groups + group) * layout.cg + c0) * source_plane
            if layout.in_place:
                source, origin = x, begin + p0 * layout.stride[0] * strip.pitch
            else:
                source, origin = mine, 0
                for image in range(images):
                    start = begin + image * layout.groups * layout.cg * source_plane
                    copy_strip(x, start, channels, p0 * layout.stride[0], strip, phases, mine, image * layout.image)
            start = ((n0 * layout.groups + group) * layout.kg + k0) * gradient_plane + p0 * layout.out[1]
            apart = layout.groups * layout.kg * gradient_plane
            transpose_gradients(gy, start, gradient_plane, filters, here, images, apart, block, mine, gradients)

            for turn in range(turns):
                for pair in range(0, wanted, rows):
                    at = sums + (turn * layout.pairs + pair) * block
                    tile = load_tile(mine, at, block, rows, columns)
                    b = gradients + turn * images * here * block
                    for i in range(images * here):
                        a = origin + pixels[i]
                        tile = add_outer_at(tile, source, a, shifts, pair // width, width, dilation, mine, b)
                        b += block
                    store_tile(mine, at, block, tile)

        filter_size = layout.cg * layout.taps
        to = ((part * layout.groups + group) * layout.kg + k0) * filter_size + c0 * layout.taps
        lanes = lanes_of(gw)
        for k in range(0, filters, lanes):
            for pair in range(0, wanted, lanes):
                at = sums + (k // block * layout.pairs + pair) * block + k % block
                tile = load_transposed(mine, at, block, wanted - pair, filters - k)
                start = to + k * filter_size + pair
                store_tile_part(gw, start, filter_size, tile, filters - k, wanted - pair)

    body.__name__ = f"_channels_weight_{groups}x{width}x{columns}_{dilation}"
    return parallel(body)


_kernel = cache(_tile_kernel)


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, c, r, s] = sum over n, p, q of gy[n, k] times x[n, c] shifted."""
    work = _work(spec, x.itemsize)
    room = workspace.view(out.dtype)
    partial = room[: work.partial] if work.partial else out.reshape(-1)
    scratch = thread_rows(room[work.partial :], work.scratch)
    tables = (work.layout, work.strip, work.phases, work.shifts, work.pixels, scratch, partial)
    kernel = _kernel(*work.tile, spec.dilation[1] if work.tile.width > 1 else 1)
    kernel(work.jobs, x.reshape(-1), gy.reshape(-1), *tables, limit=scratch.shape[0])
    if work.partial:
        add_parts(partial.reshape(work.layout.parts, -1), out.reshape(-1))


def workspace_bytes(problem: Problem) -> int:
    """Partial results, and the strips and sums of each thread."""
    itemsize = problem.itemsize
    work = _work(problem.spec, itemsize)
    return -(-(work.partial + num_threads() * work.scratch) * itemsize // 8) * 8
