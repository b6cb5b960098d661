"""The CPU vector type: register tiles that kernels load, multiply and store.

Numba vectorises simple loops, but it cannot keep a block of sums in registers across a loop. A ``Tile`` can: it is a value
of rows x columns hardware vectors, which LLVM keeps in registers as long as they fit. A kernel reads like the algorithm::

    tile = zero_tile(y, ROWS, COLUMNS)
    for t in range(taps):
        tile = add_outer(tile, w, t * ROWS, x, offsets[t])    # tile[i, j] += w[t * ROWS + i] * x[offsets[t] + j]
    store_tile(y, first, row_stride, tile)

Arrays are flat positions: ``x, i`` is the element i of x in memory, whatever x's shape. Vectors need no alignment. The
functions whose names end in ``_part`` touch only the first ``count`` of a tile's columns in memory.

The number of lanes comes from the host's features (512-bit, 256-bit or 128-bit registers). CONVKERN_VECTOR_BITS forces it.
"""

from __future__ import annotations

import os
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, register_model

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def host_features() -> dict[str, bool]:
    """CPU features that Numba compiles for: the host's, or those forced through NUMBA_CPU_NAME and NUMBA_CPU_FEATURES."""
    if config.CPU_NAME in (None, "", "host") and config.CPU_FEATURES is None:
        return dict(binding.get_host_cpu_features())
    listed = (config.CPU_FEATURES or "").split(",")
    return {feature[1:]: True for feature in listed if feature.startswith("+")}


def _vector_bits() -> int:
    forced = os.environ.get("CONVKERN_VECTOR_BITS")
    if forced:
        if forced not in ("128", "256", "512"):
            raise ValueError(f"CONVKERN_VECTOR_BITS must be 128, 256 or 512, got {forced!r}")
        return int(forced)
    features = host_features()
    if features.get("avx512f"):
        return 512
    return 256 if features.get("avx2") and features.get("fma") else 128


VECTOR_BITS = _vector_bits()
REGISTERS = 32 if VECTOR_BITS == 512 or binding.get_process_triple().startswith(("aarch64", "arm64")) else 16
HAS_FMA = bool(host_features().get("fma") or host_features().get("neon"))


class Tile(types.Type):
    """rows x columns vectors of one floating type."""

    def __init__(self, dtype: Any, rows: int, columns: int) -> None:
        self.dtype, self.rows, self.columns = dtype, rows, columns
        self.lanes = VECTOR_BITS // dtype.bitwidth
        super().__init__(f"Tile({dtype}, {rows}, {columns}, {self.lanes})")

    @property
    def element(self) -> ir.Type:
        return ir.FloatType() if self.dtype.bitwidth == 32 else ir.DoubleType()

    @property
    def vector(self) -> ir.VectorType:
        return ir.VectorType(self.element, self.lanes)


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Tile) -> None:
        super().__init__(manager, kind, ir.ArrayType(kind.vector, kind.rows * kind.columns))


def _literal(kind: Any) -> int:
    if not isinstance(kind, types.IntegerLiteral):
        raise TypeError("the rows and columns of a tile are compile-time constants")
    return int(kind.literal_value)


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset], inbounds=False)


def _load(builder: Any, address: Any, kind: Tile) -> Any:
    value = builder.load(builder.bitcast(address, kind.vector.as_pointer()))
    value.align = kind.dtype.bitwidth // 8
    return value


def _store(builder: Any, value: Any, address: Any, kind: Tile) -> None:
    stored = builder.store(value, builder.bitcast(address, kind.vector.as_pointer()))
    stored.align = kind.dtype.bitwidth // 8


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    vector = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, lanes), None))


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    # Without FMA hardware llvm.fma calls a library routine for every lane; fmuladd then is a product and a sum.
    lanes, letter = a.type.count, "f32" if isinstance(a.type.element, ir.FloatType) else "f64"
    name = f"llvm.{'fma' if HAS_FMA else 'fmuladd'}.v{lanes}{letter}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(function, [a, b, c])


def _mask(builder: Any, count: Any, column: int, kind: Tile) -> Any:
    """Lanes of a column that lie before ``count``."""
    return _before(builder, column * kind.lanes, count, kind)


def _before(builder: Any, first: int, limit: Any, kind: Tile) -> Any:
    """Lanes, numbered from ``first``, before ``limit``: compared as 32-bit numbers, which fill half the registers."""
    numbers = ir.Constant(ir.VectorType(_I32, kind.lanes), [first + i for i in range(kind.lanes)])
    return builder.icmp_signed("<", numbers, _splat(builder, builder.trunc(limit, _I32), kind.lanes))


def _masked_name(what: str, kind: Tile) -> str:
    letter = "f32" if kind.dtype.bitwidth == 32 else "f64"
    return f"llvm.masked.{what}.v{kind.lanes}{letter}.p0"


def _masked_load(builder: Any, address: Any, mask: Any, kind: Tile, other: Any = None) -> Any:
    pointer = builder.bitcast(address, kind.vector.as_pointer())
    signature = ir.FunctionType(kind.vector, [pointer.type, _I32, mask.type, kind.vector])
    name = _masked_name("load", kind) + f"v{kind.lanes}{'f32' if kind.dtype.bitwidth == 32 else 'f64'}"
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    align = ir.Constant(_I32, kind.dtype.bitwidth // 8)
    return builder.call(function, [pointer, align, mask, ir.Constant(kind.vector, other)])


def _masked_store(builder: Any, value: Any, address: Any, mask: Any, kind: Tile) -> None:
    pointer = builder.bitcast(address, kind.vector.as_pointer())
    signature = ir.FunctionType(ir.VoidType(), [kind.vector, pointer.type, _I32, mask.type])
    name = _masked_name("store", kind) + f"v{kind.lanes}{'f32' if kind.dtype.bitwidth == 32 else 'f64'}"
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    builder.call(function, [value, pointer, ir.Constant(_I32, kind.dtype.bitwidth // 8), mask])


def _moved(builder: Any, offset: Any, elements: int) -> Any:
    return builder.add(offset, ir.Constant(_I64, elements))


def _prefetch(builder: Any, address: Any, level: int, write: bool = False) -> None:
    """Fetch the cache line at an address into the cache of ``level``."""
    pointer = builder.bitcast(address, ir.IntType(8).as_pointer())
    signature = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    builder.call(function, [pointer, _I32(int(write)), _I32(4 - level), _I32(1)])


@intrinsic(prefer_literal=True)
def prefetch(typingctx, x, offset, columns, level):
    """Fetch the lines of ``columns`` vectors at x[offset], which may lie outside x, into the cache of ``level``, 1 or 2.

    Runs that lie multiples of 4096 bytes apart belong in the second: in the first they drive each other out.
    """
    kind, cache = Tile(x.dtype, 1, _literal(columns)), _literal(level)

    def codegen(context, builder, signature, args):
        for j in range(kind.columns):
            _prefetch(builder, _address(context, builder, x, args[0], _moved(builder, args[1], j * kind.lanes)), cache)
        return context.get_dummy_value()

    return types.void(x, types.int64, columns, level), codegen


@intrinsic(prefer_literal=True)
def zero_tile(typingctx, like, rows, columns):
    """A tile of zeros of ``like``'s dtype."""
    kind = Tile(like.dtype, _literal(rows), _literal(columns))

    def codegen(context, builder, signature, args):
        return ir.Constant(context.get_value_type(kind), None)

    return kind(like, rows, columns), codegen


@intrinsic
def add_outer(typingctx, tile, a, a_offset, b, b_offset):
    """tile[i, j] + a[a_offset + i] * b[b_offset + j], over all rows i and all lanes j of the columns."""

    def codegen(context, builder, signature, args):
        value, av, ao, bv, bo = args
        columns = [
            _load(builder, _address(context, builder, b, bv, _moved(builder, bo, j * tile.lanes)), tile)
            for j in range(tile.columns)
        ]
        for i in range(tile.rows):
            scalar = builder.load(_address(context, builder, a, av, _moved(builder, ao, i)))
            row = _splat(builder, scalar, tile.lanes)
            for j, column in enumerate(columns):
                n = i * tile.columns + j
                value = builder.insert_value(value, _fma(builder, row, column, builder.extract_value(value, n)), n)
        return value

    return tile(tile, a, types.int64, b, types.int64), codegen


@intrinsic
def add_outer_rows(typingctx, tile, a, a_offset, a_stride, b, b_offset):
    """tile[i, j] + a[a_offset + i * a_stride] * b[b_offset + j]: the outer product with a column of a matrix in place."""

    def codegen(context, builder, signature, args):
        value, av, ao, step, bv, bo = args
        columns = [
            _load(builder, _address(context, builder, b, bv, _moved(builder, bo, j * tile.lanes)), tile)
            for j in range(tile.columns)
        ]
        for i in range(tile.rows):
            row = _splat(builder, builder.load(_address(context, builder, a, av, ao)), tile.lanes)
            ao = builder.add(ao, step)
            for j, column in enumerate(columns):
                n = i * tile.columns + j
                value = builder.insert_value(value, _fma(builder, row, column, builder.extract_value(value, n)), n)
        return value

    return tile(tile, a, types.int64, types.int64, b, types.int64), codegen


@intrinsic
def add_outer_row(typingctx, tile, a, a_offset, row):
    """tile[i, j] + a[a_offset + i] * row[0, j]: the outer product with vectors that are in registers already."""

    def codegen(context, builder, signature, args):
        value, av, ao, vectors = args
        for i in range(tile.rows):
            scalar = builder.load(_address(context, builder, a, av, _moved(builder, ao, i)))
            factor = _splat(builder, scalar, tile.lanes)
            for j in range(tile.columns):
                n = i * tile.columns + j
                column = builder.extract_value(vectors, j)
                value = builder.insert_value(value, _fma(builder, factor, column, builder.extract_value(value, n)), n)
        return value

    return tile(tile, a, types.int64, row), codegen


@intrinsic(prefer_literal=True)
def load_tile(typingctx, y, offset, stride, rows, columns):
    """The tile at y[offset], rows ``stride`` elements apart."""
    kind = Tile(y.dtype, _literal(rows), _literal(columns))

    def codegen(context, builder, signature, args):
        yv, start, step = args[:3]
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for i in range(kind.rows):
            for j in range(kind.columns):
                address = _address(context, builder, y, yv, _moved(builder, start, j * kind.lanes))
                value = builder.insert_value(value, _load(builder, address, kind), i * kind.columns + j)
            start = builder.add(start, step)
        return value

    return kind(y, types.int64, types.int64, rows, columns), codegen


@intrinsic
def load_window(typingctx, y, offset, low, high):
    """The vector at y[offset], reading only its lanes from ``low`` to ``high`` - 1; the others are zero."""
    kind = Tile(y.dtype, 1, 1)

    def codegen(context, builder, signature, args):
        yv, start, first, last = args
        chosen = builder.and_(builder.not_(_before(builder, 0, first, kind)), _before(builder, 0, last, kind))
        vector = _masked_load(builder, _address(context, builder, y, yv, start), chosen, kind)
        return builder.insert_value(ir.Constant(context.get_value_type(kind), ir.Undefined), vector, 0)

    return kind(y, types.int64, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def load_every(typingctx, y, offset, step, low, high):
    """The vector of y[offset + i * step], reading only its lanes from ``low`` to ``high`` - 1; the others are zero.

    ``step`` whole vectors are read, and lanes picked: a gather, which reads lane by lane, takes several times as long.
    """
    kind, count = Tile(y.dtype, 1, 1), _literal(step)

    def codegen(context, builder, signature, args):
        yv, start, _, first, last = args
        stride = ir.Constant(_I64, count)
        first = builder.mul(first, stride)
        last = builder.sub(builder.mul(last, stride), ir.Constant(_I64, count - 1))
        vector = ir.Constant(kind.vector, ir.Undefined)
        for piece in range(count):
            behind = builder.not_(_before(builder, piece * kind.lanes, first, kind))
            chosen = builder.and_(behind, _before(builder, piece * kind.lanes, last, kind))
            address = _address(context, builder, y, yv, _moved(builder, start, piece * kind.lanes))
            loaded = _masked_load(builder, address, chosen, kind)
            places = [i * count - piece * kind.lanes for i in range(kind.lanes)]
            picked = [kind.lanes + p if 0 <= p < kind.lanes else i for i, p in enumerate(places)]
            vector = builder.shuffle_vector(vector, loaded, ir.Constant(ir.VectorType(_I32, kind.lanes), picked))
        return builder.insert_value(ir.Constant(context.get_value_type(kind), ir.Undefined), vector, 0)

    return kind(y, types.int64, step, types.int64, types.int64), codegen


@intrinsic
def store_tile(typingctx, y, offset, stride, tile):
    """Write a tile to y[offset], rows ``stride`` elements apart."""

    def codegen(context, builder, signature, args):
        yv, start, step, value = args
        for i in range(tile.rows):
            for j in range(tile.columns):
                address = _address(context, builder, y, yv, _moved(builder, start, j * tile.lanes))
                _store(builder, builder.extract_value(value, i * tile.columns + j), address, tile)
            start = builder.add(start, step)
        return context.get_dummy_value()

    return types.void(y, types.int64, types.int64, tile), codegen


@intrinsic
def store_tile_part(typingctx, y, offset, stride, tile, rows, count):
    """Write the first ``count`` lanes of the first ``rows`` rows of a tile."""

    def codegen(context, builder, signature, args):
        yv, start, step, value, wanted, number = args
        for i in range(tile.rows):
            with builder.if_then(builder.icmp_signed("<", ir.Constant(_I64, i), wanted)):
                for j in range(tile.columns):
                    address = _address(context, builder, y, yv, _moved(builder, start, j * tile.lanes))
                    mask = _mask(builder, number, j, tile)
                    _masked_store(builder, builder.extract_value(value, i * tile.columns + j), address, mask, tile)
            start = builder.add(start, step)
        return context.get_dummy_value()

    return types.void(y, types.int64, types.int64, tile, types.int64, types.int64), codegen


@intrinsic
def add_bias(typingctx, tile, bias, first):
    """Row i of the tile + bias[first + i]; rows beyond the end of bias take its last value."""

    def codegen(context, builder, signature, args):
        value, bv, start = args
        last = builder.sub(
            builder.extract_value(context.make_array(bias)(context, builder, bv).shape, 0), ir.Constant(_I64, 1)
        )
        for i in range(tile.rows):
            index = _moved(builder, start, i)
            index = builder.select(builder.icmp_signed("<", index, last), index, last)
            row = _splat(builder, builder.load(_address(context, builder, bias, bv, index)), tile.lanes)
            for n in range(i * tile.columns, (i + 1) * tile.columns):
                value = builder.insert_value(value, builder.fadd(builder.extract_value(value, n), row), n)
        return value

    return tile(tile, bias, types.int64), codegen


@intrinsic
def add_scalar(typingctx, tile, scalar):
    """Every element of the tile + scalar."""

    def codegen(context, builder, signature, args):
        value, number = args
        row = _splat(builder, number, tile.lanes)
        for n in range(tile.rows * tile.columns):
            value = builder.insert_value(value, builder.fadd(builder.extract_value(value, n), row), n)
        return value

    return tile(tile, tile.dtype), codegen


@intrinsic
def add_tiles(typingctx, tile, other):
    """The sum of two tiles of one shape."""

    def codegen(context, builder, signature, args):
        value = args[0]
        for n in range(tile.rows * tile.columns):
            total = builder.fadd(*(builder.extract_value(arg, n) for arg in args))
            value = builder.insert_value(value, total, n)
        return value

    return tile(tile, tile), codegen


@intrinsic
def relu_tile(typingctx, tile):
    """max(tile, 0); NaN stays."""

    def codegen(context, builder, signature, args):
        value, zero = args[0], ir.Constant(tile.vector, None)
        for n in range(tile.rows * tile.columns):
            vector = builder.extract_value(value, n)
            kept = builder.fcmp_unordered(">", vector, zero)  # greater, or not comparable
            value = builder.insert_value(value, builder.select(kept, vector, zero), n)
        return value

    return tile(tile), codegen


@intrinsic
def add_products(typingctx, tile, a, a_offset, a_stride, b, b_offset, shifts, first):
    """tile[i, j] + a[a_offset + i * a_stride …] * b[b_offset + shifts[first + j] …], vector by vector."""

    def codegen(context, builder, signature, args):
        value, av, ao, step, bv, bo, sv, so = args
        columns = []
        for j in range(tile.columns):
            shift = builder.load(_address(context, builder, shifts, sv, _moved(builder, so, j)))
            columns.append(_load(builder, _address(context, builder, b, bv, builder.add(bo, shift)), tile))
        for i in range(tile.rows):
            row = _load(builder, _address(context, builder, a, av, ao), tile)
            ao = builder.add(ao, step)
            for j, column in enumerate(columns):
                n = i * tile.columns + j
                value = builder.insert_value(value, _fma(builder, row, column, builder.extract_value(value, n)), n)
        return value

    return tile(tile, a, types.int64, types.int64, b, types.int64, shifts, types.int64), codegen


@intrinsic
def add_lane_sums(typingctx, y, offset, stride, tile, rows, columns):
    """y[offset + i * stride + j] += the sum over the lanes of tile[i, j], for the first rows and columns."""

    def codegen(context, builder, signature, args):
        yv, start, step, value, wanted_rows, wanted_columns = args
        letter = "f32" if tile.dtype.bitwidth == 32 else "f64"
        reduce = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(tile.element, [tile.element, tile.vector]),
            f"llvm.vector.reduce.fadd.v{tile.lanes}{letter}",
        )
        for i in range(tile.rows):
            for j in range(tile.columns):
                inside = builder.and_(
                    builder.icmp_signed("<", ir.Constant(_I64, i), wanted_rows),
                    builder.icmp_signed("<", ir.Constant(_I64, j), wanted_columns),
                )
                with builder.if_then(inside):
                    address = _address(context, builder, y, yv, _moved(builder, start, j))
                    vector = builder.extract_value(value, i * tile.columns + j)
                    zero = ir.Constant(tile.element, 0.0)
                    total = builder.call(reduce, [zero, vector], fastmath=("reassoc",))
                    builder.store(builder.fadd(builder.load(address), total), address)
            start = builder.add(start, step)
        return context.get_dummy_value()

    return types.void(y, types.int64, types.int64, tile, types.int64, types.int64), codegen


@intrinsic
def lanes_of(typingctx, like):
    """Elements in a vector of ``like``'s dtype."""
    lanes = VECTOR_BITS // like.dtype.bitwidth

    def codegen(context, builder, signature, args):
        return ir.Constant(_I64, lanes)

    return types.int64(like), codegen
