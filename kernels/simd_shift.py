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


def _window_mask(builder: Any, first: int, low: Any, high: Any, kind: Tile, step: int = 1) -> Any:
    """Lanes of a vector whose lane i holds element first + i * step of a row."""
    numbers = ir.Constant(ir.VectorType(_I32, kind.lanes), [first + i * step for i in range(kind.lanes)])
    low, high = (_splat(builder, builder.trunc(bound, _I32), kind.lanes) for bound in (low, high))
    return builder.and_(builder.icmp_signed(">=", numbers, low), builder.icmp_signed("<", numbers, high))


def _shift(
    context: Any, builder: Any, array: Any, value: Any, offset: Any, shift: int, low: Any, high: Any, other: Any = None
) -> Any:
    """The vector array[offset + shift + i], ``other`` outside the window."""
    kind = Tile(array.dtype, 1, 1)
    mask = _window_mask(builder, shift, low, high, kind)
    address = _address(context, builder, array, value, _moved(builder, offset, shift))
    return _masked_load(builder, address, mask, kind, other)


def _shifts(
    context: Any,
    builder: Any,
    array: Any,
    value: Any,
    window: Any,
    count: int,
    columns: int,
    step: int,
    other: Any = None,
) -> list[list[Any]]:
    """For each of ``columns`` the vectors array[offset + j + (column * lanes + i) * step] for j < count; ``window`` is
    (offset, low, high)."""
    offset, low, high = window
    kind = Tile(array.dtype, 1, 1)
    lanes, zero = kind.lanes, ir.Constant(kind.vector, None)

    def pick(first: Any, second: Any, numbers: list[int]) -> Any:
        return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_I32, lanes), numbers))

    # Each element is loaded once: shifted loads cross cache lines, and took a fifth longer (Zen 5, 3x3).
    needed = (columns * lanes - 1) * step + count
    loaded = [_shift(context, builder, array, value, offset, i, low, high, other) for i in range(0, needed, lanes)]
    if step == 1:
        phases = [loaded]
    else:
        pairs = list(zip(loaded[::2], [*loaded[1::2], zero], strict=False))
        phases = [[pick(*pair, [2 * i + odd for i in range(lanes)]) for pair in pairs] for odd in range(2)]

    def shifted(phase: list[Any], n: int) -> Any:
        first, by = divmod(n, lanes)
        return pick(phase[first], phase[first + 1], [by + i for i in range(lanes)]) if by else phase[first]

    return [[shifted(phases[j % step], column * lanes + j // step) for j in range(count)] for column in range(columns)]


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
def load_row(typingctx, x, offset, low, high, columns):
    """The vectors at x[offset] as a one-row tile."""
    kind = Tile(x.dtype, 1, _literal(columns))

    def codegen(context, builder, signature, args):
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for j in range(kind.columns):
            vector = _shift(context, builder, x, args[0], args[1], j * kind.lanes, *args[2:4])
            value = builder.insert_value(value, vector, j)
        return value

    return kind(x, types.int64, types.int64, types.int64, columns), codegen


@intrinsic(prefer_literal=True)
def add_correlation(typingctx, tile, kernel, x, offset, low, high, step):
    """tile[i] + the sum over j of kernel[i, j] * x[offset + j + lane * step], lanes counted along the tile's row, for the
    first rows of the tile, as many as the kernel has."""
    stride = _step(step)

    def codegen(context, builder, signature, args):
        value, kv, xv = args[:3]
        shifts = _shifts(context, builder, x, xv, args[3:6], kernel.columns, tile.columns, stride)
        for column, vectors in enumerate(shifts):
            for j, vector in enumerate(vectors):
                for i in range(kernel.rows):
                    n = i * tile.columns + column
                    weight = builder.extract_value(kv, i * kernel.columns + j)
                    total = _fma(builder, weight, vector, builder.extract_value(value, n))
                    value = builder.insert_value(value, total, n)
        return value

    return tile(tile, kernel, x, types.int64, types.int64, types.int64, step), codegen


@intrinsic
def add_spread(typingctx, tile, kernel, gy, offset, low, high):
    """What a correlation of step 2 gives back to the even (e = 0) and the odd elements of its row: tile[i, e] + the sum
    over t of kernel[i, 2 * t + e] * gy[offset - t + lane]."""

    def codegen(context, builder, signature, args):
        value, kv, gv, start, first, last = args
        for s in range(kernel.columns):
            if s % 2 == 0:
                vector = _shift(context, builder, gy, gv, start, -(s // 2), first, last)
            for i in range(tile.rows):
                n = i * 2 + s % 2
                weight = builder.extract_value(kv, i * kernel.columns + s)
                value = builder.insert_value(value, _fma(builder, weight, vector, builder.extract_value(value, n)), n)
        return value

    if tile.columns != 2:
        raise TypeError("even and odd elements are spread into two columns")
    return tile(tile, kernel, gy, types.int64, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def add_shift_products(typingctx, tile, gy, x, offset, low, high, step):
    """tile[i, j] + gy[i] * x[offset + j + lane * step] for the last rows gy[i] of a tile, as many as ``tile`` has; the
    columns of gy are added up."""
    stride = _step(step)

    def codegen(context, builder, signature, args):
        value, gv, xv = args[:3]
        shifts = _shifts(context, builder, x, xv, args[3:6], tile.columns, gy.columns, stride)
        for column, vectors in enumerate(shifts):
            for j, vector in enumerate(vectors):
                for i in range(tile.rows):
                    n = i * tile.columns + j
                    row = builder.extract_value(gv, (gy.rows - tile.rows + i) * gy.columns + column)
                    value = builder.insert_value(value, _fma(builder, row, vector, builder.extract_value(value, n)), n)
        return value

    return tile(tile, gy, x, types.int64, types.int64, types.int64, step), codegen


@intrinsic
def interleave(typingctx, tile):
    """The elements of a row of two vectors in turn: the first of each, the second of each, …"""

    def codegen(context, builder, signature, args):
        value = ir.Constant(context.get_value_type(tile), ir.Undefined)
        halves = [builder.extract_value(args[0], j) for j in range(2)]
        for j in range(2):
            first = j * tile.lanes // 2
            turns = [first + i // 2 + i % 2 * tile.lanes for i in range(tile.lanes)]
            vector = builder.shuffle_vector(*halves, ir.Constant(ir.VectorType(_I32, tile.lanes), turns))
            value = builder.insert_value(value, vector, j)
        return value

    if (tile.rows, tile.columns) != (1, 2):
        raise TypeError("one row of two vectors is interleaved")
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
