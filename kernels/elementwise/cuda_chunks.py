"""Elementwise operations on a GPU: one thread for each element. Reading and writing memory is all that costs."""

from __future__ import annotations

import math

from ..cuda.kernel import CudaKernel
from ..cuda.language import float32, thread
from ..spec import ElementwiseSpec

THREADS = 256


def _relu_body(x, y, size):
    i = thread()
    if i < size:
        v = x[i]
        y[i] = float32(0) if v <= float32(0) else v


def _relu_grad_body(gy, y, gx, size):
    i = thread()
    if i < size:
        gx[i] = float32(0) if y[i] <= float32(0) else gy[i]


def _add_body(a, b, y, size):
    i = thread()
    if i < size:
        y[i] = a[i] + b[i]


def _erf_body(x, y, size):
    i = thread()
    if i < size:
        y[i] = math.erf(x[i])


_RELU = CudaKernel("relu", _relu_body, ("float32", "float32", "int"), THREADS)
_RELU_GRAD = CudaKernel("relu_grad", _relu_grad_body, ("float32", "float32", "float32", "int"), THREADS)
_ADD = CudaKernel("add", _add_body, ("float32", "float32", "float32", "int"), THREADS)

_ERF = CudaKernel("erf", _erf_body, ("float32", "float32", "int"), THREADS)


def _blocks(size: int) -> int:
    return -(-size // THREADS)


def relu(x, spec: ElementwiseSpec, workspace, out) -> None:
    """out = x where it is positive or NaN, else 0."""
    _RELU(_blocks(spec.size), x, out, spec.size)


def relu_grad(gy, y, spec: ElementwiseSpec, workspace, out) -> None:
    """out = gy where the ReLU's result y is positive or NaN, else 0."""
    _RELU_GRAD(_blocks(spec.size), gy, y, out, spec.size)


def add(a, b, spec: ElementwiseSpec, workspace, out) -> None:
    """out = a + b."""
    _ADD(_blocks(spec.size), a, b, out, spec.size)


def erf(x, spec: ElementwiseSpec, workspace, out) -> None:
    """out = the error function of x, to a few units in the last place."""
    _ERF(_blocks(spec.size), x, out, spec.size)
