"""Tile operations on the shifts of one row: what a small kernel over a single channel needs of the vector type.

A row at ``x[offset]`` is known inside a window: its elements from ``low`` to ``high`` - 1, counted from ``offset``. All
others are zero and are not touched in memory. Masks depend on the window alone, so they leave the loop over rows.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import Tile, _address, _fma, _literal, _masked_load, _masked_store, _moved, _splat

_I32 = ir.IntType(32)


def _window_mask(builder: Any, first: int, low: Any, high: Any, kind: Tile) -> Any:
    """Lanes of a vector whose lane i holds element first + i of a row."""
    numbers = ir.Constant(ir.VectorType(_I32, kind.lanes), [first + i for i in range(kind.lanes)])
    low, high = (_splat(builder, builder.trunc(bound, _I32), kind.lanes) for bound in (low, high))
    return builder.and_(builder.icmp_signed(">=", numbers, low), builder.icmp_signed("<", numbers, high))


def _shift(context: Any, builder: Any, array: Any, value: Any, offset: Any, shift: int, low: Any, high: Any) -> Any:
    """The vector array[offset + shift + i]."""
    kind = Tile(array.dtype, 1, 1)
    mask = _window_mask(builder, shift, low, high, kind)
    return _masked_load(builder, _address(context, builder, array, value, _moved(builder, offset, shift)), mask, kind)


def _shifts(context: Any, builder: Any, array: Any, value: Any, window: Any, count: int, step: int) -> list[Any]:
    """The vectors array[offset + j + i * step] for j < count; ``window`` is (offset, low, high)."""
    offset, low, high = window
    at = lambda shift: _shift(context, builder, array, value, offset, shift, low, high)  # noqa: E731
    if step == 1:
        return [at(j) for j in range(count)]
    lanes = Tile(array.dtype, 1, 1).lanes
    vectors = []
    for j in range(0, count, 2):
        halves = at(j), at(j + lanes)
        for odd in range(2):
            pick = ir.Constant(ir.VectorType(_I32, lanes), [2 * i + odd for i in range(lanes)])
            vectors.append(builder.shuffle_vector(*halves, pick))
    return vectors[:count]


def _step(kind: Any) -> int:
    step = _literal(kind)
    if step not in (1, 2):
        raise TypeError(f"a row is read with a step of 1 or 2, not {step}")
    return step


@intrinsic(prefer_literal=True)
def splat_tile(typingctx, w, offset, row_step, column_step, rows, columns):
    """The tile whose element (i, j) is w[offset + i * row_step + j * column_step] in every lane."""
    kind = Tile(w.dtype, _literal(rows), _literal(columns))

    def codegen(context, builder, signature, args):
        wv, start, down, across = args[:4]
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for i in range(kind.rows):
            at = start
            for j in range(kind.columns):
                scalar = builder.load(_address(context, builder, w, wv, at))
                value = builder.insert_value(value, _splat(builder, scalar, kind.lanes), i * kind.columns + j)
                at = builder.add(at, across)
            start = builder.add(start, down)
        return value

    return kind(w, types.int64, types.int64, types.int64, rows, columns), codegen


@intrinsic(prefer_literal=True)
def tile_row(typingctx, tile, row):
    """One row of a tile."""
    kind, chosen = Tile(tile.dtype, 1, tile.columns), _literal(row)

    def codegen(context, builder, signature, args):
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for j in range(tile.columns):
            value = builder.insert_value(value, builder.extract_value(args[0], chosen * tile.columns + j), j)
        return value

    return kind(tile, row), codegen


@intrinsic
def next_rows(typingctx, tile, last):
    """The tile without its first row, with ``last`` behind the others."""

    def codegen(context, builder, signature, args):
        value, columns = args[0], tile.columns
        for n in range((tile.rows - 1) * columns):
            value = builder.insert_value(value, builder.extract_value(args[0], n + columns), n)
        for j in range(columns):
            n = (tile.rows - 1) * columns + j
            value = builder.insert_value(value, builder.extract_value(args[1], j), n)
        return value

    return tile(tile, Tile(tile.dtype, 1, tile.columns)), codegen


@intrinsic(prefer_literal=True)
def add_correlation(typingctx, tile, kernel, x, offset, low, high, step):
    """tile[i] + the sum over j of kernel[i, j] * x[offset + j + lane * step]."""
    stride = _step(step)

    def codegen(context, builder, signature, args):
        value, kv, xv = args[:3]
        for j, vector in enumerate(_shifts(context, builder, x, xv, args[3:6], kernel.columns, stride)):
            for i in range(tile.rows):
                weight = builder.extract_value(kv, i * kernel.columns + j)
                value = builder.insert_value(value, _fma(builder, weight, vector, builder.extract_value(value, i)), i)
        return value

    return tile(tile, kernel, x, types.int64, types.int64, types.int64, step), codegen


@intrinsic
def add_spread(typingctx, tile, kernel, gy, offset, low, high):
    """What a correlation of step ``tile.columns`` gives back: tile[i, e] + the sum over t of
    kernel[i, t * step + e] * gy[offset - t + lane]."""

    def codegen(context, builder, signature, args):
        value, kv, gv, start, first, last = args
        step = tile.columns
        for t in range(-(-kernel.columns // step)):
            vector = _shift(context, builder, gy, gv, start, -t, first, last)
            for i in range(tile.rows):
                for e in range(min(step, kernel.columns - t * step)):
                    n = i * step + e
                    weight = builder.extract_value(kv, i * kernel.columns + t * step + e)
                    total = _fma(builder, weight, vector, builder.extract_value(value, n))
                    value = builder.insert_value(value, total, n)
        return value

    return tile(tile, kernel, gy, types.int64, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def add_shift_products(typingctx, tile, gy, x, offset, low, high, step):
    """tile[i, j] + gy[i] * x[offset + j + lane * step], lane by lane, for the rows gy[i] of a tile."""
    stride = _step(step)

    def codegen(context, builder, signature, args):
        value, gv, xv = args[:3]
        for j, vector in enumerate(_shifts(context, builder, x, xv, args[3:6], tile.columns, stride)):
            for i in range(tile.rows):
                n = i * tile.columns + j
                total = _fma(builder, builder.extract_value(gv, i), vector, builder.extract_value(value, n))
                value = builder.insert_value(value, total, n)
        return value

    return tile(tile, gy, x, types.int64, types.int64, types.int64, step), codegen


@intrinsic
def interleave(typingctx, tile):
    """The elements of a row's vectors in turn: of one vector as they are, of two the first of each, the second, …"""

    def codegen(context, builder, signature, args):
        value = args[0]
        if tile.columns == 2:
            halves = [builder.extract_value(value, j) for j in range(2)]
            for j in range(2):
                first = j * tile.lanes // 2
                turns = [first + i // 2 + i % 2 * tile.lanes for i in range(tile.lanes)]
                pick = ir.Constant(ir.VectorType(_I32, tile.lanes), turns)
                value = builder.insert_value(value, builder.shuffle_vector(*halves, pick), j)
        return value

    if tile.rows != 1 or tile.columns > 2:
        raise TypeError("one row of one or two vectors is interleaved")
    return tile(tile), codegen


@intrinsic
def store_window(typingctx, y, offset, low, high, tile):
    """Write the elements from ``low`` to ``high`` - 1 of a one-row tile at y[offset]."""

    def codegen(context, builder, signature, args):
        yv, start, first, last, value = args
        for j in range(tile.columns):
            mask = _window_mask(builder, j * tile.lanes, first, last, tile)
            address = _address(context, builder, y, yv, _moved(builder, start, j * tile.lanes))
            _masked_store(builder, builder.extract_value(value, j), address, mask, tile)
        return context.get_dummy_value()

    return types.void(y, types.int64, types.int64, types.int64, tile), codegen
