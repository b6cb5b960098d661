"""Arithmetic between tiles of the CPU vector type, lane by lane, for kernels that pass over memory once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import Tile, _address, _fma, _literal, _mask, _masked_load, _moved, _splat


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
