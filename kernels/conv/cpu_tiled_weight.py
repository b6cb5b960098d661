"""Weight gradient with register tiles, for any stride, padding, dilation and groups.

In a strip of the input (see lattice.py) gw[k, c, r, s] is the dot product of a row of output gradients with the input
shifted by a constant. A tile holds ROWS output channels x COLUMNS (channel, tap) pairs, a vector of partial sums for each;
every vector of gradients and every shifted vector of inputs that is loaded serves a whole row or column of the tile. The
sums over the lanes are taken at the end of a run of pixels, so runs are made long: several images where planes are small.

A job sums a part of the batch for a block of output channels and a block of input channels. Gradients are copied with the
strip's pitch and zeros between the rows; so a non-finite input reaches all taps of its channel, not only those it met.

Scratch: partial sums where the batch is cut; then input strip and gradients for each thread.

Source of cutting the batch: Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures",
2018; the tile is that of cpu_tiled.py, turned.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import simd
from ..compiler import helper
from ..parts import add_parts, even_parts
from ..rows import SLACK, copy_row, rows_ahead, zero_row
from ..simd import add_lane_sums, add_products, lanes_of, zero_tile
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..variant import Problem
from .lattice import Strip, class_tables, copy_strip, forward_axis, make_strip, phase_table

STRIP_BYTES = 256 * 1024  # of inputs at a time, and about as much of gradients; half costs up to 20% (Zen 5, stride 2)
CHANNELS = 32  # block of input and of output channels; twice that for 1x1, where a copy serves fewer products
RUN = 1024  # pixels that make summing over the lanes cheap
JOBS = 16  # jobs wanted before the batch is cut into parts
TILES = ((4, 6), (6, 4), (8, 3), (1, 9)) if simd.REGISTERS == 32 else ((3, 4), (4, 3), (2, 5), (1, 9))


class _Layout(NamedTuple):
    """Plain numbers for the kernel."""

    n: int
    groups: int
    cg: int
    kg: int
    taps: int
    out: Pair  # (P, Q)
    c_block: int
    k_block: int
    k_rows: int  # k_block in whole tiles: the rows that a tile may read
    parts: int
    images: int  # at a time
    strips: int
    length: int  # flattened pixels of a strip, in whole vectors
    overhang: int


class _Work(NamedTuple):
    """A problem ready to run."""

    layout: _Layout
    strip: Strip
    tile: Pair
    phases: np.ndarray
    shifts: np.ndarray  # per (channel of a block, tap), then repeated to a whole tile

    @property
    def jobs(self) -> int:
        a = self.layout
        return a.parts * a.groups * -(-a.kg // a.k_block) * -(-a.cg // a.c_block)

    @property
    def partial(self) -> int:
        """Elements of the partial sums."""
        a = self.layout
        return 0 if a.parts == 1 else a.parts * a.groups * a.kg * a.cg * a.taps

    @property
    def scratch(self) -> int:
        """Elements for each thread."""
        a = self.layout
        planes = a.c_block * self.strip.planes * self.strip.plane
        return a.images * planes + a.overhang + a.images * a.k_rows * a.length + SLACK


def _choose_tile(rows: int, columns: int) -> Pair:
    """The tile that computes the fewest sums for nothing, loads counted."""

    def cost(tile: Pair) -> float:
        r, c = tile
        return -(-rows // r) * r * -(-columns // c) * c * (1 + (r + c) / (r * c))

    return min(TILES, key=cost)


@lru_cache(maxsize=1024)
def weight_work(spec: ConvSpec, itemsize: int) -> _Work:
    axes = (forward_axis(spec, 0), forward_axis(spec, 1))
    cg, kg, taps = spec.c // spec.groups, spec.k // spec.groups, spec.kernel[0] * spec.kernel[1]
    channels = CHANNELS if taps > 1 else 2 * CHANNELS
    c_block, k_block = min(cg, channels), min(kg, channels)
    strip = make_strip(axes, c_block, itemsize, STRIP_BYTES)
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    pixels = (strip.results - 1) * strip.pitch + spec.out[1]
    length = -(-pixels // lanes) * lanes
    overhang = max(0, axes[1].span + length - strip.results * strip.pitch)
    strips = -(-spec.out[0] // strip.results)
    room = STRIP_BYTES // max(1, c_block * strip.planes * strip.plane * itemsize)
    images = max(1, min(spec.n, room, -(-RUN // length)) if strips == 1 else 1)
    blocks = spec.groups * -(-kg // k_block) * -(-cg // c_block)
    parts = even_parts(min(-(-spec.n // images), -(-JOBS // blocks)))
    tile = _choose_tile(k_block, c_block * taps)
    _, tap_shifts, _ = class_tables(axes, strip, spec.kernel[1])
    shifts = (np.arange(c_block)[:, None] * strip.planes * strip.plane + tap_shifts).reshape(-1)
    whole = -(-len(shifts) // tile[1]) * tile[1]
    shifts = np.pad(shifts, (0, whole - len(shifts)), mode="edge").astype(np.int64)
    layout = _Layout(
        spec.n, spec.groups, cg, kg, taps, spec.out, c_block, k_block, -(-k_block // tile[0]) * tile[0],
        parts, images, strips, length, overhang,
    )  # fmt: skip
    return _Work(layout, strip, tile, phase_table(axes, strip), shifts)


@helper
def copy_gradients(gy, begin, channels, p0, strip, layout, scratch, at):
    """Copy rows of the planes at gy[begin] with the strip's pitch, zeros between and behind them."""
    height, width = layout.out
    ahead = rows_ahead(height * width)
    for channel in range(channels):
        end = at + layout.length
        for p in range(p0, min(p0 + strip.results, height)):
            row = begin + (channel * height + p) * width
            copy_row(scratch, at, min(strip.pitch, end - at), gy, row, 1, 0, width, ahead)
            at = min(at + strip.pitch, end)
        zero_row(scratch, at, end - at)
        at = end
    return at


def _tile_kernel(rows: int, columns: int) -> ParallelKernel:
    """The kernel for one tile size."""

    def body(job, worker, x, gy, layout, strip, phases, shifts, scratch, gw):
        # x (N, groups * cg, H, W), gy (N, groups * kg, P, Q), gw (parts, groups * kg, cg * taps), all flat
        c_blocks = (layout.cg + layout.c_block - 1) // layout.c_block
        k_blocks = (layout.kg + layout.k_block - 1) // layout.k_block
        c0 = job % c_blocks * layout.c_block
        k0 = job // c_blocks % k_blocks * layout.k_block
        group = job // (c_blocks * k_blocks) % layout.groups
        part = job // (c_blocks * k_blocks * layout.groups)
        channels = min(layout.c_block, layout.cg - c0)
        filters = min(layout.k_block, layout.kg - k0)
        mine = scratch[worker]
        wanted = channels * layout.taps
        filter_size = layout.cg * layout.taps
        to = ((part * layout.groups + group) * layout.kg + k0) * filter_size + c0 * layout.taps
        for k in range(filters):
            for i in range(wanted):
                gw[to + k * filter_size + i] = 0

        source_plane = strip.source[0] * strip.source[1]
        gradient_plane = layout.out[0] * layout.out[1]
        image_planes = layout.c_block * strip.used[0] * strip.used[1] * strip.plane
        steps = (layout.n + layout.images - 1) // layout.images
        for step in range(part * steps // layout.parts, (part + 1) * steps // layout.parts):
            n0 = step * layout.images
            images = min(layout.images, layout.n - n0)
            for s in range(layout.strips):
                p0 = s * strip.results
                for image in range(images):
                    begin = (((n0 + image) * layout.groups + group) * layout.cg + c0) * source_plane
                    end = copy_strip(x, begin, channels, p0, strip, phases, mine, image * image_planes)
                    zero_row(mine, end, layout.overhang)  # the next image, if any, is copied over it
                gradients = layout.images * image_planes + layout.overhang
                for image in range(images):
                    begin = (((n0 + image) * layout.groups + group) * layout.kg + k0) * gradient_plane
                    at = gradients + image * layout.k_rows * layout.length
                    copy_gradients(gy, begin, filters, p0, strip, layout, mine, at)
                for column in range(0, wanted, columns):
                    for k in range(0, filters, rows):
                        tile = zero_tile(gw, rows, columns)
                        for image in range(images):
                            a = gradients + (image * layout.k_rows + k) * layout.length
                            b = image * image_planes
                            for i in range(0, layout.length, lanes_of(gw)):
                                tile = add_products(tile, mine, a + i, layout.length, mine, b + i, shifts, column)
                        start = to + k * filter_size + column
                        add_lane_sums(gw, start, filter_size, tile, filters - k, wanted - column)

    body.__name__ = f"_tile_{rows}x{columns}"
    return parallel(body)


_KERNELS = {tile: _tile_kernel(*tile) for tile in TILES}


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, c, r, s] = sum over n, p, q of gy[n, k] times x[n, c] shifted."""
    work = weight_work(spec, x.itemsize)
    room = workspace.view(out.dtype)
    partial = room[: work.partial] if work.partial else out.reshape(-1)
    scratch = thread_rows(room[work.partial :], work.scratch)
    tables = (work.layout, work.strip, work.phases, work.shifts, scratch, partial)
    _KERNELS[work.tile](work.jobs, x.reshape(-1), gy.reshape(-1), *tables, limit=scratch.shape[0])
    if work.partial:
        add_parts(partial.reshape(work.layout.parts, -1), out.reshape(-1))


def workspace_bytes(problem: Problem) -> int:
    """Partial sums, and the strips of each thread."""
    itemsize = problem.itemsize
    work = weight_work(problem.spec, itemsize)
    return -(-(work.partial + num_threads() * work.scratch) * itemsize // 8) * 8
