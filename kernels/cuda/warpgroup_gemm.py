"""The product of halves of :mod:`.half_gemm` by Hopper's warpgroups (wgmma), compute capability 9.0.

Four warps multiply 64 rows by all of the block's columns, reading both operands from shared memory by themselves and
going on while the next slices are copied. The slices lie as in :mod:`.panels`, which is what the descriptors call the
128-byte swizzle; both operands lie in rows (K-major), or both in columns (MN-major). Before a product reads a slice, each
thread waits for its copies, passes a proxy fence, and all meet at a barrier; a slice is copied over only when the product
that read it is done, two turns later.

Source: NVIDIA, "Parallel Thread Execution ISA", 9.7.15 (wgmma: matrix descriptors, fences, asynchronous proxy); CUTLASS,
cute/atom/mma_traits_sm90_gmma.hpp (canonical layouts, by which descriptors name distances).
"""

from __future__ import annotations

from collections.abc import Callable

from .half_gemm import ALIGNMENT, aligned, make_finish, pointer
from .kernel import CudaKernel
from .language import (
    close_copies,
    close_products,
    cuda,
    float32,
    inlined,
    int32,
    keep,
    open_products,
    share_writes,
    uint32,
    uint64,
    wait_copies,
    wait_products,
    warpgroup_product,
)
from .panels import Operand, make_panel
from .tiles import HALF_STEP, WARPGROUP_STAGES, Grid, WarpTile

# Of a descriptor: swizzle mode 128 bytes, 1024 bytes from eight lines to the next eight; the start goes in its lowest bits.
# In columns also the bytes from one panel of 64 to the next.
DESCRIPTOR = 1 << 62 | 1024 // 16 << 32
IN_ROWS, IN_COLUMNS = DESCRIPTOR | 1 << 16, DESCRIPTOR | HALF_STEP * 128 // 16 << 16


def warpgroup_kernel(
    name: str, kind: str, tile: WarpTile, a: Operand, b: Operand, place: Callable, geometry: type, stored: str,
    added: bool = False,
) -> CudaKernel:  # fmt: skip
    """The kernel (a, b, bias, residual, c, geometry, grid) for one tile; parameters as of :func:`.half_gemm.half_kernel`."""
    if a.along_terms != b.along_terms:
        raise ValueError(f"{name}: both operands lie in rows or both in columns")
    rows, columns, _, _ = tile
    threads, stages, ahead = tile.threads, WARPGROUP_STAGES, WARPGROUP_STAGES - 2
    across, sums, waiting = columns // 8, columns // 2, ahead - 1
    in_a, in_b = make_panel(a, rows, threads), make_panel(b, columns, threads)
    begin_a, copy_a, begin_b, copy_b = in_a.begin, in_a.copy, in_b.begin, in_b.copy
    sides_a, sides_b, size_a, stage = in_a.sides, in_b.sides, in_a.nbytes, in_a.nbytes + in_b.nbytes
    multiply = warpgroup_product(kind, columns, turned=not a.along_terms)
    # Of 16 terms: 32 bytes of a line, or 16 lines; in a descriptor's units of 16 bytes.
    layout, forth = (IN_ROWS, 2) if a.along_terms else (IN_COLUMNS, 128)
    finish_tile = make_finish(place, stored, 1, across, added)

    def body(a, b, bias, residual, c, geometry, grid):
        room = cuda.shared.array(0, float32)
        acc = cuda.local.array(sums, float32)
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
        begin_a(group, m0, grid.rows, me, geometry, offsets_a, downs_a, acrosses_a)
        begin_b(group, j0, grid.columns, me, geometry, offsets_b, downs_b, acrosses_b)
        mine = me // uint32(128) * uint32(64 * 128)  # this warpgroup's 64 lines of a, or its panel
        for i in range(sums):
            acc[i] = float32(0)
        filling, reading = uint32(0), uint32(0)  # bytes of stages
        coming, turn = first, int32(-ahead)
        while first + turn * HALF_STEP < last:
            if turn >= 0:
                wait_copies(waiting)
                share_writes()
                cuda.syncthreads()
                from_a = descriptor(uint32(base + reading + mine), layout)
                from_b = descriptor(uint32(base + reading + uint32(size_a)), layout)
                keep(acc, sums)
                open_products()
                for k in range(HALF_STEP // 16):
                    multiply(acc, uint64(from_a + uint64(forth * k)), uint64(from_b + uint64(forth * k)))
                close_products()
                wait_products(1)
                reading = uint32(0) if reading == uint32((stages - 1) * stage) else uint32(reading + uint32(stage))
            if coming < last:  # start copying a slice
                to = uint32(base + filling)
                copy_a(a, to, coming, last, group, me, geometry, offsets_a, downs_a, acrosses_a)
                to = uint32(to + uint32(size_a))
                copy_b(b, to, coming, last, group, me, geometry, offsets_b, downs_b, acrosses_b)
                coming = int32(coming + HALF_STEP)
                filling = uint32(0) if filling == uint32((stages - 1) * stage) else uint32(filling + uint32(stage))
            close_copies()
            turn = int32(turn + 1)
        wait_products(0)
        keep(acc, sums)
        lane, warp = me % uint32(32), me // uint32(32)
        m = int32(m0 + int32(warp * uint32(16)) + int32(lane // uint32(4)))
        j0 = int32(j0 + int32(lane % uint32(4) * uint32(2)))
        finish_tile(acc, bias, residual, c, part, group, m, j0, geometry, grid)

    kinds = ("uint16", "uint16", *(pointer(stored),) * 3, geometry, Grid)
    return CudaKernel(name, body, kinds, threads, stages * stage + ALIGNMENT, targets=("sm_90a",))


@inlined
def descriptor(address, layout):
    """What tells wgmma where an operand starts in shared memory and how it lies there."""
    return uint64(uint64(address & uint32(0x3FFFF)) >> uint64(4)) | uint64(layout)
