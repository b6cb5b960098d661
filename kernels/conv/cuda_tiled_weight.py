"""The weight gradient of convolution by few channels on a GPU, of 3x3 kernels: see :mod:`.cuda_tiled`.

A block has the taps of one channel of x and four of y, and part of the pixels of the batch: a thread adds the products of
its columns of gy with windows of x in registers, and at last the block adds its threads' sums in the order of a tree.
"""

from __future__ import annotations

from functools import lru_cache

from ..cuda.images import is_last
from ..cuda.kernel import CudaKernel
from ..cuda.language import cuda, float32, inlined, int32, uint32
from ..cuda.stored import STORED, pointer, reader_and_writer, ready, stored_as
from ..cuda.sums import finish_sums, sums_of
from ..cuda.tiles import RESULTS
from ..spec import ConvSpec
from .tiled_grid import KERNEL, Grid, LastGrid, make_grid, make_last_grid, place, tiled_name
from .tiled_last import last_weight_kernel
from .window_lines import PITCH, ROWS, THREADS, block_sums, over_window


def _weight_kernel(step: int, stored: str) -> CudaKernel:
    """The kernel (x, gy, sums, grid) of one stride; sums (part, K, C/groups, R, S)."""
    taps, (read, _) = KERNEL * KERNEL, reader_and_writer(stored)
    count, columns = RESULTS * taps, RESULTS * ROWS
    room, tree = count * PITCH, block_sums(count)

    @inlined
    def multiply(acc, given, j, r, s, pixel):
        for f in range(RESULTS):
            acc[f * taps + r * KERNEL + s] += given[f * ROWS + j] * pixel

    add = over_window(KERNEL, KERNEL, step, stored, multiply)

    def body(x, gy, sums, grid):
        partial = cuda.shared.array(room, float32)
        acc, given = cuda.local.array(count, float32), cuda.local.array(columns, float32)
        line = cuda.local.array(KERNEL, float32)
        me, block = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        c = int32(block % uint32(grid.inner))
        block = block // uint32(grid.inner)
        k0 = int32(block % uint32(grid.blocks) * uint32(RESULTS))
        block = block // uint32(grid.blocks)
        group, part = int32(block % uint32(grid.groups)), int32(block // uint32(grid.groups))
        for i in range(count):
            acc[i] = float32(0)
        e = int32(part * grid.chunk + int32(me))
        last = int32(min(part * grid.chunk + grid.chunk, grid.terms))
        while e < last:
            n, p, q = place(e, grid)
            valid = int32(grid.out_height - p)
            come = int32(((n * grid.groups + group) * grid.outer + k0) * grid.out_height + p)
            for f in range(RESULTS):
                for j in range(ROWS):
                    inside = k0 + f < grid.outer and j < valid
                    at = int32((come + f * grid.out_height + j) * grid.out_width + q)
                    given[f * ROWS + j] = read(gy[at]) if inside else float32(0)
            h, v = int32(p * step - grid.top), int32(q * step - grid.left)
            at = int32((((n * grid.groups + group) * grid.inner + c) * grid.height + h) * grid.width + v)
            add(x, at, h, v, valid, grid, given, line, acc)  # no zero of gy's may meet an infinity
            e = int32(e + THREADS)
        tree(partial, acc)
        k = int32(k0 + int32(me // uint32(taps)))
        if me < uint32(count) and k < grid.outer:
            to = int32(((part * grid.groups + group) * grid.outer + k) * grid.inner + c)
            sums[int32(to * taps + int32(me % uint32(taps)))] = partial[me * uint32(PITCH)]

    name = tiled_name(f"weight_grad-{KERNEL}x{KERNEL}-step{step}", stored)
    return CudaKernel(name, body, (*(pointer(stored),) * 2, "float32", Grid), THREADS)


_MAKERS = (_weight_kernel, last_weight_kernel)
_KERNELS = {
    (step, stored, last): _MAKERS[last](step, stored) for step in (1, 2) for stored in STORED for last in (0, 1)
}


@lru_cache(maxsize=1024)
def _grid(spec: ConvSpec, last: bool = False) -> Grid | LastGrid:
    grid = make_grid(spec, spec.c // spec.groups)
    return make_last_grid(spec, grid, grid.inner) if last else grid


def weight_grad(x, gy, spec: ConvSpec, workspace, out) -> None:
    """Gradient with respect to w, from x (N, C, H, W) and gy (N, K, P, Q)."""
    last, stored = is_last(x) or is_last(gy), stored_as(x)
    grid = _grid(spec, last)
    blocks = grid.wide if isinstance(grid, LastGrid) else grid.groups * grid.blocks
    parts = max(1, -(-grid.terms // grid.chunk))
    sums = sums_of(workspace, out, parts)
    _KERNELS[spec.stride[0], stored, int(last)](parts * blocks * grid.inner, ready(x), ready(gy), sums, grid)
    finish_sums(sums, out, parts)
