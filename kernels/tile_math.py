"""Arithmetic between tiles of the CPU vector type, lane by lane, for kernels that pass over memory once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import _I64, Tile, _address, _fma, _literal, _load, _mask, _masked_load, _moved, _splat, _store


def _each(builder: Any, kind: Tile, result: Any, compute: Callable[..., Any], *tiles: Any) -> Any:
    """``compute`` over the vectors of some tiles."""
    for n in range(kind.rows * kind.columns):
        result = builder.insert_value(result, compute(*(builder.extract_value(tile, n) for tile in tiles)), n)
    return result


@intrinsic(prefer_literal=True)
def splat_tile(typingctx, like, scalar, columns):
    """A tile of one row that is ``scalar`` everywhere, of ``like``'s dtype."""
    kind = Tile(like.dtype, 1, _literal(columns))

    def codegen(context, builder, signature, args):
        vector = _splat(builder, args[1], kind.lanes)
        return _each(builder, kind, ir.Constant(context.get_value_type(kind), ir.Undefined), lambda: vector)

    return kind(like, like.dtype, columns), codegen


@intrinsic
def load_part(typingctx, y, offset, count, fill):
    """The tile at y[offset], reading only its first ``count`` lanes; the others are those of the tile ``fill``."""

    def codegen(context, builder, signature, args):
        yv, start, number, other = args
        value = other
        for j in range(fill.columns):
            mask = _mask(builder, number, j, fill)
            address = _address(context, builder, y, yv, _moved(builder, start, j * fill.lanes))
            read = _masked_load(builder, address, mask, fill)
            value = builder.insert_value(value, builder.select(mask, read, builder.extract_value(other, j)), j)
        return value

    return fill(y, types.int64, types.int64, fill), codegen


@intrinsic(prefer_literal=True)
def load_rows_part(typingctx, y, offset, stride, rows, columns, wanted, count):
    """The tile at y[offset], rows ``stride`` elements apart, of which ``wanted`` and of them the first ``count`` lanes are
    read; others are zero, and other rows those of the last."""
    kind = Tile(y.dtype, _literal(rows), _literal(columns))

    def codegen(context, builder, signature, args):
        yv, start, step, _, _, number, lanes = args
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for i in range(kind.rows):
            place = builder.add(start, builder.mul(_clamped(builder, i, number), step))
            for j in range(kind.columns):
                address = _address(context, builder, y, yv, _moved(builder, place, j * kind.lanes))
                vector = _masked_load(builder, address, _mask(builder, lanes, j, kind), kind)
                value = builder.insert_value(value, vector, i * kind.columns + j)
        return value

    integer = types.int64
    return kind(y, integer, integer, rows, columns, integer, integer), codegen


@intrinsic
def add(typingctx, a, b):
    """a + b."""

    def codegen(context, builder, signature, args):
        return _each(builder, a, args[0], builder.fadd, *args)

    return a(a, b), codegen


@intrinsic
def sub(typingctx, a, b):
    """a - b."""

    def codegen(context, builder, signature, args):
        return _each(builder, a, args[0], builder.fsub, *args)

    return a(a, b), codegen


@intrinsic
def mul(typingctx, a, b):
    """a · b."""

    def codegen(context, builder, signature, args):
        return _each(builder, a, args[0], builder.fmul, *args)

    return a(a, b), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a · b + c, rounded once where the host can."""

    def codegen(context, builder, signature, args):
        return _each(builder, a, args[0], lambda *vectors: _fma(builder, *vectors), *args)

    return a(a, b, c), codegen


@intrinsic
def passed(typingctx, g, y):
    """g where y is positive or NaN, else 0: what a ReLU of result (or argument) y lets through."""

    def codegen(context, builder, signature, args):
        zero = ir.Constant(g.vector, None)

        def choose(gradient: Any, value: Any) -> Any:
            return builder.select(builder.fcmp_unordered(">", value, zero), gradient, zero)

        return _each(builder, g, args[0], choose, *args)

    return g(g, y), codegen


@intrinsic
def tile_sum(typingctx, tile):
    """The sum of all elements of a tile, vectors first, then lanes."""

    def codegen(context, builder, signature, args):
        total = builder.extract_value(args[0], 0)
        for n in range(1, tile.rows * tile.columns):
            total = builder.fadd(total, builder.extract_value(args[0], n))
        letter = "f32" if tile.dtype.bitwidth == 32 else "f64"
        kind = ir.FunctionType(tile.element, [tile.element, tile.vector])
        name = f"llvm.vector.reduce.fadd.v{tile.lanes}{letter}"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(reduce, [ir.Constant(tile.element, 0.0), total], fastmath=("reassoc",))

    return tile.dtype(tile), codegen


@intrinsic
def div(typingctx, a, b):
    """a / b."""

    def codegen(context, builder, signature, args):
        return _each(builder, a, args[0], builder.fdiv, *args)

    return a(a, b), codegen


@intrinsic
def sqrt(typingctx, a):
    """The square root."""

    def codegen(context, builder, signature, args):
        name = f"llvm.sqrt.v{a.lanes}{'f32' if a.dtype.bitwidth == 32 else 'f64'}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.vector, [a.vector]), name)
        return _each(builder, a, args[0], lambda vector: builder.call(function, [vector]), *args)

    return a(a), codegen


def _clamped(builder: Any, number: int, count: Any) -> Any:
    """min(number, count - 1): what lies beyond the end is taken from the last one, and thrown away later."""
    last = builder.sub(count, ir.Constant(count.type, 1))
    index = ir.Constant(count.type, number)
    return builder.select(builder.icmp_signed("<", index, last), index, last)


@intrinsic(prefer_literal=True)
def add_row_products(typingctx, tile, a, a_offset, a_stride, rows, b, b_offset, b_stride, columns, count, whole):
    """tile[i, j] + a[a_offset + i · a_stride …] · b[b_offset + j · b_stride …], vector by vector.

    Only ``rows`` and ``columns`` vectors are read, and only their first ``count`` lanes unless ``whole`` is 1.
    """
    masked = _literal(whole) == 0

    def codegen(context, builder, signature, args):
        value, av, ao, a_step, wanted_rows, bv, bo, b_step, wanted_columns, number, _ = args

        def vector(kind: Any, array: Any, start: Any, step: Any, index: int, wanted: Any) -> Any:
            offset = builder.add(start, builder.mul(_clamped(builder, index, wanted), step))
            address = _address(context, builder, kind, array, offset)
            return _masked_load(builder, address, _mask(builder, number, 0, tile), tile) if masked else _load(
                builder, address, tile
            )  # fmt: skip

        right = [vector(b, bv, bo, b_step, j, wanted_columns) for j in range(tile.columns)]
        for i in range(tile.rows):
            left = vector(a, av, ao, a_step, i, wanted_rows)
            for j, column in enumerate(right):
                n = i * tile.columns + j
                value = builder.insert_value(value, _fma(builder, left, column, builder.extract_value(value, n)), n)
        return value

    integer = types.int64
    return tile(tile, a, integer, integer, integer, b, integer, integer, integer, integer, whole), codegen


@intrinsic
def add_scaled_rows(typingctx, tile, a, offset, stride, rows, row):
    """tile[i, :] + a[offset + i · stride] · row, where ``row`` is a tile of one row; a is read ``rows`` times."""

    def codegen(context, builder, signature, args):
        value, av, start, step, wanted, line = args
        for i in range(tile.rows):
            place = builder.add(start, builder.mul(_clamped(builder, i, wanted), step))
            scalar = _splat(builder, builder.load(_address(context, builder, a, av, place)), tile.lanes)
            for j in range(tile.columns):
                n = i * tile.columns + j
                product = _fma(builder, scalar, builder.extract_value(line, j), builder.extract_value(value, n))
                value = builder.insert_value(value, product, n)
        return value

    return tile(tile, a, types.int64, types.int64, types.int64, row), codegen


def _lane_sums(builder: Any, vectors: list[Any], lanes: int) -> Any:
    """The vector whose lane n is the sum over vector n: neighbours are added until one vector is left."""
    pick = [ir.Constant(ir.VectorType(ir.IntType(32), lanes), [2 * i + odd for i in range(lanes)]) for odd in (0, 1)]
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [builder.fadd(*(builder.shuffle_vector(a, b, choice) for choice in pick)) for a, b in pairs]
    return vectors[0]


@intrinsic
def store_lane_sums(typingctx, y, offset, stride, tile, rows, columns):
    """y[offset + i · stride + j] = the sum over the lanes of tile[i, j], for the first ``rows`` and ``columns``.

    The tile has a multiple of the lanes' number of vectors.
    """

    def codegen(context, builder, signature, args):
        yv, start, step, value, wanted_rows, wanted_columns = args
        count = tile.rows * tile.columns
        vectors = [builder.extract_value(value, n) for n in range(count)]
        sums = [_lane_sums(builder, vectors[n : n + tile.lanes], tile.lanes) for n in range(0, count, tile.lanes)]
        for i in range(tile.rows):
            for j in range(tile.columns):
                group, lane = divmod(i * tile.columns + j, tile.lanes)
                inside = builder.and_(
                    builder.icmp_signed("<", ir.Constant(_I64, i), wanted_rows),
                    builder.icmp_signed("<", ir.Constant(_I64, j), wanted_columns),
                )
                with builder.if_then(inside):
                    address = _address(context, builder, y, yv, _moved(builder, start, j))
                    builder.store(builder.extract_element(sums[group], ir.Constant(ir.IntType(32), lane)), address)
            start = builder.add(start, step)
        return context.get_dummy_value()

    return types.void(y, types.int64, types.int64, tile, types.int64, types.int64), codegen


@intrinsic
def add_sums(typingctx, y, offset, tile):
    """y[offset + i · columns + j] += the sum over the lanes of tile[i, j], in whole vectors."""

    def codegen(context, builder, signature, args):
        yv, start, value = args
        vectors = [builder.extract_value(value, n) for n in range(tile.rows * tile.columns)]
        vectors += [ir.Constant(tile.vector, None)] * (-len(vectors) % tile.lanes)
        for n in range(0, len(vectors), tile.lanes):
            sums = _lane_sums(builder, vectors[n : n + tile.lanes], tile.lanes)
            address = _address(context, builder, y, yv, _moved(builder, start, n))
            _store(builder, builder.fadd(_load(builder, address, tile), sums), address, tile)
        return context.get_dummy_value()

    return types.void(y, types.int64, tile), codegen
