"""The vector type of max pooling: the largest values of neighbouring windows, and where they were."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from ..simd import Tile, _address, _literal, _masked_store, _moved, _splat, _store
from ..simd_shift import _shifts, _step, _window_mask

_I32, _I64 = ir.IntType(32), ir.IntType(64)


class Winners(types.Type):
    """A vector of values and one of positions in a plane."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.tile = dtype, Tile(dtype, 1, 1)
        super().__init__(f"Winners({dtype}, {self.tile.lanes})")

    @property
    def positions(self) -> ir.VectorType:
        return ir.VectorType(_I32, self.tile.lanes)


@register_model(Winners)
class _WinnersModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Winners) -> None:
        super().__init__(manager, kind, ir.LiteralStructType([kind.tile.vector, kind.positions]))


def _columns(kind: Winners, step: int, shift: int = 0) -> Any:
    """shift + lane * step"""
    return ir.Constant(kind.positions, [shift + i * step for i in range(kind.tile.lanes)])


def _spread(builder: Any, number: Any, kind: Winners) -> Any:
    return _splat(builder, builder.trunc(number, _I32), kind.tile.lanes)


@intrinsic(prefer_literal=True)
def no_winners(typingctx, like, row, column, step):
    """Minus infinity at each window's first pixel: windows start at ``column``, ``column + step``, …; a first pixel
    before the row, which starts at position ``row``, is the row's first."""
    kind, stride = Winners(like.dtype), _step(step)

    def codegen(context, builder, signature, args):
        columns = builder.add(_spread(builder, args[2], kind), _columns(kind, stride))
        zero = ir.Constant(kind.positions, None)
        columns = builder.select(builder.icmp_signed(">", columns, zero), columns, zero)
        lowest = ir.Constant(kind.tile.vector, [float("-inf")] * kind.tile.lanes)
        value = builder.insert_value(ir.Constant(context.get_value_type(kind), ir.Undefined), lowest, 0)
        return builder.insert_value(value, builder.add(columns, _spread(builder, args[1], kind)), 1)

    return kind(like, types.int64, types.int64, step), codegen


@intrinsic(prefer_literal=True)
def meet_pixels(typingctx, winners, x, offset, low, high, position, step):
    """Let the winners meet one more pixel of each window: x[offset + lane * step], which has the number
    position + lane * step; those of a row outside its elements from ``low`` to ``high`` - 1 do not count.

    A pixel wins if it is larger than all before it, or NaN."""
    stride = _step(step)

    def codegen(context, builder, signature, args):
        best, where = (builder.extract_value(args[0], i) for i in range(2))
        ((vector,),) = _shifts(context, builder, x, args[1], args[2:5], 1, 1, stride)
        inside = _window_mask(builder, 0, args[3], args[4], winners.tile, stride)
        larger, nan = builder.fcmp_ordered(">", vector, best), builder.fcmp_unordered("uno", vector, vector)
        wins = builder.and_(builder.or_(larger, nan), inside)
        positions = builder.add(_spread(builder, args[5], winners), _columns(winners, stride))
        value = builder.insert_value(args[0], builder.select(wins, vector, best), 0)
        return builder.insert_value(value, builder.select(wins, positions, where), 1)

    return winners(winners, x, types.int64, types.int64, types.int64, types.int64, step), codegen


@intrinsic(prefer_literal=True)
def best_of_windows(typingctx, x, offset, pitch, low, high, position, rows, columns, step):
    """The winners of windows whose ``rows`` lie in the image, rows ``pitch`` elements apart, each row inside its elements
    from ``low`` to ``high`` - 1 only; right where :func:`unusual` says no.

    First the largest value; where it was is the first pixel that equals it, with no chain from pixel to pixel."""
    kind, shape, stride = Winners(x.dtype), (_literal(rows), _literal(columns)), _step(step)
    lowest, unknown = [float("-inf")] * kind.tile.lanes, [float("nan")] * kind.tile.lanes

    def codegen(context, builder, signature, args):
        xv, start, pitch, low, high, position = args[:6]
        pixels = []
        for _ in range(shape[0]):
            (row,) = _shifts(context, builder, x, xv, (start, low, high), shape[1], 1, stride, lowest)
            numbers = _spread(builder, position, kind)
            pixels += [(v, builder.add(numbers, _columns(kind, stride, j))) for j, v in enumerate(row)]
            start, position = builder.add(start, pitch), builder.add(position, pitch)
        best, where = pixels[0]
        nan = builder.fcmp_unordered("uno", best, pixels[-1][0])
        for vector, _ in pixels[1:]:
            best = builder.select(builder.fcmp_ordered(">", vector, best), vector, best)
        for (one, _), (other, _) in zip(pixels[1:-1:2], pixels[2::2], strict=False):
            nan = builder.or_(nan, builder.fcmp_unordered("uno", one, other))
        for vector, numbers in reversed(pixels):
            where = builder.select(builder.fcmp_ordered("==", vector, best), numbers, where)
        best = builder.select(nan, ir.Constant(kind.tile.vector, unknown), best)
        value = builder.insert_value(ir.Constant(context.get_value_type(kind), ir.Undefined), best, 0)
        return builder.insert_value(value, where, 1)

    return kind(x, types.int64, types.int64, types.int64, types.int64, types.int64, rows, columns, step), codegen


@intrinsic
def unusual(typingctx, winners, count):
    """Whether one of the first ``count`` values is NaN or minus infinity."""

    def codegen(context, builder, signature, args):
        kind, best = winners.tile, builder.extract_value(args[0], 0)
        lowest = ir.Constant(kind.vector, [float("-inf")] * kind.lanes)
        odd = builder.fcmp_unordered("==", best, lowest)  # equal, or not comparable
        odd = builder.and_(odd, _window_mask(builder, 0, ir.Constant(_I64, 0), args[1], kind))
        bits = ir.IntType(kind.lanes)
        return builder.icmp_unsigned("!=", builder.bitcast(odd, bits), ir.Constant(bits, 0))

    return types.boolean(winners, types.int64), codegen


@intrinsic
def store_winners(typingctx, y, indices, offset, winners, count):
    """Write the values to y[offset] and the positions to indices[offset], the first ``count`` of them."""

    def codegen(context, builder, signature, args):
        kind = winners.tile
        best, where = (builder.extract_value(args[3], i) for i in range(2))
        positions = builder.sext(where, ir.VectorType(_I64, kind.lanes))
        whole = builder.icmp_signed(">=", args[4], ir.Constant(_I64, kind.lanes))
        target = _address(context, builder, y, args[0], args[2])
        with builder.if_else(whole) as (then, otherwise):
            with then:
                _store(builder, best, target, kind)
                address = _address(context, builder, indices, args[1], args[2])
                stored = builder.store(positions, builder.bitcast(address, positions.type.as_pointer()))
                stored.align = 8
            with otherwise:
                zero = ir.Constant(_I64, 0)
                _masked_store(builder, best, target, _window_mask(builder, 0, zero, args[4], kind), kind)
                for i in range(kind.lanes):
                    with builder.if_then(builder.icmp_signed("<", ir.Constant(_I64, i), args[4])):
                        number = builder.extract_element(positions, ir.Constant(_I32, i))
                        address = _address(context, builder, indices, args[1], _moved(builder, args[2], i))
                        builder.store(number, address)
        return context.get_dummy_value()

    if indices.dtype != types.int64:
        raise TypeError("positions are int64")
    return types.void(y, indices, types.int64, winners, types.int64), codegen
