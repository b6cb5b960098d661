"""Direct convolution with register tiles: forward and input gradient, for any stride, padding, dilation and groups.

The idea: copy a strip of the padded input to scratch so that its rows lie behind each other with one pitch. Then the
input pixels that a tap (r, s) meets are the output pixels shifted by a constant, over the whole flattened strip, and a
tile of ROWS output channels x COLUMNS vectors of pixels is a sum of outer products, tap by tap: weights times shifted
pixels. The few sums at row ends that mix two rows are computed and dropped.

A stride would tear the shifted pixels apart; so the copy sorts the input by phase (coordinate modulo stride), and within
a phase every tap is a plain shift again. The input gradient is the same sum over the output gradient, with the kernel
turned by 180 degrees; with a stride its pixels fall into classes (coordinate modulo stride) and each class meets its own
taps, so no zero is ever multiplied. ``_Axis`` holds that geometry for one axis.

One job is a strip of one image and one group. Scratch: the packed weights, shared, then a strip and a block of results
for each thread.

Source of the tile: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008; of the shifts:
Zhang, Franchetti and Low, "High performance zero-memory overhead direct convolutions", 2018.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .. import simd
from ..simd import add_outer, lanes_of, store_tile, zero_tile
from ..spec import ConvSpec, Pair
from ..threads import ParallelKernel, num_threads, parallel
from ..variant import Problem

STRIP_BYTES = 192 * 1024  # the strip and a block of weights share a core's L2 cache (512 KiB and more)
# (rows, columns) of the tiles: as many sums as leave registers for the operands.
TILES = ((8, 3), (6, 4), (4, 6), (2, 12), (1, 16)) if simd.REGISTERS == 32 else ((6, 2), (4, 3), (2, 5), (1, 8))


class _Axis(NamedTuple):
    """How one axis of the result meets its source: result i takes source (i + shift) * phases + phase for each tap."""

    start: int  # of the lattice of results in the output
    step: int
    count: int  # results along this axis
    phases: int  # the source is sorted by coordinate modulo this
    taps: tuple[tuple[int, int, int], ...]  # (tap, phase, shift)
    size: int  # of the source

    @property
    def used(self) -> tuple[int, ...]:
        """Phases that some tap reads."""
        return tuple(sorted({phase for _, phase, _ in self.taps}))

    @property
    def first(self) -> int:
        return min(shift for _, _, shift in self.taps)

    @property
    def span(self) -> int:
        """How far the taps of one result lie apart."""
        return max(shift for _, _, shift in self.taps) - self.first


def _forward_axis(spec: ConvSpec, axis: int) -> _Axis:
    stride, before = spec.stride[axis], spec.padding[axis][0]
    positions = (r * spec.dilation[axis] - before for r in range(spec.kernel[axis]))
    taps = tuple((r, position % stride, position // stride) for r, position in enumerate(positions))
    return _Axis(0, 1, spec.out[axis], stride, taps, spec.size[axis])


def _gradient_axes(spec: ConvSpec, axis: int) -> list[_Axis]:
    """One lattice for each class of input coordinates; the taps run backwards: that is the kernel turned."""
    stride, before = spec.stride[axis], spec.padding[axis][0]
    axes = []
    for start in range(min(stride, spec.size[axis])):
        reached = ((r, start + before - r * spec.dilation[axis]) for r in range(spec.kernel[axis]))
        taps = tuple((r, 0, position // stride) for r, position in reached if position % stride == 0)
        count = -(-(spec.size[axis] - start) // stride)
        axes.append(_Axis(start, stride, count, 1, taps, spec.out[axis]))
    return axes


class _Layout(NamedTuple):
    """Plain numbers for the kernel: source (N, groups * inner, …), result (N, groups * outer, …)."""

    n: int
    groups: int
    inner: int  # channels summed over, in a group
    outer: int  # channels produced, in a group
    source: tuple[int, int]  # its height and width
    result: tuple[int, int]
    start: tuple[int, int]
    step: tuple[int, int]
    count: tuple[int, int]
    phases: tuple[int, int]
    used: tuple[int, int]  # number of phases kept
    first: tuple[int, int]
    span: tuple[int, int]
    strip: int  # result rows in a strip
    pitch: int  # elements from row to row of the strip
    plane: int  # elements from plane to plane
    length: int  # flattened results of a strip, whole tiles
    overhang: int  # elements behind the strip that its last tile reads and drops
    activation: int


class _Work(NamedTuple):
    """A lattice ready to run: its layout, tile, and the tables of its taps."""

    layout: _Layout
    tile: tuple[int, int]
    phases: np.ndarray  # (rows and columns of phases, used): which phase each kept plane holds
    shifts: np.ndarray  # per tap: where in the strip it starts
    taps: np.ndarray  # per tap: r * S + s

    @property
    def blocks(self) -> int:
        return -(-self.layout.outer // self.tile[0])

    @property
    def strips(self) -> int:
        return -(-self.layout.count[0] // self.layout.strip)

    def packed(self) -> int:
        """Elements of the packed weights."""
        return self.layout.groups * self.blocks * self.layout.inner * len(self.taps) * self.tile[0]

    def scratch(self) -> int:
        """Elements that each thread needs: the strip, its overhang, and a block of results."""
        planes = self.layout.inner * self.layout.used[0] * self.layout.used[1]
        return planes * self.layout.plane + self.layout.overhang + self.tile[0] * self.layout.length


def _choose_tile(outer: int, pixels: int, lanes: int) -> tuple[int, int]:
    """The tile that computes the fewest sums for nothing; a low tile loads more for each product, which counts too."""

    def cost(tile: tuple[int, int]) -> float:
        rows, columns = tile
        sums = -(-outer // rows) * rows * -(-pixels // (columns * lanes)) * columns * lanes
        return sums * (1 + 1 / rows)

    return min(TILES, key=cost)


def _work(
    spec: ConvSpec, vertical: _Axis, horizontal: _Axis, inner: int, outer: int, result: Pair, itemsize: int
) -> _Work:
    """Choose strip and tile, and lay out the tables, for ``inner`` channels summed into ``outer`` in each group."""
    axes = (vertical, horizontal)
    used = [axis.used for axis in axes]
    pitch = horizontal.count + horizontal.span
    row_bytes = inner * len(used[0]) * len(used[1]) * pitch * itemsize
    strip = max(1, min(vertical.count, STRIP_BYTES // row_bytes - vertical.span))
    strip = -(-vertical.count // -(-vertical.count // strip))  # strips of one height
    plane = (strip + vertical.span) * pitch
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    pixels = (strip - 1) * pitch + horizontal.count
    tile = _choose_tile(outer, pixels, lanes)
    length = -(-pixels // (tile[1] * lanes)) * tile[1] * lanes
    shifts, taps = [], []
    for r, phase_h, shift_h in vertical.taps:
        for s, phase_w, shift_w in horizontal.taps:
            index = used[0].index(phase_h) * len(used[1]) + used[1].index(phase_w)
            shifts.append(index * plane + (shift_h - vertical.first) * pitch + shift_w - horizontal.first)
            taps.append(r * spec.kernel[1] + s)
    phases = np.zeros((2, max(map(len, used))), np.int64)
    for axis in range(2):
        phases[axis, : len(used[axis])] = used[axis]

    def both(name: str) -> Any:
        return tuple(getattr(axis, name) for axis in axes)

    layout = _Layout(
        spec.n, spec.groups, inner, outer, both("size"), result, both("start"), both("step"), both("count"),
        both("phases"), (len(used[0]), len(used[1])), both("first"), both("span"), strip, pitch, plane, length,
        max(0, horizontal.span + length - strip * pitch), activation=0,
    )  # fmt: skip
    return _Work(layout, tile, phases, np.array(shifts, np.int64), np.array(taps, np.int64))


@lru_cache(maxsize=1024)
def _forward_work(spec: ConvSpec, itemsize: int) -> _Work:
    cg, kg = spec.c // spec.groups, spec.k // spec.groups
    work = _work(spec, _forward_axis(spec, 0), _forward_axis(spec, 1), cg, kg, spec.out, itemsize)
    return work._replace(layout=work.layout._replace(activation=spec.activation))


@lru_cache(maxsize=1024)
def _gradient_work(spec: ConvSpec, itemsize: int) -> tuple[tuple[_Work, ...], bool]:
    """The lattices of an input gradient, and whether some input pixel meets no tap at all."""
    cg, kg = spec.c // spec.groups, spec.k // spec.groups
    works = []
    gaps = False
    for vertical in _gradient_axes(spec, 0):
        for horizontal in _gradient_axes(spec, 1):
            if not (vertical.taps and horizontal.taps):
                gaps = True
                continue
            works.append(_work(spec, vertical, horizontal, kg, cg, spec.size, itemsize))
    return tuple(works), gaps


@parallel
def _pack(job, worker, w, rows, inner, outer, inner_stride, outer_stride, group_stride, taps, packed):
    # packed (groups * blocks, inner, taps, rows): a job packs one block of output channels, missing ones as zeros
    blocks = (outer + rows - 1) // rows
    group, block = job // blocks, job % blocks
    for i in range(inner):
        for t in range(taps.size):
            for row in range(rows):
                o = block * rows + row
                to = ((job * inner + i) * taps.size + t) * rows + row
                if o < outer:
                    packed[to] = w[group * group_stride + o * outer_stride + i * inner_stride + taps[t]]
                else:
                    packed[to] = 0


def _tile_kernel(rows: int, columns: int) -> ParallelKernel:
    """The kernel for one tile size."""

    def body(job, worker, source, packed, bias, layout, phases, shifts, scratch, result):
        # source (N, groups * inner, H, W) flat; scratch (threads, …); result (N, groups * outer, …) flat
        lanes = lanes_of(result)
        height, width = layout.source
        strips = (layout.count[0] + layout.strip - 1) // layout.strip
        n, group, strip = job // (strips * layout.groups), job // strips % layout.groups, job % strips
        p0 = strip * layout.strip
        p1 = min(p0 + layout.strip, layout.count[0])
        mine = scratch[worker]
        planes = layout.used[0] * layout.used[1]

        # The strip: every kept phase of every channel, zeros where the padding is.
        at = 0
        for channel in range(layout.inner):
            plane = source[((n * layout.groups + group) * layout.inner + channel) * height * width :]
            for a in range(layout.used[0]):
                for b in range(layout.used[1]):
                    step = layout.phases[1]
                    begin = layout.first[1] * step + phases[1, b]  # column of the source that comes first
                    j0 = min(layout.pitch, max(0, (-begin + step - 1) // step))
                    j1 = max(j0, min(layout.pitch, (width - 1 - begin) // step + 1 if width > begin else 0))
                    for i in range(layout.strip + layout.span[0]):
                        h = (p0 + i + layout.first[0]) * layout.phases[0] + phases[0, a]
                        if h < 0 or h >= height:
                            for j in range(layout.pitch):
                                mine[at + j] = 0
                        else:
                            row = h * width + begin
                            for j in range(j0):
                                mine[at + j] = 0
                            if step == 1:
                                for j in range(j0, j1):
                                    mine[at + j] = plane[row + j]
                            else:
                                for j in range(j0, j1):
                                    mine[at + j] = plane[row + j * step]
                            for j in range(j1, layout.pitch):
                                mine[at + j] = 0
                        at += layout.pitch
        for j in range(layout.overhang):
            mine[at + j] = 0
        sums = at + layout.overhang

        blocks = (layout.outer + rows - 1) // rows
        for block in range(blocks):
            weights = (group * blocks + block) * layout.inner * shifts.size * rows
            for first in range(0, layout.length, columns * lanes):
                tile = zero_tile(result, rows, columns)
                weight = weights
                for channel in range(layout.inner):
                    base = channel * planes * layout.plane + first
                    for t in range(shifts.size):
                        tile = add_outer(tile, packed, weight, mine, base + shifts[t])
                        weight += rows
                store_tile(mine, sums + first, layout.length, tile)
            for row in range(min(rows, layout.outer - block * rows)):
                k = group * layout.outer + block * rows + row
                add = bias[k] if bias.size else result.dtype.type(0)
                target = (n * layout.groups * layout.outer + k) * layout.result[0] * layout.result[1]
                for p in range(p0, p1):
                    to = target + (layout.start[0] + p * layout.step[0]) * layout.result[1] + layout.start[1]
                    come = sums + row * layout.length + (p - p0) * layout.pitch
                    if layout.activation:
                        for q in range(layout.count[1]):
                            v = mine[come + q] + add
                            result[to + q] = v if v > 0 or v != v else result.dtype.type(0)
                    elif layout.step[1] == 1:
                        for q in range(layout.count[1]):
                            result[to + q] = mine[come + q] + add
                    else:
                        for q in range(layout.count[1]):
                            result[to + q * layout.step[1]] = mine[come + q] + add

    body.__name__ = f"_tile_{rows}x{columns}"
    return parallel(body)


_KERNELS = {tile: _tile_kernel(*tile) for tile in TILES}


def _run(work: _Work, source: np.ndarray, w: np.ndarray, bias: np.ndarray, strides: tuple[int, int, int],
         workspace: np.ndarray, out: np.ndarray) -> None:  # fmt: skip
    layout = work.layout
    room = workspace.view(out.dtype)
    packed = room[: work.packed()]
    scratch = room[work.packed() : work.packed() + num_threads() * work.scratch()].reshape(
        num_threads(), work.scratch()
    )
    _pack(
        layout.groups * work.blocks,
        w.reshape(-1),
        work.tile[0],
        layout.inner,
        layout.outer,
        *strides,
        work.taps,
        packed,
    )
    jobs = layout.n * layout.groups * work.strips
    flat = (source.reshape(-1), packed, bias, layout, work.phases, work.shifts, scratch, out.reshape(-1))
    _KERNELS[work.tile](jobs, *flat)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k] = bias[k] + sum over c, r, s of w[k, c, r, s] times x[n, c] shifted."""
    inner = math.prod(spec.w_shape[1:])
    taps = spec.kernel[0] * spec.kernel[1]
    strides = (taps, inner, spec.k // spec.groups * inner)
    _run(_forward_work(spec, x.itemsize), x, w, bias, strides, workspace, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over k, r, s of w[k, c, r, s] times gy[n, k] shifted the other way."""
    works, gaps = _gradient_work(spec, gy.itemsize)
    if gaps:
        out.fill(0)
    inner = math.prod(spec.w_shape[1:])
    taps = spec.kernel[0] * spec.kernel[1]
    strides = (inner, taps, spec.k // spec.groups * inner)
    none = out.reshape(-1)[:0].copy()
    for work in works:
        _run(work, gy, w, none, strides, workspace, out)


def workspace_bytes(problem: Problem) -> int:
    """Scratch for the lattice that needs most."""
    itemsize = 8 if problem.dtype == "float64" else 4
    if problem.direction == "forward":
        works: tuple[_Work, ...] = (_forward_work(problem.spec, itemsize),)
    else:
        works = _gradient_work(problem.spec, itemsize)[0]
    elements = max((work.packed() + num_threads() * work.scratch() for work in works), default=0)
    return -(-elements * itemsize // 8) * 8
