"""Weight gradient with vectors of images, for large batches of few channels.

gw[k, c, r, s] sums gy[n, k, p, q] times the input pixel that tap (r, s) meets there. Lane l holds image n + l (see
cpu_images.py), so both factors are whole vectors for any stride and dilation. A tile of ROWS filters x the taps of a kernel
row is summed over the pixels of a strip; the lanes are added at the end. Rows of taps that meet padding are left out.

A job sums a part of the images and strips for some filters of a group. Its sums wait in scratch, as vectors, between
strips.

Scratch: partial results where there are several parts; then input pixels, gradients and sums for each thread.

Source: the layout is that of cpu_images.py.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from .. import host, simd
from ..parts import add_parts, even_parts
from ..patches import add_dots
from ..simd import add_lane_sums, lanes_of, load_tile, store_tile, zero_tile
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..variant import Problem, cpu_only
from .cpu_images import copy_pixels, copy_run, few_images
from .lattice import dense_axis

SCRATCH_BYTES = host.l2_bytes() // 2  # of pixels and gradients at a time
SUM_BYTES = host.l2_bytes() // 2
WIDEST = 7  # taps side by side in a tile
JOBS = 16  # wanted


class Layout(NamedTuple):
    """Plain numbers for the kernel."""

    n: int
    groups: int
    cg: int  # channels of a group
    kg: int  # filters of a group
    filters: int  # of a job, in whole tiles
    kernel: Pair
    source: Pair  # height and width
    out: Pair
    stride: Pair
    dilation: Pair
    first: Pair  # source row and column that the first tap of the first result meets
    rows: int  # of results in a strip
    strips: int
    height: int  # source rows of a strip
    pitch: int  # pixels from row to row
    parts: int


class Work(NamedTuple):
    """A problem ready to run."""

    layout: Layout
    tile: Pair
    lanes: int

    @property
    def pixels(self) -> Pair:
        """Elements of a strip's input and gradients, each with what whole vectors reach beyond."""
        a = self.layout
        beyond = self.lanes + self.tile[1] * a.dilation[1]
        return (
            (a.cg * a.height * a.pitch + beyond) * self.lanes,
            (a.filters * a.rows * a.out[1] + self.lanes) * self.lanes,
        )

    @property
    def sums(self) -> int:
        """Elements of the sums of a job."""
        a = self.layout
        turns = -(-a.kernel[1] // self.tile[1])
        return a.filters * a.cg * a.kernel[0] * turns * self.tile[1] * self.lanes

    @property
    def scratch(self) -> int:
        """Elements for each thread."""
        return sum(self.pixels) + self.sums

    @property
    def blocks(self) -> int:
        """Blocks of filters of a group."""
        return -(-self.layout.kg // self.layout.filters)

    @property
    def jobs(self) -> int:
        return self.layout.parts * self.layout.groups * self.blocks

    @property
    def partial(self) -> int:
        """Elements of the partial results."""
        a = self.layout
        return 0 if a.parts == 1 else a.parts * a.groups * a.kg * a.cg * math.prod(a.kernel)


def _choose_tile(kg: int, taps: int) -> Pair:
    """Filters x taps side by side with the fewest cycles for each product."""

    def cost(tile: Pair) -> float:
        rows, columns = tile
        done = -(-kg // rows) * rows / kg * -(-taps // columns) * columns / taps
        return done * (max(rows * columns / 2, (rows + columns) / 2, 4) + 0.5) / (rows * columns / 2)

    columns = taps if taps <= WIDEST else -(-taps // -(-taps // WIDEST))
    most = max(1, (simd.REGISTERS - 2 - columns) // columns)
    return min(((rows, columns) for rows in {1, 2, 3, 4, 6, most} if rows <= most), key=cost)


@lru_cache(maxsize=1024)
def weight_work(spec: ConvSpec, itemsize: int) -> Work:
    axes = (dense_axis(spec, 0), dense_axis(spec, 1))
    cg, kg = spec.c // spec.groups, spec.k // spec.groups
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    tile = _choose_tile(kg, spec.kernel[1])
    taps = spec.kernel[0] * -(-spec.kernel[1] // tile[1]) * tile[1]
    most = max(1, SUM_BYTES // (cg * taps * lanes * itemsize * tile[0]))  # tiles of filters in a job
    tiles = -(-kg // tile[0])
    filters = -(-tiles // -(-tiles // most)) * tile[0]
    pitch = axes[1].results + axes[1].span
    row_bytes = lanes * itemsize * (cg * pitch * spec.stride[0] + filters * spec.out[1])
    edge = lanes * itemsize * cg * pitch * (axes[0].span + 1 - spec.stride[0])
    rows = max(1, min(spec.out[0], (SCRATCH_BYTES - edge) // row_bytes))
    strips = -(-spec.out[0] // rows)
    rows = -(-spec.out[0] // strips)
    height = (rows - 1) * spec.stride[0] + axes[0].span + 1
    blocks = spec.groups * -(-kg // filters)
    parts = even_parts(min(-(-spec.n // lanes) * strips, -(-JOBS // blocks)))
    layout = Layout(
        spec.n, spec.groups, cg, kg, filters, spec.kernel, spec.size, spec.out, spec.stride, spec.dilation,
        (axes[0].first, axes[1].first), rows, strips, height, pitch, parts,
    )  # fmt: skip
    return Work(layout, tile, lanes)


def _tile_kernel(rows: int, columns: int) -> ParallelKernel:
    """The kernel for one tile."""

    def body(job, worker, x, gy, layout, scratch, gradients_at, sums_at, gw):
        # x (N, groups * cg, H, W), gy (N, groups * kg, P, Q), gw (parts, groups * kg, cg, R, S), all flat
        lanes = lanes_of(gw)
        mine = scratch[worker]
        blocks = (layout.kg + layout.filters - 1) // layout.filters
        k0, job = job % blocks * layout.filters, job // blocks
        group, part = job % layout.groups, job // layout.groups
        filters = min(layout.filters, layout.kg - k0)
        vectors = rows * columns * lanes
        turns = (layout.kernel[1] + columns - 1) // columns
        for at in range(
            sums_at, sums_at + layout.filters * layout.cg * layout.kernel[0] * turns * columns * lanes, vectors
        ):
            store_tile(mine, at, columns * lanes, zero_tile(gw, rows, columns))

        x_plane, gy_plane = layout.source[0] * layout.source[1], layout.out[0] * layout.out[1]
        steps = (layout.n + lanes - 1) // lanes * layout.strips
        for step in range(part * steps // layout.parts, (part + 1) * steps // layout.parts):
            n, p0 = step // layout.strips * lanes, step % layout.strips * layout.rows
            images, here = min(lanes, layout.n - n), min(layout.rows, layout.out[0] - p0)
            first = (layout.first[0] + p0 * layout.stride[0], layout.first[1])
            apart = layout.groups * layout.cg * x_plane
            begin = (n * layout.groups + group) * layout.cg * x_plane
            copy_pixels(x, begin, apart, images, layout.cg, layout.source, first, layout.height, layout.pitch, mine, 0)
            apart = layout.groups * layout.kg * gy_plane
            begin = ((n * layout.groups + group) * layout.kg + k0) * gy_plane + p0 * layout.out[1]
            for k in range(filters):
                at = gradients_at + k * layout.rows * layout.out[1] * lanes
                copy_run(gy, begin + k * gy_plane, apart, images, here * layout.out[1], mine, at)

            at = sums_at
            for k in range(0, filters, rows):
                for c in range(layout.cg):
                    for r in range(layout.kernel[0]):
                        shift = first[0] + r * layout.dilation[0]  # source row that the strip's first row meets
                        low = max(0, (layout.stride[0] - 1 - shift) // layout.stride[0])
                        high = min(here, (layout.source[0] - 1 - shift) // layout.stride[0] + 1)
                        for turn in range(turns):
                            tile = load_tile(mine, at, columns * lanes, rows, columns)
                            s = turn * columns * layout.dilation[1]
                            for p in range(low, high):
                                h = p * layout.stride[0] + r * layout.dilation[0]
                                b = ((c * layout.height + h) * layout.pitch + s) * lanes
                                a = gradients_at + (k * layout.rows + p) * layout.out[1] * lanes
                                for _q in range(layout.out[1]):
                                    tile = add_dots(
                                        tile, mine, a, layout.rows * layout.out[1] * lanes,
                                        mine, b, layout.dilation[1] * lanes,
                                    )  # fmt: skip
                                    a += lanes
                                    b += layout.stride[1] * lanes
                            store_tile(mine, at, columns * lanes, tile)
                            at += vectors

        taps = layout.kernel[0] * layout.kernel[1]
        to = ((part * layout.groups + group) * layout.kg + k0) * layout.cg * taps
        for i in range(filters * layout.cg * taps):
            gw[to + i] = 0
        at = sums_at
        for k in range(0, filters, rows):
            for pair in range(layout.cg * layout.kernel[0]):
                for turn in range(turns):
                    tile = load_tile(mine, at, columns * lanes, rows, columns)
                    s = turn * columns
                    start = to + k * layout.cg * taps + pair * layout.kernel[1] + s
                    add_lane_sums(gw, start, layout.cg * taps, tile, filters - k, layout.kernel[1] - s)
                    at += vectors

    body.__name__ = f"_images_weight_{rows}x{columns}"
    return parallel(body)


_kernel = cache(_tile_kernel)


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, c, r, s] = sum over n, p, q of gy[n, k] times x[n, c] shifted."""
    work = weight_work(spec, x.itemsize)
    room = workspace.view(out.dtype)
    partial = room[: work.partial] if work.partial else out.reshape(-1)
    scratch = thread_rows(room[work.partial :], work.scratch)
    places = work.pixels[0], sum(work.pixels)
    kernel = _kernel(*work.tile)
    kernel(work.jobs, x.reshape(-1), gy.reshape(-1), work.layout, scratch, *places, partial, limit=scratch.shape[0])
    if work.partial:
        add_parts(partial.reshape(work.layout.parts, -1), out.reshape(-1))


def refuses(problem: Problem) -> str:
    """Takes batches that fill vectors, and few enough channels that the sums stay in the second-level cache."""
    itemsize = problem.itemsize
    if reason := cpu_only(problem) or few_images(problem.spec, itemsize):
        return reason
    work = weight_work(problem.spec, itemsize)
    if work.sums * itemsize > SUM_BYTES or sum(work.pixels) * itemsize > 2 * SCRATCH_BYTES:
        return "takes sums, and a row of results with its pixels, that fit into the second-level cache as whole vectors"
    return ""


def workspace_bytes(problem: Problem) -> int:
    """Partial results, and the pixels, gradients and sums of each thread."""
    itemsize = problem.itemsize
    work = weight_work(problem.spec, itemsize)
    return -(-(work.partial + num_threads() * work.scratch) * itemsize // 8) * 8
