"""The gradient of a ReLU after a bias, and the sum that is the bias's gradient, in one pass.

A job is some whole images, so that memory is read and written in order; it keeps one sum for each channel.
"""

from __future__ import annotations

import numpy as np

from ..simd import lanes_of, load_tile, store_tile, store_tile_part, zero_tile
from ..spec import ChannelSpec
from ..threads import parallel
from ..tile_math import add, load_part, passed, tile_sum
from ..variant import Problem

BLOCK = 16384  # elements in a job


@parallel
def _relu_bias_grad(job, worker, gy, y, spec, images, sums, g):
    # gy, y, g (N, C, L), flat; sums (jobs, C)
    lanes, zero = lanes_of(g), zero_tile(g, 1, 1)
    whole = spec.pixels // lanes * lanes
    mine = sums[job]
    for c in range(spec.c):
        mine[c] = 0
    for number in range(job * images * spec.c, min((job + 1) * images, spec.n) * spec.c):
        plane, total = number * spec.pixels, zero
        for i in range(plane, plane + whole, lanes):
            v = passed(load_tile(gy, i, 0, 1, 1), load_tile(y, i, 0, 1, 1))
            store_tile(g, i, 0, v)
            total = add(total, v)
        if whole < spec.pixels:
            i, rest = plane + whole, spec.pixels - whole
            v = passed(load_part(gy, i, rest, zero), load_part(y, i, rest, zero))
            store_tile_part(g, i, 0, v, 1, rest)
            total = add(total, v)
        mine[number % spec.c] += tile_sum(total)


def jobs_of(spec: ChannelSpec) -> tuple[int, int]:
    """Jobs, and images in each."""
    images = max(1, BLOCK // max(spec.c * spec.pixels, 1))
    return -(-spec.n // images), images


def sums_bytes(spec: ChannelSpec) -> int:
    """A float64 for every channel in every job."""
    return jobs_of(spec)[0] * spec.c * 8


def workspace_bytes(problem: Problem) -> int:
    return sums_bytes(problem.spec)


def relu_bias_grad(
    gy: np.ndarray, y: np.ndarray, spec: ChannelSpec, workspace: np.ndarray, out: np.ndarray, sums: np.ndarray
) -> None:
    """out = gy where the ReLU's result y is positive or NaN, else 0; sums[c] = the sum of out over images and pixels."""
    jobs, images = jobs_of(spec)
    partial = workspace[: sums_bytes(spec)].view(np.float64).reshape(jobs, spec.c)
    _relu_bias_grad(jobs, gy.reshape(-1), y.reshape(-1), spec, images, partial, out.reshape(-1))
    sums[...] = partial.sum(axis=0)
