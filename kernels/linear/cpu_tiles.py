"""Linear layers on the CPU, for matrices that lie in the second-level cache: nothing is packed.

Forward multiplies rows with rows: a tile of sums, each a vector along the inputs, whose lanes are added at the end. Both
gradients multiply columns with rows: a tile of results, to which every step adds an outer product.

BLAS takes twice as long on such sizes, and its threads would wait on our cores afterwards.
"""

from __future__ import annotations

import numpy as np

from .. import simd
from ..simd import lanes_of, load_tile, relu_tile, store_tile, store_tile_part, zero_tile
from ..spec import LinearSpec
from ..threads import parallel
from ..tile_math import add, add_row_products, add_scaled_rows, load_part, store_lane_sums

# Rows of x and rows of w whose products are summed together; rows and vectors of a gradient's tile.
# The product of the first two is a multiple of the lanes.
IMAGES, OUTPUTS = (4, 4) if simd.REGISTERS == 32 else (2, 4)
ROWS, COLUMNS = (8, 3) if simd.REGISTERS == 32 else (4, 2)


@parallel
def _forward(job, worker, x, w, bias, spec, y):
    # x (N, I), w (O, I), y (N, O), flat; a job is IMAGES rows of x
    lanes, inputs = lanes_of(y), spec.inputs
    n, whole = job * IMAGES, spec.inputs // lanes * lanes
    images = min(IMAGES, spec.n - n)
    first, last = n * spec.outputs, (n + images) * spec.outputs
    for o in range(0, spec.outputs, OUTPUTS):
        outputs = min(OUTPUTS, spec.outputs - o)
        tile = zero_tile(y, IMAGES, OUTPUTS)
        for i in range(0, whole, lanes):
            tile = add_row_products(
                tile, x, n * inputs + i, inputs, images, w, o * inputs + i, inputs, outputs, lanes, 1
            )
        if whole < inputs:
            left, right = n * inputs + whole, o * inputs + whole
            tile = add_row_products(tile, x, left, inputs, images, w, right, inputs, outputs, inputs - whole, 0)
        store_lane_sums(y, first + o, spec.outputs, tile, images, outputs)
    nothing = zero_tile(y, 1, 1)
    for row in range(first, last, spec.outputs):
        for o in range(0, spec.outputs, lanes):
            rest = spec.outputs - o
            line = load_part(y, row + o, rest, nothing)
            if bias.size:
                line = add(line, load_part(bias, o, rest, nothing))
            if spec.activation:
                line = relu_tile(line)
            store_tile_part(y, row + o, 0, line, 1, rest)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: LinearSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, o] = bias[o] + sum over i of x[n, i] · w[o, i], through the ReLU; an empty bias counts as zeros."""
    _forward(-(-spec.n // IMAGES), x.reshape(-1), w.reshape(-1), bias, spec, out.reshape(-1))


@parallel
def _outer(job, worker, a, b, rows, terms, width, row_stride, term_stride, y):
    # y[r, j] = sum over t of a[r · row_stride + t · term_stride] · b[t, j]; b (terms, width), y (rows, width), flat
    lanes = lanes_of(y)
    tiles = (width + COLUMNS * lanes - 1) // (COLUMNS * lanes)
    row, column = job // tiles * ROWS, job % tiles * COLUMNS * lanes
    count, room = min(ROWS, rows - row), width - column
    tile = zero_tile(y, ROWS, COLUMNS)
    start = row * row_stride
    if room >= COLUMNS * lanes:
        for t in range(terms):
            line = load_tile(b, t * width + column, 0, 1, COLUMNS)
            tile = add_scaled_rows(tile, a, start + t * term_stride, row_stride, count, line)
    else:
        nothing = zero_tile(y, 1, COLUMNS)
        for t in range(terms):
            line = load_part(b, t * width + column, room, nothing)
            tile = add_scaled_rows(tile, a, start + t * term_stride, row_stride, count, line)
    if room >= COLUMNS * lanes and count == ROWS:
        store_tile(y, row * width + column, width, tile)
    else:
        store_tile_part(y, row * width + column, width, tile, count, room)


def _outer_products(
    a: np.ndarray, b: np.ndarray, rows: int, terms: int, strides: tuple[int, int], out: np.ndarray
) -> None:
    width = out.shape[-1]
    wide = COLUMNS * simd.VECTOR_BITS // (8 * out.itemsize)
    flat = (a.reshape(-1), b.reshape(-1), rows, terms, width, *strides, out.reshape(-1))
    _outer(-(-rows // ROWS) * -(-width // wide), *flat)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: LinearSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, i] = sum over o of gy[n, o] · w[o, i]."""
    _outer_products(gy, w, spec.n, spec.outputs, (spec.outputs, 1), out)


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: LinearSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[o, i] = sum over n of gy[n, o] · x[n, i]."""
    _outer_products(gy, x, spec.outputs, spec.n, (1, spec.outputs), out)
