"""How a product is cut into tiles and parts: by the problem's shape alone, never by the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ..spec import ConvSpec, PointwiseSpec, PoolSpec
from ..variant import Problem

STEP = 8  # terms of the sum in a slice


class Tile(NamedTuple):
    """Rows and columns of a block's tile, and of a thread's, multiples of 4."""

    rows: int
    columns: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        return self.rows // self.thread_rows * (self.columns // self.thread_columns)


class WarpTile(NamedTuple):
    """Rows and columns of a block's tile, and of a warp's: multiples of 16 rows and 8 columns."""

    rows: int
    columns: int
    warp_rows: int
    warp_columns: int

    @property
    def threads(self) -> int:
        return 32 * (self.rows // self.warp_rows) * (self.columns // self.warp_columns)


# Products of halves: terms of a slice, which are 128 bytes, and slices under way or in use at once.
HALF_TILES = (WarpTile(128, 128, 64, 32), WarpTile(128, 32, 32, 32))
# Of a warpgroup kernel a warp has 16 rows of all columns.
WARPGROUP_TILES = (WarpTile(128, 128, 16, 128), WarpTile(128, 256, 16, 256))
WARPGROUP_STAGES = 4
WARPGROUP_COLUMNS = 65  # at least; the tiles for fewer are those of single warps
HALF_STEP = 64
# Products of TF32: the same bytes are 32 terms. What is not rounded on the way is cut off, which costs in units of float32's
# rounding at most 1 - (1 - 2^-10)^2.
TF32_TERMS = 2**15
TF32_WEIGHT_TILES = (WarpTile(128, 128, 64, 32), WarpTile(128, 32, 16, 32))  # whose columns 256 threads copy
WARPGROUP_TF32_TILES = (WarpTile(128, 64, 16, 64), *WARPGROUP_TILES)
WARPGROUP_TF32_COLUMNS = 33  # at least
HALF_STAGES = 3

TILES = (Tile(128, 128, 8, 8), Tile(32, 128, 4, 8), Tile(8, 256, 4, 4))


def choose_tile(rows: int, tiles: Sequence[Tile | WarpTile] = TILES) -> int:
    """The number of the tile that does the least work: products, and copies of columns, which a low tile makes more of.

    The weight of a copy is an estimate; no GPU has been at hand to measure it.
    """

    def work(tile: Tile | WarpTile) -> float:
        return -(-rows // tile.rows) * tile.rows * (1 + 16 / tile.rows)

    return min(range(len(tiles)), key=lambda number: work(tiles[number]))


class Grid(NamedTuple):
    """How the blocks of a launch share the work: block = ((part · groups + group) · tall + row tile) · wide + column tile."""

    rows: int
    columns: int
    terms: int
    tall: int
    wide: int
    groups: int
    chunk: int  # terms of a part
    biased: int  # add a bias to each row
    relu: int

    @property
    def parts(self) -> int:
        return max(1, -(-self.terms // max(self.chunk, 1)))

    @property
    def blocks(self) -> int:
        return self.tall * self.wide * self.groups * self.parts


def make_grid(
    tile: Tile | WarpTile,
    rows: int,
    columns: int,
    terms: int,
    groups: int = 1,
    parts: int = 1,
    biased: bool = False,
    relu: int = 0,
    step: int = STEP,
) -> Grid:
    """The grid for ``groups`` products, their sums cut into ``parts`` of whole slices of ``step`` terms."""
    chunk = -(-terms // (parts * step)) * step
    tall, wide = -(-rows // tile.rows), -(-columns // tile.columns)
    return Grid(rows, columns, terms, tall, wide, groups, chunk, int(biased), relu)


class Product(NamedTuple):
    """Rows, columns and terms of a product of matrices, and how many such products there are."""

    rows: int
    columns: int
    terms: int
    groups: int = 1


def product_of(direction: str, spec: ConvSpec | PointwiseSpec) -> Product:
    """The product behind a direction of a convolution."""
    if isinstance(spec, PointwiseSpec):
        groups, taps, input_pixels = 1, 1, spec.n * spec.pixels
        pixels = input_pixels
    else:
        groups, taps = spec.groups, math.prod(spec.kernel)
        input_pixels, pixels = spec.n * math.prod(spec.size), spec.n * math.prod(spec.out)
    inner, outer = spec.c // groups, spec.k // groups
    if direction == "weight_grad":
        return Product(outer, inner * taps, pixels, groups)
    if direction == "input_grad":
        return Product(inner, input_pixels, outer * taps, groups)
    return Product(outer, pixels, inner * taps, groups)


BLOCKS = 512  # blocks wanted before a sum is cut into parts: a few for each multiprocessor of a large GPU
HALF_BLOCKS = 264  # the same where a block is large: two for each multiprocessor of an H100
PART = 256  # terms of a part at least


def product_parts(direction: str, product: Product) -> int:
    """Into how many parts at most the sums of a product are cut, so that all multiprocessors have work.

    Where results are pixels, which are many, a part costs more: then it has more terms, and blocks are fewer.
    """
    tile = TILES[choose_tile(product.rows)]
    blocks = max(make_grid(tile, *product).blocks, 1)
    if direction == "weight_grad":
        return max(1, min(BLOCKS // blocks, product.terms // PART))
    return max(1, min(HALF_BLOCKS * 256 // tile.threads // blocks, product.terms // (2 * PART)))


def parts_bytes(problem: Problem) -> int:
    """Bytes of the parts of a product's sums, where there are several."""
    product = product_of(problem.direction, problem.spec)
    parts = product_parts(problem.direction, product)
    return 0 if parts == 1 else 4 * parts * product.groups * product.rows * product.columns


def choose_half_tile(columns: int, tiles: Sequence[WarpTile] = HALF_TILES) -> int:
    """The number of the tile that multiplies the fewest columns in vain; the widest of those that are equal."""
    return min(
        range(len(tiles)),
        key=lambda number: (-(-columns // tiles[number].columns) * tiles[number].columns, -tiles[number].columns),
    )


def half_parts(rows: int, columns: int, terms: int, groups: int = 1) -> int:
    """As :func:`product_parts`, for products of halves: their tiles are larger and their slices longer."""
    blocks = make_grid(HALF_TILES[choose_half_tile(columns)], rows, columns, terms, groups).blocks
    return max(1, min(HALF_BLOCKS // max(blocks, 1), terms // (2 * PART)))


def channel_parts(channels: int, terms: int) -> int:
    """Into how many parts at most the sum of each channel is cut."""
    return max(1, min(BLOCKS // max(channels, 1), terms // (4 * PART)))


def cut_channels(channels: int, terms: int) -> tuple[int, int]:
    """Terms of a part of a channel's sum, and how many parts there are."""
    chunk = max(1, -(-terms // channel_parts(channels, terms)))
    return chunk, max(1, -(-terms // chunk))


COLUMN_THREADS = 256
COLUMN_TERMS = 8  # of a thread at least, before another part is made


class Columns(NamedTuple):
    """An array (rows, channels), channels side by side, and how blocks add it up: block = part · wide + group of channels.

    The threads of a block stand in lines over 2**shift channels, a line for each of some rows.
    """

    channels: int
    rows: int
    shift: int
    wide: int  # groups of 2**shift channels
    chunk: int  # rows of a part

    @property
    def parts(self) -> int:
        return max(1, -(-self.rows // self.chunk))

    @property
    def blocks(self) -> int:
        return self.parts * self.wide


@lru_cache(maxsize=1024)
def cut_columns(channels: int, rows: int) -> Columns:
    """The cut of an array (rows, channels): lines of whole warps where channels are many, parts where blocks are few."""
    shift = min((channels - 1).bit_length(), 5)
    wide = -(-channels // (1 << shift))
    least = COLUMN_TERMS * (COLUMN_THREADS >> shift)
    parts = max(1, min(BLOCKS // wide, rows // least))
    return Columns(channels, rows, shift, wide, max(1, -(-rows // parts)))


def side_by_side(channels: int, pixels: int) -> bool:
    """Whether the channels of an array (N, C, L) are neighbours in memory: so channels-last comes to kernels, with an L of 1
    and N pixels of all images."""
    return pixels == 1 and channels > 1


def channel_bytes(problem: Problem) -> int:
    """Bytes of a float32 for every channel in every part: of y in a convolution, else of x."""
    spec, n = problem.spec, problem.spec.n
    if isinstance(spec, ConvSpec):
        channels, pixels = spec.k, math.prod(spec.out)
    else:
        channels, pixels = spec.c, math.prod(spec.size) if isinstance(spec, PoolSpec) else spec.pixels
    if problem.layout == "channels_last":
        n, pixels = n * pixels, 1
    if side_by_side(channels, pixels):
        return 4 * channels * cut_columns(channels, n).parts
    return 4 * channels * channel_parts(channels, n * pixels)


# Convolution by windows in registers: results of a thread where a group has several, and its channels at most.
RESULTS = 4
FEW_RESULTS = 16  # more fill the tiles of an implicit GEMM
FEW_CHANNELS = 64
UNITS = 8  # of so many results that are neighbouring lanes, channels-last
SLOTS = 16  # threads of a block that have the same unit
WINDOW_BLOCKS = 4096  # as BLOCKS, where a block is small: twice what an H100 holds


def window_parts(blocks: int, pixels: int) -> int:
    """Into how many parts, of thousands of pixels each, the work of so many blocks is cut at most."""
    return max(1, min(WINDOW_BLOCKS // max(blocks, 1), pixels // (8 * PART)))


def lane_parts(channels: int, pixels: int) -> int:
    """The same where a block's lanes have a channel each and its warps share the pixels: of hundreds each."""
    return max(1, min(WINDOW_BLOCKS // max(-(-channels // 32), 1), pixels // (PART // 2)))


def slot_parts(blocks: int, terms: int) -> int:
    """The same where a block's threads with the same unit share the terms, strips of pixels: one for each at least."""
    return max(1, min(WINDOW_BLOCKS // max(blocks, 1), terms // SLOTS))
