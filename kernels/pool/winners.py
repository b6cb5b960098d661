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


def _columns(builder: Any, kind: Winners, step: int, shift: int = 0) -> Any:
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
        columns = builder.add(_spread(builder, args[2], kind), _columns(builder, kind, stride))
        zero = ir.Constant(kind.positions, None)
        columns = builder.select(builder.icmp_signed(">", columns, zero), columns, zero)
        lowest = ir.Constant(kind.tile.vector, [float("-inf")] * kind.tile.lanes)
        value = builder.insert_value(ir.Constant(context.get_value_type(kind), ir.Undefined), lowest, 0)
        return builder.insert_value(value, builder.add(columns, _spread(builder, args[1], kind)), 1)

    return kind(like, types.int64, types.int64, step), codegen


@intrinsic(prefer_literal=True)
def meet_row(typingctx, winners, x, offset, low, high, position, columns, step):
    """Let the winners meet the ``columns`` pixels of each window in one more row: x[offset + lane * step + j], which has
    the number position + lane * step + j; those outside the window from ``low`` to ``high`` - 1 do not count.

    A pixel wins if it is larger than all before it, or NaN."""
    count, stride = _literal(columns), _step(step)

    def codegen(context, builder, signature, args):
        kind = winners.tile
        best, where = (builder.extract_value(args[0], i) for i in range(2))
        start, low, high = args[2:5]
        position = _spread(builder, args[5], winners)
        for j, vector in enumerate(_shifts(context, builder, x, args[1], (start, low, high), count, 1, stride)[0]):
            larger, nan = builder.fcmp_ordered(">", vector, best), builder.fcmp_unordered("uno", vector, vector)
            inside = _window_mask(builder, j, low, high, kind, stride)
            wins = builder.and_(builder.or_(larger, nan), inside)
            best = builder.select(wins, vector, best)
            where = builder.select(wins, builder.add(position, _columns(builder, winners, stride, j)), where)
        return builder.insert_value(builder.insert_value(args[0], best, 0), where, 1)

    return winners(winners, x, types.int64, types.int64, types.int64, types.int64, columns, step), codegen


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
