"""The implicit GEMM of :mod:`.gemm` on tensor cores: operands rounded to TF32, sums in float32.

c[m, j] = Σ a(m, t) · b(t, j). Slices of a and b flow to shared memory by asynchronous copies of single elements, which any
stride, padding and alignment allows; STAGES of them are under way or in use at once. A warp keeps a tile of sums in
registers and multiplies 16 x 8 tiles of it, 8 terms at a time.

A slice that is copied along t lies as (row, t) in shared memory, its fours of terms swapped: four c of a row stands at
c xor (row div 2 mod 4). Otherwise it lies as (t, row), the rows padded by 8. So the 32 lanes' copies, of two rows or along
one, and their reads of a fragment, a four of eight rows, each fall into all 32 banks: no bank conflicts.

Source: NVIDIA, "Parallel Thread Execution ISA", 9.7 (mma.m16n8k8, cp.async).
"""

from __future__ import annotations

from collections.abc import Callable

from .kernel import CudaKernel
from .language import (
    anew,
    close_copies,
    copy_async,
    cuda,
    float32,
    int32,
    multiply_tf32,
    round_tf32,
    uint32,
    uint64,
    wait_copies,
)
from .tiles import STAGES, TENSOR_STEP, Grid, WarpTile


def tensor_kernel(
    name: str,
    tile: WarpTile,
    a_at: Callable,
    b_at: Callable,
    place: Callable,
    geometry: type,
    t_fastest: bool = False,
    added: bool = False,
) -> CudaKernel:
    """The kernel (a, b, bias, residual, c, geometry, grid) for one tile; parameters as of :func:`.gemm.gemm_kernel`."""
    rows, columns, warp_rows, warp_columns = tile
    threads, step = tile.threads, TENSOR_STEP
    wide = columns // warp_columns  # warps side by side
    down, across = warp_rows // 16, warp_columns // 8  # products of a warp
    pitch_b = columns + 8  # of (t, row)
    size_a, size_b = rows * step, columns * step if t_fastest else pitch_b * step
    stage = size_a + size_b
    row_b = step if t_fastest else 1  # from a row of b's slice to the next
    sums, ahead, waiting = down * across * 4, STAGES - 1, STAGES - 2
    copies_a, copies_b = rows * step // threads, columns * step // threads

    def body(a, b, bias, residual, c, geometry, grid):
        room = cuda.shared.array(0, float32)
        acc = cuda.local.array(sums, float32)
        me, block = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        j0 = int32(block % uint32(grid.wide) * uint32(columns))
        block = block // uint32(grid.wide)
        m0 = int32(block % uint32(grid.tall) * uint32(rows))
        block = block // uint32(grid.tall)
        group, part = int32(block % uint32(grid.groups)), int32(block // uint32(grid.groups))
        first = int32(part * grid.chunk)
        last = int32(min(first + grid.chunk, grid.terms))
        g, t = int32(me % uint32(32) // uint32(4)), int32(me % uint32(4))
        swap = uint32(g // 2 * 4)
        mine = me ^ (me // uint32(32) % uint32(4) * uint32(4))  # where the thread's copies along t begin
        warp_m = int32(me // uint32(32 * wide) * uint32(warp_rows))
        warp_j = int32(me // uint32(32) % uint32(wide) * uint32(warp_columns))
        for i in range(sums):
            acc[i] = float32(0)
        from_a = uint32((warp_m + g) * step + t) ^ swap
        from_b = uint32(size_a + (warp_j + g) * row_b)
        from_b = uint32(from_b + uint32(t)) ^ swap if t_fastest else uint32(from_b + uint32(t * pitch_b))
        filling, reading = uint32(0), uint32(0)  # floats of stages
        coming = first
        turn = int32(-ahead)
        while first + turn * step < last:
            if turn >= 0:
                wait_copies(waiting)
                cuda.syncthreads()
            if coming < last:  # start copying a slice
                to = uint64(uint32(filling + mine))
                for i in range(copies_a):
                    e = uint32(me + uint32(i * threads))
                    row, term = int32(e // uint32(step)), int32(e % uint32(step))
                    inside = m0 + row < grid.rows and coming + term < last
                    at = a_at(group, int32(m0 + row), int32(coming + term), geometry) if inside else int32(-1)
                    copy_async(room, to + uint64(i * threads), a, at)
                to = uint64(uint32(filling + uint32(size_a)))
                for i in range(copies_b):
                    e = uint32(me + uint32(i * threads))
                    if t_fastest:
                        row, term = int32(e // uint32(step)), int32(e % uint32(step))
                    else:
                        row, term = int32(e % uint32(columns)), int32(e // uint32(columns))
                    inside = j0 + row < grid.columns and coming + term < last
                    at = b_at(group, int32(coming + term), int32(j0 + row), geometry) if inside else int32(-1)
                    there = mine + uint32(i * threads) if t_fastest else uint32(row + term * pitch_b)
                    copy_async(room, to + uint64(uint32(there)), b, at)
                coming = int32(coming + step)
                filling = uint32(0) if filling == uint32((STAGES - 1) * stage) else uint32(filling + uint32(stage))
            close_copies()
            if turn >= 0:  # multiply a slice; in 64 bits constants are part of an address, as no sum can wrap
                in_a, in_b = uint32(reading + from_a), uint32(reading + from_b)
                for k in range(0, step, 8):
                    near_a, far_a = uint64(in_a ^ uint32(k)), uint64(in_a ^ uint32(k + 4))
                    if t_fastest:
                        near_b, far_b = uint64(in_b ^ uint32(k)), uint64(in_b ^ uint32(k + 4))
                    else:
                        near_b = uint64(in_b) + uint64(k * pitch_b)
                        far_b = near_b + uint64(4 * pitch_b)
                    for i in range(down):
                        above, below = uint64(i * 16 * step), uint64((i * 16 + 8) * step)
                        left = (
                            round_tf32(room[near_a + above]), round_tf32(room[near_a + below]),
                            round_tf32(room[far_a + above]), round_tf32(room[far_a + below]),
                        )  # fmt: skip
                        for j in range(across):
                            beside = uint64(j * 8 * row_b)
                            right = round_tf32(room[near_b + beside]), round_tf32(room[far_b + beside])
                            s = (i * across + j) * 4
                            total = (acc[s], acc[s + 1], acc[s + 2], acc[s + 3])
                            acc[s], acc[s + 1], acc[s + 2], acc[s + 3] = multiply_tf32(left, right, total)
                reading = uint32(0) if reading == uint32((STAGES - 1) * stage) else uint32(reading + uint32(stage))
            turn = int32(turn + 1)
        if grid.biased:
            for i in range(2 * down):
                m = int32(m0 + warp_m + i * 8 + g)
                more = bias[int32(group * grid.rows + m)] if m < grid.rows else float32(0)
                for j in range(across):
                    s = (i // 2 * across + j) * 4 + i % 2 * 2
                    acc[s] += more
                    acc[s + 1] += more
        if added:
            for i in range(2 * down):
                m = int32(m0 + warp_m + i * 8 + g)
                for j in range(2 * across):
                    column = int32(j0 + warp_j + j // 2 * 8 + 2 * t + j % 2)
                    if m < grid.rows and column < grid.columns:
                        s = (i // 2 * across + j // 2) * 4 + i % 2 * 2 + j % 2
                        acc[s] += residual[place(part, group, m, column, geometry)]
            m0, j0 = anew(m0), anew(j0)  # places kept from here to the stores would take registers from other blocks
        if grid.relu:
            for i in range(sums):
                acc[i] = float32(0) if acc[i] <= float32(0) else acc[i]
        for i in range(2 * down):
            m = int32(m0 + warp_m + i * 8 + g)
            for j in range(2 * across):
                column = int32(j0 + warp_j + j // 2 * 8 + 2 * t + j % 2)
                if m < grid.rows and column < grid.columns:
                    s = (i // 2 * across + j // 2) * 4 + i % 2 * 2 + j % 2
                    c[place(part, group, m, column, geometry)] = acc[s]

    return CudaKernel(name, body, (*("float32",) * 5, geometry, Grid), threads, 4 * STAGES * stage)
