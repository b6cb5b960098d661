"""Tiles whose every vector is one pixel of as many planes as a vector has lanes.

Products and sums go lane by lane; pixels are found through tables of places, so a tile may hold pixels of several rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compiler import FASTMATH
from .linked import Linked
from .simd import VECTOR_BITS, Tile, _address, _fma, _literal, _load, _moved, _prefetch, _store
from .tiles import _transposed


def inlined(function: Callable[..., Any]) -> Any:
    """As :func:`compiler.helper`, and always part of its caller: a tile that is handed over then stays in registers."""
    return Linked(function, fastmath=FASTMATH, error_model="numpy", nogil=True, forceinline=True)


@intrinsic
def load_turned(typingctx, x, offset, stride, ahead):
    """The square tile of x[offset + j * stride + i] in row i and lane j, all of it in x; the vectors ``ahead`` elements
    behind are fetched into the second-level cache."""
    kind = Tile(x.dtype, VECTOR_BITS // x.dtype.bitwidth, 1)

    def codegen(context, builder, signature, args):
        xv, start, step, behind = args
        vectors = []
        for _ in range(kind.rows):
            vectors.append(_load(builder, _address(context, builder, x, xv, start), kind))
            _prefetch(builder, _address(context, builder, x, xv, builder.add(start, behind)), 2)
            start = builder.add(start, step)
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for i, vector in enumerate(_transposed(builder, vectors, kind.lanes)):
            value = builder.insert_value(value, vector, i)
        return value

    return kind(x, types.int64, types.int64, types.int64), codegen


@intrinsic
def store_turned(typingctx, y, offset, stride, ahead, tile):
    """y[offset + j * stride + i] = row i, lane j of the tile, all of it; what lies ``ahead`` elements behind is fetched for
    writing."""

    def codegen(context, builder, signature, args):
        yv, start, step, behind, value = args
        for block in range(0, tile.rows, tile.lanes):
            to = _moved(builder, start, block)
            rows = [builder.extract_value(value, block + i) for i in range(tile.lanes)]
            for vector in _transposed(builder, rows, tile.lanes):
                _store(builder, vector, _address(context, builder, y, yv, to), tile)
                _prefetch(builder, _address(context, builder, y, yv, builder.add(to, behind)), 2, write=True)
                to = builder.add(to, step)
        return context.get_dummy_value()

    return types.void(y, types.int64, types.int64, types.int64, tile), codegen


@intrinsic
def store_tile_at(typingctx, y, offset, places, first, tile):
    """Write the row i of a tile to y[offset + places[first + i]]."""

    def codegen(context, builder, signature, args):
        yv, start, pv, number, value = args
        for i in range(tile.rows):
            place = builder.load(_address(context, builder, places, pv, _moved(builder, number, i)))
            for j in range(tile.columns):
                at = _moved(builder, builder.add(start, place), j * tile.lanes)
                vector = builder.extract_value(value, i * tile.columns + j)
                _store(builder, vector, _address(context, builder, y, yv, at), tile)
        return context.get_dummy_value()

    return types.void(y, types.int64, places, types.int64, tile), codegen


@intrinsic(prefer_literal=True)
def add_lane_products(typingctx, tile, w, w_offset, w_stride, x, offset, places, first, together, taps):
    """tile[i] + the sum over t < ``taps`` of w[w_offset + t * w_stride …] * x[offset + places[first + i] + t * lanes …],
    vector by vector: neighbouring taps. The pixels of every group of ``together`` lie side by side: their places but the
    first are not looked up, and each that is loaded serves all taps that meet it."""
    width, count = _literal(together), _literal(taps)

    def codegen(context, builder, signature, args):
        value, wv, wo, stride, xv, start, pv, number = args[:8]
        weights = []
        for _ in range(count):
            weights.append(_load(builder, _address(context, builder, w, wv, wo), tile))
            wo = builder.add(wo, stride)
        for group in range(0, tile.rows, width):
            place = builder.load(_address(context, builder, places, pv, _moved(builder, number, group)))
            at = builder.add(place, start)
            for j in range(width + count - 1):
                pixel = _load(builder, _address(context, builder, x, xv, _moved(builder, at, j * tile.lanes)), tile)
                for t in range(max(0, j - width + 1), min(count, j + 1)):
                    i = group + j - t
                    total = _fma(builder, weights[t], pixel, builder.extract_value(value, i))
                    value = builder.insert_value(value, total, i)
        return value

    number = types.int64
    return tile(tile, w, number, number, x, number, places, number, together, taps), codegen


@intrinsic
def add_tap_products(typingctx, tile, g, g_offset, x, offset, places, first, shifts, tap):
    """tile[i, j] + g[g_offset + i * lanes …] * x[offset + places[first + i] + shifts[tap + j] …], vector by vector."""

    def codegen(context, builder, signature, args):
        value, gv, go, xv, start, pv, number, sv, so = args
        # The array's address first, then the shift: x86 adds the two in the load itself.
        taps = [
            builder.load(_address(context, builder, shifts, sv, _moved(builder, so, j))) for j in range(tile.columns)
        ]
        for i in range(tile.rows):
            row = _load(builder, _address(context, builder, g, gv, _moved(builder, go, i * tile.lanes)), tile)
            place = builder.load(_address(context, builder, places, pv, _moved(builder, number, i)))
            pixel = _address(context, builder, x, xv, builder.add(start, place))
            for j, tap_shift in enumerate(taps):
                n = i * tile.columns + j
                vector = _load(builder, builder.gep(pixel, [tap_shift], inbounds=False), tile)
                value = builder.insert_value(value, _fma(builder, row, vector, builder.extract_value(value, n)), n)
        return value

    return tile(tile, g, types.int64, x, types.int64, places, types.int64, shifts, types.int64), codegen


@intrinsic
def add_row_sums(typingctx, y, offset, stride, tile):
    """y[offset + j * stride …] += the sum over the rows i of tile[i, j], vector by vector."""

    def codegen(context, builder, signature, args):
        yv, start, step, value = args
        for j in range(tile.columns):
            total = builder.extract_value(value, j)
            for i in range(1, tile.rows):
                total = builder.fadd(total, builder.extract_value(value, i * tile.columns + j))
            address = _address(context, builder, y, yv, start)
            _store(builder, builder.fadd(_load(builder, address, tile), total), address, tile)
            start = builder.add(start, step)
        return context.get_dummy_value()

    return types.void(y, types.int64, types.int64, tile), codegen
