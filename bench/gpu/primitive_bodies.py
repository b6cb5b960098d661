"""The kernels of :mod:`.primitives`: (body, kinds of arguments, threads, bytes of shared memory, targets) by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...kernels.cuda.half_gemm import aligned
from ...kernels.cuda.language import (
    CHUNKS,
    close_copies,
    close_products,
    copy16_async,
    cuda,
    float32,
    int32,
    int64,
    keep,
    load_matrices,
    load_turned,
    multiply_half,
    multiply_tf32,
    narrow,
    open_products,
    round_tf32,
    share_writes,
    shared_address,
    uint16,
    uint32,
    uint64,
    wait_copies,
    wait_products,
    warpgroup_product,
    warpgroup_product_of_registers,
    widen,
)
from ...kernels.cuda.warpgroup_gemm import IN_COLUMNS, IN_ROWS, WORDS, descriptor, load_part

DEEP = 96 * 1024  # bytes of shared memory of the kernel that asks for much
DEEP_FLOATS = DEEP // 4
PRODUCT_COLUMNS = 128  # of the warpgroup's product: two panels
_SUMS = PRODUCT_COLUMNS // 2
_TILE = 64 * 64  # halves of an operand of it
_ALIGNMENT = 1024


def copy(x: Any, out: Any) -> None:
    i = int32(cuda.threadIdx.x)
    out[i] = x[i]


def shared(x: Any, out: Any) -> None:
    room = cuda.shared.array(0, float32)
    i = int32(cuda.threadIdx.x)
    room[int32(DEEP_FLOATS - 64 + i)] = x[i]
    cuda.syncthreads()
    out[i] = room[int32(DEEP_FLOATS - 1 - i)]


def copy16(x: Any, out: Any) -> None:
    room = cuda.shared.array(0, uint16)
    i = int32(cuda.threadIdx.x)
    copy16_async(uint32(shared_address(room) + uint32(16 * i)), x, int32(8 * (31 - i)), i % 4 != 2)
    close_copies()
    wait_copies(0)
    cuda.syncthreads()
    for k in range(8):
        out[int32(8 * i + k)] = room[int32(8 * i + k)]


def _matrices(load: Callable) -> Callable:
    def body(x: Any, out: Any) -> None:
        room = cuda.shared.array(0, uint16)
        i = int32(cuda.threadIdx.x)
        for k in range(8):
            room[int32(8 * i + k)] = x[int32(8 * i + k)]
        cuda.syncthreads()
        r0, r1, r2, r3 = load(uint32(shared_address(room) + uint32(16 * i)))
        out[i], out[int32(i + 32)] = int64(r0), int64(r1)
        out[int32(i + 64)], out[int32(i + 96)] = int64(r2), int64(r3)

    return body


def round_to_tf32(x: Any, out: Any) -> None:
    i = int32(cuda.threadIdx.x)
    out[i] = int64(round_tf32(x[i]))


def _product(kind: str) -> Callable:
    """a (16, 16) and b (8, 16) along their terms, of TF32 (16, 8) and (8, 8); fragments of both by ldmatrix."""
    multiply, element = (multiply_tf32, float32) if kind == "tf32" else (multiply_half[kind], uint16)
    chunk = CHUNKS[kind]
    half = chunk // 2

    def body(a: Any, b: Any, out: Any) -> None:
        room = cuda.shared.array(0, element)
        lane = int32(cuda.threadIdx.x)
        for k in range(chunk):
            room[int32(chunk * lane + k)] = a[int32(chunk * lane + k)]
        for k in range(half):
            room[int32(32 * chunk + half * lane + k)] = b[int32(half * lane + k)]
        cuda.syncthreads()
        number, row = int32(lane // 8), int32(lane % 8)
        base = shared_address(room)
        in_a = int32((number % 2 * 8 + row) * 32 + number // 2 * 16)
        in_b = int32(512 + row * 32 + number % 2 * 16)  # the last two matrices are not used
        left = load_matrices(uint32(base + uint32(in_a)))
        b0, b1, _, _ = load_matrices(uint32(base + uint32(in_b)))
        zero = float32(0)
        first = int32(lane // 4 * 8 + 2 * (lane % 4))
        second = int32(first + 64)
        out[first], out[int32(first + 1)], out[second], out[int32(second + 1)] = multiply(
            left, (b0, b1), (zero, zero, zero, zero)
        )

    return body


def _rounding(kind: str) -> Callable:
    to, back = narrow[kind], widen[kind]

    def body(x: Any, out: Any) -> None:
        i = int32(cuda.threadIdx.x)
        out[i] = back(to(x[i]))

    return body


def _warpgroup(kind: str, turned: bool = False) -> Callable:
    """a (64, 64) and b (columns, 64) along their terms, in the swizzle that the descriptors name.

    ``turned``: a (terms, 64) and b (terms, columns), each panel of 64 columns behind the one before.
    """
    multiply = warpgroup_product(kind, PRODUCT_COLUMNS, turned)
    layout, forth = (IN_COLUMNS, 128) if turned else (IN_ROWS, 2)
    width = PRODUCT_COLUMNS if turned else 64  # of a line of b in memory

    def body(a: Any, b: Any, out: Any) -> None:
        room = cuda.shared.array(0, uint16)
        acc = cuda.local.array(_SUMS, float32)
        me = int32(cuda.threadIdx.x)
        base = aligned(room)
        start = int32((base - shared_address(room)) // uint32(2))
        for i in range(_TILE // 128):
            e = int32(i * 128 + me)
            row, chunk, rest = int32(e // 64), int32(e % 64 // 8), int32(e % 8)
            at = int32(start + row * 64 + (chunk ^ (row % 8)) * 8 + rest)
            room[at] = a[e]
        for i in range(64 * PRODUCT_COLUMNS // 128):
            e = int32(i * 128 + me)
            row, panel, chunk, rest = int32(e // width), int32(e % width // 64), int32(e % 64 // 8), int32(e % 8)
            room[int32(start + (panel + 1) * _TILE + row * 64 + (chunk ^ (row % 8)) * 8 + rest)] = b[e]
        for i in range(_SUMS):
            acc[i] = float32(0)
        share_writes()
        cuda.syncthreads()
        from_a, from_b = descriptor(base, layout), descriptor(uint32(base + uint32(2 * _TILE)), layout)
        keep(acc, _SUMS)
        open_products()
        for k in range(4):
            multiply(acc, uint64(from_a + uint64(forth * k)), uint64(from_b + uint64(forth * k)))
        close_products()
        wait_products(0)
        keep(acc, _SUMS)
        row, column = int32(me // 32 * 16 + me % 32 // 4), int32(me % 4 * 2)
        for j in range(PRODUCT_COLUMNS // 8):
            for i in range(4):
                r, c = int32(row + i // 2 * 8), int32(column + j * 8 + i % 2)
                out[int32(r * PRODUCT_COLUMNS + c)] = acc[j * 4 + i]

    return body


def _warpgroup_tf32(in_registers: bool) -> Callable:
    """As :func:`_warpgroup`, of float32: a (64, 32) and b (columns, 32) along their terms.

    ``in_registers``: a (terms, 64), each panel of 32 columns behind the one before, which the lanes load.
    """
    of_memory, of_registers = (
        warpgroup_product("tf32", PRODUCT_COLUMNS),
        warpgroup_product_of_registers(PRODUCT_COLUMNS),
    )

    def body(a: Any, b: Any, out: Any) -> None:
        room = cuda.shared.array(0, float32)
        acc, words = cuda.local.array(_SUMS, float32), cuda.local.array(WORDS, uint32)
        me = int32(cuda.threadIdx.x)
        base = aligned(room)
        start = int32((base - shared_address(room)) // uint32(4))
        width = int32(64 if in_registers else 32)
        for i in range(64 * 32 // 128):
            e = int32(i * 128 + me)
            row, panel, chunk, rest = int32(e // width), int32(e % width // 32), int32(e % 32 // 4), int32(e % 4)
            turn = int32(row % 4 * 2) if in_registers else int32(row % 8)
            room[int32(start + panel * 1024 + row * 32 + (chunk ^ turn) * 4 + rest)] = a[e]
        for i in range(PRODUCT_COLUMNS * 32 // 128):
            e = int32(i * 128 + me)
            row, chunk, rest = int32(e // 32), int32(e % 32 // 4), int32(e % 4)
            room[int32(start + 2048 + row * 32 + (chunk ^ (row % 8)) * 4 + rest)] = b[e]
        for i in range(_SUMS):
            acc[i] = float32(0)
        share_writes()
        cuda.syncthreads()
        load_part(words, base, uint32(me))
        from_a, from_b = descriptor(base, IN_ROWS), descriptor(uint32(base + uint32(8192)), IN_ROWS)
        keep(acc, _SUMS)
        open_products()
        for k in range(4):
            more_a, more_b = uint64(from_a + uint64(2 * k)), uint64(from_b + uint64(2 * k))
            if in_registers:
                of_registers(acc, (words[4 * k], words[4 * k + 1], words[4 * k + 2], words[4 * k + 3]), more_b)
            else:
                of_memory(acc, more_a, more_b)
        close_products()
        wait_products(0)
        keep(acc, _SUMS)
        row, column = int32(me // 32 * 16 + me % 32 // 4), int32(me % 4 * 2)
        for j in range(PRODUCT_COLUMNS // 8):
            for i in range(4):
                r, c = int32(row + i // 2 * 8), int32(column + j * 8 + i % 2)
                out[int32(r * PRODUCT_COLUMNS + c)] = acc[j * 4 + i]

    return body


_WARPGROUP = (("uint16", "uint16", "float32"), 128, 2 * _TILE + 128 * PRODUCT_COLUMNS + _ALIGNMENT, ("sm_90a",))

BODIES: dict[str, tuple[Any, ...]] = {
    "copy": (copy, ("float32", "float32"), 32, 0, ()),
    "shared": (shared, ("float32", "float32"), 64, DEEP, ()),
    "copy16": (copy16, ("uint16", "uint16"), 32, 512, ()),
    "ldmatrix": (_matrices(load_matrices), ("uint16", "int64"), 32, 512, ()),
    "ldmatrix-trans": (_matrices(load_turned), ("uint16", "int64"), 32, 512, ()),
    "round-tf32": (round_to_tf32, ("float32", "int64"), 32, 0, ()),
    "mma-tf32": (_product("tf32"), ("float32",) * 3, 32, 768, ()),
    **{f"mma-{kind}": (_product(kind), ("uint16", "uint16", "float32"), 32, 768, ()) for kind in multiply_half},
    **{f"round-{kind}": (_rounding(kind), ("float32", "float32"), 32, 0, ()) for kind in narrow},
    **{f"wgmma-{kind}": (_warpgroup(kind), *_WARPGROUP) for kind in multiply_half},
    **{f"wgmma-turned-{kind}": (_warpgroup(kind, True), *_WARPGROUP) for kind in multiply_half},
    "wgmma-tf32": (_warpgroup_tf32(False), ("float32",) * 3, *_WARPGROUP[1:]),
    "wgmma-registers-tf32": (_warpgroup_tf32(True), ("float32",) * 3, *_WARPGROUP[1:]),
}
