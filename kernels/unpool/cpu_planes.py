"""Unpooling on the CPU, one plane at a time: reading and writing memory is all that costs.

A job is a group of planes, so writes to one place keep their order and need no atomics.
"""

from __future__ import annotations

import numpy as np

from ..spec import UnpoolSpec
from ..threads import parallel

PIXELS = 16384  # of the larger side, in a job


def _planes_per_job(*sizes: int) -> int:
    return max(1, PIXELS // max(1, *sizes))


@parallel
def _scatter(job, worker, x, indices, planes, y):
    # x and indices (planes, inputs), y (planes, outputs)
    for plane in range(job * planes, min((job + 1) * planes, y.shape[0])):
        y[plane] = 0
        for i in range(x.shape[1]):
            y[plane, indices[plane, i]] = x[plane, i]


@parallel
def _scatter_add(job, worker, gy, indices, planes, gx):
    for plane in range(job * planes, min((job + 1) * planes, gx.shape[0])):
        gx[plane] = 0
        for i in range(gy.shape[1]):
            gx[plane, indices[plane, i]] += gy[plane, i]


@parallel
def _gather(job, worker, gy, indices, planes, gx):
    for plane in range(job * planes, min((job + 1) * planes, gx.shape[0])):
        for i in range(gx.shape[1]):
            gx[plane, i] = gy[plane, indices[plane, i]]


def forward(x: np.ndarray, indices: np.ndarray, spec: UnpoolSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Zeros but where an index points to."""
    planes = _planes_per_job(spec.inputs, spec.outputs)
    _scatter(-(-spec.planes // planes), x, indices, planes, out)


def backward(gy: np.ndarray, indices: np.ndarray, spec: UnpoolSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Each value's gradient, read where it was put."""
    planes = _planes_per_job(spec.inputs, spec.outputs)
    _gather(-(-spec.planes // planes), gy, indices, planes, out)


def scatter_add(gy: np.ndarray, indices: np.ndarray, count: int, gx: np.ndarray) -> None:
    """Each gy of ``count`` planes added to the place of gx that its index points to, gx zero elsewhere."""
    inputs, outputs = gy.size // max(count, 1), gx.size // max(count, 1)
    planes = _planes_per_job(inputs, outputs)
    flat = gy.reshape(count, inputs), indices.reshape(count, inputs)
    _scatter_add(-(-count // planes), *flat, planes, gx.reshape(count, outputs))
