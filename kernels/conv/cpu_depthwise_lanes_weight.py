"""Weight gradient of a depthwise convolution with channels as the lanes of vectors, for any kernel, stride, padding and
dilation.

In a strip of pixels (see lane_strips.py) a tile holds the sums of some taps, channel by channel: a vector of gradients
times the pixel that each tap meets, over the results. There is nothing to sum over the lanes. Every job adds those of its
part of the blocks to sums of its own; lanes of a block that belong to the next image lie behind the last channel there,
and are folded in the end.

Non-finite inputs can reach every tap of their channel, not only those that they met.

Scratch: the sums of all parts; then a strip and its gradients for each thread.

Source: that of cpu_depthwise_lanes.py.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .. import simd
from ..lanes import add_row_sums, add_tap_products
from ..parts import even_parts
from ..simd import lanes_of, store_tile, zero_tile
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..variant import Problem
from .cpu_depthwise_lanes import refusal
from .lane_strips import Work, lane_work, load_pixels, pad_strip, read_square
from .lattice import forward_axis

# (pixels, taps) of the tiles
TILES = (
    ((1, 25), (1, 20), (1, 18), (1, 15), (1, 12), (2, 9), (2, 7), (3, 5), (4, 4), (4, 3), (8, 2), (8, 1))
    if simd.REGISTERS == 32
    else ((1, 12), (1, 9), (2, 6), (2, 4), (4, 3), (4, 2), (8, 1))
)
PARTS = 16  # at most
PART_PIXELS = 64  # that a channel has in each part at least: sums of a part are written and read as well


@lru_cache(maxsize=256)
def _work(spec: ConvSpec, itemsize: int) -> Work:
    axes = (forward_axis(spec, 0), forward_axis(spec, 1))
    return lane_work(spec._replace(activation=0), axes, 1, spec.k // spec.c, spec.out, spec.out[1], itemsize)


def _parts(work: Work, spec: ConvSpec) -> int:
    pixels = spec.n * spec.out[0] * spec.out[1]
    return even_parts(min(PARTS, work.blocks * work.strips, -(-pixels // PART_PIXELS)))


def _tap_kernel(pixels: int, taps: int) -> ParallelKernel:
    """The weight gradient's kernel for one tile size."""

    def body(job, worker, x, gy, layout, parts, strip, phases, kept, places, bases, shifts, scratch, sums):
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
        for unit in range(job * units // parts, (job + 1) * units // parts):
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
                    x,
                    begin,
                    height * width,
                    wanted,
                    loaded,
                    end,
                    limit,
                    width,
                    layout.ahead,
                    layout.all_rows,
                    kept,
                    places,
                    mine,
                    0,
                )
                first, last = p * layout.result[1], min(p + layout.chunk, results) * layout.result[1]
                for o in range(layout.outer):
                    come = (plane * layout.outer + o) * size + p0 * layout.result[1]
                    for f in range(first, last, lanes):
                        square = read_square(gy, come + f, layout.outer * size, wanted, last - f, layout.ahead_result)
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


_KERNELS = {tile: _tap_kernel(*tile) for tile in TILES}


@parallel
def _fold(job, worker, sums, layout, parts, taps, whole, gw):
    # sums (parts, outer, whole, pitch), gw (C, outer, taps), flat; a job is a tap of every channel's first, second, … filter
    o, t = job // taps.size, job % taps.size
    part = layout.outer * whole * layout.pitch
    at = (o * whole + t) * layout.pitch
    total = sums[at : at + layout.pitch]
    for i in range(1, parts):
        more = sums[i * part + at : i * part + at + layout.pitch]
        for j in range(layout.pitch):
            total[j] += more[j]
    for c in range(layout.channels):
        number = total[c]
        for j in range(c + layout.channels, layout.pitch, layout.channels):  # the same channel of a next image
            number += total[j]
        gw[(c * layout.outer + o) * taps.size + taps[t]] = number


def _tile(taps: int) -> Pair:
    """The (pixels, taps) that take the fewest cycles: two products or loads each, and four from a sum to the next."""

    def cost(tile: Pair) -> float:
        pixels, columns = tile
        return -(-taps // columns) * (max(pixels * (columns + 1) / 2, 4) + 1) / pixels

    return min(TILES, key=cost)


def _room(work: Work, parts: int) -> tuple[Pair, np.ndarray, int, int]:
    """The tile, shifts in whole tiles, elements of all sums, and of each thread's scratch."""
    tile, layout = _tile(len(work.taps)), work.layout
    shifts = np.pad(work.shifts, (0, -len(work.shifts) % tile[1]), mode="edge")
    sums = parts * layout.outer * len(shifts) * layout.pitch
    gradients = (-(-layout.chunk * layout.result[1] // work.lanes) * work.lanes + tile[0]) * work.lanes
    return tile, shifts, sums, layout.image + gradients


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, 0, r, s] = sum over n, p, q of gy[n, k] times its channel of x[n] shifted."""
    work = _work(spec, x.itemsize)
    parts = _parts(work, spec)
    tile, shifts, elements, own = _room(work, parts)
    layout, room = work.layout, workspace.view(out.dtype)
    sums, scratch = room[:elements], thread_rows(room[elements:], own)
    _KERNELS[tile](
        parts, x.reshape(-1), gy.reshape(-1), layout, parts, work.strip, work.phases, work.kept, work.places,
        work.bases, shifts, scratch, sums, limit=scratch.shape[0],
    )  # fmt: skip
    _fold(layout.outer * len(work.taps), sums, layout, parts, work.taps, len(shifts), out.reshape(-1))


def refuses(problem: Problem) -> str:
    """Takes what channels as lanes need, where a strip fits the cache."""
    return refusal(problem, _work)


def workspace_bytes(problem: Problem) -> int:
    """The sums of all parts, and a strip with its gradients for each thread."""
    itemsize = problem.itemsize
    work = _work(problem.spec, itemsize)
    _, _, sums, own = _room(work, _parts(work, problem.spec))
    return -(-(sums + num_threads() * own) * itemsize // 8) * 8
