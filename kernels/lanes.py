"""Tiles whose every vector is one pixel of as many planes as a vector has lanes.

Products and sums go lane by lane; pixels are found through tables of places, so a tile may hold pixels of several rows.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import VECTOR_BITS, Tile, _address, _fma, _literal, _load, _moved, _prefetch, _store
from .tiles import _transposed


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
def store_turned(typingctx, y, offset, stride, tile):
    """y[offset + j * stride + i] = row i, lane j of the tile, all of it."""

    def codegen(context, builder, signature, args):
        yv, start, step, value = args
        for block in range(0, tile.rows, tile.lanes):
            to = _moved(builder, start, block)
            rows = [builder.extract_value(value, block + i) for i in range(tile.lanes)]
            for vector in _transposed(builder, rows, tile.lanes):
                _store(builder, vector, _address(context, builder, y, yv, to), tile)
                to = builder.add(to, step)
        return context.get_dummy_value()

    return types.void(y, types.int64, types.int64, tile), codegen


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


@intrinsic
def add_lane_products(typingctx, tile, w, w_offset, x, offset):
    """tile[i] + w[w_offset …] * x[offset + i * lanes …], vector by vector: the same weights for neighbouring pixels."""

    def codegen(context, builder, signature, args):
        value, wv, wo, xv, start = args
        weight = _load(builder, _address(context, builder, w, wv, wo), tile)
        for i in range(tile.rows):
            pixel = _load(builder, _address(context, builder, x, xv, _moved(builder, start, i * tile.lanes)), tile)
            value = builder.insert_value(value, _fma(builder, weight, pixel, builder.extract_value(value, i)), i)
        return value

    return tile(tile, w, types.int64, x, types.int64), codegen


@intrinsic(prefer_literal=True)
def add_lane_products_at(typingctx, tile, w, w_offset, x, offset, places, first, together):
    """tile[i] + w[w_offset …] * x[offset + places[first + i] …], vector by vector: pixels anywhere, but every group of
    ``together`` side by side."""
    width = _literal(together)

    def codegen(context, builder, signature, args):
        value, wv, wo, xv, start, pv, number, _ = args
        weight, at = _load(builder, _address(context, builder, w, wv, wo), tile), None
        for i in range(tile.rows):
            if i % width == 0:
                place = builder.load(_address(context, builder, places, pv, _moved(builder, number, i)))
                at = builder.add(place, start)
            pixel = _load(builder, _address(context, builder, x, xv, _moved(builder, at, i % width * tile.lanes)), tile)
            value = builder.insert_value(value, _fma(builder, weight, pixel, builder.extract_value(value, i)), i)
        return value

    return tile(tile, w, types.int64, x, types.int64, places, types.int64, together), codegen


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
