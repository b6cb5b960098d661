"""Pooling on the CPU, one plane at a time.

A job is a group of neighbouring (n, c) planes: a plane of a late layer is too small to be worth a job of its own.
Backward clears a plane of gx and then adds each window's share, so overlapping windows need no atomics.

Layout: NCHW, C-contiguous; out never aliases an input.
"""

from __future__ import annotations

import numpy as np

from ..compiler import helper
from ..spec import PoolSpec
from ..threads import parallel

PIXELS = 16384  # output pixels that make a job


def planes_per_job(spec: PoolSpec) -> int:
    return max(1, PIXELS // max(1, spec.out[0] * spec.out[1], spec.size[0] * spec.size[1]))


def jobs_of(spec: PoolSpec) -> int:
    return -(-spec.n * spec.c // planes_per_job(spec))


@helper
def window(position, axis, spec):
    """First and one-past-last coordinate of a window inside the input; steps of the dilation between."""
    start = position * spec.stride[axis] - spec.padding[axis][0]
    step = spec.dilation[axis]
    last = min(start + step * (spec.kernel[axis] - 1) + 1, spec.size[axis])
    if start < 0:
        start += (-start + step - 1) // step * step
    return start, last


@helper
def divisor(p, q, spec):
    if spec.divisor:
        return spec.divisor
    if not spec.count_include_pad:
        h0, h1 = window(p, 0, spec)
        v0, v1 = window(q, 1, spec)
        return (h1 - h0) * (v1 - v0)
    h0 = p * spec.stride[0] - spec.padding[0][0]
    v0 = q * spec.stride[1] - spec.padding[1][0]
    h1 = min(h0 + spec.kernel[0], spec.size[0] + spec.padding[0][1])
    v1 = min(v0 + spec.kernel[1], spec.size[1] + spec.padding[1][1])
    return (h1 - h0) * (v1 - v0)


@parallel
def _max_forward(job, worker, x, spec, planes, indices, y):
    # x (N*C, H, W), y and indices (N*C, P, Q)
    for plane in range(job * planes, min((job + 1) * planes, spec.n * spec.c)):
        for p in range(spec.out[0]):
            h0, h1 = window(p, 0, spec)
            for q in range(spec.out[1]):
                v0, v1 = window(q, 1, spec)
                best = x.dtype.type(-np.inf)
                where = h0 * spec.size[1] + v0
                for h in range(h0, h1, spec.dilation[0]):
                    for v in range(v0, v1, spec.dilation[1]):
                        value = x[plane, h, v]
                        if value > best or value != value:
                            best = value
                            where = h * spec.size[1] + v
                y[plane, p, q] = best
                indices[plane, p, q] = where


def max_forward(x: np.ndarray, spec: PoolSpec, workspace: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    """The largest value of each window, and its flat position in the input plane."""
    flat = (spec.n * spec.c, *spec.out)
    planes = planes_per_job(spec)
    _max_forward(jobs_of(spec), x.reshape(flat[0], *spec.size), spec, planes, indices.reshape(flat), out.reshape(flat))


@parallel
def _max_backward(job, worker, gy, indices, spec, planes, gx):
    # gy and indices (N*C, P*Q), gx (N*C, H*W)
    for plane in range(job * planes, min((job + 1) * planes, spec.n * spec.c)):
        gx[plane, :] = 0
        for i in range(gy.shape[1]):
            gx[plane, indices[plane, i]] += gy[plane, i]


def max_backward(gy: np.ndarray, indices: np.ndarray, spec: PoolSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Each output gradient goes to the pixel that won its window."""
    flat = (spec.n * spec.c, spec.out[0] * spec.out[1])
    gx = out.reshape(flat[0], spec.size[0] * spec.size[1])
    _max_backward(jobs_of(spec), gy.reshape(flat), indices.reshape(flat), spec, planes_per_job(spec), gx)


@parallel
def _avg_forward(job, worker, x, spec, planes, y):
    for plane in range(job * planes, min((job + 1) * planes, spec.n * spec.c)):
        for p in range(spec.out[0]):
            h0, h1 = window(p, 0, spec)
            for q in range(spec.out[1]):
                v0, v1 = window(q, 1, spec)
                total = x.dtype.type(0)
                for h in range(h0, h1):
                    for v in range(v0, v1):
                        total += x[plane, h, v]
                y[plane, p, q] = total / x.dtype.type(divisor(p, q, spec))


def avg_forward(x: np.ndarray, spec: PoolSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """The mean of each window."""
    planes = spec.n * spec.c
    _avg_forward(
        jobs_of(spec), x.reshape(planes, *spec.size), spec, planes_per_job(spec), out.reshape(planes, *spec.out)
    )


@parallel
def _avg_backward(job, worker, gy, spec, planes, gx):
    for plane in range(job * planes, min((job + 1) * planes, spec.n * spec.c)):
        gx[plane, :, :] = 0
        for p in range(spec.out[0]):
            h0, h1 = window(p, 0, spec)
            for q in range(spec.out[1]):
                v0, v1 = window(q, 1, spec)
                share = gy[plane, p, q] / gy.dtype.type(divisor(p, q, spec))
                for h in range(h0, h1):
                    for v in range(v0, v1):
                        gx[plane, h, v] += share


def avg_backward(gy: np.ndarray, spec: PoolSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Each output gradient is shared out evenly over its window."""
    planes = spec.n * spec.c
    _avg_backward(
        jobs_of(spec), gy.reshape(planes, *spec.out), spec, planes_per_job(spec), out.reshape(planes, *spec.size)
    )
