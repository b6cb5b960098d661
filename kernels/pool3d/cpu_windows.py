"""Pooling over windows of any kind on the CPU.

Where a window begins and ends along an axis, and what it counts for in a mean, stands in a table for each axis: so one
loop serves volumes, pictures and signals, ceil mode, and windows of uneven size (kernels/adaptive). A job is a group of
neighbouring (n, c) volumes, so that backward needs no atomics.

Means and powers go row by row: the rows of a window are added first, element by element along the width, where pixels lie
side by side; then each window's part of that row.

Layout: (N·C, T, H, W), C-contiguous; out never aliases an input.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from ..compiler import helper
from ..spec import Pool3dSpec, Triple
from ..threads import parallel

PIXELS = 16384  # of the larger side, in a job

# A table has for each position of the output (start, stop, count): the window's first and one-past-last coordinate in the
# input, and its length in a mean's divisor.
Tables = tuple[np.ndarray, np.ndarray, np.ndarray]


@lru_cache(maxsize=1024)
def tables(spec: Pool3dSpec) -> Tables:
    """The windows of a pooling with a kernel; not to be written to."""
    made = []
    for i in range(3):
        (before, after), step, reach = spec.padding[i], spec.dilation[i], spec.dilation[i] * (spec.kernel[i] - 1) + 1
        begin = np.arange(spec.out[i], dtype=np.int64) * spec.stride[i] - before
        stop = np.minimum(begin + reach, spec.size[i])
        start = np.where(begin < 0, begin + (-begin + step - 1) // step * step, begin)
        # Lp pooling counts as a mean that includes the padding.
        whole = np.minimum(begin + spec.kernel[i], spec.size[i] + after) - begin
        made.append(np.stack([start, stop, whole if spec.count_include_pad else stop - start], axis=1))
    return made[0], made[1], made[2]


def planes_per_job(size: Triple, out: Triple) -> int:
    return max(1, PIXELS // max(1, math.prod(size), math.prod(out)))


@helper
def _meet_row(best, where, row, position):
    """Let each column's best meet one more pixel, those of ``row``, which have the numbers position, position + 1, …

    A pixel wins if it is larger than all before it, or NaN."""
    for i in range(best.size):
        value = row[i]
        wins = value > best[i] or value != value
        where[i] = position + i if wins else where[i]
        best[i] = value if wins else best[i]


@parallel
def _max_forward(job, worker, x, times, heights, widths, dilation, planes, indices, y):
    # x (N*C, T, H, W), y and indices (N*C, O, P, Q). A window's columns first, where pixels lie side by side, then their
    # best: the first of equals in the order of the volume, but the last NaN.
    height, width = x.shape[2], x.shape[3]
    best, where = np.empty(width, x.dtype), np.empty(width, np.int64)
    for plane in range(job * planes, min((job + 1) * planes, y.shape[0])):
        for o in range(y.shape[1]):
            for p in range(y.shape[2]):
                first = (times[o, 0] * height + heights[p, 0]) * width
                for i in range(width):
                    best[i] = -np.inf
                    where[i] = first + i
                for t in range(times[o, 0], times[o, 1], dilation[0]):
                    for h in range(heights[p, 0], heights[p, 1], dilation[1]):
                        _meet_row(best, where, x[plane, t, h], (t * height + h) * width)
                values, places = y[plane, o, p], indices[plane, o, p]
                for q in range(values.size):
                    value, place = best[widths[q, 0]], where[widths[q, 0]]
                    for v in range(widths[q, 0] + dilation[2], widths[q, 1], dilation[2]):
                        other, there = best[v], where[v]
                        if other != other:
                            if value == value or there > place:
                                value, place = other, there
                        elif other > value or (other == value and there < place):
                            value, place = other, there
                    values[q] = value
                    places[q] = place


@helper
def _add_row(total, row, power):
    """total += row^power, element by element; power 0 stands for a plain sum."""
    if power == 0 or power == 1:
        for i in range(total.size):
            total[i] += row[i]
    elif power == 2:
        for i in range(total.size):
            total[i] += row[i] * row[i]
    else:
        for i in range(total.size):
            total[i] += row[i] ** power


@parallel
def _sum_forward(job, worker, x, times, heights, widths, fixed, power, whole, planes, y):
    # The mean of each window (power 0), or the root of its sum of powers.
    row = np.empty(x.shape[3], x.dtype)
    for plane in range(job * planes, min((job + 1) * planes, y.shape[0])):
        for o in range(y.shape[1]):
            for p in range(y.shape[2]):
                row[:] = 0
                for t in range(times[o, 0], times[o, 1]):
                    for h in range(heights[p, 0], heights[p, 1]):
                        _add_row(row, x[plane, t, h], power)
                rows = times[o, 2] * heights[p, 2]
                results = y[plane, o, p]
                for q in range(results.size):
                    total = x.dtype.type(0)
                    for v in range(widths[q, 0], widths[q, 1]):
                        total += row[v]
                    count = x.dtype.type(fixed if fixed else rows * widths[q, 2])
                    if power == 0:
                        results[q] = total / count
                    elif power == 1:
                        results[q] = total * (whole / count)
                    elif power == 2:
                        results[q] = np.sqrt(total * (whole / count))
                    else:
                        results[q] = (total * (whole / count)) ** (1 / power)


@parallel
def _sum_backward(job, worker, gy, times, heights, widths, fixed, planes, gx):
    # Each gradient is shared out evenly over its window.
    row = np.empty(gx.shape[3], gx.dtype)
    for plane in range(job * planes, min((job + 1) * planes, gx.shape[0])):
        gx[plane] = 0
        for o in range(gy.shape[1]):
            for p in range(gy.shape[2]):
                row[:] = 0
                rows = times[o, 2] * heights[p, 2]
                for q in range(gy.shape[3]):
                    share = gy[plane, o, p, q] / gy.dtype.type(fixed if fixed else rows * widths[q, 2])
                    for v in range(widths[q, 0], widths[q, 1]):
                        row[v] += share
                for t in range(times[o, 0], times[o, 1]):
                    for h in range(heights[p, 0], heights[p, 1]):
                        _add_row(gx[plane, t, h], row, 0)


@parallel
def _lp_backward(job, worker, gy, x, y, times, heights, widths, power, whole, planes, gx):
    # gy · y^(1-p) is shared out over each window, and what a pixel got is multiplied by its x^(p-1).
    row = np.empty(gx.shape[3], gx.dtype)
    for plane in range(job * planes, min((job + 1) * planes, gx.shape[0])):
        gx[plane] = 0
        for o in range(gy.shape[1]):
            for p in range(gy.shape[2]):
                row[:] = 0
                rows = times[o, 2] * heights[p, 2]
                for q in range(gy.shape[3]):
                    root = y[plane, o, p, q]
                    if root != 0:
                        share = gy[plane, o, p, q] * (whole / gy.dtype.type(rows * widths[q, 2])) * root ** (1 - power)
                        for v in range(widths[q, 0], widths[q, 1]):
                            row[v] += share
                for t in range(times[o, 0], times[o, 1]):
                    for h in range(heights[p, 0], heights[p, 1]):
                        _add_row(gx[plane, t, h], row, 0)
        results, pixels = gx[plane].reshape(-1), x[plane].reshape(-1)
        if power == 2:
            for i in range(results.size):
                results[i] *= pixels[i]
        elif power != 1:
            for i in range(results.size):
                results[i] *= pixels[i] ** (power - 1)


def _volumes(array: np.ndarray) -> np.ndarray:
    """(N, C, A, B, D) as (N·C, A, B, D)."""
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def take_max(x: np.ndarray, windows: Tables, dilation: Triple, indices: np.ndarray, out: np.ndarray) -> None:
    """The largest value of each window, and its flat position in the input volume."""
    planes = planes_per_job(x.shape[2:], out.shape[2:])
    volumes = _volumes(out)
    jobs = -(-volumes.shape[0] // planes)
    _max_forward(jobs, _volumes(x), *windows, dilation, planes, _volumes(indices), volumes)


def take_sums(x: np.ndarray, windows: Tables, divisor: int, power: float, whole: int, out: np.ndarray) -> None:
    """The mean of each window (power 0), divided by ``divisor`` or by its count, or the root of its sum of powers."""
    planes = planes_per_job(x.shape[2:], out.shape[2:])
    volumes, kind = _volumes(out), out.dtype.type
    jobs = -(-volumes.shape[0] // planes)
    _sum_forward(jobs, _volumes(x), *windows, divisor, kind(power), kind(whole), planes, volumes)


def share_out(gy: np.ndarray, windows: Tables, divisor: int, out: np.ndarray) -> None:
    """Each gradient of a mean, shared out over its window."""
    planes = planes_per_job(gy.shape[2:], out.shape[2:])
    volumes = _volumes(out)
    _sum_backward(-(-volumes.shape[0] // planes), _volumes(gy), *windows, divisor, planes, volumes)


def max_forward(x: np.ndarray, spec: Pool3dSpec, workspace: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    """The largest value of each window, and its flat position in the input volume."""
    take_max(x, tables(spec), spec.dilation, indices, out)


def avg_forward(x: np.ndarray, spec: Pool3dSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """The mean of each window."""
    take_sums(x, tables(spec), spec.divisor, 0.0, 1, out)


def avg_backward(gy: np.ndarray, spec: Pool3dSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Each output gradient is shared out evenly over its window."""
    share_out(gy, tables(spec), spec.divisor, out)


def lp_forward(x: np.ndarray, spec: Pool3dSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """The root of each window's sum of powers."""
    take_sums(x, tables(spec), 0, spec.power, math.prod(spec.kernel), out)


def lp_backward(
    gy: np.ndarray, x: np.ndarray, y: np.ndarray, spec: Pool3dSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """The gradient of :func:`lp_forward`; nothing comes from windows whose root is 0."""
    planes, kind, volumes = planes_per_job(spec.size, spec.out), out.dtype.type, _volumes(out)
    arrays = _volumes(gy), _volumes(x), _volumes(y)
    options = kind(spec.power), kind(math.prod(spec.kernel)), planes
    _lp_backward(-(-volumes.shape[0] // planes), *arrays, *tables(spec), *options, volumes)
