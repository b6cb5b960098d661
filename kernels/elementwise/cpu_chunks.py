"""Elementwise operations on the CPU: a job is a chunk of the flat array. Reading and writing memory is all that costs,
but for the error function."""

from __future__ import annotations

import math

import numpy as np

from ..spec import ElementwiseSpec
from ..threads import parallel

CHUNK = 16384  # elements: 64 KiB of float32, a few microseconds of work


def _jobs(size: int) -> int:
    return -(-size // CHUNK)


@parallel
def _relu(job, worker, x, y):
    first = job * CHUNK
    here, there = x[first : first + CHUNK], y[first : first + CHUNK]
    for i in range(here.size):
        v = here[i]
        there[i] = y.dtype.type(0) if v <= 0 else v


def relu(x: np.ndarray, spec: ElementwiseSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """out = x where it is positive or NaN, else 0."""
    _relu(_jobs(spec.size), x, out)


@parallel
def _relu_grad(job, worker, gy, y, gx):
    first = job * CHUNK
    grad, result, there = gy[first : first + CHUNK], y[first : first + CHUNK], gx[first : first + CHUNK]
    for i in range(grad.size):
        there[i] = gx.dtype.type(0) if result[i] <= 0 else grad[i]


def relu_grad(gy: np.ndarray, y: np.ndarray, spec: ElementwiseSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """out = gy where the ReLU's result y is positive or NaN, else 0."""
    _relu_grad(_jobs(spec.size), gy, y, out)


@parallel
def _add(job, worker, a, b, y):
    first = job * CHUNK
    left, right, there = a[first : first + CHUNK], b[first : first + CHUNK], y[first : first + CHUNK]
    for i in range(left.size):
        there[i] = left[i] + right[i]


def add(a: np.ndarray, b: np.ndarray, spec: ElementwiseSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """out = a + b."""
    _add(_jobs(spec.size), a, b, out)


@parallel
def _erf(job, worker, x, y):
    first = job * CHUNK
    here, there = x[first : first + CHUNK], y[first : first + CHUNK]
    for i in range(here.size):
        there[i] = math.erf(here[i])


def erf(x: np.ndarray, spec: ElementwiseSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """out = the error function of x."""
    _erf(_jobs(spec.size), x, out)
