"""What products are expected to cost on a GPU: whether NCHW images are laid out for tensor cores, or read as they are.

The rows on tensor cores read images channels-last in the format that they multiply; NCHW images are copied so first. What
that takes, and the multiplication after it, is weighed against the rows that read NCHW float32: these win where a layer is
tiny, so that a launch more is all that counts, or has few channels, which tensor cores would be padded with zeros for.

An estimate is a sum over launches: what a launch takes at least, and the longer of two times: that of its bytes at the
speed of a copy, and that of its tiles, in whole rounds over the multiprocessors. The numbers are those of an H100 in round
figures, from its data sheet and from what public results reach there; none has been measured. Like the cut into tiles they
are the same on every device, so that a plan depends on the problem alone.

Source: Williams, Waterman and Patterson, "Roofline", 2009; NVIDIA, "H100 Tensor Core GPU", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from ..spec import ConvSpec, PointwiseSpec
from ..variant import Problem
from .tiles import (
    HALF_STEP,
    HALF_TILES,
    RESULTS,
    STEP,
    TF32_WEIGHT_TILES,
    TILES,
    WARPGROUP_TF32_TILES,
    WARPGROUP_TILES,
    Tile,
    WarpTile,
    choose_half_tile,
    choose_tile,
    half_parts,
    make_grid,
    product_of,
    product_parts,
)

LAUNCH = 2e-6  # seconds of a kernel that has nothing to do
BANDWIDTH = 2.5e12  # bytes a second of a copy, read and written ones counted
MULTIPROCESSORS = 132
RATES = {  # operations a second, a multiply-add counted as two, where tiles are whole
    "direct": 40e12,
    "blocked": 40e12,
    "tiled": 25e12,
    "tensor": 200e12,
    "float16": 400e12,
    "bfloat16": 400e12,
    "warpgroup_tf32": 280e12,
    "warpgroup_float16": 560e12,
    "warpgroup_bfloat16": 560e12,
}

Rivals = tuple[tuple[str, Callable[[Problem], str]], ...]  # names of rows that read NCHW, and why they refuse a problem


class Cost(NamedTuple):
    """Seconds that a row is expected to take."""

    laying_out: float
    multiplying: float

    @property
    def seconds(self) -> float:
        return self.laying_out + self.multiplying

    def __str__(self) -> str:
        copies = f"{self.laying_out * 1e6:.1f} us to lay out and " if self.laying_out else ""
        return f"{copies}{self.multiplying * 1e6:.1f} us to multiply"


def _launch(nbytes: float, busy: float = 0.0) -> float:
    return LAUNCH + max(nbytes / BANDWIDTH, busy)


class _Work(NamedTuple):
    """The product behind a direction as the tensor cores' rows cut it up: rows of the result, columns, terms, groups."""

    rows: int
    columns: int
    terms: int
    groups: int


def _busy(row: str, tile: Tile | WarpTile, work: _Work, parts: int, step: int) -> tuple[float, int]:
    """Seconds of the multiprocessors for a product in so many parts at most, and how many there are."""
    grid = make_grid(tile, *work, parts=parts, step=step)
    rounds = -(-grid.blocks // MULTIPROCESSORS)
    return rounds * 2 * tile.rows * tile.columns * grid.chunk * MULTIPROCESSORS / RATES[row], grid.parts


def _finish(results: int, parts: int) -> float:
    """Seconds in which sums in several parts are added up."""
    return 0.0 if parts == 1 else _launch(4 * (parts + 1) * results)


def _sizes(spec: ConvSpec | PointwiseSpec) -> tuple[int, int, int, int, int, int]:
    """Pixels of x and of y, taps, groups, channels and filters of a group."""
    if isinstance(spec, PointwiseSpec):
        return spec.n * spec.pixels, spec.n * spec.pixels, 1, 1, spec.c, spec.k
    pixels = spec.n * math.prod(spec.size), spec.n * math.prod(spec.out)
    return (*pixels, math.prod(spec.kernel), spec.groups, spec.c // spec.groups, spec.k // spec.groups)


def _arrays(direction: str, spec: ConvSpec | PointwiseSpec) -> tuple[float, int]:
    """Bytes of a direction's arrays in float32, each once, and elements of its result."""
    before, after, taps, groups, inner, outer = _sizes(spec)
    x, y, w = before * groups * inner, after * groups * outer, groups * inner * outer * taps
    results = {"weight_grad": w, "input_grad": x}.get(direction, y)
    return 4.0 * (x + y + w + y * (direction == "forward_residual")), results


def _plain_cost(row: str, problem: Problem) -> Cost:
    """Of a row that reads NCHW float32."""
    spec, direction = problem.spec, problem.direction
    nbytes, results = _arrays(direction, spec)
    product = product_of(direction, spec)
    if row == "tiled":  # threads of so many results, in registers
        outer = -(-product.rows // RESULTS) * RESULTS / product.rows
        return Cost(0.0, _launch(nbytes, 2 * spec.multiply_adds * outer / RATES[row]))
    tile = TILES[choose_tile(product.rows)]
    busy, parts = _busy(row, tile, _Work(*product), product_parts(direction, product), STEP)
    copies = (1 + 16 / tile.rows) / (1 + 16 / TILES[0].rows)  # as choose_tile() has it
    return Cost(0.0, _launch(nbytes, busy * copies) + _finish(results, parts))


def _tiles(row: str, direction: str) -> tuple[WarpTile, ...]:
    if row.startswith("warpgroup"):
        tiles = WARPGROUP_TF32_TILES if row.endswith("tf32") else WARPGROUP_TILES
        return tiles[:1] if direction == "weight_grad" and not row.endswith("tf32") else tiles
    return TF32_WEIGHT_TILES if row == "tensor" and direction == "weight_grad" else HALF_TILES


def _tensor_cost(row: str, problem: Problem) -> Cost:
    """Of a row on tensor cores that takes NCHW float32."""
    spec, direction = problem.spec, problem.direction
    before, after, taps, groups, inner, outer = _sizes(spec)
    size, whole = (
        (4, 4) if row.endswith(("tensor", "tf32")) else (2, 8)
    )  # bytes of an operand, channels padded to so many

    def turned(pixels: int, channels: int) -> float:
        return _launch(pixels * groups * (4 * channels + size * -(-channels // whole) * whole))

    step, filters = HALF_STEP * 2 // size, turned(taps * outer, inner)
    if direction == "weight_grad":
        gradient = (
            0.0 if size == 4 and after // spec.n % 4 == 0 else turned(after, outer)
        )  # planes of whole 16 bytes stay
        copies = turned(before, inner) + gradient
        work = _Work(taps * -(-inner // whole) * whole, outer, after, groups)
    elif direction == "input_grad":
        copies = filters + turned(after, outer)
        strides = 1 if isinstance(spec, PointwiseSpec) else math.prod(spec.stride)  # a pixel meets one tap in so many
        work = _Work(before, inner, max(1, taps * -(-outer // whole) * whole // strides), groups)
    else:
        copies = filters + turned(before, inner)
        work = _Work(after, outer, taps * -(-inner // whole) * whole, groups)
    tiles = _tiles(row, direction)
    tile = tiles[choose_half_tile(work.columns, tiles)]
    busy, parts = _busy(row, tile, work, half_parts(work.rows, work.columns, work.terms, groups), step)
    nbytes, results = _arrays(direction, spec)
    return Cost(copies, _launch(nbytes * size / 4, busy) + _finish(results, parts))


@lru_cache(maxsize=4096)
def cost(row: str, problem: Problem) -> Cost:
    """What a row that takes a problem with NCHW images in float32 is expected to cost; the problem is not empty."""
    return (_plain_cost if row in ("direct", "blocked", "tiled") else _tensor_cost)(row, problem)


def _weighed(problem: Problem) -> bool:
    """Whether there is something to weigh: channels-last images and halves are for tensor cores alone."""
    spec = problem.spec
    if problem.operation not in ("conv", "pointwise") or problem.direction == "bias_grad":
        return False
    return problem.layout == "nchw" and problem.dtype == "float32" and spec.n > 0 and spec.multiply_adds > 0


def slower(row: str, rivals: Rivals, problem: Problem) -> str:
    """That a row which reads NCHW is expected to be faster than this one on tensor cores; "" if none is."""
    if not _weighed(problem):
        return ""
    ours = cost(row, problem)
    others = {cost(name, problem).seconds: name for name, refuses in rivals if not refuses(problem)}
    fastest = min(others, default=math.inf)
    if fastest >= ours.seconds:
        return ""
    return f"expected at {ours.seconds / fastest:.2f} times the {others[fastest]} row's time"


def told(row: str, problem: Problem) -> str:
    """What a row is expected to take, in words; "" where nothing is weighed."""
    return f"{cost(row, problem)} on an H100, as estimated" if row in RATES and _weighed(problem) else ""
