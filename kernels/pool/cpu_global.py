"""Pooling over whole planes, whose pixels lie behind each other: they are added or compared in whole vectors."""

from __future__ import annotations

import numpy as np

from ..simd import add_lane_sums, add_scalar, add_tiles, lanes_of, load_window, store_tile, store_tile_part, zero_tile
from ..spec import PoolSpec
from ..threads import parallel
from ..variant import Problem, cpu_only
from .cpu_planes import jobs_of, planes_per_job
from .winners import meet_pixels, no_winners, store_winners


def refuses(problem: Problem) -> str:
    """Takes what this file's idea needs."""
    spec = problem.spec
    if spec.kernel != spec.size or spec.out != (1, 1) or spec.padding != ((0, 0), (0, 0)):
        return "takes one window that is the whole plane"
    if spec.dilation != (1, 1) or spec.size[0] * spec.size[1] >= 2**31:
        return "takes planes of less than 2**31 pixels, without dilation"
    return cpu_only(problem)


@parallel
def _avg_forward(job, worker, x, planes, scale, y):
    # x (N*C, H*W) flat, y (N*C,)
    pixels = x.size // y.size
    for plane in range(job * planes, min((job + 1) * planes, y.size)):
        total = zero_tile(y, 1, 1)
        for i in range(0, pixels, lanes_of(y)):
            total = add_tiles(total, load_window(x, plane * pixels + i, 0, pixels - i))
        y[plane] = 0
        add_lane_sums(y, plane, 0, total, 1, 1)
        y[plane] *= y.dtype.type(scale)


@parallel
def _max_forward(job, worker, x, planes, indices, y):
    # x (N*C, H*W) flat, y and indices (N*C,)
    pixels = x.size // y.size
    lanes = min(pixels, lanes_of(y))
    values, places = np.empty(lanes_of(y), y.dtype), np.empty(lanes_of(y), np.int64)
    for plane in range(job * planes, min((job + 1) * planes, y.size)):
        winners = no_winners(y, 0, 0, 1)
        for i in range(0, pixels, lanes_of(y)):
            winners = meet_pixels(winners, x, plane * pixels + i, 0, pixels - i, i, 1)
        store_winners(values, places, 0, winners, lanes_of(y))
        best, where = values[0], places[0]
        for lane in range(1, lanes):
            value, place = values[lane], places[lane]
            if best != best or value != value:
                wins = value != value and (best == best or place > where)  # the last NaN
            else:
                wins = value > best or (value == best and place < where)  # the first of equals
            if wins:
                best, where = value, place
        y[plane], indices[plane] = best, where


@parallel
def _avg_backward(job, worker, gy, planes, scale, gx):
    pixels = gx.size // gy.size
    for plane in range(job * planes, min((job + 1) * planes, gy.size)):
        share = add_scalar(zero_tile(gx, 1, 1), gy[plane] * gx.dtype.type(scale))
        to = plane * pixels
        if pixels < lanes_of(gx):
            store_tile_part(gx, to, 0, share, 1, pixels)
        else:
            for i in range(0, pixels, lanes_of(gx)):
                store_tile(gx, to + min(i, pixels - lanes_of(gx)), 0, share)


def _scale(spec: PoolSpec) -> float:
    return 1 / (spec.divisor or spec.kernel[0] * spec.kernel[1])


def max_forward(x: np.ndarray, spec: PoolSpec, workspace: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    """The largest value of each plane, and its flat position."""
    _max_forward(jobs_of(spec), x.reshape(-1), planes_per_job(spec), indices.reshape(-1), out.reshape(-1))


def avg_forward(x: np.ndarray, spec: PoolSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """The mean of each plane."""
    _avg_forward(jobs_of(spec), x.reshape(-1), planes_per_job(spec), _scale(spec), out.reshape(-1))


def avg_backward(gy: np.ndarray, spec: PoolSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Each output gradient is shared out evenly over its plane."""
    _avg_backward(jobs_of(spec), gy.reshape(-1), planes_per_job(spec), _scale(spec), out.reshape(-1))
