"""Convolution by few channels on a GPU, of 3x3 kernels: forward, and the input gradient of stride 1; of float32, float16
and bfloat16, whose sums are float32.

Groups of few channels leave most of an implicit GEMM's tile empty, and make it find out for each pixel of its operand anew
where that lies. Here a thread has some rows of its column of four results: of each channel it loads a window of pixels to
registers, in which a pixel serves all of them, and takes the weights of all four from shared memory at once. A block has one
group's four results, whose weights it loads once, and part of the pixels of the batch.

Layout: NCHW, C-contiguous, or all images channels-last (tiled_last.py). bfloat16 comes as the uint16 of its bits. out never
aliases an input. Padding is never stored: what lies outside reads as zero.

Accuracy: a sum in float32; of halves the result is rounded once, to nearest.

Source: Zhang, Franchetti and Low, "High performance zero-memory overhead direct convolutions", 2018, for register tiles of
pixels and results; there on CPUs.
"""

from __future__ import annotations

from functools import lru_cache

from ..cuda.images import is_last
from ..cuda.kernel import CudaKernel
from ..cuda.language import cuda, float32, inlined, int32, load4, uint32, uint64
from ..cuda.stored import STORED, pointer, reader_and_writer, ready, stored_as
from ..cuda.tiles import FEW_CHANNELS, RESULTS
from ..spec import ConvSpec
from .tiled_grid import KERNEL, Grid, LastGrid, make_grid, make_last_grid, place, tiled_name
from .tiled_last import last_kernel
from .window_lines import ROWS, THREADS, finisher, over_window


def _tile_kernel(step: int, stored: str) -> CudaKernel:
    """The kernel (source, w, bias, residual, result, grid) of one stride."""
    taps, finish, (read, _) = KERNEL * KERNEL, finisher(stored), reader_and_writer(stored)
    weights, room, sums = RESULTS * taps, FEW_CHANNELS * RESULTS * taps, RESULTS * ROWS

    @inlined
    def multiply(acc, held, j, r, s, pixel):
        for f in range(RESULTS):
            acc[f * ROWS + j] += held[(r * KERNEL + s) * RESULTS + f] * pixel

    add = over_window(KERNEL, KERNEL, step, stored, multiply)

    def body(x, w, bias, residual, y, grid):
        factors = cuda.shared.array(room, float32, alignment=16)  # (source plane, tap, result)
        held, line = cuda.local.array(weights, float32), cuda.local.array(KERNEL, float32)
        acc = cuda.local.array(sums, float32)
        me, block = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        k0 = int32(block % uint32(grid.blocks) * uint32(RESULTS))
        block = block // uint32(grid.blocks)
        group, part = int32(block % uint32(grid.groups)), int32(block // uint32(grid.groups))
        base = int32(group * grid.inner * grid.outer * taps + grid.first_tap)
        i = me
        while i < uint32(grid.inner * weights):
            k, t, c = int32(k0 + int32(i % uint32(RESULTS))), i // uint32(RESULTS) % uint32(taps), i // uint32(weights)
            at = int32(base + k * grid.weight_outer + int32(c) * grid.weight_inner + int32(t) * grid.tap_step)
            factors[i] = read(w[at]) if k < grid.outer else float32(0)
            i = uint32(i + uint32(THREADS))
        cuda.syncthreads()
        e = int32(part * grid.chunk + int32(me))
        last = int32(min(part * grid.chunk + grid.chunk, grid.terms))
        while e < last:
            n, p, q = place(e, grid)
            h, v = int32(p * step - grid.top), int32(q * step - grid.left)
            for f in range(RESULTS):
                more = float32(0)
                if grid.biased and k0 + f < grid.outer:
                    more = read(bias[int32(group * grid.outer + k0 + f)])
                for j in range(ROWS):
                    acc[f * ROWS + j] = more
            at = int32(((n * grid.groups + group) * grid.inner * grid.height + h) * grid.width + v)
            come = uint32(0)
            while come < uint32(grid.inner * weights):
                for t in range(0, weights, RESULTS):
                    held[t], held[t + 1], held[t + 2], held[t + 3] = load4(factors, uint64(come) + uint64(t))
                add(x, at, h, v, ROWS, grid, held, line, acc)
                at = int32(at + grid.height * grid.width)
                come = uint32(come + uint32(weights))
            first = int32(((n * grid.groups + group) * grid.outer + k0) * grid.out_height + p)
            for f in range(RESULTS):
                for j in range(ROWS):
                    if k0 + f < grid.outer and p + j < grid.out_height:
                        to = int32((first + f * grid.out_height + j) * grid.out_width + q)
                        finish(acc[f * ROWS + j], residual, y, to, grid)
            e = int32(e + THREADS)

    name = tiled_name(f"{KERNEL}x{KERNEL}-step{step}", stored)
    return CudaKernel(name, body, (*(pointer(stored),) * 5, Grid), THREADS)


_MAKERS = (_tile_kernel, last_kernel)
_TILED = {(step, stored, last): _MAKERS[last](step, stored) for step in (1, 2) for stored in STORED for last in (0, 1)}


def _run(step: int, last: bool, grid: Grid | LastGrid, x, w, bias, residual, out) -> None:
    blocks = grid.wide if isinstance(grid, LastGrid) else grid.groups * grid.blocks
    parts = -(-grid.terms // grid.chunk)
    arrays = (ready(array) for array in (x, w, bias, residual, out))
    _TILED[step, stored_as(x), int(last)](parts * blocks, *arrays, grid)


@lru_cache(maxsize=1024)
def _forward_grid(spec: ConvSpec, biased: bool, added: bool, last: bool = False) -> Grid | LastGrid:
    grid = make_grid(spec, biased=int(biased), relu=spec.activation, added=int(added))
    return make_last_grid(spec, grid) if last else grid


@lru_cache(maxsize=1024)
def _gradient_grid(spec: ConvSpec, last: bool = False) -> Grid | LastGrid:
    """The forward pass over gy, the kernel turned and its channels exchanged."""
    inner, outer, taps = spec.k // spec.groups, spec.c // spec.groups, KERNEL * KERNEL
    (height, width), (out_height, out_width) = spec.out, spec.size
    grid = make_grid(
        spec, inner=inner, outer=outer, height=height, width=width, out_height=out_height, out_width=out_width,
        top=KERNEL - 1 - spec.padding[0][0], left=KERNEL - 1 - spec.padding[1][0], weight_outer=taps,
        weight_inner=outer * taps, first_tap=taps - 1, tap_step=-1,
    )  # fmt: skip
    return make_last_grid(spec, grid) if last else grid


def forward(x, w, bias, spec: ConvSpec, workspace, out) -> None:
    """Cross-correlation of x (N, C, H, W) and w (K, C/groups, 3, 3), plus bias, through the activation."""
    last = is_last(x) or is_last(out)
    grid = _forward_grid(spec, bias.size > 0, False, last)
    _run(spec.stride[0], last, grid, x, w, bias if grid.biased else w, out, out)


def forward_residual(x, w, bias, residual, spec: ConvSpec, workspace, out) -> None:
    """As :func:`forward`, with residual (N, K, P, Q) added before the activation."""
    last = is_last(x) or is_last(out)
    grid = _forward_grid(spec, bias.size > 0, True, last)
    _run(spec.stride[0], last, grid, x, w, bias if grid.biased else w, residual, out)


def input_grad(gy, w, spec: ConvSpec, workspace, out) -> None:
    """Gradient with respect to x, from gy (N, K, P, Q) and w (K, C/groups, 3, 3)."""
    last = is_last(gy) or is_last(out)
    _run(1, last, _gradient_grid(spec, last), gy, w, w, out, out)
