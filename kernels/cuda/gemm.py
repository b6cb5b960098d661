"""A matrix product in registers, whose operands are functions: the implicit GEMM behind convolution in float32.

c[m, j] = Σ a(m, t) · b(t, j) over t. A block computes a tile of c for one group and one part of the sum; its threads copy
thin slices of a and b to shared memory, the next slice on its way while one is multiplied, and each keeps a small tile of
sums in registers.

Source: Volkov and Demmel, "Benchmarking GPUs to tune dense linear algebra", 2008; Chetlur et al., "cuDNN", 2014, for the
operands that are never stored as matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .kernel import CudaKernel
from .language import anew, cuda, float32, int32, load4, uint32, uint64
from .sums import finish
from .tiles import STEP, TILES, Grid, Product, Tile, choose_tile, make_grid, product_parts


def gemm_kernel(
    name: str,
    tile: Tile,
    a_at: Callable,
    b_at: Callable,
    place: Callable,
    geometry: type,
    t_fastest: bool = False,
    added: bool = False,
) -> CudaKernel:
    """The kernel (a, b, bias, residual, c, geometry, grid) for one tile.

    Parameters
    ----------
    a_at, b_at : inlined functions
        ``a_at(group, m, t, geometry)`` and ``b_at(group, t, j, geometry)`` say where in its array an operand's element
        lies, -1 for a zero that is not stored; inside the ranges that the grid states.
    place : inlined function
        ``place(part, group, m, j, geometry)`` says where a result lies in c. bias[group · rows + m], the residual, which
        lies as c does, and the ReLU come first.
    t_fastest : bool
        Neighbouring threads copy neighbouring t of b, not j: whichever lie side by side in memory.
    added : bool
        Add the residual; without, the kernel never reads it.
    """
    rows, columns, tm, tn = tile
    threads = tile.threads
    # Threads of a block, down and across. A thread's rows are fours of neighbours, 4 · down apart; its columns likewise.
    down, across = rows // tm, columns // tn
    pitch_a, pitch_b = rows + 4, columns + 4  # padded: the copies go down a column
    slice_a, slice_b = STEP * pitch_a, STEP * pitch_b
    room_a, room_b = 2 * slice_a, 2 * slice_b
    copies_a, copies_b = -(-rows * STEP // threads), -(-columns * STEP // threads)
    sums = tm * tn
    together = 2 if sums > 32 else 1  # terms between two looks at the end; in smaller tiles more would cost occupancy
    a_is_even, b_by_t = rows * STEP % threads == 0, t_fastest

    def body(a, b, bias, residual, c, geometry, grid):
        slices_a = cuda.shared.array(room_a, float32, alignment=16)
        slices_b = cuda.shared.array(room_b, float32, alignment=16)
        acc = cuda.local.array(sums, float32)
        left, right = cuda.local.array(tm, float32), cuda.local.array(tn, float32)
        next_a, next_b = cuda.local.array(copies_a, float32), cuda.local.array(copies_b, float32)
        me, block = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        j0 = int32(block % uint32(grid.wide) * uint32(columns))
        block = block // uint32(grid.wide)
        m0 = int32(block % uint32(grid.tall) * uint32(rows))
        block = block // uint32(grid.tall)
        group, part = int32(block % uint32(grid.groups)), int32(block // uint32(grid.groups))
        first = int32(part * grid.chunk)
        last = int32(min(first + grid.chunk, grid.terms))
        tx, ty = me % uint32(across), me // uint32(across)
        for i in range(sums):
            acc[i] = float32(0)
        buffer = uint32(0)
        t0 = int32(first - STEP)
        while t0 < last:
            coming = int32(t0 + STEP)
            if coming < last:  # the next slice, from memory to registers
                for i in range(copies_a):
                    e = uint32(me + uint32(i * threads))
                    m, t = int32(m0 + int32(e // uint32(STEP))), int32(coming + int32(e % uint32(STEP)))
                    inside = m < grid.rows and t < last
                    at = a_at(group, m, t, geometry) if inside else int32(-1)
                    next_a[i] = a[at] if at >= 0 else float32(0)
                for i in range(copies_b):
                    e = uint32(me + uint32(i * threads))
                    if b_by_t:
                        j, t = int32(j0 + int32(e // uint32(STEP))), int32(coming + int32(e % uint32(STEP)))
                    else:
                        j, t = int32(j0 + int32(e % uint32(columns))), int32(coming + int32(e // uint32(columns)))
                    inside = j < grid.columns and t < last
                    at = b_at(group, t, j, geometry) if inside else int32(-1)
                    next_b[i] = b[at] if at >= 0 else float32(0)
            if t0 >= first:  # multiply the slice that is in shared memory
                at_a = uint32(buffer * uint32(slice_a) + ty * uint32(4))
                at_b = uint32(buffer * uint32(slice_b) + tx * uint32(4))
                end = uint32(at_a + uint32(slice_a))
                while at_a < end:  # in 64 bits constants are part of an address, as no sum can wrap
                    for k in range(together):
                        for i in range(0, tm, 4):
                            at = uint64(at_a) + uint64(k * pitch_a + i * down)
                            left[i], left[i + 1], left[i + 2], left[i + 3] = load4(slices_a, at)
                        for j in range(0, tn, 4):
                            at = uint64(at_b) + uint64(k * pitch_b + j * across)
                            right[j], right[j + 1], right[j + 2], right[j + 3] = load4(slices_b, at)
                        for i in range(tm):
                            for j in range(tn):
                                acc[i * tn + j] += left[i] * right[j]
                    at_a = uint32(at_a + uint32(together * pitch_a))
                    at_b = uint32(at_b + uint32(together * pitch_b))
                buffer = buffer ^ uint32(1)
            if coming < last:  # and the next one to the other half of it
                for i in range(copies_a):
                    e = uint32(me + uint32(i * threads))
                    if a_is_even or e < uint32(rows * STEP):
                        to = e % uint32(STEP) * uint32(pitch_a) + e // uint32(STEP)
                        slices_a[uint32(buffer * uint32(slice_a) + to)] = next_a[i]
                for i in range(copies_b):
                    e = uint32(me + uint32(i * threads))
                    if b_by_t:
                        to = e % uint32(STEP) * uint32(pitch_b) + e // uint32(STEP)
                    else:
                        to = e // uint32(columns) * uint32(pitch_b) + e % uint32(columns)
                    slices_b[uint32(buffer * uint32(slice_b) + to)] = next_b[i]
            cuda.syncthreads()
            t0 = coming
        if grid.biased:
            for i in range(tm):
                m = int32(m0 + int32(ty * uint32(4)) + i // 4 * (4 * down) + i % 4)
                more = bias[int32(group * grid.rows + m)] if m < grid.rows else float32(0)
                for j in range(tn):
                    acc[i * tn + j] += more
        if added:
            for i in range(tm):
                m = int32(m0 + int32(ty * uint32(4)) + i // 4 * (4 * down) + i % 4)
                for j in range(tn):
                    column = int32(j0 + int32(tx * uint32(4)) + j // 4 * (4 * across) + j % 4)
                    if m < grid.rows and column < grid.columns:
                        acc[i * tn + j] += residual[place(part, group, m, column, geometry)]
            m0, j0 = anew(m0), anew(j0)  # places kept from here to the stores would take registers from other blocks
        if grid.relu:
            for i in range(sums):
                acc[i] = float32(0) if acc[i] <= float32(0) else acc[i]
        for i in range(tm):
            m = int32(m0 + int32(ty * uint32(4)) + i // 4 * (4 * down) + i % 4)
            for j in range(tn):
                column = int32(j0 + int32(tx * uint32(4)) + j // 4 * (4 * across) + j % 4)
                if m < grid.rows and column < grid.columns:
                    c[place(part, group, m, column, geometry)] = acc[i * tn + j]

    return CudaKernel(name, body, (*("float32",) * 5, geometry, Grid), threads)


Kernels = dict[bool, list[CudaKernel]]  # for each tile, without and with a residual


@lru_cache(maxsize=1024)
def _cut(direction: str, product: Product, biased: bool, relu: int) -> tuple[int, Grid]:
    """The number of the tile, and the grid; where sums are cut into parts, bias and ReLU are left for their joining."""
    number = choose_tile(product.rows)
    grid = make_grid(TILES[number], *product, parts=product_parts(direction, product))
    return number, grid if grid.parts > 1 else grid._replace(biased=int(biased), relu=relu)


def multiply(
    kernels: Kernels, direction: str, product: Product, a, b, bias, residual, geometry, workspace, out,
    channels: int = 1, pixels: int = 1, relu: int = 0,
) -> None:  # fmt: skip
    """Run a product, its sums cut into parts where blocks are few: those lie in the workspace one behind the other, each as
    out does, and are added in order, with the bias and the residual, and go through the ReLU once.

    out is (N, channels, pixels) where there is a bias. bias may be empty or None, residual None.
    """
    biased, added = bias is not None and bias.size > 0, residual is not None
    number, grid = _cut(direction, product, biased, relu)
    if grid.parts == 1:
        more = bias if biased else a, residual if added else out
        kernels[added][number](grid.blocks, a, b, *more, out, geometry, grid)
        return
    sums = workspace[: 4 * grid.parts * out.size].view(np.float32)
    kernels[False][number](grid.blocks, a, b, a, sums, sums, geometry, grid)
    finish(sums, bias, residual, out, grid.parts, channels, pixels, relu)
