"""Resizing on the CPU, one axis after the other.

Shares of neighbours multiply, so a volume is first resized along the width, row by row, into a scratch of T·H rows; an
output row then is a sum of two or four of those rows, element by element. Backward goes the same way in reverse. A job is
a group of planes, so that backward needs no atomics.

Layout: (planes, T, H, W), C-contiguous; out never aliases an input.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from ..compiler import helper
from ..spec import ResizeSpec
from ..threads import parallel

PIXELS = 16384  # of the larger side, in a job


@lru_cache(maxsize=1024)
def _nearest(spec: ResizeSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixel that is seen at each place, for each axis; not to be written to."""
    seen = []
    for size, out, scale in zip(spec.size, spec.out, spec.scales, strict=True):
        place = np.floor(np.arange(out, dtype=np.float32) * np.float32(scale))
        seen.append(np.minimum(place.astype(np.int64), size - 1))
    return seen[0], seen[1], seen[2]


@lru_cache(maxsize=1024)
def _linear(spec: ResizeSpec, dtype: str) -> tuple[np.ndarray, ...]:
    """For each axis the two pixels (out, 2) that are seen at each place, and their shares (out, 2)."""
    made: list[np.ndarray] = []
    for size, out, scale in zip(spec.size, spec.out, spec.scales, strict=True):
        place = np.arange(out, dtype=np.float64)
        place = place * scale if spec.align_corners else np.maximum((place + 0.5) * scale - 0.5, 0)
        first = np.minimum(np.floor(place).astype(np.int64), size - 1)
        share = np.minimum(place - first, 1)
        made.append(np.stack([first, np.minimum(first + 1, size - 1)], axis=1))
        made.append(np.stack([1 - share, share], axis=1).astype(dtype))
    return tuple(made)


def _planes_per_job(spec: ResizeSpec) -> int:
    return max(1, PIXELS // max(1, math.prod(spec.size), math.prod(spec.out)))


@parallel
def _copy_forward(job, worker, x, times, heights, widths, planes, y):
    # x (planes, T, H, W), y (planes, O, P, Q)
    for plane in range(job * planes, min((job + 1) * planes, y.shape[0])):
        for o in range(y.shape[1]):
            for p in range(y.shape[2]):
                row = y[plane, o, p]
                if p > 0 and heights[p] == heights[p - 1]:
                    above = y[plane, o, p - 1]
                    for q in range(row.size):
                        row[q] = above[q]
                else:
                    pixels = x[plane, times[o], heights[p]]
                    for q in range(row.size):
                        row[q] = pixels[widths[q]]


@parallel
def _copy_backward(job, worker, gy, times, heights, widths, planes, gx):
    for plane in range(job * planes, min((job + 1) * planes, gx.shape[0])):
        gx[plane] = 0
        for o in range(gy.shape[1]):
            for p in range(gy.shape[2]):
                pixels, row = gx[plane, times[o], heights[p]], gy[plane, o, p]
                for q in range(row.size):
                    pixels[widths[q]] += row[q]


@helper
def _add(total, row, share):
    if share != 0:
        for i in range(total.size):
            total[i] += row[i] * share


@parallel
def _linear_forward(job, worker, x, times, t_shares, heights, h_shares, widths, w_shares, planes, y):
    rows = np.empty((x.shape[1], x.shape[2], y.shape[3]), y.dtype)  # x, resized along the width
    for plane in range(job * planes, min((job + 1) * planes, y.shape[0])):
        for t in range(x.shape[1]):
            for h in range(x.shape[2]):
                pixels, row = x[plane, t, h], rows[t, h]
                for q in range(row.size):
                    row[q] = pixels[widths[q, 0]] * w_shares[q, 0] + pixels[widths[q, 1]] * w_shares[q, 1]
        for o in range(y.shape[1]):
            for p in range(y.shape[2]):
                total = y[plane, o, p]
                first, share = rows[times[o, 0], heights[p, 0]], t_shares[o, 0] * h_shares[p, 0]
                for i in range(total.size):
                    total[i] = first[i] * share
                _add(total, rows[times[o, 0], heights[p, 1]], t_shares[o, 0] * h_shares[p, 1])
                _add(total, rows[times[o, 1], heights[p, 0]], t_shares[o, 1] * h_shares[p, 0])
                _add(total, rows[times[o, 1], heights[p, 1]], t_shares[o, 1] * h_shares[p, 1])


@parallel
def _linear_backward(job, worker, gy, times, t_shares, heights, h_shares, widths, w_shares, planes, gx):
    rows = np.empty((gx.shape[1], gx.shape[2], gy.shape[3]), gx.dtype)  # gradients of the rows resized along the width
    for plane in range(job * planes, min((job + 1) * planes, gx.shape[0])):
        rows[:] = 0
        for o in range(gy.shape[1]):
            for p in range(gy.shape[2]):
                for i in range(2):
                    for j in range(2):
                        _add(rows[times[o, i], heights[p, j]], gy[plane, o, p], t_shares[o, i] * h_shares[p, j])
        for t in range(gx.shape[1]):
            for h in range(gx.shape[2]):
                pixels, row = gx[plane, t, h], rows[t, h]
                pixels[:] = 0
                for q in range(row.size):
                    pixels[widths[q, 0]] += row[q] * w_shares[q, 0]
                    pixels[widths[q, 1]] += row[q] * w_shares[q, 1]


def forward(x: np.ndarray, spec: ResizeSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Every output pixel from the input pixels around its place."""
    planes = _planes_per_job(spec)
    jobs = -(-spec.planes // planes)
    if spec.mode == "nearest":
        _copy_forward(jobs, x, *_nearest(spec), planes, out)
    else:
        _linear_forward(jobs, x, *_linear(spec, out.dtype.name), planes, out)


def backward(gy: np.ndarray, spec: ResizeSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Every gradient goes back to the pixels in the same shares."""
    planes = _planes_per_job(spec)
    jobs = -(-spec.planes // planes)
    if spec.mode == "nearest":
        _copy_backward(jobs, gy, *_nearest(spec), planes, out)
    else:
        _linear_backward(jobs, gy, *_linear(spec, out.dtype.name), planes, out)
