"""Lane exchanges: squares of lanes x lanes elements turned in registers, and vectors spread over every second element."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import _I32, _I64, VECTOR_BITS, Tile, _address, _load, _masked_load, _splat


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


@intrinsic
def load_square(typingctx, y, offset, stride):
    """The square at y[offset], rows ``stride`` elements apart: a tile of as many rows as a vector has lanes."""
    lanes = VECTOR_BITS // y.dtype.bitwidth
    kind = Tile(y.dtype, lanes, 1)

    def codegen(context, builder, signature, args):
        yv, start, step = args
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for i in range(lanes):
            value = builder.insert_value(value, _load(builder, _address(context, builder, y, yv, start), kind), i)
            start = builder.add(start, step)
        return value

    return kind(y, types.int64, types.int64), codegen


@intrinsic
def load_square_part(typingctx, y, offset, stride, rows, count):
    """As :func:`load_square`, but reading only the first ``count`` elements of the first ``rows`` rows; others are zero."""
    lanes = VECTOR_BITS // y.dtype.bitwidth
    kind = Tile(y.dtype, lanes, 1)

    def codegen(context, builder, signature, args):
        yv, start, step, wanted, number = args
        numbers = ir.Constant(ir.VectorType(_I64, lanes), list(range(lanes)))
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for i in range(lanes):
            inside = builder.icmp_signed("<", ir.Constant(_I64, i), wanted)
            length = builder.select(inside, number, ir.Constant(_I64, 0))
            mask = builder.icmp_signed("<", numbers, _splat(builder, length, lanes))
            vector = _masked_load(builder, _address(context, builder, y, yv, start), mask, kind)
            value = builder.insert_value(value, vector, i)
            start = builder.add(start, step)
        return value

    return kind(y, types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def turn_square(typingctx, square):
    """The transposed square: blocks of half the size change places, then blocks of half that size in each of them …

    Source: Eklundh, "A fast computer method for matrix transposing", 1972.
    """

    def codegen(context, builder, signature, args):
        lanes = square.lanes
        rows = [builder.extract_value(args[0], i) for i in range(lanes)]
        size = lanes // 2
        while size:
            low = [j if not j & size else lanes + j - size for j in range(lanes)]
            high = [j + size if not j & size else lanes + j for j in range(lanes)]
            for i in range(lanes):
                if not i & size:
                    a, b = rows[i], rows[i + size]
                    rows[i], rows[i + size] = _shuffle(builder, a, b, low), _shuffle(builder, a, b, high)
            size //= 2
        value = args[0]
        for i, row in enumerate(rows):
            value = builder.insert_value(value, row, i)
        return value

    return square(square), codegen


@intrinsic
def spread_vector(typingctx, y, offset):
    """The vector at y[offset] with a zero behind each element, as a tile of one row and two columns."""
    kind, pair = Tile(y.dtype, 1, 1), Tile(y.dtype, 1, 2)

    def codegen(context, builder, signature, args):
        lanes, vector = kind.lanes, _load(builder, _address(context, builder, y, *args), kind)
        value, zero = ir.Constant(context.get_value_type(pair), ir.Undefined), ir.Constant(kind.vector, None)
        for half in range(2):
            places = [(half * lanes + j) // 2 if j % 2 == 0 else lanes for j in range(lanes)]
            value = builder.insert_value(value, _shuffle(builder, vector, zero, places), half)
        return value

    return pair(y, types.int64), codegen
