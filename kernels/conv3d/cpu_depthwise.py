"""Depthwise convolution of volumes (one input channel a group), row by row.

As in kernels/conv/cpu_depthwise.py a tile holds as many rows of results as the kernel has and rolls on with the rows of the
image; here each step meets that row in all frames that the output's frame sees. Nothing is copied, where convolution over
frames (cpu_frames.py) would copy every frame as often as the kernel is deep, for few products each.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from ..conv.cpu_depthwise import store_row
from ..simd import VECTOR_BITS, add_scalar, lanes_of, relu_tile, zero_tile
from ..simd_shift import add_correlation, next_rows, splat_tile, tile_row
from ..spec import Conv3dSpec, Triple
from ..threads import ParallelKernel, parallel
from ..variant import Problem, cpu_only

LARGEST = 5  # kernel height and width: larger ones would need too many registers
PIXELS = 16384  # of the result, in a job


def refuses(problem: Problem) -> str:
    """Takes what this file's idea needs."""
    spec = problem.spec
    if spec.c != spec.groups:
        return "takes one input channel a group"
    if max(spec.kernel[1:]) > LARGEST:
        return f"takes kernels of at most {LARGEST}x{LARGEST} pixels in a frame"
    if spec.dilation[1:] != (1, 1) or spec.stride[1:] != (1, 1):
        return "takes dilation 1 and stride 1 in a frame"
    return cpu_only(problem)


class _Layout(NamedTuple):
    """Plain numbers for the kernel."""

    n: int
    k: int
    multiplier: int  # K / C
    depth: int  # U
    size: Triple
    out: Triple
    stride: int  # in time
    dilation: int
    padding: Triple  # front, top and left
    volumes: int  # of the result in a job
    activation: int


def _forward_kernel(rows: int, columns: int, vectors: int) -> ParallelKernel:
    def body(job, worker, x, w, bias, layout, y):
        # x (N*C, T, H, W), w (K, U, R, S), y (N*K, O, P, Q), all flat
        frames, height, width = layout.size
        front, top, left = layout.padding
        results = layout.out[0] * layout.out[1] * layout.out[2]
        span, zero = vectors * lanes_of(y), zero_tile(y, 1, vectors)
        for volume in range(job * layout.volumes, min((job + 1) * layout.volumes, layout.n * layout.k)):
            k, source = volume % layout.k, volume // layout.multiplier * frames
            for o in range(layout.out[0]):
                for block in range(0, layout.out[2], span):
                    q = max(0, min(block, layout.out[2] - span))
                    v = q - left
                    tile = zero_tile(y, rows, vectors)
                    to = volume * results + o * layout.out[1] * layout.out[2] + q
                    for p in range(layout.out[1] + rows - 1):  # the newest result
                        h = p - top
                        if 0 <= h < height:
                            for u in range(layout.depth):
                                t = o * layout.stride - front + u * layout.dilation
                                if 0 <= t < frames:
                                    # The last kernel row comes first: the first row of the tile is the oldest.
                                    last = ((k * layout.depth + u) * rows + rows - 1) * columns
                                    kernel = splat_tile(w, last, -columns, 1, rows, columns)
                                    row = ((source + t) * height + h) * width + v
                                    tile = add_correlation(tile, kernel, x, row, -v, width - v, 1)
                        if p >= rows - 1:
                            finished = tile_row(tile, 0)
                            if bias.size:
                                finished = add_scalar(finished, bias[k])
                            if layout.activation:
                                finished = relu_tile(finished)
                            store_row(y, to, finished, vectors, (volume + 1) * results)
                            to += layout.out[2]
                        tile = next_rows(tile, zero)

    body.__name__ = f"_forward_{rows}x{columns}_by_{vectors}"
    return parallel(body)


_kernel = cache(_forward_kernel)  # made where it is first needed: there are many


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: Conv3dSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """The convolution with bias and activation."""
    lanes = VECTOR_BITS // (8 * out.itemsize)
    vectors = 2 if spec.out[2] > lanes else 1
    results = max(1, spec.out[0] * spec.out[1] * spec.out[2])
    before = (spec.padding[0][0], spec.padding[1][0], spec.padding[2][0])
    layout = _Layout(
        spec.n, spec.k, spec.k // spec.c, spec.kernel[0], spec.size, spec.out, spec.stride[0], spec.dilation[0], before,
        max(1, PIXELS // results), spec.activation,
    )  # fmt: skip
    jobs = -(-spec.n * spec.k // layout.volumes)
    _kernel(*spec.kernel[1:], vectors)(jobs, x.reshape(-1), w.reshape(-1), bias, layout, out.reshape(-1))
