"""Average pooling on the CPU without padding, row by row.

The mean over a window is the mean over its rows of sums along them. So the rows of a window are added first, element by
element along the width, where pixels lie side by side; then neighbours are added, with a stride known at compile time for
the usual windows. Backward runs the same way in reverse: a row of shares is spread along the width once and copied to
every row of its windows.

Takes windows that lie inside the input and do not overlap from row to row; cpu_planes.py takes the rest.
"""

from __future__ import annotations

import numpy as np

from ..compiler import helper
from ..spec import PoolSpec
from ..threads import parallel
from ..variant import Problem, cpu_only
from .cpu_planes import jobs_of, planes_per_job


def refuses(problem: Problem) -> str:
    """Takes what this file's idea needs."""
    spec = problem.spec
    if spec.padding != ((0, 0), (0, 0)) or spec.kernel[0] > spec.stride[0] or spec.kernel[1] > spec.stride[1]:
        return "takes windows without padding that do not overlap"
    if any((spec.out[i] - 1) * spec.stride[i] + spec.kernel[i] > spec.size[i] for i in range(2)):
        return "takes windows that lie inside the input"
    return cpu_only(problem)


@helper
def add_neighbours(row, stride, columns, scale, y):
    """y[q] = scale * the sum of row[q * stride] … row[q * stride + columns - 1]."""
    if stride == 2 and columns == 2:
        for q in range(y.size):
            y[q] = (row[2 * q] + row[2 * q + 1]) * scale
    else:
        for q in range(y.size):
            total = row[q * stride]
            for s in range(1, columns):
                total += row[q * stride + s]
            y[q] = total * scale


@helper
def spread(gy, stride, columns, scale, row):
    """row[q * stride + s] = gy[q] * scale for s < columns, zero elsewhere."""
    if stride == 2 and columns == 2:
        for q in range(gy.size):
            share = gy[q] * scale
            row[2 * q] = share
            row[2 * q + 1] = share
        rest = row[2 * gy.size :]
        for i in range(rest.size):
            rest[i] = 0
    else:
        for i in range(row.size):
            row[i] = 0
        for q in range(gy.size):
            for s in range(columns):
                row[q * stride + s] = gy[q] * scale


@parallel
def _forward(job, worker, x, spec, planes, scale, y):
    # x (N*C, H, W), y (N*C, P, Q)
    rows = np.empty(spec.size[1], x.dtype)
    for plane in range(job * planes, min((job + 1) * planes, x.shape[0])):
        for p in range(spec.out[0]):
            h = p * spec.stride[0]
            first = x[plane, h]
            if spec.kernel[0] == 2:
                second = x[plane, h + 1]
                for i in range(rows.size):
                    rows[i] = first[i] + second[i]
            else:
                for i in range(rows.size):
                    rows[i] = first[i]
                for r in range(1, spec.kernel[0]):
                    further = x[plane, h + r]
                    for i in range(rows.size):
                        rows[i] += further[i]
            add_neighbours(rows, spec.stride[1], spec.kernel[1], y.dtype.type(scale), y[plane, p])


@parallel
def _backward(job, worker, gy, spec, planes, scale, gx):
    for plane in range(job * planes, min((job + 1) * planes, gx.shape[0])):
        for p in range(spec.out[0]):
            h = p * spec.stride[0]
            row = gx[plane, h]
            spread(gy[plane, p], spec.stride[1], spec.kernel[1], gx.dtype.type(scale), row)
            for r in range(1, spec.stride[0]):
                if h + r < spec.size[0]:
                    other = gx[plane, h + r]
                    if r < spec.kernel[0]:
                        for i in range(row.size):
                            other[i] = row[i]
                    else:
                        for i in range(row.size):
                            other[i] = 0
        for h in range(spec.out[0] * spec.stride[0], spec.size[0]):
            gx[plane, h, :] = 0


def _scale(spec: PoolSpec) -> float:
    return 1 / (spec.divisor or spec.kernel[0] * spec.kernel[1])


def forward(x: np.ndarray, spec: PoolSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """The mean of each window."""
    planes = spec.n * spec.c
    shapes = x.reshape(planes, *spec.size), out.reshape(planes, *spec.out)
    _forward(jobs_of(spec), shapes[0], spec, planes_per_job(spec), _scale(spec), shapes[1])


def backward(gy: np.ndarray, spec: PoolSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Each output gradient is shared out evenly over its window."""
    planes = spec.n * spec.c
    shapes = gy.reshape(planes, *spec.out), out.reshape(planes, *spec.size)
    _backward(jobs_of(spec), shapes[0], spec, planes_per_job(spec), _scale(spec), shapes[1])
