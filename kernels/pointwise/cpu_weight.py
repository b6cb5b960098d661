"""Weight gradient of the pointwise convolution: an outer product for every pixel, summed in register tiles.

gw[k, c] = sum over pixels of gy[k, pixel] · x[c, pixel] has its sum along the contiguous axis of both arrays. One of them is
turned in squares, some lines of pixels at a time, so that its channels lie side by side: they are the lanes of the tile.
The other one is read where it is, one scalar for each row of the tile and pixel. Which one is turned is a matter of cost.
(Dot products along the pixels need no turning, but every tile then ends in sums over lanes: 2 to 4 times slower.)

A job sums some of the chunks of pixels for a block of rows and a block of columns. The partial sums are added in a fixed
order and brought into the order of gw.

Scratch: the partial sums, shared; then the turned pixels of a chunk for each thread.

Source of the tile: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import simd
from ..compiler import helper
from ..host import LINE_BYTES
from ..parts import add_parts, even_parts
from ..rows import SLACK
from ..simd import add_outer_rows, lanes_of, load_tile, prefetch, store_tile, store_tile_part, zero_tile
from ..spec import Pair, PointwiseSpec
from ..squares import load_square, load_square_part, turn_square
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..variant import Problem, cpu_only, too_large
from .grid import Grid, whole

# (rows, columns) of the tiles.
if simd.REGISTERS == 32:
    TILES: tuple[Pair, ...] = ((8, 3), (6, 4), (12, 2), (16, 1), (4, 6), (2, 8), (1, 8))
else:
    TILES = ((6, 2), (4, 3), (8, 1), (3, 4), (2, 4), (1, 4))
CHUNK = 256  # pixels turned at a time
ROW_BLOCK, COLUMN_BLOCK = 512, 128  # channels of a job, at most
JOBS = 16  # jobs wanted before the pixels are cut into parts
PARTS_BYTES = 16 * 1024 * 1024  # of partial sums at most


class _Work(NamedTuple):
    """Plain numbers for the kernel: ``rows`` channels of one array, ``columns`` channels of the turned one."""

    rows: int
    columns: int
    grid: Grid  # of the pixels in the array of the rows; those of the turned one lie one behind the other
    pieces: int  # of a line of the grid
    width: int  # pixels of a piece, less in the last one of a line
    all_pieces: int  # of the whole batch
    chunk: int  # pieces turned at a time
    parts: int
    row_tiles: int
    row_blocks: int
    column_tiles: int
    column_blocks: int
    line: int  # elements of a cache line


class _Layout(NamedTuple):
    """A problem ready to run."""

    work: _Work
    tile: Pair
    turned: bool  # the rows are channels of x: the sums are gw transposed
    part: int  # elements of the sums of a part
    scratch: int  # elements for each thread

    @property
    def sums(self) -> int:
        """Elements of the sums of all parts."""
        return self.work.parts * self.part


def _cost(rows: int, columns: int, tile: Pair, lanes: int) -> float:
    """Cycles for a pixel: two products a cycle, half a vector from the second-level cache; and turning the columns."""
    height, width = tile
    tiles = -(-rows // height) * -(-columns // (width * lanes))
    return tiles * max(height * width / 2, (height + width) / 2, 2 * width) + columns * 0.3


@lru_cache(maxsize=1024)
def layout(n: int, c: int, k: int, x_grid: Grid, itemsize: int) -> _Layout:
    """Cut the sum over the pixels of n images, those of x on a grid."""
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    # Pixels on a grid are not turned: they are taken one by one where they are.
    sides = ((True, c, k), (False, k, c))[: 2 if x_grid.dense else 1]
    ways = [
        (_cost(rows, columns, tile, lanes), turned, tile)
        for turned, rows, columns in sides
        for tile in TILES
        if tile[0] <= rows
    ]
    _, turned, tile = min(ways)
    rows, columns = (c, k) if turned else (k, c)
    pieces = -(-x_grid.width // CHUNK)
    width = -(-x_grid.width // pieces)
    all_pieces = n * x_grid.lines * pieces
    chunk = max(1, min(all_pieces, CHUNK // width))
    row_tiles, column_tiles = -(-rows // tile[0]), -(-columns // (tile[1] * lanes))
    row_blocks, column_blocks = -(-rows // ROW_BLOCK), -(-columns // COLUMN_BLOCK)
    part = row_tiles * tile[0] * column_tiles * tile[1] * lanes
    most = min(-(-all_pieces // chunk), PARTS_BYTES // (part * itemsize))
    parts = even_parts(min(most, -(-JOBS // (row_blocks * column_blocks))))
    work = _Work(
        rows, columns, x_grid, pieces, width, all_pieces, chunk, parts,
        row_tiles, row_blocks, column_tiles, column_blocks, LINE_BYTES // itemsize,
    )  # fmt: skip
    scratch = -(-column_tiles // column_blocks) * tile[1] * lanes * (chunk * width + lanes)
    return _Layout(work, tile, turned, part, scratch + SLACK)


@helper
def _row_start(work, n, line, first):
    """Where a piece starts in its image's first plane of the array of the rows."""
    return n * work.rows * work.grid.size + line * work.grid.pitch + first * work.grid.step


@helper
def _column_start(work, n, line, first):
    """Where a piece starts in its image's first plane of the turned array."""
    return n * work.columns * work.grid.pixels + line * work.grid.width + first


@helper
def _place(work, piece):
    """(image, line, first pixel of the line) of a piece."""
    line = piece // work.pieces
    return line // work.grid.lines, line % work.grid.lines, piece % work.pieces * work.width


@helper
def _next(work, n, line, first):
    """The place of the next piece."""
    first += work.width
    if first >= work.grid.width:
        first, line = 0, line + 1
        if line == work.grid.lines:
            line, n = 0, n + 1
    return n, line, first


@helper
def _turn(b, start, stride, channels, pixels, turned, at, pitch):
    """turned[at + i * pitch + j] = b[start + j * stride + i] for i < pixels and j < channels, at most as many as there
    are lanes; other lanes are zero. Up to a vector's lanes more rows are written."""
    lanes = lanes_of(b)
    for i in range(0, pixels, lanes):
        if channels == lanes and i + lanes <= pixels:
            square = load_square(b, start + i, stride)
        else:
            square = load_square_part(b, start + i, stride, channels, pixels - i)
        store_tile(turned, at + i * pitch, pitch, turn_square(square))


def _tile_kernel(rows: int, columns: int) -> ParallelKernel:
    """The kernel for one tile size."""

    def body(job, worker, a, b, work, scratch, sums):
        # a (N, rows, plane), b (N, columns, pixels), sums (parts, column_tiles, row_tiles * rows, width), flat
        lanes, width = lanes_of(sums), columns * lanes_of(sums)
        mine, plane = scratch[worker], work.grid.size
        block = job // work.parts
        part, row_block, column_block = job % work.parts, block % work.row_blocks, block // work.row_blocks
        tile0 = row_block * work.row_tiles // work.row_blocks
        tile1 = (row_block + 1) * work.row_tiles // work.row_blocks
        column0 = column_block * work.column_tiles // work.column_blocks
        column1 = (column_block + 1) * work.column_tiles // work.column_blocks
        channel0, channel1 = column0 * width, min(column1 * width, work.columns)
        share = (channel1 - channel0 + tile1 - tile0 - 1) // (tile1 - tile0)  # channels to fetch in a row of tiles
        panel = (work.chunk * work.width + lanes) * width
        chunks = (work.all_pieces + work.chunk - 1) // work.chunk
        first_chunk, last_chunk = part * chunks // work.parts, (part + 1) * chunks // work.parts
        for chunk in range(first_chunk, last_chunk):
            pieces = min(work.chunk, work.all_pieces - chunk * work.chunk)
            start = _place(work, chunk * work.chunk)
            after = _place(work, (chunk + 1) * work.chunk)
            row_leap = _row_start(work, *after) - _row_start(work, *start)
            column_leap = _column_start(work, *after) - _column_start(work, *start)
            for channel in range(column0 * width, column1 * width, lanes):
                at = (channel - column0 * width) // width * panel + channel % width
                wanted = min(lanes, max(0, work.columns - channel))
                n, line, first = start
                for _ in range(pieces):
                    pixels = min(work.width, work.grid.width - first)
                    source = _column_start(work, n, line, first) + channel * work.grid.pixels
                    _turn(b, source, work.grid.pixels, wanted, pixels, mine, at, width)
                    at += pixels * width
                    n, line, first = _next(work, n, line, first)
            for column in range(column0, column1):
                for row in range(tile0, tile1):
                    # The last tile starts earlier, so that it is whole; its rows are sums of its own.
                    top = min(row * rows, work.rows - rows) * plane
                    # What comes next is fetched on the way: the rows of the next tile, or of the next chunk.
                    leap = min((row + 1) * rows, work.rows - rows) * plane - top
                    if row + 1 == tile1:
                        leap = min(tile0 * rows, work.rows - rows) * plane - top + row_leap
                    channel = channel0 + (row - tile0) * share
                    at = (((part * work.column_tiles + column) * work.row_tiles) + row) * rows * width
                    if chunk == first_chunk:
                        tile = zero_tile(sums, rows, columns)
                    else:
                        tile = load_tile(sums, at, width, rows, columns)
                    turned = (column - column0) * panel
                    n, line, first = start
                    for _ in range(pieces):
                        pixels = min(work.width, work.grid.width - first)
                        source = _row_start(work, n, line, first) + top
                        coming = _column_start(work, n, line, first) + column_leap + channel * work.grid.pixels
                        for i0 in range(0, pixels, work.line):
                            if column == column0:
                                for i in range(rows):
                                    prefetch(a, source + leap + i * plane + i0 * work.grid.step, 1, 2)
                                for i in range(min(share, channel1 - channel)):
                                    prefetch(b, coming + i * work.grid.pixels + i0, 1, 2)
                            for i in range(i0, min(i0 + work.line, pixels)):
                                tile = add_outer_rows(tile, a, source + i * work.grid.step, plane, mine, turned)
                                turned += width
                        n, line, first = _next(work, n, line, first)
                    store_tile(sums, at, width, tile)

    body.__name__ = f"_outer_{rows}x{columns}"
    return parallel(body)


_KERNELS = {tile: _tile_kernel(*tile) for tile in TILES}


@parallel
def _arrange(job, worker, sums, height, rows, columns, width, turned, gw):
    # sums (column tiles, row tiles * height, width); gw (rows, columns), or (columns, rows) if turned. A job is a vector's
    # width of columns.
    lanes = lanes_of(gw)
    column = job * lanes
    wide = min(lanes, columns - column)
    last = (rows - 1) // height * height  # the last tile's rows begin here; those that it shares come first
    shared = last + height - rows
    start = column // width * (last + height) * width + column % width
    row = 0
    while row < rows:
        if row < last:
            count, at = min(lanes, last - row), start + row * width
        else:
            count, at = min(lanes, rows - row), start + (row + shared) * width
        square = load_square_part(sums, at, width, count, wide)
        if turned:
            store_tile_part(gw, column * rows + row, rows, turn_square(square), wide, count)
        else:
            store_tile_part(gw, row * columns + column, columns, square, count, wide)
        row += count


def run(plan: _Layout, x: np.ndarray, gy: np.ndarray, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, c] = the sum over the pixels that meet."""
    if gy.size == 0:
        out[...] = 0
        return
    work, (height, columns) = plan.work, plan.tile
    room = workspace.view(out.dtype)
    sums, scratch = room[: plan.sums], thread_rows(room[plan.sums :], plan.scratch)
    a, b = (x, gy) if plan.turned else (gy, x)
    jobs = work.parts * work.row_blocks * work.column_blocks
    _KERNELS[plan.tile](jobs, a.reshape(-1), b.reshape(-1), work, scratch, sums, limit=scratch.shape[0])
    if work.parts > 1:
        add_parts(sums.reshape(work.parts, -1), sums[: plan.part])
    lanes = simd.VECTOR_BITS // (8 * out.itemsize)
    arrange = (sums, height, work.rows, work.columns, columns * lanes, int(plan.turned), out.reshape(-1))
    _arrange(-(-work.columns // lanes), *arrange)


def room_bytes(plan: _Layout, itemsize: int) -> int:
    """The partial sums, and the turned pixels of each thread."""
    return (plan.sums + num_threads() * plan.scratch) * itemsize


def _flat_layout(spec: PointwiseSpec, itemsize: int) -> _Layout:
    return layout(spec.n, spec.c, spec.k, whole(spec.pixels), itemsize)


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: PointwiseSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, c] = sum over n, l of gy[n, k, l] · x[n, c, l]."""
    run(_flat_layout(spec, x.itemsize), x, gy, workspace, out)


def workspace_bytes(problem: Problem) -> int:
    """As :func:`room_bytes`."""
    itemsize = problem.itemsize
    return room_bytes(_flat_layout(problem.spec, itemsize), itemsize)


def refuses(problem: Problem) -> str:
    """Takes weights whose sums fit into shared scratch."""
    return cpu_only(problem) or too_large(_flat_layout(problem.spec, problem.itemsize).sums, problem.itemsize)
