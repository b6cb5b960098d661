"""Pointwise convolution as a matrix product over packed panels.

A panel is some pixels of one image with all their channels, copied so that channel follows channel: then a tile's loads run
straight through memory, and a panel that lies in the first-level cache serves every block of output channels.
One job is a group of panels; tiles are finished (bias, ReLU) in registers and written straight to the output.

Source: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import simd
from ..simd import (
    add_bias,
    add_outer,
    lanes_of,
    load_tile,
    load_window,
    relu_tile,
    store_tile,
    store_tile_part,
    zero_tile,
)  # fmt: skip
from ..spec import PointwiseSpec
from ..threads import num_threads, parallel, thread_rows
from ..variant import Problem

ROWS, COLUMNS = (8, 3) if simd.REGISTERS == 32 else (6, 2)
PANELS = 4  # in a job


class _Work(NamedTuple):
    """Plain numbers for the kernel."""

    n: int
    inner: int
    outer: int
    pixels: int
    jobs: int  # of one image
    activation: int


def _panel(itemsize: int) -> int:
    """Pixels in a panel."""
    return COLUMNS * simd.VECTOR_BITS // (8 * itemsize)


@lru_cache(maxsize=1024)
def _work(spec: PointwiseSpec, inner: int, outer: int, itemsize: int) -> _Work:
    jobs = -(-spec.pixels // (PANELS * _panel(itemsize)))
    return _Work(spec.n, inner, outer, spec.pixels, jobs, spec.activation)


@parallel
def _pack(job, worker, w, inner, outer, inner_stride, outer_stride, packed):
    # packed (blocks, inner, ROWS); a job packs one block of output channels, missing ones as zeros
    for i in range(inner):
        for row in range(ROWS):
            o = job * ROWS + row
            to = (job * inner + i) * ROWS + row
            packed[to] = w[o * outer_stride + i * inner_stride] if o < outer else packed.dtype.type(0)


@parallel
def _multiply(job, worker, x, packed, bias, work, scratch, y):
    # x (N, inner, L), y (N, outer, L), flat; scratch (threads, inner * panel)
    lanes = lanes_of(y)
    width = COLUMNS * lanes
    n, first_panel = job // work.jobs, job % work.jobs * PANELS
    mine = scratch[worker]
    blocks = (work.outer + ROWS - 1) // ROWS
    for first in range(first_panel * width, min((first_panel + PANELS) * width, work.pixels), width):
        pixels = min(width, work.pixels - first)
        source = n * work.inner * work.pixels + first
        if pixels == width:
            for i in range(work.inner):
                store_tile(mine, i * width, 0, load_tile(x, source + i * work.pixels, 0, 1, COLUMNS))
        else:
            for i in range(work.inner):
                for j in range(0, width, lanes):
                    store_tile(mine, i * width + j, 0, load_window(x, source + i * work.pixels + j, 0, pixels - j))
        for block in range(blocks):
            tile = zero_tile(y, ROWS, COLUMNS)
            weights = block * work.inner * ROWS
            for i in range(work.inner):
                tile = add_outer(tile, packed, weights + i * ROWS, mine, i * width)
            if bias.size:
                tile = add_bias(tile, bias, block * ROWS)
            if work.activation:
                tile = relu_tile(tile)
            to = (n * work.outer + block * ROWS) * work.pixels + first
            if pixels == width and (block + 1) * ROWS <= work.outer:
                store_tile(y, to, work.pixels, tile)
            else:
                store_tile_part(y, to, work.pixels, tile, work.outer - block * ROWS, pixels)


def _run(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, work: _Work, strides: tuple[int, int],
    workspace: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    blocks = -(-work.outer // ROWS)
    room = workspace.view(out.dtype)
    packed, panel = blocks * work.inner * ROWS, work.inner * _panel(out.itemsize)
    _pack(blocks, w.reshape(-1), work.inner, work.outer, *strides, room[:packed])
    scratch = thread_rows(room[packed:], panel)
    flat = (x.reshape(-1), room[:packed], bias, work, scratch, out.reshape(-1))
    _multiply(work.n * work.jobs, *flat, limit=scratch.shape[0])


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: PointwiseSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k, l] = bias[k] + sum over c of w[k, c] · x[n, c, l]."""
    _run(x, w, bias, _work(spec, spec.c, spec.k, x.itemsize), (1, spec.c), workspace, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: PointwiseSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c, l] = sum over k of w[k, c] · gy[n, k, l]: the same product with the transposed matrix."""
    work = _work(spec._replace(activation=0), spec.k, spec.c, gy.itemsize)
    _run(gy, w, np.empty(0, out.dtype), work, (spec.c, 1), workspace, out)


def workspace_bytes(problem: Problem) -> int:
    """The packed weights, and a panel for each thread."""
    spec, itemsize = problem.spec, 8 if problem.dtype == "float64" else 4
    inner, outer = (spec.c, spec.k) if problem.direction == "forward" else (spec.k, spec.c)
    return (-(-outer // ROWS) * ROWS + num_threads() * _panel(itemsize)) * inner * itemsize
