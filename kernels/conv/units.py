"""The work of each convolution row, counted in units of its own.

First come the row's jobs; then cycles of its tiles' products at best, rows and vectors that it copies, squares that it
transposes, and so on: what costs.py has a time for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import simd
from ..spec import ConvSpec
from . import (
    cpu_channels,
    cpu_channels_weight,
    cpu_depthwise,
    cpu_depthwise_lanes,
    cpu_depthwise_lanes_weight,
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


def up(value: int, unit: int) -> int:
    return -(-value // unit)


def _cycles(rows: int, columns: int) -> float:
    """Of a step of a tile: two products or two loads each, and four cycles from a sum to the next."""
    return max(rows * columns / 2, (rows + columns) / 2, 4)


def _copies(strip: Strip, planes: int, strips: int, lanes: int) -> tuple[int, int]:
    """Rows and vectors of strips."""
    rows = planes * strip.planes * strip.rows * strips
    return rows, rows * up(strip.pitch, lanes)


def _squares(layout: cpu_images.Layout | cpu_images_weight.Layout, channels: int, lanes: int) -> int:
    """Squares that one group's pixels are transposed in, for all strips."""
    rows = min(layout.height * layout.strips, layout.source[0] + (layout.height - 1) * (layout.strips - 1))
    flat = layout.first[1] == 0 and layout.pitch == layout.source[1]
    return channels * (up(rows * layout.pitch, lanes) if flat else rows * up(layout.source[1], lanes))


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
        steps += met * np.ptp(across[: up(c[RESULTS_W], columns)], axis=1).sum()
        loops += met * up(c[RESULTS_W], columns)
        tiles += c[RESULTS_H] * up(c[RESULTS_W], columns)
    times = up(a.n, work.lanes) * a.groups
    blocks = up(a.outer, rows)
    squares = _squares(a, a.inner, work.lanes)
    results = a.outer * a.strips * up(a.results, work.lanes)
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
        across = up(c[RESULTS_W], tile.width)
        steps += np.ptp(met[: c[RESULTS_H]], axis=1).sum() * across
        tiles += c[RESULTS_H] * across
    times = up(a.n, tile.groups) * work.blocks
    rows = tile.groups * tile.width
    strips = up(a.results, work.strip.results)
    planes = up(a.n, tile.groups) * tile.groups * a.groups * a.inner
    copies = (0, 0) if a.in_place else _copies(work.strip, planes, strips, lanes)
    stores = times * tiles * max(tile.groups, up(rows, lanes)) * tile.columns  # of a vector for every result channel
    return (
        work.jobs, times * steps * a.inner * _cycles(rows, tile.columns), times * steps * a.inner, times * tiles * a.inner,
        *(stores * (min(a.step[1], 3) == step) for step in (1, 2, 3)), *copies,
        work.weights / lanes * (COLD_WEIGHTS if work.weights * itemsize > COLD else 1),
    )  # fmt: skip


def _tiled(spec: ConvSpec, itemsize: int, forward: bool) -> Units:
    work = (cpu_tiled.forward_work if forward else cpu_tiled.gradient_work)(spec, itemsize)
    a, (rows, columns) = work.layout, work.tile
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    strips = up(a.results, work.strip.results)
    tiles = up(a.outer, rows) * a.runs * (a.length // (columns * lanes))
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
    times = up(a.n, tile.groups) * a.groups * a.blocks
    added = int((work.targets >= 0).sum()) * tile.groups * tile.columns
    pixels = tile.groups * tile.columns * up(a.size, work.lanes)
    steps = times * tiles * a.inner
    return (
        work.jobs, steps * _cycles(tile.groups * tile.width, tile.columns), steps, times * added, times * pixels,
        times * tiles, work.packed / work.lanes,
    )  # fmt: skip


def _images_weight(spec: ConvSpec, itemsize: int) -> Units:
    work = cpu_images_weight.weight_work(spec, itemsize)
    a, (rows, columns) = work.layout, work.tile
    times = up(a.n, work.lanes) * a.groups
    turns = up(a.kernel[1], columns)
    met = sum(
        sum(0 <= p * a.stride[0] + a.first[0] + r * a.dilation[0] < a.source[0] for p in range(a.out[0]))
        for r in range(a.kernel[0])
    )
    tiles = up(a.kg, rows) * a.cg * turns
    steps = tiles * met * a.out[1]
    squares = work.blocks * _squares(a, a.cg, work.lanes) + a.kg * a.strips * up(a.rows * a.out[1], work.lanes)
    sums = tiles * a.kernel[0] * rows * columns
    return (
        work.jobs, times * steps * max(_cycles(rows, columns), FAR_VECTOR * rows), times * squares,
        times * a.strips * sums, a.parts * a.groups * sums, _cold(spec, itemsize),
    )  # fmt: skip


def _channels_weight(spec: ConvSpec, itemsize: int) -> Units:
    work = cpu_channels_weight._work(spec, itemsize)
    a, tile, lanes = work.layout, work.tile, work.lanes
    c_blocks, k_blocks = up(a.cg, a.c_block), up(a.kg, a.k_block)
    turns = up(a.kg, tile.columns * lanes)
    pairs = c_blocks * a.pairs // tile.rows
    pixels = a.out[0] * a.out[1]
    steps = a.groups * turns * pairs * a.n * pixels
    strips = up(a.n, a.images) * a.strips
    copies = (0, 0) if a.in_place else _copies(work.strip, a.n * a.groups * a.cg * k_blocks, a.strips, lanes)
    squares = a.groups * a.n * c_blocks * turns * tile.columns * a.strips * up(min(a.rows, a.out[0]) * a.out[1], lanes)
    sums = a.groups * turns * pairs * tile.rows * tile.columns
    lines = a.groups * turns * a.cg * a.n * spec.kernel[0] * a.out[0] * up(spec.size[1], lanes)  # of the source
    return (
        work.jobs, steps * _cycles(tile.rows, tile.columns), steps, strips * sums, *copies, squares, a.parts * sums, lines,
    )  # fmt: skip


def _tiled_weight(spec: ConvSpec, itemsize: int) -> Units:
    work = cpu_tiled_weight.weight_work(spec, itemsize)
    a, (rows, columns) = work.layout, work.tile
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    c_blocks, k_blocks = up(a.cg, a.c_block), up(a.kg, a.k_block)
    tiles = a.groups * c_blocks * k_blocks * up(a.c_block * a.taps, columns) * up(a.k_block, rows)
    steps = tiles * a.n * a.strips * up(a.length, lanes)
    rows_x, vectors_x = _copies(work.strip, a.n * a.groups * a.cg * k_blocks, a.strips, lanes)
    rows_g = a.n * a.groups * a.kg * c_blocks * a.out[0]
    sums = tiles * up(a.n, a.images) * a.strips * rows * columns
    return (
        work.jobs, steps * _cycles(rows, columns), steps, sums, rows_x + rows_g,
        vectors_x + rows_g * up(work.strip.pitch, lanes),
    )  # fmt: skip


def _winograd(spec: ConvSpec, itemsize: int, gradient: bool) -> Units:
    work = cpu_winograd._work(spec, gradient, itemsize)
    a, blocks = work.layout, work.blocks
    lanes, rows, columns = simd.VECTOR_BITS // (8 * itemsize), cpu_winograd.ROWS, cpu_winograd.COLUMNS
    groups = up(blocks.lines, blocks.rows)
    full, rest = divmod(a.used // lanes, columns)
    steps = cpu_winograd.POINTS * a.inner * up(a.outer, rows) * groups
    products = full * _cycles(rows, columns) + (_cycles(rows, rest) if rest else 0)
    transformed = groups * blocks.segments / blocks.parts  # vectors of blocks
    kernels = a.outer * up(a.inner, lanes) * (groups if work.wide else 1)
    return EVEN, steps * products, transformed * a.inner, transformed * a.outer, kernels


def _winograd_weight(spec: ConvSpec, itemsize: int) -> Units:
    work = cpu_winograd_weight._work(spec, itemsize)
    a, blocks = work.layout, work.blocks
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    rows, columns = cpu_winograd_weight.TILES[lanes]
    groups, turns = up(blocks.lines, blocks.rows), up(spec.k, a.k_group)
    tiles = up(spec.c, columns) * up(spec.k, rows)
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
    panels, blocks = up(work.pixels, columns * lanes), up(work.outer, rows)
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
    chunks = up(work.all_pieces, work.chunk)
    turned = up(work.columns, lanes) * work.row_blocks * work.all_pieces * up(work.width, lanes)
    pieces = work.all_pieces * (work.row_tiles * work.column_tiles + work.columns)
    return (
        EVEN, steps * _cycles(rows, columns), pieces, chunks * work.row_tiles * work.column_tiles * rows * columns, turned,
        work.parts * plan.part / lanes, 0 if work.grid.dense else spec.c * pixels,
    )  # fmt: skip


def _depthwise(spec: ConvSpec, itemsize: int, direction: str) -> Units:
    vectors = cpu_depthwise.vectors_of(spec, itemsize, direction)
    layout, lanes, taps = (
        cpu_depthwise._layout(spec),
        simd.VECTOR_BITS // (8 * itemsize),
        spec.kernel[0] * spec.kernel[1],
    )
    blocks = spec.n * spec.k * up(spec.size[1] if direction == "input_grad" else spec.out[1], vectors * lanes)
    # With a stride a tile of the input gradient spans as many times the results' columns.
    columns = vectors // spec.stride[1] if direction == "input_grad" else vectors
    products = blocks * spec.out[0] * taps * columns
    if direction == "weight_grad":
        jobs = layout.parts * up(spec.k, layout.filters)
    else:
        jobs = up(spec.n * (spec.c if direction == "input_grad" else spec.k), layout.planes)
    rows = blocks * (spec.out[0] * spec.stride[0] + spec.kernel[0])
    # Weights that do not stay in registers beside the results are read for every product.
    few = taps + up(spec.kernel[0], spec.stride[0]) * vectors > 3 * simd.REGISTERS // 4
    return jobs, products * (not few), products * few, rows, _cold(spec, itemsize)


def _lanes(spec: ConvSpec, itemsize: int, direction: str) -> Units:
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    blocks, filters = up(spec.n * spec.c, lanes), spec.k // spec.c
    source, result = spec.size[0] * spec.size[1], spec.out[0] * spec.out[1]
    if direction == "weight_grad":
        work = cpu_depthwise_lanes_weight._work(spec, itemsize)
        jobs = cpu_depthwise_lanes_weight._parts(work, spec)
    else:
        make = cpu_depthwise_lanes._forward_work if direction == "forward" else cpu_depthwise_lanes._gradient_work
        work = make(spec, itemsize)
        jobs = work.blocks * work.strips
    products = blocks * filters * _met(spec, 0) * _met(spec, 1)
    rows = blocks * (spec.size[0] + filters * spec.out[0])
    many = blocks * (filters - 1) * result  # beside the first filter of a channel
    return jobs, products, blocks * source, blocks * result, many, rows, _cold(spec, itemsize)


def _met(spec: ConvSpec, axis: int) -> int:
    """Taps that meet pixels along an axis, over all results."""
    first = np.arange(spec.out[axis]) * spec.stride[axis] - spec.padding[axis][0]
    at = first[:, None] + np.arange(spec.kernel[axis]) * spec.dilation[axis]
    return int(np.count_nonzero((at >= 0) & (at < spec.size[axis])))


def _patches(spec: ConvSpec, itemsize: int, direction: str) -> Units:
    work = cpu_patches.patch_work(spec, itemsize)
    a, lanes = work.layout, work.lanes
    results, (taps_down, taps_across) = spec.k * work.pixels, a.kernel
    rows = spec.c * work.pixels * taps_down * (up(taps_across, lanes) if a.dilation[1] == 1 else taps_across)
    weights = (
        len(work.chunks) * spec.k * a.length / lanes * (COLD_WEIGHTS if spec.k * a.length * itemsize > COLD else 1)
    )
    if direction == "forward":
        height, width = work.tile
        jobs = a.groups * up(a.filters, work.filters)
        tiles = a.groups * up(a.filters, height) * sum(up(min(a.room, work.pixels - i), width) for i in work.chunks)
        steps = tiles * up(a.length, lanes)
        return jobs, steps * _cycles(height, width), tiles * up(a.length, cpu_patches.STRIP), rows, results, weights
    height, width = cpu_patches.ROWS, cpu_patches.COLUMNS
    across = a.groups * up(a.length, width * lanes)
    if direction == "input_grad":
        tiles, terms, jobs = across * up(work.pixels, height), a.filters, across * up(a.room, cpu_patches.ROOM)
        rows = spec.c * spec.n * _met(spec, 0) * _met(spec, 1)
    else:
        tiles, terms, jobs = across * up(a.filters, height), work.pixels, across
    return jobs, tiles * terms * _cycles(height, width), tiles * up(terms, cpu_patches.TERMS), rows, results, weights


UNITS: dict[tuple[str, str], Callable[[ConvSpec, int], Units]] = {
    ("images", "forward"): lambda spec, itemsize: _images(spec, itemsize, True),
    ("images", "input_grad"): lambda spec, itemsize: _images(spec, itemsize, False),
    ("images", "weight_grad"): _images_weight,
    ("spread", "input_grad"): lambda spec, itemsize: _spread(spec, itemsize),
    ("channels", "forward"): lambda spec, itemsize: _channels(spec, itemsize, True),
    ("channels", "input_grad"): lambda spec, itemsize: _channels(spec, itemsize, False),
    ("channels", "weight_grad"): _channels_weight,
    ("depthwise", "forward"): lambda spec, itemsize: _depthwise(spec, itemsize, "forward"),
    ("lanes", "forward"): lambda spec, itemsize: _lanes(spec, itemsize, "forward"),
    ("patches", "forward"): lambda spec, itemsize: _patches(spec, itemsize, "forward"),
    ("depthwise", "input_grad"): lambda spec, itemsize: _depthwise(spec, itemsize, "input_grad"),
    ("lanes", "input_grad"): lambda spec, itemsize: _lanes(spec, itemsize, "input_grad"),
    ("patches", "input_grad"): lambda spec, itemsize: _patches(spec, itemsize, "input_grad"),
    ("depthwise", "weight_grad"): lambda spec, itemsize: _depthwise(spec, itemsize, "weight_grad"),
    ("lanes", "weight_grad"): lambda spec, itemsize: _lanes(spec, itemsize, "weight_grad"),
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
