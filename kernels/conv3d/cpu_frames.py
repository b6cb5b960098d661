"""Three-dimensional convolution as two-dimensional convolutions of frames.

The output's frame o sees U frames of x, and sums over them as over channels. So those frames are laid side by side as
C·U channels of one picture; the kernel (K, C/groups, U, R, S) is then (K, C/groups·U, R, S) as it stands in memory, and a
row of the two-dimensional table does the work for a block of output frames at once, in all three directions. What is
left is to copy frames in and to bring the result's (frame, channel) order into (channel, frame).

Blocks are as large as BYTES allows, so that copies are still in the cache when they are read; they depend on the shape
only. A kernel of one pixel in height and width needs no copies: cpu_lines.py takes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import conv
from ..spec import Conv3dSpec, ConvSpec
from ..threads import parallel
from ..variant import Problem, Variant, cpu_only

BYTES = 16 << 20  # of copied frames in a block; anything from 4 to 64 MB is as fast (Zen 5)
ALIGNMENT = 64


class Work(NamedTuple):
    """How a problem is cut."""

    frames: int  # output frames in a block; it divides N·O
    spec: ConvSpec  # of a block
    row: Variant  # that solves it


def row_for(problem: Problem, exact: bool) -> Variant:
    """The row of the two-dimensional table that is expected to be the fastest."""
    if exact:
        problem = problem._replace(precision="strict")  # so that no row leaves it to Winograd's
    rows = (r for r in conv.VARIANTS if r.direction == problem.direction and r.device == problem.device)
    taking = (r for r in rows if (r.accuracy == "exact" or not exact) and not r.refuses(problem))
    return next(r for r in taking if not r.slower(problem))


@lru_cache(maxsize=1024)
def work(spec: Conv3dSpec, direction: str, dtype: str, exact: bool) -> Work:
    """Blocks, and the two-dimensional row for them."""
    total = spec.n * spec.out[0]
    frame = spec.c * spec.kernel[0] * spec.size[1] * spec.size[2] * np.dtype(dtype).itemsize
    limit = max(1, BYTES // frame)
    frames = max((d for d in range(1, min(limit, total) + 1) if total % d == 0), default=1)
    window = (spec.size[1:], spec.kernel[1:], spec.stride[1:], spec.padding[1:], spec.dilation[1:], spec.out[1:])
    flat = ConvSpec(frames, spec.c * spec.kernel[0], spec.k, spec.groups, *window, spec.activation)
    return Work(frames, flat, row_for(Problem("conv", direction, "cpu", dtype, "default", flat), exact))


def operations(problem: Problem) -> int | None:
    """Arithmetic of the two-dimensional row over all blocks."""
    made = work(problem.spec, problem.direction, problem.dtype, False)
    blocks = problem.spec.n * problem.spec.out[0] // made.frames
    flat = made.row.operations(Problem("conv", problem.direction, "cpu", problem.dtype, "default", made.spec))
    return None if flat is None else blocks * flat


def refuses_winograd(problem: Problem) -> str:
    """Takes what the two-dimensional table gives to Winograd's algorithm."""
    if reason := cpu_only(problem):
        return reason
    row = work(problem.spec, problem.direction, problem.dtype, False).row
    return "" if row.accuracy == "winograd" else f"its frames are convolved by row {row.name!r}, not by Winograd's"


def _parts(made: Work, direction: str, dtype: np.dtype) -> tuple[list[tuple[int, ...]], int]:
    """Shapes of the arrays in scratch, and the bytes that the row wants."""
    shapes: list[tuple[int, ...]] = [made.spec.x_shape, made.spec.y_shape]
    if direction == "weight_grad":
        shapes.append(made.spec.w_shape)
    return shapes, made.row.workspace(Problem("conv", direction, "cpu", dtype.name, "default", made.spec))


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def workspace_bytes(exact: bool) -> Callable[[Problem], int]:
    """The function that says what a row needs: frames and results of a block, and the two-dimensional row's own."""

    def needed(problem: Problem) -> int:
        dtype = np.dtype(problem.dtype)
        shapes, inner = _parts(work(problem.spec, problem.direction, problem.dtype, exact), problem.direction, dtype)
        return sum(_bytes(shape, dtype) for shape in shapes) + inner

    return needed


def _scratch(made: Work, direction: str, workspace: np.ndarray, dtype: np.dtype) -> tuple[list[np.ndarray], np.ndarray]:
    """The arrays in scratch, and what is left for the two-dimensional row."""
    shapes, _ = _parts(made, direction, dtype)
    arrays = []
    for shape in shapes:
        size = math.prod(shape) * dtype.itemsize
        arrays.append(workspace[:size].view(dtype).reshape(shape))
        workspace = workspace[_bytes(shape, dtype) :]
    return arrays, workspace


@parallel
def _gather(job, worker, x, first, spec, frames):
    # x (N, C, T, H·W), frames (block, C, U, H·W); a job is one channel of one output frame
    frame, c = job // spec.c, job % spec.c
    n, o = (first + frame) // spec.out[0], (first + frame) % spec.out[0]
    for u in range(spec.kernel[0]):
        t = o * spec.stride[0] - spec.padding[0][0] + u * spec.dilation[0]
        there = frames[frame, c, u]
        if 0 <= t < spec.size[0]:
            here = x[n, c, t]
            for i in range(there.size):
                there[i] = here[i]
        else:
            there[:] = 0


@parallel
def _scatter(job, worker, frames, first, last, spec, gx):
    # frames (block, C, U, H·W) are added to gx (N, C, T, H·W); a job is one channel of one image
    n, c = first // spec.out[0] + job // spec.c, job % spec.c
    for frame in range(max(first, n * spec.out[0]), min(last, (n + 1) * spec.out[0])):
        o = frame - n * spec.out[0]
        for u in range(spec.kernel[0]):
            t = o * spec.stride[0] - spec.padding[0][0] + u * spec.dilation[0]
            if 0 <= t < spec.size[0]:
                here, there = frames[frame - first, c, u], gx[n, c, t]
                for i in range(there.size):
                    there[i] += here[i]


@parallel
def _swap_out(job, worker, frames, first, spec, y):
    # frames (block, K, P·Q), y (N, K, O, P·Q); a job is one channel of one frame
    frame, k = job // spec.k, job % spec.k
    here, there = frames[frame, k], y[(first + frame) // spec.out[0], k, (first + frame) % spec.out[0]]
    for i in range(there.size):
        there[i] = here[i]


@parallel
def _swap_in(job, worker, gy, first, spec, frames):
    # gy (N, K, O, P·Q), frames (block, K, P·Q)
    frame, k = job // spec.k, job % spec.k
    here, there = gy[(first + frame) // spec.out[0], k, (first + frame) % spec.out[0]], frames[frame, k]
    for i in range(there.size):
        there[i] = here[i]


@parallel
def _add(job, worker, part, gw):
    # part and gw (K, …): a job is one output channel
    here, there = part[job], gw[job]
    for i in range(there.size):
        there[i] += here[i]


@parallel
def _clear(job, worker, array):
    array[job] = 0


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The last two axes as one."""
    return (*shape[:-2], shape[-2] * shape[-1])


def _frames(array: np.ndarray, channels: int) -> np.ndarray:
    """(block, channels·taps, A, B) as (block, channels, taps, A·B)."""
    block, layers, height, width = array.shape
    return array.reshape(block, channels, layers // channels, height * width)


class Frames:
    """The three directions, over exact two-dimensional rows or over any."""

    def __init__(self, exact: bool) -> None:
        self.exact = exact

    def forward(
        self, x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: Conv3dSpec, workspace: np.ndarray, out: np.ndarray
    ) -> None:
        """The convolution with bias and activation."""
        made = work(spec, "forward", out.dtype.name, self.exact)
        (frames, results), rest = _scratch(made, "forward", workspace, out.dtype)
        pixels, kernel = x.reshape(_flat(spec.x_shape)), w.reshape(made.spec.w_shape)
        y = out.reshape(_flat(spec.y_shape))
        plain = spec._replace(activation=0)
        for first in range(0, spec.n * spec.out[0], made.frames):
            _gather(made.frames * spec.c, pixels, first, plain, _frames(frames, spec.c))
            made.row.run(frames, kernel, bias, made.spec, rest, results)
            _swap_out(made.frames * spec.k, _frames(results, spec.k)[:, :, 0], first, plain, y)

    def input_grad(
        self, gy: np.ndarray, w: np.ndarray, spec: Conv3dSpec, workspace: np.ndarray, out: np.ndarray
    ) -> None:
        """The gradients of all frames that an input frame was in, added."""
        made = work(spec, "input_grad", out.dtype.name, self.exact)
        (frames, results), rest = _scratch(made, "input_grad", workspace, out.dtype)
        kernel, gx = w.reshape(made.spec.w_shape), out.reshape(_flat(spec.x_shape))
        grads = gy.reshape(_flat(spec.y_shape))
        _clear(spec.n * spec.c, gx.reshape(spec.n * spec.c, math.prod(spec.size)))
        for first in range(0, spec.n * spec.out[0], made.frames):
            last = first + made.frames
            _swap_in(made.frames * spec.k, grads, first, spec, _frames(results, spec.k)[:, :, 0])
            made.row.run(results, kernel, made.spec, rest, frames)
            images = (last - 1) // spec.out[0] - first // spec.out[0] + 1
            _scatter(images * spec.c, _frames(frames, spec.c), first, last, spec, gx)

    def weight_grad(
        self, x: np.ndarray, gy: np.ndarray, spec: Conv3dSpec, workspace: np.ndarray, out: np.ndarray
    ) -> None:
        """The weight gradients of the blocks, added in their order."""
        made = work(spec, "weight_grad", out.dtype.name, self.exact)
        (frames, results, part), rest = _scratch(made, "weight_grad", workspace, out.dtype)
        pixels = x.reshape(_flat(spec.x_shape))
        grads = gy.reshape(_flat(spec.y_shape))
        if spec.n == 0:
            out[...] = 0
        for first in range(0, spec.n * spec.out[0], made.frames):
            _gather(made.frames * spec.c, pixels, first, spec, _frames(frames, spec.c))
            _swap_in(made.frames * spec.k, grads, first, spec, _frames(results, spec.k)[:, :, 0])
            target = part if first else out.reshape(made.spec.w_shape)
            made.row.run(frames, results, made.spec, rest, target)
            if first:
                _add(spec.k, part.reshape(spec.k, -1), out.reshape(spec.k, -1))


EXACT, ANY = Frames(True), Frames(False)
