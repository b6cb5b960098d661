"""Backward through average pooling, the ReLU before it and the bias before that, in one pass.

Windows that stand side by side give every pixel the gradient of one window. So the pool's gradient need not be spread over
the pixels in memory, where the ReLU would read it again: a vector of it is repeated in registers, once for each pixel that
a window is wide, and what the ReLU held back is left out at once. A job is some whole images, as in
elementwise/cpu_planes.py.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from ..elementwise.cpu_planes import jobs_of, sums_bytes
from ..simd import _literal, lanes_of, load_tile, store_tile, store_tile_part, zero_tile
from ..spec import ChannelSpec, PoolSpec
from ..threads import ParallelKernel, parallel
from ..tile_math import add, load_part, mul, passed, splat_tile, tile_sum
from ..variant import Problem, cpu_only

WIDTHS = (1, 2, 4)  # of windows: a vector then begins with a window, or lies in one


@intrinsic(prefer_literal=True)
def repeat_lanes(typingctx, tile, times):
    """A vector in which the first lanes of another stand ``times`` times each."""

    def codegen(context, builder, signature, args):
        vector = builder.extract_value(args[0], 0)
        lanes = [ir.Constant(ir.IntType(32), i // _literal(times)) for i in range(tile.lanes)]
        repeated = builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), tile.lanes), lanes))
        return builder.insert_value(args[0], repeated, 0)

    return tile(tile, times), codegen


def _pass(wide: int) -> ParallelKernel:
    """The kernel for windows of this width."""

    def body(job, worker, gy, y, spec, images, scale, sums, g):
        # gy (N, C, P, Q), y and g (N, C, H, W), flat; sums (jobs, C)
        height, width, down = spec.size[0], spec.size[1], spec.kernel[0]
        lanes, zero, share = lanes_of(g), zero_tile(g, 1, 1), splat_tile(g, scale, 1)
        mine = sums[job]
        for c in range(spec.c):
            mine[c] = 0
        first, last = job * images * spec.c, min((job + 1) * images, spec.n) * spec.c
        end = last * height * width
        for number in range(first, last):
            total = zero
            for p in range((height + down - 1) // down):
                source = (number * spec.out[0] + p) * spec.out[1]
                inside = spec.out[1] if p < spec.out[0] else 0  # beside the windows and below them is nothing
                for h in range(p * down, min((p + 1) * down, height)):
                    for w in range(0, width, lanes):
                        q, at = w // wide, (number * height + h) * width + w
                        part = mul(load_part(gy, source + q, inside - q, zero), share)
                        # A short row is written as a whole vector, and the next row overwrites what was too much.
                        if at + lanes <= end:
                            v = passed(repeat_lanes(part, wide), load_tile(y, at, 0, 1, 1))
                            store_tile(g, at, 0, v)
                        else:
                            v = passed(repeat_lanes(part, wide), load_part(y, at, end - at, zero))
                            store_tile_part(g, at, 0, v, 1, end - at)
                        total = add(total, v)
            mine[number % spec.c] += tile_sum(total)

    body.__name__ = f"_avg_relu_bias_{wide}"
    return parallel(body)


_kernel = cache(_pass)


def overlapping(spec: PoolSpec) -> str:
    """The refusal of windows that do not stand side by side in the input."""
    if spec.stride != spec.kernel or spec.padding != ((0, 0), (0, 0)):
        return "takes windows side by side, without padding"
    if any(spec.out[i] * spec.kernel[i] > spec.size[i] for i in range(2)):
        return "takes windows that lie inside the input"
    return ""


def refuses(problem: Problem) -> str:
    """Takes what this file's idea needs."""
    if problem.spec.kernel[1] not in WIDTHS:
        return f"takes windows of the widths {', '.join(map(str, WIDTHS))}"
    return overlapping(problem.spec) or cpu_only(problem)


def _channels(spec: PoolSpec) -> ChannelSpec:
    return ChannelSpec(spec.n, spec.c, spec.size[0] * spec.size[1])


def workspace_bytes(problem: Problem) -> int:
    """A float64 for every channel in every job."""
    return sums_bytes(_channels(problem.spec))


def avg_relu_bias_backward(
    gy: np.ndarray, y: np.ndarray, spec: PoolSpec, workspace: np.ndarray, out: np.ndarray, sums: np.ndarray
) -> None:
    """out = each window's gy shared out evenly where the ReLU's result y is positive or NaN, else 0; its sums (C,)."""
    jobs, images = jobs_of(_channels(spec))
    partial = workspace[: sums_bytes(_channels(spec))].view(np.float64).reshape(jobs, spec.c)
    scale = out.dtype.type(1 / (spec.divisor or spec.kernel[0] * spec.kernel[1]))
    flat = (gy.reshape(-1), y.reshape(-1), spec, images, scale, partial, out.reshape(-1))
    _kernel(spec.kernel[1])(jobs, *flat)
    sums[...] = partial.sum(axis=0)
