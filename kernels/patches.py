"""Tiles whose lanes are neighbouring patches of an image, and the small matrices of Winograd's transforms.

Patches of SIZE x SIZE pixels lie ``step`` pixels apart. A ``Tile(SIZE, SIZE)`` holds one pixel position of ``lanes``
patches in each of its vectors, so that a transform of a patch is arithmetic between vectors. Where an image has fewer
patches in a row than a vector has lanes, a vector takes its patches in ``parts`` groups from as many places.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import _I32, Tile, _address, _fma, _literal, _load, _moved, _prefetch, _splat, _store

Matrix = Sequence[Sequence[float]]

SIZE = 6  # pixels of a patch, and points of the transform

# --- the transforms: Toom-Cook on the points 0, 1, -1, 2, -2 and infinity, each with its opposite beside it


_BUTTERFLY = ((1, 0, 0, 0, 0, 0), (0, 1, 1, 0, 0, 0), (0, 1, -1, 0, 0, 0),
              (0, 0, 0, 1, 1, 0), (0, 0, 0, 1, -1, 0), (0, 0, 0, 0, 0, 1))  # fmt: skip

# Even and odd parts of the polynomials that vanish on all points but one.
_INPUT_PARTS = ((4, 0, -5, 0, 1, 0), (0, 0, -4, 0, 1, 0), (0, -4, 0, 1, 0, 0),
                (0, 0, -1, 0, 1, 0), (0, -2, 0, 2, 0, 0), (0, 4, 0, -5, 0, 1))  # fmt: skip


def _filter_parts(taps: int) -> Matrix:
    """A filter's polynomial at the points, even and odd part, over the points' distances to all others."""
    rows = [[1 / 4 if i == 0 else 0.0 for i in range(taps)]]
    for point, distances in ((1, -6), (2, 24)):
        for parity in range(2):
            rows.append([point**i / distances if i % 2 == parity else 0.0 for i in range(taps)])
    rows.append([1.0 if i == taps - 1 else 0.0 for i in range(taps)])
    return rows


def _output_parts(results: int) -> Matrix:
    """The powers that turn sums and differences of opposite points into results."""
    return [
        [
            1.0 if i == 0 else 0.0,
            *(float(point**i) if i % 2 == parity else 0.0 for point in (1, 2) for parity in range(2)),
            1.0 if i == results - 1 else 0.0,
        ]
        for i in range(results)
    ]


INPUT: tuple[Matrix, ...] = (_INPUT_PARTS, _BUTTERFLY)
FILTER: dict[int, tuple[Matrix, ...]] = {taps: (_filter_parts(taps), _BUTTERFLY) for taps in (2, 3, 4, 5)}
OUTPUT: dict[int, tuple[Matrix, ...]] = {results: (_BUTTERFLY, _output_parts(results)) for results in (2, 3, 4, 5)}


def whole(factors: tuple[Matrix, ...]) -> list[list[float]]:
    """The product of a transform's factors, first factor rightmost."""
    return reduce(
        lambda right, left: [
            [sum(a * row[j] for a, row in zip(line, right, strict=True)) for j in range(len(right[0]))] for line in left
        ],
        factors[1:],
        [list(map(float, line)) for line in factors[0]],
    )


def _combine(builder: Any, coefficients: Sequence[float], vectors: Sequence[Any]) -> Any:
    """The sum of coefficients times vectors, with as few operations as the coefficients allow."""
    terms = [(float(c), v) for c, v in zip(coefficients, vectors, strict=True) if c]
    terms.sort(key=lambda term: (term[0] != 1, abs(term[0]) != 1))  # a start without a product, where there is one
    kind = vectors[0].type
    total = None
    for coefficient, vector in terms:
        constant = ir.Constant(kind, [coefficient] * kind.count)
        if total is None:
            total = vector if coefficient == 1 else builder.fmul(constant, vector)
        elif coefficient == 1:
            total = builder.fadd(total, vector)
        elif coefficient == -1:
            total = builder.fsub(total, vector)
        else:
            total = _fma(builder, constant, vector, total)
    return ir.Constant(kind, None) if total is None else total


def _transform(name: str, factors: tuple[Matrix, ...]) -> Any:
    """An intrinsic that multiplies a tile by the factors from the left and by their transposes from the right."""

    def transform(typingctx, tile):
        rows = len(factors[-1])
        kind = Tile(tile.dtype, rows, rows)

        def codegen(context, builder, signature, args):
            grid = [
                [builder.extract_value(args[0], i * tile.columns + j) for j in range(tile.columns)]
                for i in range(tile.rows)
            ]
            for _ in range(2):  # columns, then rows
                for factor in factors:
                    columns = list(zip(*grid, strict=True))
                    grid = [[_combine(builder, line, column) for column in columns] for line in factor]
                grid = [list(column) for column in zip(*grid, strict=True)]
            value = ir.Constant(context.get_value_type(kind), ir.Undefined)
            for i in range(rows):
                for j in range(rows):
                    value = builder.insert_value(value, grid[i][j], i * rows + j)
            return value

        return kind(tile), codegen

    transform.__name__ = name
    return intrinsic(transform)


transform_input = _transform("transform_input", INPUT)
transform_filter = {taps: _transform(f"transform_filter_{taps}", factors) for taps, factors in FILTER.items()}
transform_output = {results: _transform(f"transform_output_{results}", factors) for results, factors in OUTPUT.items()}

# --- patches from and to memory


def _shuffle(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))


def _apart(builder: Any, vectors: Sequence[Any]) -> list[Any]:
    """From vectors that follow each other: element i, i + count, i + 2 count … for each i < count."""
    if len(vectors) == 1:
        return list(vectors)
    lanes = vectors[0].type.count
    pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
    halves = [
        _apart(builder, [_shuffle(builder, a, b, range(odd, 2 * lanes, 2)) for a, b in pairs]) for odd in range(2)
    ]
    return [vector for pair in zip(*halves, strict=True) for vector in pair]


def _together(builder: Any, vectors: Sequence[Any]) -> list[Any]:
    """The inverse of :func:`_apart`."""
    if len(vectors) == 1:
        return list(vectors)
    lanes = vectors[0].type.count
    even, odd = _together(builder, vectors[::2]), _together(builder, vectors[1::2])
    zipped = [lane for i in range(lanes) for lane in (i, lanes + i)]
    return [
        _shuffle(builder, a, b, zipped[half * lanes : (half + 1) * lanes])
        for a, b in zip(even, odd, strict=True)
        for half in range(2)
    ]


def _join(builder: Any, vectors: Sequence[Any]) -> Any:
    """Short vectors behind each other as one."""
    while len(vectors) > 1:
        lanes = vectors[0].type.count
        vectors = [_shuffle(builder, a, b, range(2 * lanes)) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def _load_at(builder: Any, address: Any, kind: Any, itemsize: int) -> Any:
    value = builder.load(builder.bitcast(address, kind.as_pointer()))
    value.align = itemsize
    return value


def _store_at(builder: Any, value: Any, address: Any, itemsize: int) -> None:
    builder.store(value, builder.bitcast(address, value.type.as_pointer())).align = itemsize


def _places(context: Any, builder: Any, table_type: Any, table: Any, first: Any, base: Any, parts: int) -> list[Any]:
    """base + table[first], base + table[first + 1], …"""
    return [
        builder.add(base, builder.load(_address(context, builder, table_type, table, _moved(builder, first, g))))
        for g in range(parts)
    ]


@intrinsic(prefer_literal=True)
def load_patches(typingctx, y, base, places, first, pitch, size, step, parts):
    """Patches of size x size pixels at y[base + places[first]] …, rows ``pitch`` apart: lane l of [i, j] is pixel (i, j) of
    patch l. Of each row of a place, step * lanes / parts + (size - 1) // step * step elements are read.
    """
    side = _literal(size)
    kind, m, groups = Tile(y.dtype, side, side), _literal(step), _literal(parts)

    def codegen(context, builder, signature, args):
        yv, origin, table, start, rows_apart = args[:5]
        spots = _places(context, builder, places, table, start, origin, groups)
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for i in range(side):
            for shift in range(0, side, m):
                vectors = [
                    _load(
                        builder, _address(context, builder, y, yv, _moved(builder, spot, shift + j * kind.lanes)), kind
                    )
                    for spot in spots
                    for j in range(m // groups)
                ]
                for j, vector in enumerate(_apart(builder, vectors)[: side - shift]):
                    value = builder.insert_value(value, vector, i * side + shift + j)
            spots = [builder.add(spot, rows_apart) for spot in spots]
        return value

    return kind(y, types.int64, places, types.int64, types.int64, size, step, parts), codegen


@intrinsic(prefer_literal=True)
def store_patches(typingctx, y, base, places, first, pitch, tile, parts):
    """Write patches of tile.rows x tile.columns pixels side by side to y[base + places[first]] …, rows ``pitch`` apart."""
    m, groups = tile.columns, _literal(parts)

    def codegen(context, builder, signature, args):
        yv, origin, table, start, rows_apart, value = args[:6]
        spots = _places(context, builder, places, table, start, origin, groups)
        for i in range(tile.rows):
            columns = [builder.extract_value(value, i * m + j) for j in range(m)]
            for j, vector in enumerate(_together(builder, columns)):
                spot = _moved(builder, spots[j * groups // m], j % (m // groups) * tile.lanes)
                _store(builder, vector, _address(context, builder, y, yv, spot), tile)
            spots = [builder.add(spot, rows_apart) for spot in spots]
        return context.get_dummy_value()

    return types.void(y, types.int64, places, types.int64, types.int64, tile, parts), codegen


@intrinsic(prefer_literal=True)
def load_planes(typingctx, y, base, places, first, stride, rows, columns, parts):
    """Vector [i, j] from plane i * columns + j of y, planes ``stride`` apart: at base + places[first] … in each."""
    kind, groups = Tile(y.dtype, _literal(rows), _literal(columns)), _literal(parts)

    def codegen(context, builder, signature, args):
        yv, origin, table, start, apart = args[:5]
        spots = _places(context, builder, places, table, start, origin, groups)
        short = ir.VectorType(kind.element, kind.lanes // groups)
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for n in range(kind.rows * kind.columns):
            pieces = [
                _load_at(builder, _address(context, builder, y, yv, spot), short, kind.dtype.bitwidth // 8)
                for spot in spots
            ]
            value = builder.insert_value(value, _join(builder, pieces), n)
            spots = [builder.add(spot, apart) for spot in spots]
        return value

    return kind(y, types.int64, places, types.int64, types.int64, rows, columns, parts), codegen


@intrinsic(prefer_literal=True)
def store_planes(typingctx, y, base, places, first, stride, tile, parts, ahead):
    """The inverse of :func:`load_planes`; parts are written in order, so that the next may cover what was too much.

    The lines ``ahead`` elements further on are fetched for writing: no prefetcher follows so many streams.
    """
    groups = _literal(parts)

    def codegen(context, builder, signature, args):
        yv, origin, table, start, apart, value, _, further = args
        spots = _places(context, builder, places, table, start, origin, groups)
        short = tile.lanes // groups
        for n in range(tile.rows * tile.columns):
            vector = builder.extract_value(value, n)
            for g, spot in enumerate(spots):
                piece = _shuffle(builder, vector, vector, range(g * short, (g + 1) * short)) if groups > 1 else vector
                _store_at(builder, piece, _address(context, builder, y, yv, spot), tile.dtype.bitwidth // 8)
            _prefetch(builder, _address(context, builder, y, yv, builder.add(spots[0], further)), 1, write=True)
            spots = [builder.add(spot, apart) for spot in spots]
        return context.get_dummy_value()

    return types.void(y, types.int64, places, types.int64, types.int64, tile, parts, types.int64), codegen


@intrinsic
def add_all_lane_sums(typingctx, y, offset, tile):
    """y[offset + i] += the sum over the lanes of the tile's vector i; the tile has as many vectors as lanes."""
    if tile.rows * tile.columns != tile.lanes:
        raise TypeError("add_all_lane_sums takes a tile of as many vectors as a vector has lanes")

    def codegen(context, builder, signature, args):
        yv, start, value = args
        vectors = [builder.extract_value(value, n) for n in range(tile.lanes)]
        # Each round halves the lanes that a sum is spread over, and puts the sums of two vectors into one.
        width = tile.lanes // 2
        while len(vectors) > 1:
            lower = [i for i in range(2 * tile.lanes) if i % (2 * width) < width]
            upper = [i + width for i in lower]
            vectors = [
                builder.fadd(_shuffle(builder, a, b, lower), _shuffle(builder, a, b, upper))
                for a, b in zip(vectors[::2], vectors[1::2], strict=True)
            ]
            width //= 2
        address = _address(context, builder, y, yv, start)
        _store(builder, builder.fadd(_load(builder, address, tile), vectors[0]), address, tile)
        return context.get_dummy_value()

    return types.void(y, types.int64, tile), codegen


@intrinsic
def add_dots(typingctx, tile, a, a_offset, a_stride, b, b_offset, b_stride):
    """tile[i, j] + a[a_offset + i * a_stride …] * b[b_offset + j * b_stride …], vector by vector."""

    def codegen(context, builder, signature, args):
        value, av, ao, a_apart, bv, bo, b_apart = args
        columns = []
        for _ in range(tile.columns):
            columns.append(_load(builder, _address(context, builder, b, bv, bo), tile))
            bo = builder.add(bo, b_apart)
        for i in range(tile.rows):
            row = _load(builder, _address(context, builder, a, av, ao), tile)
            ao = builder.add(ao, a_apart)
            for j, column in enumerate(columns):
                n = i * tile.columns + j
                value = builder.insert_value(value, _fma(builder, row, column, builder.extract_value(value, n)), n)
        return value

    return tile(tile, a, types.int64, types.int64, b, types.int64, types.int64), codegen


@intrinsic
def add_outer_apart(typingctx, tile, a, a_offset, a_stride, b, b_offset):
    """tile[i, j] + a[a_offset + i * a_stride] * b[b_offset + j], over all rows i and all lanes j of the columns."""

    def codegen(context, builder, signature, args):
        value, av, ao, apart, bv, bo = args
        columns = [
            _load(builder, _address(context, builder, b, bv, _moved(builder, bo, j * tile.lanes)), tile)
            for j in range(tile.columns)
        ]
        for i in range(tile.rows):
            scalar = builder.load(_address(context, builder, a, av, ao))
            row = _splat(builder, scalar, tile.lanes)
            for j, column in enumerate(columns):
                n = i * tile.columns + j
                value = builder.insert_value(value, _fma(builder, row, column, builder.extract_value(value, n)), n)
            ao = builder.add(ao, apart)
        return value

    return tile(tile, a, types.int64, types.int64, b, types.int64), codegen
