"""Depthwise convolution (one input channel a group), row by row, for the usual kernel sizes; all three directions.

There is no sum over channels to block for, so nothing is packed or copied: a plane lies in the first-level cache and rows
are read where they are, with masked lanes beyond the image. Every row that is read meets R results, kept in a tile of R
rows that rolls on with the rows of the image: forward the oldest row has met all of its inputs and is written; the input
gradient spreads a row of gradients over R rows of the image; the weight gradient rolls through R rows of gradients and
keeps all R x S sums, a vector each, in registers over the images of a channel.

The last vector of a row overlaps the one before it where a row has a vector's length. Shorter rows are written in whole
vectors too, and the next row overwrites what was too much. A horizontal stride of 2 reads every second element, and its
input gradient computes even and odd columns apart and interleaves them.

Non-finite inputs can reach every tap of their channel's weight gradient, not only those that they met.

Source of the rolling rows: Zhang, Lo and Lu, "High performance depthwise and pointwise convolutions on mobile devices",
2020 (their register tile goes along the row, ours down the image).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..compiler import helper
from ..parts import add_parts
from ..simd import (
    add_lane_sums,
    add_scalar,
    lanes_of,
    load_window,
    relu_tile,
    store_tile,
    store_tile_part,
    zero_tile,
)
from ..simd_shift import (
    add_correlation,
    add_shift_products,
    add_spread,
    interleave,
    next_rows,
    splat_tile,
    store_window,
    tile_row,
)
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, parallel
from ..variant import Problem, cpu_only

SIZES = ((3, 3), (5, 5), (7, 7))
PIXELS = 16384  # that make a job: several planes where they are small
JOBS = 16  # jobs wanted before the batch of a weight gradient is cut into parts


def refuses(problem: Problem) -> str:
    """Takes what this file's idea needs."""
    spec = problem.spec
    if spec.c != spec.groups:
        return "takes one input channel a group"
    if spec.kernel not in SIZES:
        return "takes square kernels of 3, 5 and 7"
    if spec.dilation != (1, 1) or spec.stride[1] > 2:
        return "takes dilation 1 and a horizontal stride of 1 or 2"
    return cpu_only(problem)


class _Layout(NamedTuple):
    """Plain numbers for the kernels."""

    n: int
    k: int
    multiplier: int  # K / C
    size: Pair
    out: Pair
    step: int  # vertical stride
    padding: Pair  # top and left
    planes: int  # of the result in a job
    parts: int
    activation: int


@lru_cache(maxsize=1024)
def _layout(spec: ConvSpec) -> _Layout:
    pixels = max(spec.size[0] * spec.size[1], spec.out[0] * spec.out[1])
    parts = max(1, min(spec.n, JOBS // spec.k))
    padding = (spec.padding[0][0], spec.padding[1][0])
    planes = max(1, PIXELS // pixels)
    return _Layout(
        spec.n, spec.k, spec.k // spec.c, spec.size, spec.out, spec.stride[0], padding, planes, parts, spec.activation
    )


@helper
def store_row(y, at, vector, limit):
    """Write a vector at y[at], but nothing from y[limit] on."""
    if at + lanes_of(y) > limit:
        store_tile_part(y, at, 0, vector, 1, limit - at)
    else:
        store_tile(y, at, 0, vector)


def _forward_kernel(rows: int, columns: int, step: int) -> ParallelKernel:
    def body(job, worker, x, w, bias, layout, y):
        # x (N*C, H, W), w (K, R, S), y (N*K, P, Q), all flat
        height, width = layout.size
        pixels = layout.out[0] * layout.out[1]
        zero = zero_tile(y, 1, 1)
        for plane in range(job * layout.planes, min((job + 1) * layout.planes, layout.n * layout.k)):
            k = plane % layout.k
            source = plane // layout.multiplier * height * width
            # Row i of the tile is met by kernel row R - 1 - i: its first row is the oldest.
            kernel = splat_tile(w, k * rows * columns + (rows - 1) * columns, -columns, 1, rows, columns)
            for block in range(0, layout.out[1], lanes_of(y)):
                q = max(0, min(block, layout.out[1] - lanes_of(y)))
                left = q * step - layout.padding[1]
                tile = zero_tile(y, rows, 1)
                to = plane * pixels + q
                done = rows - 1 - layout.padding[0]  # the image row that completes the next result
                for h in range(-layout.padding[0], (layout.out[0] - 1) * layout.step + rows - layout.padding[0]):
                    if 0 <= h < height:
                        row = source + h * width + left
                        tile = add_correlation(tile, kernel, x, row, -left, width - left, step)
                    if h == done:
                        vector = tile_row(tile, 0)
                        if bias.size:
                            vector = add_scalar(vector, bias[k])
                        if layout.activation:
                            vector = relu_tile(vector)
                        store_row(y, to, vector, (plane + 1) * pixels)
                        to += layout.out[1]
                        done += layout.step
                    tile = next_rows(tile, zero)

    body.__name__ = f"_forward_{rows}x{columns}_{step}"
    return parallel(body)


def _input_kernel(rows: int, columns: int, step: int) -> ParallelKernel:
    def body(job, worker, gy, w, layout, gx):
        # gy (N*K, P, Q), w (K, R, S), gx (N*C, H, W), all flat
        height, width = layout.size
        pixels = layout.out[0] * layout.out[1]
        top, left = layout.padding
        channels = layout.k // layout.multiplier
        zero = zero_tile(gx, 1, step)
        span = step * lanes_of(gx)
        for plane in range(job * layout.planes, min((job + 1) * layout.planes, layout.n * channels)):
            first = plane % channels * layout.multiplier
            kernel = splat_tile(w, first * rows * columns, columns, 1, rows, columns)
            end = (plane + 1) * height * width
            for block in range(0, width + (left if step == 2 else 0), span):
                # Pixels v, v + 1, …; with a stride v + padding is even, so that even columns meet even kernel columns.
                v = block - left if step == 2 else max(0, min(block, width - span))
                q = (v + left) // step
                tile = zero_tile(gx, rows, step)
                to = plane * height * width - top * width + v
                for p in range((height + top + layout.step - 1) // layout.step):
                    if p < layout.out[0]:
                        for i in range(layout.multiplier):
                            if layout.multiplier > 1:
                                kernel = splat_tile(w, (first + i) * rows * columns, columns, 1, rows, columns)
                            row = (plane * layout.multiplier + i) * pixels + p * layout.out[1] + q
                            tile = add_spread(tile, kernel, gy, row, -q, layout.out[1] - q)
                    for h in range(p * layout.step - top, (p + 1) * layout.step - top):
                        if 0 <= h < height:
                            if step == 2:
                                store_window(gx, to, -v, width - v, interleave(tile_row(tile, 0)))
                            else:
                                store_row(gx, to, tile_row(tile, 0), end)
                        to += width
                        tile = next_rows(tile, zero)

    body.__name__ = f"_input_{rows}x{columns}_{step}"
    return parallel(body)


def _weight_kernel(rows: int, columns: int, step: int) -> ParallelKernel:
    def body(job, worker, x, gy, layout, gw):
        # x (N*C, H, W), gy (N*K, P, Q), gw (parts, K, R, S), all flat
        height, width = layout.size
        part, k = job // layout.k, job % layout.k
        sums = zero_tile(gw, rows, columns)
        zero = zero_tile(gw, 1, 1)
        for n in range(part * layout.n // layout.parts, (part + 1) * layout.n // layout.parts):
            plane = n * layout.k + k
            source = plane // layout.multiplier * height * width
            for block in range(0, layout.out[1], lanes_of(gw)):
                left = block * step - layout.padding[1]
                tile = zero_tile(gw, rows, 1)  # its last row meets kernel row 0, its first row the last one
                come = plane * layout.out[0] * layout.out[1] + block
                last = (layout.out[0] - 1) * layout.step - layout.padding[0]
                wanted = -layout.padding[0]  # the image row that the next row of gradients meets first
                for h in range(-layout.padding[0], min(height, last + rows)):
                    if h == wanted and h <= last:
                        tile = next_rows(tile, load_window(gy, come, 0, layout.out[1] - block))
                        come += layout.out[1]
                        wanted += layout.step
                    else:
                        tile = next_rows(tile, zero)
                    if h >= 0:
                        row = source + h * width + left
                        sums = add_shift_products(sums, tile, x, row, -left, width - left, step)
        to = job * rows * columns
        for i in range(rows * columns):
            gw[to + i] = 0
        add_lane_sums(gw, to + (rows - 1) * columns, -columns, sums, rows, columns)

    body.__name__ = f"_weight_{rows}x{columns}_{step}"
    return parallel(body)


_FORWARD, _INPUT, _WEIGHT = (
    {(*size, step): make(*size, step) for size in SIZES for step in (1, 2)}
    for make in (_forward_kernel, _input_kernel, _weight_kernel)
)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k] = bias[k] + sum over r, s of w[k, r, s] times its channel of x[n] shifted."""
    layout = _layout(spec)
    kernel = _FORWARD[*spec.kernel, spec.stride[1]]
    jobs = -(-spec.n * spec.k // layout.planes)
    kernel(jobs, x.reshape(-1), w.reshape(-1), bias, layout, out.reshape(-1))


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over the filters k of c and r, s of w[k, r, s] times gy[n, k] shifted the other way."""
    layout = _layout(spec)
    kernel = _INPUT[*spec.kernel, spec.stride[1]]
    jobs = -(-spec.n * spec.c // layout.planes)
    kernel(jobs, gy.reshape(-1), w.reshape(-1), layout, out.reshape(-1))


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, 0, r, s] = sum over n, p, q of gy[n, k] times its channel of x[n] shifted."""
    layout = _layout(spec)
    kernel = _WEIGHT[*spec.kernel, spec.stride[1]]
    parts = out.reshape(1, -1) if layout.parts == 1 else workspace.view(out.dtype)[: layout.parts * out.size]
    kernel(layout.parts * spec.k, x.reshape(-1), gy.reshape(-1), layout, parts.reshape(-1))
    if layout.parts > 1:
        add_parts(parts.reshape(layout.parts, -1), out.reshape(-1))


def workspace_bytes(problem: Problem) -> int:
    """Partial sums of the weight gradient, where the batch is cut."""
    spec, parts = problem.spec, _layout(problem.spec).parts
    itemsize = 8 if problem.dtype == "float64" else 4
    return parts * spec.k * spec.kernel[0] * spec.kernel[1] * itemsize if parts > 1 else 0
