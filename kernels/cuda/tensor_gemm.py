"""The implicit GEMM of :mod:`.gemm` on tensor cores: operands rounded to TF32, sums in float32.

c[m, j] = Σ a(m, t) · b(t, j). Slices of a and b flow to shared memory by asynchronous copies of single elements, which any
stride, padding and alignment allows; STAGES of them are under way or in use at once. A warp keeps a tile of sums in
registers and multiplies 16 x 8 tiles of it, 8 terms at a time.

A slice that is copied along t lies as (row, t) in shared memory, otherwise as (t, row); the pitches are such that the 32
lanes' reads of a fragment fall into 32 banks.

Source: NVIDIA, "Parallel Thread Execution ISA", 9.7 (mma.m16n8k8, cp.async).
"""

from __future__ import annotations

from collections.abc import Callable

from .kernel import CudaKernel
from .language import close_copies, copy_async, cuda, float32, int32, multiply_tf32, round_tf32, uint32, wait_copies
from .tiles import STAGES, TENSOR_STEP, Grid, WarpTile


def tensor_kernel(
    name: str, tile: WarpTile, a_at: Callable, b_at: Callable, store: Callable, geometry: type, t_fastest: bool = False
) -> CudaKernel:
    """The kernel (a, b, bias, c, geometry, grid) for one tile; parameters as of :func:`.gemm.gemm_kernel`."""
    rows, columns, warp_rows, warp_columns = tile
    threads, step = tile.threads, TENSOR_STEP
    wide = columns // warp_columns  # warps side by side
    down, across = warp_rows // 16, warp_columns // 8  # products of a warp
    pitch_a = step + 4  # (row, t)
    row_b, term_b = (step + 4, 1) if t_fastest else (1, columns + 8)
    size_a, size_b = rows * pitch_a, columns * (step + 4) if t_fastest else step * (columns + 8)
    stage = size_a + size_b
    sums, ahead, waiting = down * across * 4, STAGES - 1, STAGES - 2
    copies_a, copies_b = rows * step // threads, columns * step // threads

    def body(a, b, bias, c, geometry, grid):
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
        warp_m = int32(me // uint32(32 * wide) * uint32(warp_rows))
        warp_j = int32(me // uint32(32) % uint32(wide) * uint32(warp_columns))
        for i in range(sums):
            acc[i] = float32(0)
        filling, reading = int32(0), int32(0)  # stages
        coming = first
        turn = int32(-ahead)
        while first + turn * step < last:
            if turn >= 0:
                wait_copies(waiting)
                cuda.syncthreads()
            if coming < last:  # start copying a slice
                for i in range(copies_a):
                    e = uint32(me + uint32(i * threads))
                    row, term = int32(e // uint32(step)), int32(e % uint32(step))
                    inside = m0 + row < grid.rows and coming + term < last
                    at = a_at(group, int32(m0 + row), int32(coming + term), geometry) if inside else int32(-1)
                    copy_async(room, int32(filling * stage + row * pitch_a + term), a, at)
                for i in range(copies_b):
                    e = uint32(me + uint32(i * threads))
                    if t_fastest:
                        row, term = int32(e // uint32(step)), int32(e % uint32(step))
                    else:
                        row, term = int32(e % uint32(columns)), int32(e // uint32(columns))
                    inside = j0 + row < grid.columns and coming + term < last
                    at = b_at(group, int32(coming + term), int32(j0 + row), geometry) if inside else int32(-1)
                    copy_async(room, int32(filling * stage + size_a + row * row_b + term * term_b), b, at)
                coming = int32(coming + step)
                filling = int32(0) if filling == STAGES - 1 else int32(filling + 1)
            close_copies()
            if turn >= 0:
                in_a = int32(reading * stage + (warp_m + g) * pitch_a + t)
                in_b = int32(reading * stage + size_a + (warp_j + g) * row_b + t * term_b)
                for k in range(0, step, 8):
                    for i in range(down):
                        at = int32(in_a + i * 16 * pitch_a + k)
                        left = (
                            round_tf32(room[at]), round_tf32(room[at + 8 * pitch_a]),
                            round_tf32(room[at + 4]), round_tf32(room[at + 8 * pitch_a + 4]),
                        )  # fmt: skip
                        for j in range(across):
                            at = int32(in_b + j * 8 * row_b + k * term_b)
                            right = round_tf32(room[at]), round_tf32(room[at + 4 * term_b])
                            s = (i * across + j) * 4
                            total = (acc[s], acc[s + 1], acc[s + 2], acc[s + 3])
                            acc[s], acc[s + 1], acc[s + 2], acc[s + 3] = multiply_tf32(left, right, total)
                reading = int32(0) if reading == STAGES - 1 else int32(reading + 1)
            turn = int32(turn + 1)
        if grid.biased:
            for i in range(2 * down):
                m = int32(m0 + warp_m + i * 8 + g)
                more = bias[int32(group * grid.rows + m)] if m < grid.rows else float32(0)
                for j in range(across):
                    s = (i // 2 * across + j) * 4 + i % 2 * 2
                    acc[s] += more
                    acc[s + 1] += more
        if grid.relu:
            for i in range(sums):
                acc[i] = float32(0) if acc[i] <= float32(0) else acc[i]
        for i in range(2 * down):
            m = int32(m0 + warp_m + i * 8 + g)
            for j in range(2 * across):
                column = int32(j0 + warp_j + j // 2 * 8 + 2 * t + j % 2)
                if m < grid.rows and column < grid.columns:
                    store(c, part, group, m, column, acc[(i // 2 * across + j // 2) * 4 + i % 2 * 2 + j % 2], geometry)

    parameters = ("float32", "float32", "float32", "float32", geometry, Grid)
    return CudaKernel(name, body, parameters, threads, 4 * STAGES * stage)
