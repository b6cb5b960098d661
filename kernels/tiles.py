"""Tiles whose rows are pixels or taps and whose lanes are channels.

Such a tile multiplies single elements of an image, wherever they lie, by vectors of channels that were packed once. The
results of a channel then lie in different vectors, so they are transposed in registers on the way to memory.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import (
    _I32,
    _I64,
    VECTOR_BITS,
    Tile,
    _address,
    _fma,
    _literal,
    _load,
    _mask,
    _masked_load,
    _masked_store,
    _moved,
    _prefetch,
    _splat,
    _store,
)  # fmt: skip

AHEAD = 6  # vectors that a transposing load fetches ahead of its many short runs, which hardware does not foresee


def _add_rows(context: Any, builder: Any, tile: Tile, value: Any, a: Any, starts: Any, b: Any, bo: Any) -> Any:
    """value[i, j] + a[starts[i]] * b[bo + j]; a and b are (type, array) pairs."""
    columns = [
        _load(builder, _address(context, builder, b[0], b[1], _moved(builder, bo, j * tile.lanes)), tile)
        for j in range(tile.columns)
    ]
    for i, start in enumerate(starts):
        row = _splat(builder, builder.load(_address(context, builder, a[0], a[1], start)), tile.lanes)
        for j, column in enumerate(columns):
            n = i * tile.columns + j
            value = builder.insert_value(value, _fma(builder, row, column, builder.extract_value(value, n)), n)
    return value


@intrinsic(prefer_literal=True)
def add_outer_groups(typingctx, tile, a, a_offset, step, a_stride, groups, b, b_offset):
    """tile[i, j] + a[start + i * step] * b[b_offset + j]; the rows form ``groups`` groups whose starts are ``a_stride``
    apart."""
    width, between = tile.rows // _literal(groups), _literal(step)

    def codegen(context, builder, signature, args):
        value, av, start, _, apart, _, bv, bo = args
        starts = []
        for i in range(tile.rows):
            if i and i % width == 0:
                start = builder.add(start, apart)
            starts.append(_moved(builder, start, i % width * between))
        return _add_rows(context, builder, tile, value, (a, av), starts, (b, bv), bo)

    return tile(tile, a, types.int64, step, types.int64, groups, b, types.int64), codegen


@intrinsic(prefer_literal=True)
def add_outer_at(typingctx, tile, a, a_offset, shifts, first, width, step, b, b_offset):
    """tile[i, j] + a[start + i % width * step] * b[b_offset + j], where start is a_offset + shifts[first + i // width]."""
    together, between = _literal(width), _literal(step)

    def codegen(context, builder, signature, args):
        value, av, ao, sv, so, _, _, bv, bo = args
        starts, start = [], ao
        for i in range(tile.rows):
            if i % together == 0:
                shift = builder.load(_address(context, builder, shifts, sv, _moved(builder, so, i // together)))
                start = builder.add(ao, shift)
            starts.append(_moved(builder, start, i % together * between))
        return _add_rows(context, builder, tile, value, (a, av), starts, (b, bv), bo)

    return tile(tile, a, types.int64, shifts, types.int64, width, step, b, types.int64), codegen


@intrinsic(prefer_literal=True)
def add_outer_pixels(typingctx, tile, a, a_offset, a_stride, b, b_offset, step):
    """tile[i, j] + a[a_offset + i * a_stride] * b[b_offset + j * step * lanes …]: the columns are whole vectors."""
    between = _literal(step)

    def codegen(context, builder, signature, args):
        value, av, ao, apart, bv, bo, _ = args
        places = (_moved(builder, bo, j * between * tile.lanes) for j in range(tile.columns))
        columns = [_load(builder, _address(context, builder, b, bv, place), tile) for place in places]
        for i in range(tile.rows):
            row = _splat(builder, builder.load(_address(context, builder, a, av, ao)), tile.lanes)
            ao = builder.add(ao, apart)
            for j, column in enumerate(columns):
                n = i * tile.columns + j
                value = builder.insert_value(value, _fma(builder, row, column, builder.extract_value(value, n)), n)
        return value

    return tile(tile, a, types.int64, types.int64, b, types.int64, step), codegen


@intrinsic
def store_pixels(typingctx, y, offset, stride, step, tile):
    """y[offset + i * stride + j * step …] = vector [i, j] of the tile."""

    def codegen(context, builder, signature, args):
        yv, start, apart, between, value = args
        for i in range(tile.rows):
            place = start
            for j in range(tile.columns):
                _store(
                    builder,
                    builder.extract_value(value, i * tile.columns + j),
                    _address(context, builder, y, yv, place),
                    tile,
                )
                place = builder.add(place, between)
            start = builder.add(start, apart)
        return context.get_dummy_value()

    return types.void(y, types.int64, types.int64, types.int64, tile), codegen


@intrinsic
def load_square(typingctx, x, offset):
    """As many vectors as a vector has lanes, one behind the other."""
    kind = Tile(x.dtype, VECTOR_BITS // x.dtype.bitwidth, 1)

    def codegen(context, builder, signature, args):
        xv, start = args
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for i in range(kind.rows):
            address = _address(context, builder, x, xv, _moved(builder, start, i * kind.lanes))
            value = builder.insert_value(value, _load(builder, address, kind), i)
        return value

    return kind(x, types.int64), codegen


def _transposed(builder: Any, vectors: list[Any], lanes: int) -> list[Any]:
    """``lanes`` vectors, the rows of a square matrix, transposed: off-diagonal blocks swapped, then within the blocks."""
    vectors, size = list(vectors), lanes // 2
    while size:
        kept = [i if not i & size else lanes + i - size for i in range(lanes)]
        swapped = [i + size if not i & size else lanes + i for i in range(lanes)]
        for i in range(lanes):
            if not i & size:
                a, b = vectors[i], vectors[i + size]
                for place, chosen in ((i, kept), (i + size, swapped)):
                    numbers = ir.Constant(ir.VectorType(_I32, lanes), chosen)
                    vectors[place] = builder.shuffle_vector(a, b, numbers)
        size //= 2
    return vectors


@intrinsic
def load_transposed(typingctx, x, offset, stride, rows, count):
    """The square tile of x[offset + j * stride + i] in row i and lane j, zero unless j < rows and i < count."""
    lanes = VECTOR_BITS // x.dtype.bitwidth
    kind = Tile(x.dtype, lanes, 1)

    def codegen(context, builder, signature, args):
        xv, start, step, wanted, number = args
        vectors, none = [], ir.Constant(_I64, 0)
        first = start
        for j in range(lanes):
            there = builder.icmp_signed("<", ir.Constant(_I64, j), wanted)
            mask = _mask(builder, builder.select(there, number, none), 0, kind)
            # A load from pages that do not exist is slow even where all lanes are masked (20 times, Zen 5).
            place = builder.select(there, start, first)
            _prefetch(builder, _address(context, builder, x, xv, _moved(builder, place, AHEAD * lanes)), 2)
            vectors.append(_masked_load(builder, _address(context, builder, x, xv, place), mask, kind))
            start = builder.add(start, step)
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for i, vector in enumerate(_transposed(builder, vectors, lanes)):
            value = builder.insert_value(value, vector, i)
        return value

    return kind(x, types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def store_transposed(typingctx, y, offset, step, stride, group_stride, groups, tile, channels, count):
    """y[offset + g * group_stride + l * stride + i * step] = row g * width + i, lane l of the tile.

    The rows form ``groups`` groups of ``width``; lanes run on from column to column. Only lanes l < channels are written,
    of the rows i < count of each group. A ``step`` that is the constant 1 or 2 is faster than any other.
    """
    width = tile.rows // _literal(groups)
    constant = _literal(step) if isinstance(step, types.IntegerLiteral) else 0

    def codegen(context, builder, signature, args):
        yv, start, between, apart, group_apart, _, value, wanted, number = args
        lanes, undefined = tile.lanes, ir.Constant(tile.vector, ir.Undefined)
        between = context.cast(builder, between, signature.args[2], types.int64)
        for block in range(0, tile.rows, lanes):
            rows = range(block, min(block + lanes, tile.rows))
            pieces = []  # of a transposed vector, each in its group: where it goes and which lanes
            for group in range(rows[0] // width, rows[-1] // width + 1):
                places = [row - group * width for row in range(block, block + lanes)]
                inside = ir.Constant(ir.VectorType(ir.IntType(1), lanes), [0 <= i < width for i in places])
                numbers = ir.Constant(ir.VectorType(_I64, lanes), places)
                mask = builder.and_(inside, builder.icmp_signed("<", numbers, _splat(builder, number, lanes)))
                to = builder.add(start, builder.mul(ir.Constant(_I64, group), group_apart))
                pieces.append((builder.add(to, builder.mul(ir.Constant(_I64, places[0]), between)), mask))
            for j in range(tile.columns):
                vectors = [builder.extract_value(value, i * tile.columns + j) for i in rows]
                vectors = _transposed(builder, vectors + [undefined] * (lanes - len(vectors)), lanes)
                for lane, vector in enumerate(vectors):
                    channel = ir.Constant(_I64, j * lanes + lane)
                    with builder.if_then(builder.icmp_signed("<", channel, wanted)):
                        for to, mask in pieces:
                            address = _address(context, builder, y, yv, builder.add(to, builder.mul(channel, apart)))
                            if constant == 1:
                                _masked_store(builder, vector, address, mask, tile)
                            elif constant == 2:
                                _store_every_second(builder, vector, address, mask, tile)
                            else:
                                _scatter(builder, vector, address, between, mask, tile)
        return context.get_dummy_value()

    number = types.int64
    return types.void(y, number, step if constant else number, number, number, groups, tile, number, number), codegen


def _store_every_second(builder: Any, value: Any, address: Any, mask: Any, kind: Tile) -> None:
    """Write the chosen lanes of a vector two elements apart: each half, spread to a whole vector with gaps."""
    lanes, bits = kind.lanes, mask.type
    for half in range(2):
        numbers = [half * lanes // 2 + i // 2 for i in range(lanes)]
        spread = ir.Constant(ir.VectorType(_I32, lanes), numbers)
        vector = builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), spread)
        chosen = builder.shuffle_vector(mask, ir.Constant(bits, ir.Undefined), spread)
        chosen = builder.and_(chosen, ir.Constant(bits, [i % 2 == 0 for i in range(lanes)]))
        place = builder.gep(address, [ir.Constant(_I64, half * lanes)], inbounds=False)
        _masked_store(builder, vector, place, chosen, kind)


def _scatter(builder: Any, value: Any, address: Any, step: Any, mask: Any, kind: Tile) -> None:
    """Write the chosen lanes of a vector ``step`` elements apart."""
    numbers = ir.VectorType(_I64, kind.lanes)
    bytes_apart = [i * kind.dtype.bitwidth // 8 for i in range(kind.lanes)]
    places = builder.mul(ir.Constant(numbers, bytes_apart), _splat(builder, step, kind.lanes))
    places = builder.add(_splat(builder, builder.ptrtoint(address, _I64), kind.lanes), places)
    pointers = builder.inttoptr(places, ir.VectorType(kind.element.as_pointer(), kind.lanes))
    name = f"llvm.masked.scatter.v{kind.lanes}{'f32' if kind.dtype.bitwidth == 32 else 'f64'}.v{kind.lanes}p0"
    signature = ir.FunctionType(ir.VoidType(), [kind.vector, pointers.type, _I32, mask.type])
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    builder.call(function, [value, pointers, ir.Constant(_I32, kind.dtype.bitwidth // 8), mask])
