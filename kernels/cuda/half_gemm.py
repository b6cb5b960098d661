"""The implicit GEMM of :mod:`.gemm` on tensor cores for operands of halves (float16 or bfloat16) and TF32, sums in float32.

c[m, j] = Σ a(m, t) · b(t, j). Slices of 64 terms, 32 of TF32, flow to shared memory by asynchronous copies of 16 bytes
(:mod:`.panels`); HALF_STAGES of them are under way or in use at once. A warp keeps a tile of sums in registers; ldmatrix
brings it the fragments of both operands, transposing those of halves that lie in columns, and it multiplies 16 x 8 tiles,
16 terms at a time, 8 of TF32.

Halves are held as the uint16 of their bits. TF32 is float32, whose last 13 bits tensor cores leave out; to ldmatrix one of
them is a pair of halves. It cannot transpose such pairs: where a lies in columns each lane loads its elements one by one.
The order of a sum: slice by slice, 32 bytes of terms at a time; parts in order.

Source: NVIDIA, "Parallel Thread Execution ISA", 9.7 (mma.m16n8k16, mma.m16n8k8, ldmatrix, cp.async); CUTLASS,
include/cutlass/numeric_conversion.h (what TF32 leaves out).
"""

from __future__ import annotations

from collections.abc import Callable

from .kernel import CudaKernel
from .language import (
    CHUNKS,
    as_it_is,
    close_copies,
    cuda,
    float32,
    inlined,
    int32,
    load_matrices,
    load_turned,
    load_word,
    multiply_half,
    multiply_tf32,
    nearest_tf32,
    shared_address,
    uint32,
    uint64,
    wait_copies,
)
from .panels import Operand, make_panel
from .stored import pointer
from .stored import reader_and_writer as reader_and_writer_of
from .tiles import HALF_STAGES, HALF_STEP, Grid, WarpTile

UNROLLED = 16  # tiles side by side
ALIGNMENT = 1024  # bytes; of the slices in shared memory, so that the swizzle meets the banks


def reader_and_writer(stored: str) -> tuple[Callable, Callable]:
    """Functions that turn an element as it is stored, "float32", "tf32", "float16" or "bfloat16", to float32 and back."""
    return (as_it_is, nearest_tf32) if stored == "tf32" else reader_and_writer_of(stored)


def half_kernel(
    name: str, kind: str, tile: WarpTile, a: Operand, b: Operand, place: Callable, geometry: type, stored: str,
    added: bool = False,
) -> CudaKernel:  # fmt: skip
    """The kernel (a, b, bias, residual, c, geometry, grid) for one tile.

    Parameters
    ----------
    kind : "float16", "bfloat16" or "tf32"
        What both operands are. Of TF32 b lies in rows.
    place : inlined function
        ``place(part, group, m, geometry)`` says where row m's result of column 0 lies in c, -1 where it is not stored; those
        of the next columns lie geometry.apart apart. bias[group · columns + j], the residual, which lies as c does, and the
        ReLU come first.
    stored : "float32", "float16" or "bfloat16"
        What the bias, the residual and c are.
    added : bool
        Add the residual; without, the kernel never reads it.
    """
    if kind == "tf32" and not b.along_terms:
        raise ValueError(f"{name}: of TF32 b lies in rows")
    rows, columns, warp_rows, warp_columns = tile
    threads, wide = tile.threads, columns // warp_columns
    down, across = warp_rows // 16, warp_columns // 8  # products of a warp
    in_a, in_b = (make_panel(*given, threads, CHUNKS[kind]) for given in ((a, rows), (b, columns)))
    step = 8 * CHUNKS[kind]
    begin_a, copy_a, begin_b, copy_b = in_a.begin, in_a.copy, in_b.begin, in_b.copy
    sides_a, sides_b, line_a, line_b = in_a.sides, in_b.sides, in_a.line, in_b.line
    size_a, stage = in_a.nbytes, in_a.nbytes + in_b.nbytes
    sums, ahead, waiting = down * across * 4, HALF_STAGES - 1, HALF_STAGES - 2
    parts_a, parts_b = down * 4, across * 2  # registers of a warp's fragments
    multiply = multiply_tf32 if kind == "tf32" else multiply_half[kind]
    finish_tile = make_finish(place, stored, down, across, added)
    single = kind == "tf32" and not a.along_terms
    lanes_a = lanes_of_floats if single else _lanes(a.along_terms, line_a, True)
    lanes_b = _lanes(b.along_terms, line_b, False)
    load_a = _load_floats if single else _loader(a.along_terms, line_a)
    load_b = _loader(b.along_terms, line_b)

    def body(a, b, bias, residual, c, geometry, grid):
        room = cuda.shared.array(0, float32)
        acc = cuda.local.array(sums, float32)
        left, right = cuda.local.array(parts_a, uint32), cuda.local.array(parts_b, uint32)
        offsets_a, downs_a, acrosses_a = (
            cuda.local.array(sides_a, int32), cuda.local.array(sides_a, int32), cuda.local.array(sides_a, int32),
        )  # fmt: skip
        offsets_b, downs_b, acrosses_b = (
            cuda.local.array(sides_b, int32), cuda.local.array(sides_b, int32), cuda.local.array(sides_b, int32),
        )  # fmt: skip
        base = aligned(room)
        me, block = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        j0 = int32(block % uint32(grid.wide) * uint32(columns))
        block = block // uint32(grid.wide)
        m0 = int32(block % uint32(grid.tall) * uint32(rows))
        block = block // uint32(grid.tall)
        group, part = int32(block % uint32(grid.groups)), int32(block // uint32(grid.groups))
        first = int32(part * grid.chunk)
        last = int32(min(first + grid.chunk, grid.terms))
        lane = me % uint32(32)
        warp_m = me // uint32(32 * wide) * uint32(warp_rows)
        warp_j = me // uint32(32) % uint32(wide) * uint32(warp_columns)
        begin_a(group, m0, grid.rows, me, geometry, offsets_a, downs_a, acrosses_a)
        begin_b(group, j0, grid.columns, me, geometry, offsets_b, downs_b, acrosses_b)
        from_a, from_b = lanes_a(lane, warp_m), uint32(lanes_b(lane, warp_j) + uint32(size_a))
        for i in range(sums):
            acc[i] = float32(0)
        filling, reading = uint32(0), uint32(0)  # bytes of stages
        coming, turn = first, int32(-ahead)
        while first + turn * step < last:
            if turn >= 0:
                wait_copies(waiting)
                cuda.syncthreads()
            if coming < last:  # start copying a slice
                to = uint32(base + filling)
                copy_a(a, to, coming, last, group, me, geometry, offsets_a, downs_a, acrosses_a)
                to = uint32(to + uint32(size_a))
                copy_b(b, to, coming, last, group, me, geometry, offsets_b, downs_b, acrosses_b)
                coming = int32(coming + step)
                filling = uint32(0) if filling == uint32((HALF_STAGES - 1) * stage) else uint32(filling + uint32(stage))
            close_copies()
            if turn >= 0:
                here = uint32(base + reading)
                for k in range(4):
                    for i in range(down):
                        s = i * 4
                        left[s], left[s + 1], left[s + 2], left[s + 3] = load_a(here, from_a, i, k)
                    for j in range(across // 2):
                        s = j * 4
                        right[s], right[s + 1], right[s + 2], right[s + 3] = load_b(here, from_b, j, k)
                    for i in range(down):
                        for j in range(across):
                            s = (i * across + j) * 4
                            acc[s], acc[s + 1], acc[s + 2], acc[s + 3] = multiply(
                                (left[i * 4], left[i * 4 + 1], left[i * 4 + 2], left[i * 4 + 3]),
                                (right[j * 2], right[j * 2 + 1]),
                                (acc[s], acc[s + 1], acc[s + 2], acc[s + 3]),
                            )
                reading = uint32(0) if reading == uint32((HALF_STAGES - 1) * stage) else uint32(reading + uint32(stage))
            turn = int32(turn + 1)
        m = int32(m0 + int32(warp_m) + int32(lane // uint32(4)))
        j0 = int32(j0 + int32(warp_j) + int32(lane % uint32(4) * uint32(2)))
        finish_tile(acc, bias, residual, c, part, group, m, j0, geometry, grid)

    kinds = (pointer(kind), pointer(kind), *(pointer(stored),) * 3, geometry, Grid)
    return CudaKernel(name, body, kinds, threads, HALF_STAGES * stage + ALIGNMENT)


def make_finish(place: Callable, stored: str, down: int, across: int, added: bool = False) -> Callable:
    """The end of a kernel: bias, residual and ReLU over a lane's sums of ``down`` x ``across`` tiles, 16 x 8 each, and their
    storing.

    m is the lane's first row, j0 its first column; see :func:`half_kernel`.
    """
    # A loop longer than this is not unrolled, and the sums would leave the registers.
    if across <= UNROLLED:
        return _finish_columns(place, stored, down, across, added, 0, across)
    first, second = (_finish_columns(place, stored, down, across, added, at, UNROLLED) for at in (0, UNROLLED))

    @inlined
    def finish_tile(acc, bias, residual, c, part, group, m, j0, geometry, grid):
        first(acc, bias, residual, c, part, group, m, j0, geometry, grid)
        second(acc, bias, residual, c, part, group, m, j0, geometry, grid)

    return finish_tile


def _finish_columns(
    place: Callable, stored: str, down: int, across: int, added: bool, first: int, count: int
) -> Callable:
    """The same for ``count`` tiles of each row from ``first`` on."""
    read, write = reader_and_writer(stored)
    start, columns = 2 * first, 2 * count

    @inlined
    def finish_columns(acc, bias, residual, c, part, group, m, j0, geometry, grid):
        if grid.biased:
            for j in range(start, start + columns):
                column = int32(j0 + j // 2 * 8 + j % 2)
                more = read(bias[int32(group * grid.columns + column)]) if column < grid.columns else float32(0)
                for i in range(2 * down):
                    acc[(i // 2 * across + j // 2) * 4 + i % 2 * 2 + j % 2] += more
        if added:
            for i in range(2 * down):
                row = int32(m + i * 8)
                at = place(part, group, row, geometry) if row < grid.rows else int32(-1)
                for j in range(start, start + columns):
                    column = int32(j0 + j // 2 * 8 + j % 2)
                    if at >= 0 and column < grid.columns:
                        more = read(residual[int32(at + column * geometry.apart)])
                        acc[(i // 2 * across + j // 2) * 4 + i % 2 * 2 + j % 2] += more
        for i in range(2 * down):
            row = int32(m + i * 8)
            at = place(part, group, row, geometry) if row < grid.rows else int32(-1)
            for j in range(start, start + columns):
                column = int32(j0 + j // 2 * 8 + j % 2)
                value = acc[(i // 2 * across + j // 2) * 4 + i % 2 * 2 + j % 2]
                if grid.relu:
                    value = float32(0) if value <= float32(0) else value
                if at >= 0 and column < grid.columns:
                    c[int32(at + column * geometry.apart)] = write(value)

    return finish_columns


@inlined
def aligned(room):
    """The first byte address in dynamic shared memory that is a multiple of ALIGNMENT."""
    return uint32((shared_address(room) + uint32(ALIGNMENT - 1)) & uint32(-ALIGNMENT & 0xFFFFFFFF))


def _loader(by_rows: bool, line: int) -> Callable:
    """The function (slice, lane's place in it, i, k) that loads a lane's part of the i-th 16 rows and k-th 32 bytes of terms.

    From one to the next along lines add, across them flip chunk bits.
    """
    lines = 16 * line

    @inlined
    def of_rows(here, base, i, k):
        return load_matrices(uint32(here + (uint32(base + uint32(i * lines)) ^ uint32(k * 32))))

    @inlined
    def of_columns(here, base, i, k):
        return load_turned(uint32(here + uint32(uint32(base ^ uint32(i * 32)) + uint32(k * lines))))

    return of_rows if by_rows else of_columns


@inlined
def _load_floats(here, base, i, k):
    """The same of columns of float32 (:mod:`.panels`): rows g and g + 8 of term t, then of term t + 4."""
    near = uint64(uint32(here + (base ^ uint32(i % 2 * 64)))) + uint64(i // 2 * 32 * 128 + k * 8 * 128)
    far = uint64(uint32(here + (base ^ uint32(i % 2 * 64 + 32)))) + uint64(i // 2 * 32 * 128 + k * 8 * 128)
    return load_word(near), load_word(far), load_word(near + uint64(4 * 128)), load_word(far + uint64(4 * 128))


@inlined
def lanes_of_floats(lane, first):
    """Where the element of the lane's first row and term lies, of a warp's rows from ``first`` on."""
    g, t = lane // uint32(4), lane % uint32(4)
    chunk = (first % uint32(32) // uint32(4) + g // uint32(4)) ^ (t * uint32(2))
    return uint32(
        first // uint32(32) * uint32(32 * 128) + t * uint32(128) + chunk * uint32(16) + g % uint32(4) * uint32(4)
    )


def _lanes(by_rows: bool, line: int, is_a: bool) -> Callable:
    """The function (lane, first row of the warp) that gives where a lane's row for ldmatrix lies in an operand's slice.

    The four matrices of a: rows 0 and 8 of terms 0, then of terms 8; of b: terms 0 and 8 of columns 0, then of columns 8.
    """
    lines_in_128, chunks = 128 // line, line // 16

    @inlined
    def of_rows(lane, first):
        number, row = lane // uint32(8), lane % uint32(8)
        below, beside = (number % uint32(2), number // uint32(2)) if is_a else (number // uint32(2), number % uint32(2))
        return uint32((first + below * uint32(8) + row) * uint32(128) + (beside ^ row) * uint32(16))

    @inlined
    def of_columns(lane, first):
        number, row = lane // uint32(8), lane % uint32(8)
        below, beside = (number // uint32(2), number % uint32(2)) if is_a else (number % uint32(2), number // uint32(2))
        chunk = first // uint32(8) % uint32(chunks) + beside
        panel = first // uint32(8 * chunks) * uint32(HALF_STEP * line)
        swizzled = chunk ^ (row // uint32(lines_in_128) % uint32(chunks))
        return uint32(panel + (below * uint32(8) + row) * uint32(line) + swizzled * uint32(16))

    return of_rows if by_rows else of_columns
