"""The ladder of ``notebooks/03_from_naive_to_tensor_cores.ipynb``: one layer's forward pass in five ways, each faster.

The notebook shows, explains and proves these kernels, and the stage ladder times them. All take channels-last images
``x[n, h, w, c]``, weights ``w[r, s, c, k]`` of 3x3 taps and ``y[n, h, w, k]``; stride 1, padding 1, channels and filters in
whole tiles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ...kernels.cuda import kernel as registry
from ...kernels.cuda import language
from ...kernels.cuda.language import (
    close_copies,
    copy16_async,
    cuda,
    float32,
    inlined,
    int32,
    load4,
    round_tf32,
    shared_address,
    thread,
    uint32,
    uint64,
    wait_copies,
)


class Layer(NamedTuple):
    """Images, their size, channels in and out; the kernel is 3x3, stride 1, padding 1."""

    n: int
    height: int
    width: int
    c: int
    k: int


@inlined
def met(m: Any, tap: Any, layer: Any) -> Any:
    """Where in x the pixel begins which a tap meets in the window of pixel m; -1 in the padding and past the last m."""
    p, q = uint32(m) // uint32(layer.width) % uint32(layer.height), uint32(m) % uint32(layer.width)
    down, across = int32(uint32(tap) // uint32(3)) - 1, int32(uint32(tap) % uint32(3)) - 1
    h, v = int32(p) + down, int32(q) + across
    inside = m < layer.n * layer.height * layer.width and 0 <= h < layer.height and 0 <= v < layer.width
    return int32((m + down * layer.width + across) * layer.c) if inside else int32(-1)


def naive(x: Any, w: Any, y: Any, layer: Any) -> None:
    me = uint32(thread())
    m, k = int32(me // uint32(layer.k)), int32(me % uint32(layer.k))
    if m < layer.n * layer.height * layer.width:
        total = float32(0)
        for tap in range(9):
            at = met(m, tap, layer)
            if at >= 0:
                for c in range(layer.c):
                    total += x[int32(at + c)] * w[int32((tap * layer.c + c) * layer.k + k)]
        y[int32(m * layer.k + k)] = total


SIDE = 16  # pixels, filters and terms of a tile


def tiled(x: Any, w: Any, y: Any, layer: Any) -> None:
    xs = cuda.shared.array((SIDE, SIDE), float32)  # pixel, channel
    ws = cuda.shared.array((SIDE, SIDE), float32)  # channel, filter
    me, block = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
    tx, ty, wide = me % uint32(SIDE), me // uint32(SIDE), uint32(layer.k // SIDE)
    m, k = int32(block // wide * uint32(SIDE) + ty), int32(block % wide * uint32(SIDE) + tx)
    total = float32(0)
    for tap in range(9):
        at = met(m, tap, layer)
        for first in range(0, layer.c, SIDE):
            xs[ty, tx] = x[int32(at + first + int32(tx))] if at >= 0 else float32(0)
            ws[ty, tx] = w[int32((tap * layer.c + first + int32(ty)) * layer.k + k)]
            cuda.syncthreads()
            for c in range(SIDE):
                total += xs[ty, c] * ws[c, tx]
            cuda.syncthreads()
    if m < layer.n * layer.height * layer.width:
        y[int32(m * layer.k + k)] = total


BLOCK, STEP = 128, 8  # pixels and filters of a block; terms of a slice


def with_pitch(pitch: int) -> Callable[..., None]:
    """The register tile, its slices of x in lines of so many numbers."""
    room_x, room_w = STEP * pitch, STEP * BLOCK

    def register_tile(x: Any, w: Any, y: Any, layer: Any) -> None:
        xs, ws = cuda.shared.array(room_x, float32), cuda.shared.array(room_w, float32)  # by term
        sums, left, right = cuda.local.array(64, float32), cuda.local.array(8, float32), cuda.local.array(8, float32)
        at = cuda.local.array(4, int32)
        me, block, wide = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x), uint32(layer.k // BLOCK)
        m0, k0 = int32(block // wide * uint32(BLOCK)), int32(block % wide * uint32(BLOCK))
        tx, ty = me % uint32(16), me // uint32(16)
        for i in range(64):
            sums[i] = float32(0)
        for tap in range(9):
            for i in range(4):
                at[i] = met(int32(m0 + int32(me // uint32(8)) + i * 32), tap, layer)
            for first in range(0, layer.c, STEP):
                for i in range(4):  # neighbouring threads: neighbouring channels of x, neighbouring filters of w
                    t, row = me % uint32(8), me // uint32(8) + uint32(i * 32)
                    xs[t * uint32(pitch) + row] = x[int32(at[i] + first + int32(t))] if at[i] >= 0 else float32(0)
                    t, k = me // uint32(128) + uint32(i * 2), me % uint32(128)
                    ws[t * uint32(BLOCK) + k] = w[int32((tap * layer.c + first + int32(t)) * layer.k + k0 + int32(k))]
                cuda.syncthreads()
                for t in range(STEP):
                    for i in range(8):
                        left[i] = xs[uint64(t * pitch + i * 16) + uint64(ty)]
                        right[i] = ws[uint64(t * BLOCK + i * 16) + uint64(tx)]
                    for i in range(8):
                        for j in range(8):
                            sums[i * 8 + j] += left[i] * right[j]
                cuda.syncthreads()
        for i in range(8):
            m = int32(m0 + i * 16 + int32(ty))
            for j in range(8):
                if m < layer.n * layer.height * layer.width:
                    y[int32(m * layer.k + k0 + j * 16 + int32(tx))] = sums[i * 8 + j]

    return register_tile


PITCH_X, PITCH_W = STEP + 4, BLOCK + 8  # of lines: 8 channels of a pixel; 128 filters of a term
XS = BLOCK * PITCH_X
STAGE = XS + STEP * PITCH_W  # numbers in a slice of both
ROOM = 2 * STAGE


def pipelined(multiply: Any, row_of: Any, filter_of: Any, sum_of: Any) -> Callable[..., None]:
    """A kernel whose next slice is copied while ``multiply`` works on the one that is there."""

    def kernel(x: Any, w: Any, y: Any, layer: Any) -> None:
        room, sums = cuda.shared.array(ROOM, float32, alignment=16), cuda.local.array(64, float32)
        me, block, wide = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x), uint32(layer.k // BLOCK)
        m0, k0 = int32(block // wide * uint32(BLOCK)), int32(block % wide * uint32(BLOCK))
        for i in range(64):
            sums[i] = float32(0)
        # Each thread copies four channels of one pixel and four filters of one term.
        c, row = int32(me % uint32(2) * uint32(4)), me // uint32(2)
        row = int32(
            row & uint32(120) | row % uint32(4) * uint32(2) | row // uint32(4) % uint32(2)
        )  # meets no bank twice
        t, k = int32(me // uint32(32)), int32(me % uint32(32) * uint32(4))
        to_x = uint32(shared_address(room) + uint32(4 * (row * PITCH_X + c)))
        to_w = uint32(shared_address(room) + uint32(4 * (XS + t * PITCH_W + k)))
        tap, first, stage = int32(0), int32(0), uint32(0)
        at = met(int32(m0 + row), tap, layer)
        slices = int32(9 * layer.c // STEP)
        for turn in range(-1, slices):
            if turn + 1 < slices:  # start copying the next slice
                free = uint32((stage ^ uint32(1)) * uint32(4 * STAGE))
                copy16_async(uint32(to_x + free), x, int32(at + first + c), at >= 0)
                copy16_async(uint32(to_w + free), w, int32((tap * layer.c + first + t) * layer.k + k0 + k), True)
                first = int32(first + STEP)
                if first == layer.c:
                    tap, first = int32(tap + 1), int32(0)
                    at = met(int32(m0 + row), tap, layer)
            close_copies()
            if turn >= 0:
                multiply(room, uint32(stage * uint32(STAGE)), sums, me)
            stage = stage ^ uint32(1)
            wait_copies(0)
            cuda.syncthreads()
        for i in range(8):
            m = int32(m0 + row_of(me, i))
            for j in range(8):
                if m < layer.n * layer.height * layer.width:
                    y[int32(m * layer.k + k0 + filter_of(me, j))] = sums[sum_of(i, j)]

    return kernel


@inlined
def multiply_wide(room: Any, slice_at: Any, sums: Any, me: Any) -> None:
    left, right = cuda.local.array(32, float32), cuda.local.array(8, float32)
    from_x = uint64(slice_at + me // uint32(16) * uint32(PITCH_X))
    from_w = uint64(slice_at + uint32(XS) + me % uint32(16) * uint32(4))
    for t in range(0, STEP, 4):
        for i in range(8):  # four terms of each of eight pixels
            s = i * 4
            left[s], left[s + 1], left[s + 2], left[s + 3] = load4(room, from_x + uint64(i * 16 * PITCH_X + t))
        for u in range(4):
            for j in range(0, 8, 4):  # eight filters of one term
                there = from_w + uint64((t + u) * PITCH_W + j * 16)
                right[j], right[j + 1], right[j + 2], right[j + 3] = load4(room, there)
            for i in range(8):
                for j in range(8):
                    sums[i * 8 + j] += left[i * 4 + u] * right[j]


@inlined
def wide_row(me: Any, i: Any) -> Any:
    return int32(int32(me // uint32(16)) + i * 16)


@inlined
def wide_filter(me: Any, j: Any) -> Any:
    return int32(int32(me % uint32(16) * uint32(4)) + j // 4 * 64 + j % 4)


@inlined
def wide_sum(i: Any, j: Any) -> Any:
    return i * 8 + j


multiply_tf32 = language.multiply_tf32  # mma.sync.m16n8k8: (a, b, sums) of a lane give its sums


@inlined
def multiply_tensor(room: Any, slice_at: Any, sums: Any, me: Any) -> None:
    left, right = cuda.local.array(16, uint32), cuda.local.array(8, uint32)
    g, t = me % uint32(32) // uint32(4), me % uint32(4)
    warp_m, warp_k = me // uint32(128) * uint32(64), me // uint32(32) % uint32(4) * uint32(32)
    from_x = uint64(slice_at + (warp_m + g) * uint32(PITCH_X) + t)
    from_w = uint64(slice_at + uint32(XS) + t * uint32(PITCH_W) + warp_k + g)
    for i in range(4):  # rows g and g + 8 of 16, terms t and t + 4
        for e in range(4):
            left[i * 4 + e] = round_tf32(room[from_x + uint64((i * 16 + e % 2 * 8) * PITCH_X + e // 2 * 4)])
    for j in range(4):  # terms t and t + 4 of column g
        for e in range(2):
            right[j * 2 + e] = round_tf32(room[from_w + uint64(e * 4 * PITCH_W + j * 8)])
    for i in range(4):
        a = left[i * 4], left[i * 4 + 1], left[i * 4 + 2], left[i * 4 + 3]
        for j in range(4):
            s, b = (i * 4 + j) * 4, (right[j * 2], right[j * 2 + 1])
            total = sums[s], sums[s + 1], sums[s + 2], sums[s + 3]
            sums[s], sums[s + 1], sums[s + 2], sums[s + 3] = multiply_tf32(a, b, total)


@inlined
def tensor_row(me: Any, i: Any) -> Any:
    """The i-th of a lane's rows: g and g + 8 of four products."""
    return int32(int32(me // uint32(128) * uint32(64) + me % uint32(32) // uint32(4)) + i * 8)


@inlined
def tensor_filter(me: Any, j: Any) -> Any:
    return int32(int32(me // uint32(32) % uint32(4) * uint32(32) + me % uint32(4) * uint32(2)) + j // 2 * 8 + j % 2)


@inlined
def tensor_sum(i: Any, j: Any) -> Any:
    return (i // 2 * 4 + j // 2) * 4 + i % 2 * 2 + j % 2


class Rung(NamedTuple):
    """A kernel of the ladder: its function, threads and (pixels, filters) of a block, and what it multiplies."""

    body: Callable[..., None]
    threads: int
    tile: tuple[int, int]
    precision: str = "float32"

    def blocks(self, layer: Layer) -> int:
        return -(-layer.n * layer.height * layer.width // self.tile[0]) * (layer.k // self.tile[1])


RUNGS = {
    "naive": Rung(naive, 256, (2, 128)),
    "tiled": Rung(tiled, SIDE * SIDE, (SIDE, SIDE)),
    "register tile, unpadded": Rung(with_pitch(BLOCK), 256, (BLOCK, BLOCK)),
    "register tile": Rung(with_pitch(BLOCK + 4), 256, (BLOCK, BLOCK)),
    "wide loads": Rung(pipelined(multiply_wide, wide_row, wide_filter, wide_sum), 256, (BLOCK, BLOCK)),
    "tensor cores": Rung(
        pipelined(multiply_tensor, tensor_row, tensor_filter, tensor_sum), 256, (BLOCK, BLOCK), "tf32"
    ),
}


@cache
def kernel(name: str) -> registry.CudaKernel:
    """The kernel of a rung, which is no part of the library's own."""
    stamp = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    rung, label = RUNGS[name], name.replace(",", "").replace(" ", "-")
    made = registry.CudaKernel(
        f"rung-{label}-{stamp}", rung.body, ("float32", "float32", "float32", Layer), rung.threads
    )
    del registry.KERNELS[made.name]
    return made
