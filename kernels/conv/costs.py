"""What the convolution rows are expected to cost, so that the cheapest one runs.

Each row's work is counted in units of its own: cycles of its tiles' products at best, rows and vectors that it copies,
squares that it transposes, and so on. CYCLES says what a unit takes, fitted to the measured times of generated layers on one
core (Zen 5; half of the estimates are within a tenth, nine tenths within a third).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .. import simd
from ..spec import ConvSpec
from ..variant import Problem, cpu_only, too_large
from . import (
    cpu_channels,
    cpu_channels_weight,
    cpu_images,
    cpu_images_weight,
    cpu_patches,
    cpu_pointwise,
    cpu_spread,
    cpu_tiled,
    cpu_tiled_weight,
    cpu_winograd,
    cpu_winograd_weight,
)
from .lattice import RESULTS_H, RESULTS_W, TAPS, Strip

Units = tuple[float, ...]  # of a row: its jobs, then how often it does what CYCLES has a time for

COLD = 8 * 1024 * 1024  # bytes
FAR_VECTOR = 2  # cycles from one vector to the next out of the second-level cache
COLD_WEIGHTS = 4  # times what packing takes where weights are in no cache
EVEN = 2  # threads that jobs are taken to be shared among; not their real number, on which no choice may depend


def _up(value: int, unit: int) -> int:
    return -(-value // unit)


def _waits(jobs: float) -> float:
    """How much longer jobs take than if they shared out evenly."""
    return EVEN * _up(int(jobs), EVEN) / max(jobs, 1)


def _cycles(rows: int, columns: int) -> float:
    """Of a step of a tile: two products or two loads each, and four cycles from a sum to the next."""
    return max(rows * columns / 2, (rows + columns) / 2, 4)


def _copies(strip: Strip, planes: int, strips: int, lanes: int) -> tuple[int, int]:
    """Rows and vectors of strips."""
    rows = planes * strip.planes * strip.rows * strips
    return rows, rows * _up(strip.pitch, lanes)


def _squares(layout: cpu_images.Layout | cpu_images_weight.Layout, channels: int, lanes: int) -> int:
    """Squares that one group's pixels are transposed in, for all strips."""
    rows = min(layout.height * layout.strips, layout.source[0] + (layout.height - 1) * (layout.strips - 1))
    flat = layout.first[1] == 0 and layout.pitch == layout.source[1]
    return channels * (_up(rows * layout.pitch, lanes) if flat else rows * _up(layout.source[1], lanes))


def _cold(spec: ConvSpec, itemsize: int) -> float:
    """Lines of images and results that no cache holds: sixteen at a time, far apart, they come slowly."""
    elements = spec.n * (spec.c * spec.size[0] * spec.size[1] + spec.k * spec.out[0] * spec.out[1])
    return elements * itemsize / 64 if elements * itemsize > COLD else 0


def _images(spec: ConvSpec, itemsize: int, forward: bool) -> Units:
    work = (cpu_images.forward_work if forward else cpu_images.gradient_work)(spec, itemsize)
    a, (rows, columns) = work.layout, work.tile
    steps = tiles = loops = 0
    for c, down, across in zip(work.classes, work.down_ranges, work.across_ranges, strict=True):
        met = np.ptp(down[: c[RESULTS_H]], axis=1).sum() // c[cpu_images.ACROSS]
        steps += met * np.ptp(across[: _up(c[RESULTS_W], columns)], axis=1).sum()
        loops += met * _up(c[RESULTS_W], columns)
        tiles += c[RESULTS_H] * _up(c[RESULTS_W], columns)
    times = _up(a.n, work.lanes) * a.groups
    blocks = _up(a.outer, rows)
    squares = _squares(a, a.inner, work.lanes)
    results = a.outer * a.strips * _up(a.results, work.lanes)
    products = steps * a.inner * blocks
    return (
        work.jobs, times * products * _cycles(rows, columns), times * products, times * loops * a.inner * blocks,
        times * squares, times * results, times * tiles * blocks * rows * columns, _cold(spec, itemsize),
    )  # fmt: skip


def _channels(spec: ConvSpec, itemsize: int, forward: bool) -> Units:
    work = (cpu_channels._forward_work if forward else cpu_channels._gradient_work)(spec, itemsize)
    a, tile, lanes = work.layout, work.tile, work.lanes
    steps = tiles = 0
    for c, met in zip(work.classes, work.ranges, strict=True):
        across = _up(c[RESULTS_W], tile.width)
        steps += np.ptp(met[: c[RESULTS_H]], axis=1).sum() * across
        tiles += c[RESULTS_H] * across
    times = _up(a.n, tile.groups) * work.blocks
    rows = tile.groups * tile.width
    strips = _up(a.results, work.strip.results)
    planes = _up(a.n, tile.groups) * tile.groups * a.groups * a.inner
    copies = (0, 0) if a.in_place else _copies(work.strip, planes, strips, lanes)
    stores = times * tiles * max(tile.groups, _up(rows, lanes)) * tile.columns  # of a vector for every result channel
    return (
        work.jobs, times * steps * a.inner * _cycles(rows, tile.columns), times * steps * a.inner, times * tiles * a.inner,
        *(stores * (min(a.step[1], 3) == step) for step in (1, 2, 3)), *copies,
        work.weights / lanes * (COLD_WEIGHTS if work.weights * itemsize > COLD else 1),
    )  # fmt: skip


def _tiled(spec: ConvSpec, itemsize: int, forward: bool) -> Units:
    work = (cpu_tiled.forward_work if forward else cpu_tiled.gradient_work)(spec, itemsize)
    a, (rows, columns) = work.layout, work.tile
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    strips = _up(a.results, work.strip.results)
    tiles = _up(a.outer, rows) * a.runs * (a.length // (columns * lanes))
    steps = tiles * a.inner * sum(int(c[TAPS]) for c in work.classes)
    times = a.n * a.groups * strips
    copies = _copies(work.strip, a.n * a.groups * a.inner, strips, lanes)
    written = 0 if a.plain else a.n * a.groups * a.outer * a.result[0] * len(work.classes)
    spread = written if a.step[1] > 1 else 0
    return (
        work.jobs, times * steps * _cycles(rows, columns), times * steps, times * tiles * len(work.classes) * rows * columns,
        *copies, written, spread * a.result[1], work.gathered,
    )  # fmt: skip


def _spread(spec: ConvSpec, itemsize: int) -> Units:
    work = cpu_spread.gradient_work(spec, itemsize)
    a, tile = work.layout, work.tile
    tiles = 0
    for q in range(0, a.pixels, tile.width):
        tiles += int(np.any(work.targets[:, q : q + tile.width] >= 0, axis=1).sum())
    times = _up(a.n, tile.groups) * a.groups * a.blocks
    added = int((work.targets >= 0).sum()) * tile.groups * tile.columns
    pixels = tile.groups * tile.columns * _up(a.size, work.lanes)
    steps = times * tiles * a.inner
    return (
        work.jobs, steps * _cycles(tile.groups * tile.width, tile.columns), steps, times * added, times * pixels,
        times * tiles, work.packed / work.lanes,
    )  # fmt: skip


def _images_weight(spec: ConvSpec, itemsize: int) -> Units:
    work = cpu_images_weight.weight_work(spec, itemsize)
    a, (rows, columns) = work.layout, work.tile
    times = _up(a.n, work.lanes) * a.groups
    turns = _up(a.kernel[1], columns)
    met = sum(
        sum(0 <= p * a.stride[0] + a.first[0] + r * a.dilation[0] < a.source[0] for p in range(a.out[0]))
        for r in range(a.kernel[0])
    )
    tiles = _up(a.kg, rows) * a.cg * turns
    steps = tiles * met * a.out[1]
    squares = work.blocks * _squares(a, a.cg, work.lanes) + a.kg * a.strips * _up(a.rows * a.out[1], work.lanes)
    sums = tiles * a.kernel[0] * rows * columns
    return (
        work.jobs, times * steps * max(_cycles(rows, columns), FAR_VECTOR * rows), times * squares,
        times * a.strips * sums, a.parts * a.groups * sums, _cold(spec, itemsize),
    )  # fmt: skip


def _channels_weight(spec: ConvSpec, itemsize: int) -> Units:
    work = cpu_channels_weight._work(spec, itemsize)
    a, tile, lanes = work.layout, work.tile, work.lanes
    c_blocks, k_blocks = _up(a.cg, a.c_block), _up(a.kg, a.k_block)
    turns = _up(a.kg, tile.columns * lanes)
    pairs = c_blocks * a.pairs // tile.rows
    pixels = a.out[0] * a.out[1]
    steps = a.groups * turns * pairs * a.n * pixels
    strips = _up(a.n, a.images) * a.strips
    copies = (0, 0) if a.in_place else _copies(work.strip, a.n * a.groups * a.cg * k_blocks, a.strips, lanes)
    squares = a.groups * a.n * c_blocks * turns * tile.columns * a.strips * _up(min(a.rows, a.out[0]) * a.out[1], lanes)
    sums = a.groups * turns * pairs * tile.rows * tile.columns
    lines = a.groups * turns * a.cg * a.n * spec.kernel[0] * a.out[0] * _up(spec.size[1], lanes)  # of the source
    return (
        work.jobs, steps * _cycles(tile.rows, tile.columns), steps, strips * sums, *copies, squares, a.parts * sums, lines,
    )  # fmt: skip


def _tiled_weight(spec: ConvSpec, itemsize: int) -> Units:
    work = cpu_tiled_weight.weight_work(spec, itemsize)
    a, (rows, columns) = work.layout, work.tile
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    c_blocks, k_blocks = _up(a.cg, a.c_block), _up(a.kg, a.k_block)
    tiles = a.groups * c_blocks * k_blocks * _up(a.c_block * a.taps, columns) * _up(a.k_block, rows)
    steps = tiles * a.n * a.strips * _up(a.length, lanes)
    rows_x, vectors_x = _copies(work.strip, a.n * a.groups * a.cg * k_blocks, a.strips, lanes)
    rows_g = a.n * a.groups * a.kg * c_blocks * a.out[0]
    sums = tiles * _up(a.n, a.images) * a.strips * rows * columns
    return (
        work.jobs, steps * _cycles(rows, columns), steps, sums, rows_x + rows_g,
        vectors_x + rows_g * _up(work.strip.pitch, lanes),
    )  # fmt: skip


def _winograd(spec: ConvSpec, itemsize: int, gradient: bool) -> Units:
    work = cpu_winograd._work(spec, gradient, itemsize)
    a, blocks = work.layout, work.blocks
    lanes, rows, columns = simd.VECTOR_BITS // (8 * itemsize), cpu_winograd.ROWS, cpu_winograd.COLUMNS
    groups = _up(blocks.lines, blocks.rows)
    full, rest = divmod(a.used // lanes, columns)
    steps = cpu_winograd.POINTS * a.inner * _up(a.outer, rows) * groups
    products = full * _cycles(rows, columns) + (_cycles(rows, rest) if rest else 0)
    transformed = groups * blocks.segments / blocks.parts  # vectors of blocks
    kernels = a.outer * _up(a.inner, lanes) * (groups if work.wide else 1)
    return EVEN, steps * products, transformed * a.inner, transformed * a.outer, kernels


def _winograd_weight(spec: ConvSpec, itemsize: int) -> Units:
    work = cpu_winograd_weight._work(spec, itemsize)
    a, blocks = work.layout, work.blocks
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    rows, columns = cpu_winograd_weight.TILES[lanes]
    groups, turns = _up(blocks.lines, blocks.rows), _up(spec.k, a.k_group)
    tiles = _up(spec.c, columns) * _up(spec.k, rows)
    steps = cpu_winograd_weight.POINTS * tiles * groups * blocks.used / lanes
    transformed = groups * blocks.segments / blocks.parts
    return (
        EVEN, steps * _cycles(rows, columns), groups * cpu_winograd_weight.POINTS * tiles, transformed * spec.c * turns,
        transformed * spec.k, spec.c * spec.k,
    )  # fmt: skip


def _pointwise(spec: ConvSpec, itemsize: int, direction: str) -> Units:
    plan = cpu_pointwise._layout(direction, spec, itemsize)
    work, (rows, columns) = plan.work, plan.tile
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    panels, blocks = _up(work.pixels, columns * lanes), _up(work.outer, rows)
    collected = 0 if work.source.dense else work.inner * work.pixels
    lines = 0 if work.source.dense and work.target.dense else spec.n * spec.out[0] * (work.inner + work.outer)
    scattered = 0 if work.target.dense else work.outer * spec.n * work.target.size
    return (
        EVEN, panels * blocks * work.inner * _cycles(rows, columns), panels * blocks * rows * columns, collected, scattered,
        lines, plan.packed / lanes,
    )  # fmt: skip


def _pointwise_weight(spec: ConvSpec, itemsize: int) -> Units:
    plan = cpu_pointwise._weight_layout(spec, itemsize)
    work, (rows, columns) = plan.work, plan.tile
    lanes, pixels = simd.VECTOR_BITS // (8 * itemsize), spec.n * work.grid.pixels
    steps = work.row_tiles * work.column_tiles * pixels
    chunks = _up(work.all_pieces, work.chunk)
    turned = _up(work.columns, lanes) * work.row_blocks * work.all_pieces * _up(work.width, lanes)
    pieces = work.all_pieces * (work.row_tiles * work.column_tiles + work.columns)
    return (
        EVEN, steps * _cycles(rows, columns), pieces, chunks * work.row_tiles * work.column_tiles * rows * columns, turned,
        work.parts * plan.part / lanes, 0 if work.grid.dense else spec.c * pixels,
    )  # fmt: skip


def _met(spec: ConvSpec, axis: int) -> int:
    """Taps that meet pixels along an axis, over all results."""
    first = np.arange(spec.out[axis]) * spec.stride[axis] - spec.padding[axis][0]
    at = first[:, None] + np.arange(spec.kernel[axis]) * spec.dilation[axis]
    return int(np.count_nonzero((at >= 0) & (at < spec.size[axis])))


def _patches(spec: ConvSpec, itemsize: int, direction: str) -> Units:
    work = cpu_patches.patch_work(spec, itemsize)
    a, lanes = work.layout, work.lanes
    results, (taps_down, taps_across) = spec.k * work.pixels, a.kernel
    rows = spec.c * work.pixels * taps_down * (_up(taps_across, lanes) if a.dilation[1] == 1 else taps_across)
    weights = (
        len(work.chunks) * spec.k * a.length / lanes * (COLD_WEIGHTS if spec.k * a.length * itemsize > COLD else 1)
    )
    if direction == "forward":
        height, width = work.tile
        jobs = a.groups * _up(a.filters, work.filters)
        tiles = a.groups * _up(a.filters, height) * sum(_up(min(a.room, work.pixels - i), width) for i in work.chunks)
        steps = tiles * _up(a.length, lanes)
        return jobs, steps * _cycles(height, width), tiles * _up(a.length, cpu_patches.STRIP), rows, results, weights
    height, width = cpu_patches.ROWS, cpu_patches.COLUMNS
    across = a.groups * _up(a.length, width * lanes)
    if direction == "input_grad":
        tiles, terms, jobs = across * _up(work.pixels, height), a.filters, across * _up(a.room, cpu_patches.ROOM)
        rows = spec.c * spec.n * _met(spec, 0) * _met(spec, 1)
    else:
        tiles, terms, jobs = across * _up(a.filters, height), work.pixels, across
    return jobs, tiles * terms * _cycles(height, width), tiles * _up(terms, cpu_patches.TERMS), rows, results, weights


_UNITS: dict[tuple[str, str], Callable[[ConvSpec, int], Units]] = {
    ("images", "forward"): lambda spec, itemsize: _images(spec, itemsize, True),
    ("images", "input_grad"): lambda spec, itemsize: _images(spec, itemsize, False),
    ("images", "weight_grad"): _images_weight,
    ("spread", "input_grad"): lambda spec, itemsize: _spread(spec, itemsize),
    ("channels", "forward"): lambda spec, itemsize: _channels(spec, itemsize, True),
    ("channels", "input_grad"): lambda spec, itemsize: _channels(spec, itemsize, False),
    ("channels", "weight_grad"): _channels_weight,
    ("patches", "forward"): lambda spec, itemsize: _patches(spec, itemsize, "forward"),
    ("patches", "input_grad"): lambda spec, itemsize: _patches(spec, itemsize, "input_grad"),
    ("patches", "weight_grad"): lambda spec, itemsize: _patches(spec, itemsize, "weight_grad"),
    ("tiled", "forward"): lambda spec, itemsize: _tiled(spec, itemsize, True),
    ("tiled", "input_grad"): lambda spec, itemsize: _tiled(spec, itemsize, False),
    ("tiled", "weight_grad"): _tiled_weight,
    ("winograd", "forward"): lambda spec, itemsize: _winograd(spec, itemsize, False),
    ("winograd", "input_grad"): lambda spec, itemsize: _winograd(spec, itemsize, True),
    ("winograd", "weight_grad"): _winograd_weight,
    ("pointwise", "forward"): lambda spec, itemsize: _pointwise(spec, itemsize, "forward"),
    ("pointwise", "input_grad"): lambda spec, itemsize: _pointwise(spec, itemsize, "input_grad"),
    ("pointwise", "weight_grad"): _pointwise_weight,
}

# Of the units above, in their order, and at last of a call.
CYCLES: dict[tuple[str, str], Units] = {
    ("pointwise", "forward"): (1.29, 2.28, 0.459, 0, 7.13, 6.67, 58700),
    ("pointwise", "input_grad"): (1.3, 4.66, 0, 1.81, 6.88, 17.4, 46300),
    ("pointwise", "weight_grad"): (1.1, 3.94, 26.4, 97.6, 5.55, 2.43, 29900),
    ("winograd", "forward"): (1.62, 781, 0, 663, 0),
    ("winograd", "input_grad"): (1.44, 0, 1140, 588, 0),
    ("winograd", "weight_grad"): (1.89, 0.355, 459, 274, 0, 0),
    ("images", "forward"): (1.08, 0, 5.85, 95.9, 0, 9.06, 8.6, 31000),
    ("images", "input_grad"): (0.881, 3.08, 6.22, 90.7, 62.1, 3.12, 7.82, 16400),
    ("images", "weight_grad"): (1.24, 94.9, 7.22, 1.33, 2.99, 36200),
    ("spread", "input_grad"): (0.915, 3.94, 5.83, 115, 27, 16.6, 37000),
    ("channels", "forward"): (1.22, 0, 8.39, 30, 0, 0, 7.06, 15.8, 17.2, 90000),
    ("channels", "input_grad"): (1.2, 0, 7.22, 9.96, 20.4, 33.5, 5.84, 19.6, 9.33, 83600),
    ("channels", "weight_grad"): (1.2, 0, 0, 7.57, 8.8, 76.2, 10.1, 4.05, 43300),
    ("patches", "forward"): (0.978, 234, 8.45, 0, 1.98, 63500),
    ("patches", "input_grad"): (0.851, 397, 4.13, 3.9, 0.523, 60500),
    ("patches", "weight_grad"): (0.971, 127, 8.65, 3.4, 0, 56700),
    ("tiled", "forward"): (1.14, 0.395, 3.53, 16.6, 19.1, 23.1, 0, 0, 32100),
    ("tiled", "input_grad"): (0.907, 3.47, 12.3, 22.7, 10.6, 4.67, 0.286, 5.25, 40000),
    ("tiled", "weight_grad"): (0.482, 8.76, 4.1, 22, 5.2, 28700),
}

ROWS = ("pointwise", "winograd", "images", "spread", "channels", "patches", "tiled")


@lru_cache(maxsize=4096)
def cycles(row: str, direction: str, spec: ConvSpec, itemsize: int) -> float:
    """Expected cycles of a row on one thread, with what a second one would wait where jobs do not share out evenly."""
    *units, call = CYCLES[row, direction]
    jobs, *counts = _UNITS[row, direction](spec, itemsize)
    return sum(count * unit for count, unit in zip(counts, units, strict=True)) * _waits(jobs) + call


# Elements that a row keeps in shared scratch, where their number grows with the weights.
_COPIED: dict[tuple[str, str], Callable[[ConvSpec, int], int]] = {
    ("pointwise", "forward"): lambda spec, itemsize: cpu_pointwise._layout("forward", spec, itemsize).packed,
    ("pointwise", "input_grad"): lambda spec, itemsize: cpu_pointwise._layout("input_grad", spec, itemsize).packed,
    ("pointwise", "weight_grad"): lambda spec, itemsize: cpu_pointwise._weight_layout(spec, itemsize).sums,
    ("winograd", "weight_grad"): lambda spec, itemsize: sum(cpu_winograd_weight._work(spec, itemsize).sizes),
    ("spread", "input_grad"): lambda spec, itemsize: cpu_spread.gradient_work(spec, itemsize).packed,
    ("channels", "forward"): lambda spec, itemsize: cpu_channels._forward_work(spec, itemsize).packed,
    ("channels", "input_grad"): lambda spec, itemsize: cpu_channels._gradient_work(spec, itemsize).packed,
    ("tiled", "input_grad"): lambda spec, itemsize: cpu_tiled.gradient_work(spec, itemsize).gathered,
}


def refuses(row: str, problem: Problem) -> str:
    """Why a row cannot take a problem; "" if it can."""
    if reason := _refuses(row, problem):
        return reason
    copied = _COPIED.get((row, problem.direction))
    return too_large(copied(problem.spec, problem.itemsize), problem.itemsize) if copied else ""


def _refuses(row: str, problem: Problem) -> str:
    gradient = problem.direction == "weight_grad"
    if row == "pointwise":
        return cpu_pointwise.refuses(problem)
    if row == "winograd" and problem.precision == "strict":
        return "trades accuracy"
    if row == "winograd":
        return (cpu_winograd_weight if gradient else cpu_winograd).refuses(problem)
    if row == "images":
        return (cpu_images_weight if gradient else cpu_images).refuses(problem)
    if row == "spread":
        return cpu_spread.refuses(problem) if problem.direction == "input_grad" else "gives input gradients only"
    return cpu_only(problem)


def slower(row: str, problem: Problem) -> str:
    """That another row is expected to be faster than this one, which can take the problem; "" if none is."""
    case = (problem.direction, problem.spec, problem.itemsize)
    ours = cycles(row, *case)
    # Where the pointwise row reads planes whole, only few pixels let another come near it.
    whole = row == "pointwise" and problem.spec.size == problem.spec.out
    rivals = ("patches",) if whole else ROWS
    others = {cycles(other, *case): other for other in rivals if other != row and not refuses(other, problem)}
    fastest = min(others, default=ours)
    return f"expected at {ours / fastest:.2f} times the {others[fastest]} row's time" if fastest < ours else ""
