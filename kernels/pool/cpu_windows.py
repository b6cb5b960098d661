"""Pooling by whole vectors.

Max: a vector holds the largest values of neighbouring windows of a row and another one where they were. For the usual
windows all pixels are taken at once, as shifts of a few vectors, and the position of the largest is looked up afterwards;
windows at the upper and lower edge, those of other sizes, and those with NaN or nothing but minus infinity are searched
pixel by pixel. The order is that of the definition, so ties and NaN go as there.

Average: it is a depthwise convolution with one weight, as long as that weight is the same everywhere; so is its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from ..compiler import helper
from ..conv import cpu_depthwise
from ..simd import lanes_of, prefetch
from ..spec import ConvSpec, PoolSpec, output_size
from ..threads import ParallelKernel, parallel
from ..variant import Problem, cpu_only
from .cpu_planes import jobs_of, planes_per_job
from .winners import best_of_windows, meet_pixels, no_winners, store_winners, unusual

SIZES = ((2, 2), (3, 3))  # windows taken at once


def refuses_max(problem: Problem) -> str:
    """Takes what this file's idea needs."""
    spec = problem.spec
    if spec.stride[1] > 2 or spec.dilation != (1, 1):
        return "takes horizontal strides of 1 and 2, without dilation"
    if spec.size[0] * spec.size[1] >= 2**31:
        return "takes planes of less than 2**31 pixels"
    return cpu_only(problem)


def refuses_average(problem: Problem) -> str:
    """Takes what this file's idea needs."""
    spec = problem.spec
    if spec.kernel not in SIZES or spec.stride not in ((1, 1), (2, 2)):
        return "takes windows of 2x2 and 3x3 with strides of 1 or 2"
    if spec.padding != ((0, 0), (0, 0)) and not (spec.count_include_pad or spec.divisor):
        return "takes windows that all have the same divisor"
    if not spec.divisor and any(
        spec.out[i] > output_size(spec.size[i], spec.kernel[i], spec.stride[i], spec.padding[i]) for i in range(2)
    ):
        return "takes windows that lie inside the padded input"
    return cpu_only(problem)


def _searching(step: int) -> Callable[..., Any]:
    """The search pixel by pixel."""

    @helper
    def search(x, plane, p, v, spec):
        height, width = spec.size
        top = p * spec.stride[0] - spec.padding[0][0]
        first, last = max(0, top), min(height, top + spec.kernel[0])
        winners = no_winners(x, first * width, v, step)
        for h in range(first, last):
            for s in range(v, v + spec.kernel[1]):
                number = h * width + s
                winners = meet_pixels(winners, x, plane * height * width + number, -s, width - s, number, step)
        return winners

    return search


def _max_kernel(rows: int, columns: int, step: int, search: Callable[..., Any]) -> ParallelKernel:
    """The kernel for windows taken at once."""

    def body(job, worker, x, spec, planes, indices, y):
        # x (N*C, H, W), y and indices (N*C, P, Q), all flat
        height, width = spec.size
        pixels = spec.out[0] * spec.out[1]
        for plane in range(job * planes, min((job + 1) * planes, spec.n * spec.c)):
            for block in range(0, spec.out[1], lanes_of(y)):
                q = max(0, min(block, spec.out[1] - lanes_of(y)))
                v = q * step - spec.padding[1][0]
                for p in range(spec.out[0]):
                    h = p * spec.stride[0] - spec.padding[0][0]
                    row = (plane * height + h) * width + v
                    for i in range(spec.stride[0]):
                        prefetch(x, row + (height + i) * width, step, 1)
                    if 0 <= h <= height - rows:
                        winners = best_of_windows(x, row, width, -v, width - v, h * width + v, rows, columns, step)
                        if unusual(winners, spec.out[1] - q):
                            winners = search(x, plane, p, v, spec)
                    else:
                        winners = search(x, plane, p, v, spec)
                    # A short row is written as a whole vector, and the next row overwrites what was too much.
                    to = plane * pixels + p * spec.out[1] + q
                    store_winners(y, indices, to, winners, (plane + 1) * pixels - to)

    body.__name__ = f"_max_{rows}x{columns}_step_{step}"
    return parallel(body)


def _any_max_kernel(step: int, search: Callable[..., Any]) -> ParallelKernel:
    """The kernel for windows of any size."""

    def body(job, worker, x, spec, planes, indices, y):
        pixels = spec.out[0] * spec.out[1]
        for plane in range(job * planes, min((job + 1) * planes, spec.n * spec.c)):
            for block in range(0, spec.out[1], lanes_of(y)):
                q = max(0, min(block, spec.out[1] - lanes_of(y)))
                for p in range(spec.out[0]):
                    winners = search(x, plane, p, q * step - spec.padding[1][0], spec)
                    to = plane * pixels + p * spec.out[1] + q
                    store_winners(y, indices, to, winners, (plane + 1) * pixels - to)

    body.__name__ = f"_max_step_{step}"
    return parallel(body)


_SEARCH = {step: _searching(step) for step in (1, 2)}
_MAX = {(*size, step): _max_kernel(*size, step, _SEARCH[step]) for size in SIZES for step in _SEARCH}
_ANY_MAX = {step: _any_max_kernel(step, search) for step, search in _SEARCH.items()}


def max_forward(x: np.ndarray, spec: PoolSpec, workspace: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    """The largest value of each window, and its flat position in the input plane."""
    step = spec.stride[1]
    kernel = _MAX.get((*spec.kernel, step)) or _ANY_MAX[step]
    kernel(jobs_of(spec), x.reshape(-1), spec, planes_per_job(spec), indices.reshape(-1), out.reshape(-1))


@lru_cache(maxsize=1024)
def _convolution(spec: PoolSpec) -> ConvSpec:
    """Each plane as an image of its own, so that all share one kernel."""
    window = (spec.size, spec.kernel, spec.stride, spec.padding, (1, 1), spec.out)
    return ConvSpec(spec.n * spec.c, 1, 1, 1, *window)


@lru_cache(maxsize=1024)
def _weights(kernel: tuple[int, int], divisor: int, dtype: np.dtype) -> np.ndarray:
    return np.full((1, 1, *kernel), 1 / (divisor or kernel[0] * kernel[1]), dtype)


def avg_forward(x: np.ndarray, spec: PoolSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """The mean of each window."""
    weights, none = _weights(spec.kernel, spec.divisor, out.dtype), np.empty(0, out.dtype)
    cpu_depthwise.forward(x, weights, none, _convolution(spec), workspace, out)


def avg_backward(gy: np.ndarray, spec: PoolSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Each output gradient is shared out evenly over its window."""
    weights = _weights(spec.kernel, spec.divisor, out.dtype)
    cpu_depthwise.input_grad(gy, weights, _convolution(spec), workspace, out)
