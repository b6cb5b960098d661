"""What the general convolution rows are expected to cost, so that the cheapest one runs.

Each row's work is counted in units of its own: cycles of its tiles' products at best, rows and vectors that it copies,
squares that it transposes, and so on. CYCLES says what a unit takes, fitted to the measured times of generated layers on one
core (Zen 5; half of the estimates are within a tenth, nine tenths within a third).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ..spec import ConvSpec
from ..variant import Problem, cpu_only
from . import cpu_channels, cpu_channels_weight, cpu_images, cpu_images_weight, cpu_spread, cpu_tiled, cpu_tiled_weight
from .lattice import RESULTS_H, RESULTS_W, TAPS, Strip

Units = tuple[float, ...]

COLD = 8 * 1024 * 1024  # bytes


def _up(value: int, unit: int) -> int:
    return -(-value // unit)


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
        times * products * _cycles(rows, columns), times * products, times * loops * a.inner * blocks,
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
    return (
        times * steps * a.inner * _cycles(rows, tile.columns), times * steps * a.inner,
        *(times * tiles * rows * tile.columns * (min(a.step[1], 3) == step) for step in (1, 2, 3)), *copies,
        work.weights / lanes,
    )  # fmt: skip


def _tiled(spec: ConvSpec, itemsize: int, forward: bool) -> Units:
    work = (cpu_tiled.forward_work if forward else cpu_tiled.gradient_work)(spec, itemsize)
    a, (rows, columns) = work.layout, work.tile
    lanes = cpu_tiled.simd.VECTOR_BITS // (8 * itemsize)
    strips = _up(a.results, work.strip.results)
    tiles = _up(a.outer, rows) * a.runs * (a.length // (columns * lanes))
    steps = tiles * a.inner * sum(int(c[TAPS]) for c in work.classes)
    times = a.n * a.groups * strips
    copies = _copies(work.strip, a.n * a.groups * a.inner, strips, lanes)
    written = 0 if a.plain else a.n * a.groups * a.outer * a.result[0] * len(work.classes)
    spread = written if a.step[1] > 1 else 0
    return (
        times * steps * _cycles(rows, columns), times * steps, times * tiles * len(work.classes) * rows * columns,
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
        steps * _cycles(tile.groups * tile.width, tile.columns), steps, times * added, times * pixels,
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
        times * steps * _cycles(rows, columns), times * steps, times * squares, times * a.strips * sums,
        a.parts * a.groups * sums, _cold(spec, itemsize),
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
    return (steps * _cycles(tile.rows, tile.columns), steps, strips * sums, *copies, squares, a.parts * sums)


def _tiled_weight(spec: ConvSpec, itemsize: int) -> Units:
    work = cpu_tiled_weight.weight_work(spec, itemsize)
    a, (rows, columns) = work.layout, work.tile
    lanes = cpu_tiled.simd.VECTOR_BITS // (8 * itemsize)
    c_blocks, k_blocks = _up(a.cg, a.c_block), _up(a.kg, a.k_block)
    tiles = a.groups * c_blocks * k_blocks * _up(a.c_block * a.taps, columns) * _up(a.k_block, rows)
    steps = tiles * a.n * a.strips * _up(a.length, lanes)
    rows_x, vectors_x = _copies(work.strip, a.n * a.groups * a.cg * k_blocks, a.strips, lanes)
    rows_g = a.n * a.groups * a.kg * c_blocks * a.out[0]
    sums = tiles * _up(a.n, a.images) * a.strips * rows * columns
    return (
        steps * _cycles(rows, columns), steps, sums, rows_x + rows_g, vectors_x + rows_g * _up(work.strip.pitch, lanes),
    )  # fmt: skip


_UNITS: dict[tuple[str, str], Callable[[ConvSpec, int], Units]] = {
    ("images", "forward"): lambda spec, itemsize: _images(spec, itemsize, True),
    ("images", "input_grad"): lambda spec, itemsize: _images(spec, itemsize, False),
    ("images", "weight_grad"): _images_weight,
    ("spread", "input_grad"): lambda spec, itemsize: _spread(spec, itemsize),
    ("channels", "forward"): lambda spec, itemsize: _channels(spec, itemsize, True),
    ("channels", "input_grad"): lambda spec, itemsize: _channels(spec, itemsize, False),
    ("channels", "weight_grad"): _channels_weight,
    ("tiled", "forward"): lambda spec, itemsize: _tiled(spec, itemsize, True),
    ("tiled", "input_grad"): lambda spec, itemsize: _tiled(spec, itemsize, False),
    ("tiled", "weight_grad"): _tiled_weight,
}

# Of the units above, in their order, and at last of a call.
CYCLES: dict[tuple[str, str], Units] = {
    ("images", "forward"): (0.964, 0, 7.03, 102, 28.2, 7.26, 4.88, 29600),
    ("images", "input_grad"): (0.63, 5.75, 3.72, 95.4, 7.53, 6.72, 5.81, 27900),
    ("images", "weight_grad"): (1.14, 0, 119, 7.31, 2.01, 3.42, 62500),
    ("spread", "input_grad"): (0.825, 3.85, 5.35, 175, 19.3, 14.8, 31100),
    ("channels", "forward"): (1.02, 2.02, 4.36, 0, 0, 16.3, 8.67, 16.9, 82600),
    ("channels", "input_grad"): (1.17, 0.525, 2.44, 2.6, 10.7, 20.2, 9.05, 13.1, 101700),
    ("channels", "weight_grad"): (1.13, 0, 9.36, 18.9, 7.51, 130, 4.12, 42200),
    ("tiled", "forward"): (1.09, 0, 2.76, 15.9, 19.6, 22.6, 0, 0, 36500),
    ("tiled", "input_grad"): (1.09, 0, 6.59, 19, 13.8, 7.45, 0.311, 5.79, 55100),
    ("tiled", "weight_grad"): (0, 13.5, 4.01, 24.3, 2.21, 36300),
}

ROWS = ("images", "spread", "channels", "tiled")


@lru_cache(maxsize=4096)
def cycles(row: str, direction: str, spec: ConvSpec, itemsize: int) -> float:
    """Expected cycles of a row on one thread."""
    *units, call = CYCLES[row, direction]
    counts = _UNITS[row, direction](spec, itemsize)
    return sum(count * unit for count, unit in zip(counts, units, strict=True)) + call


def _cannot(row: str, problem: Problem) -> str:
    if row == "images":
        return (cpu_images_weight if problem.direction == "weight_grad" else cpu_images).refuses(problem)
    if row == "spread":
        return cpu_spread.refuses(problem) if problem.direction == "input_grad" else "gives input gradients only"
    return cpu_only(problem)


def refuses(row: str, problem: Problem) -> str:
    """Why a row cannot take a problem, or that another one is expected to be faster; "" if neither."""
    if reason := _cannot(row, problem):
        return reason
    case = (problem.direction, problem.spec, problem.itemsize)
    ours = cycles(row, *case)
    for other in ROWS:
        if other != row and not _cannot(other, problem) and (theirs := cycles(other, *case)) < ours:
            return f"expected at {ours / theirs:.2f} times the {other} row's time"
    return ""
