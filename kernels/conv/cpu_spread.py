"""Input gradient by spreading, for outputs smaller than the input: every output gradient meets every tap exactly once.

The other rows gather: each input pixel asks which output gradients it met, and multiplies the zeros around small outputs,
or tears its sums apart by strides. Here, for one tap, a tile of output pixels x vectors of input channels is summed over the
output channels, single gradients times packed vectors of weights; its rows are then added to the pixels that the tap meets.
Lanes are input channels; the sums of an image's block of channels stay in scratch until all taps are done, and are
transposed in registers on the way to memory.

One job is some images and one block of channels of a group. Scratch: the packed weights, shared; then the sums and one tile
for each thread.

Source: the loop order of Caffe's col2im, Jia et al., "Caffe: Convolutional architecture for fast feature embedding", 2014,
without the columns in memory.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from .. import host, simd
from ..simd import add_tiles, lanes_of, load_tile, store_tile, store_tile_part, zero_tile
from ..spec import ConvSpec
from ..threads import ParallelKernel, num_threads, parallel, thread_rows
from ..tiles import add_outer_groups, load_transposed
from ..variant import Problem, cpu_only
from .cpu_channels import Tile, choose_tile, pack

SCRATCH_BYTES = host.l2_bytes()
ADDING = 16  # cycles in which a vector of products is added where it belongs


class _Layout(NamedTuple):
    """Plain numbers for the kernel: gy (N, groups * inner, pixels), gx (N, groups * outer, size)."""

    n: int
    groups: int
    inner: int  # filters of a group
    outer: int  # channels of a group
    pixels: int  # of an output plane
    size: int  # pixels of an input plane
    blocks: int  # of the channels of a group


class Work(NamedTuple):
    """A problem ready to run."""

    layout: _Layout
    tile: Tile
    lanes: int
    places: np.ndarray  # how the weights are packed: tap by tap
    targets: np.ndarray  # (taps, output pixels): the input pixel that is met, or -1

    @property
    def block(self) -> int:
        return self.tile.columns * self.lanes

    @property
    def jobs(self) -> int:
        a = self.layout
        return -(-a.n // self.tile.groups) * a.groups * a.blocks

    @property
    def biases(self) -> int:
        """Elements of the biases that packing writes, all zero."""
        return self.layout.groups * self.layout.blocks * self.block

    @property
    def packed(self) -> int:
        """Elements of the packed weights."""
        return self.biases * self.layout.inner * len(self.targets)

    @property
    def scratch(self) -> int:
        """Elements for each thread: sums with what a square of vectors reaches beyond, and a tile."""
        sums = (self.tile.groups * self.layout.size + self.lanes) * self.block
        return max(sums + self.tile.groups * self.tile.width * self.block, self.lanes * self.lanes)


@lru_cache(maxsize=1024)
def gradient_work(spec: ConvSpec, itemsize: int) -> Work:
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    inner, outer, pixels = spec.k // spec.groups, spec.c // spec.groups, spec.out[0] * spec.out[1]
    size = spec.size[0] * spec.size[1]
    tile = choose_tile(max(spec.n, 1), outer, [pixels], inner, lanes, lambda tile: ADDING * math.prod(tile))
    axes = []
    for i in range(2):
        out, taps = np.arange(spec.out[i]), np.arange(spec.kernel[i])[:, None]
        at = out * spec.stride[i] + taps * spec.dilation[i] - spec.padding[i][0]  # (taps, out)
        axes.append(np.where((at >= 0) & (at < spec.size[i]), at, -1))
    down, across = axes[0][:, None, :, None], axes[1][None, :, None, :]
    targets = np.where((down >= 0) & (across >= 0), down * spec.size[1] + across, -1)
    targets = np.ascontiguousarray(targets.reshape(math.prod(spec.kernel), pixels), np.int64)
    layout = _Layout(spec.n, spec.groups, inner, outer, pixels, size, -(-outer // (tile.columns * lanes)))
    taps = np.arange(len(targets))
    places = np.stack([taps, np.ones_like(taps), np.zeros_like(taps)]).astype(np.int64)
    return Work(layout, tile, lanes, places, targets)


def _tile_kernel(images: int, width: int, columns: int) -> ParallelKernel:
    """The kernel for one tile."""
    rows = images * width

    def body(job, worker, gy, packed, layout, targets, scratch, gx):
        # gy (N, groups * inner, P * Q), gx (N, groups * outer, H * W), flat; packed (tap, group * block, inner, channels)
        lanes = lanes_of(gx)
        block = columns * lanes
        mine = scratch[worker]
        b, job = job % layout.blocks, job // layout.blocks
        group, n = job % layout.groups, min(job // layout.groups * images, layout.n - images)
        for at in range(0, images * layout.size * block, block):
            store_tile(mine, at, 0, zero_tile(gx, 1, columns))
        buffer = (images * layout.size + lanes) * block
        apart = layout.groups * layout.inner * layout.pixels
        begin = (n * layout.groups + group) * layout.inner * layout.pixels
        for tap in range(targets.shape[0]):
            weights = (tap * layout.groups + group) * layout.blocks + b
            for ideal in range(0, layout.pixels, width):
                q = min(ideal, layout.pixels - width)  # the last tile overlaps the one before
                met = 0
                for i in range(ideal, q + width):
                    met += targets[tap, i] >= 0
                if met == 0:
                    continue
                tile = zero_tile(gx, rows, columns)
                a, weight = begin + q, weights * layout.inner * block
                for _k in range(layout.inner):
                    tile = add_outer_groups(tile, gy, a, 1, apart, images, packed, weight)
                    a += layout.pixels
                    weight += block
                store_tile(mine, buffer, block, tile)
                for i in range(ideal, q + width):
                    target = targets[tap, i]
                    if target >= 0:
                        for image in range(images):
                            come = buffer + (image * width + i - q) * block
                            to = (image * layout.size + target) * block
                            both = add_tiles(load_tile(mine, to, 0, 1, columns), load_tile(mine, come, 0, 1, columns))
                            store_tile(mine, to, 0, both)

        channels = layout.outer - b * block
        for image in range(images):
            to = (((n + image) * layout.groups + group) * layout.outer + b * block) * layout.size
            for i in range(0, layout.size, lanes):
                for j in range(columns):
                    at = (image * layout.size + i) * block + j * lanes
                    square = load_transposed(mine, at, block, layout.size - i, lanes)
                    start = to + j * lanes * layout.size + i
                    store_tile_part(gx, start, layout.size, square, channels - j * lanes, layout.size - i)

    body.__name__ = f"_spread_{images}x{width}x{columns}"
    return parallel(body)


_kernel = cache(_tile_kernel)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over k, r, s of w[k, c, r, s] times gy[n, k] shifted the other way."""
    work = gradient_work(spec, out.itemsize)
    layout = work.layout
    room = workspace.view(out.dtype)
    packed, biases = room[: work.packed], room[work.packed : work.packed + work.biases]
    scratch = thread_rows(room[work.packed + work.biases :], work.scratch)
    taps, filter_size = spec.kernel[0] * spec.kernel[1], math.prod(spec.w_shape[1:])
    strides = (layout.inner * filter_size, filter_size, taps)
    pack(
        layout.groups * layout.blocks, w.reshape(-1), np.empty(0, out.dtype), work.tile.columns, layout.inner,
        layout.outer, strides, work.places, scratch, biases, packed, limit=scratch.shape[0],
    )  # fmt: skip
    tables = (layout, work.targets, scratch, out.reshape(-1))
    _kernel(*work.tile)(work.jobs, gy.reshape(-1), packed, *tables, limit=scratch.shape[0])


def refuses(problem: Problem) -> str:
    """Takes images whose sums stay in the second-level cache."""
    if reason := cpu_only(problem):
        return reason
    itemsize = problem.itemsize
    if gradient_work(problem.spec, itemsize).scratch * itemsize > SCRATCH_BYTES:
        return "takes images whose sums for some channels fit into the second-level cache"
    return ""


def workspace_bytes(problem: Problem) -> int:
    """The packed weights, and sums and a tile for each thread."""
    itemsize = problem.itemsize
    work = gradient_work(problem.spec, itemsize)
    return -(-(work.packed + work.biases + num_threads() * work.scratch) * itemsize // 8) * 8
