"""How a product is cut into tiles and parts: by the problem's shape alone, never by the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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


# Tensor cores: how tiles of 16 terms are multiplied, how many are under way at once, and what rounding to TF32 costs.
TENSOR_TILES = (WarpTile(128, 128, 64, 32), WarpTile(32, 128, 32, 32))
TENSOR_STEP = 16
STAGES = 3
TF32_TERMS = 2**14 + 8  # in units of float32's rounding: (1 + 2^-11)^2 - 1 for the two operands of a product

# Products of halves: terms of a slice, which are 128 bytes, and slices under way or in use at once.
HALF_TILES = (WarpTile(128, 128, 64, 32), WarpTile(128, 32, 32, 32))
# Of a warpgroup kernel a warp has 16 rows of all columns.
WARPGROUP_TILES = (WarpTile(128, 128, 16, 128), WarpTile(128, 256, 16, 256))
WARPGROUP_STAGES = 4
WARPGROUP_COLUMNS = 65  # at least; the tiles for fewer are those of single warps
HALF_STEP = 64
# Products of TF32 by warpgroups: the same bytes are 32 terms. What is not rounded on the way is cut off, which costs in units
# of float32's rounding at most 1 - (1 - 2^-10)^2.
TF32_TILES = (WarpTile(128, 64, 16, 64), *WARPGROUP_TILES)
TF32_COLUMNS = 33  # at least
CUT_TF32_TERMS = 2**15
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
    step: int = TENSOR_STEP,
) -> Grid:
    """The grid for ``groups`` products, their sums cut into ``parts`` of whole slices of ``step`` terms."""
    chunk = -(-terms // (parts * step)) * step
    tall, wide = -(-rows // tile.rows), -(-columns // tile.columns)
    return Grid(rows, columns, terms, tall, wide, groups, chunk, int(biased), relu)


BLOCKS = 512  # blocks wanted before a sum is cut into parts: a few for each multiprocessor of a large GPU
HALF_BLOCKS = 264  # the same where a block is large: two for each multiprocessor of an H100
PART = 256  # terms of a part at least


def product_parts(rows: int, columns: int, terms: int, groups: int = 1) -> int:
    """Into how many parts at most the sums of a product are cut, so that all multiprocessors have work."""
    blocks = make_grid(TILES[choose_tile(rows)], rows, columns, terms, groups).blocks
    return max(1, min(BLOCKS // max(blocks, 1), terms // PART))


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
    """Into how many parts the sum of each channel is cut."""
    return max(1, min(BLOCKS // max(channels, 1), terms // (4 * PART)))


# Convolution by windows in registers: results of a thread where a group has several, and its channels at most.
RESULTS = 4
FEW_RESULTS = 16  # more fill the tiles of an implicit GEMM
FEW_CHANNELS = 64
WINDOW_BLOCKS = 4096  # as BLOCKS, where a block is small: twice what an H100 holds


def window_parts(blocks: int, pixels: int) -> int:
    """Into how many parts, of thousands of pixels each, the work of so many blocks is cut at most."""
    return max(1, min(WINDOW_BLOCKS // max(blocks, 1), pixels // (8 * PART)))
