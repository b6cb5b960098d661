"""The steps of the optimizers on a GPU: one launch over all parameters of a model, a block for each chunk of one.

As on the CPU, the kernels find parameters, gradients and state by their addresses, in a table with a row for each parameter:
the jobs before it, its size, and the addresses, 0 for what it does not have. Reading and writing memory is all that costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..cuda import launch
from ..cuda.kernel import CudaKernel
from ..cuda.language import cuda, float32, floats_at, inlined, int32

THREADS = 256
CHUNK = 2048  # elements of a block


@inlined
def _row_of(table, rows, width, job):
    """The last row that begins at or before a job."""
    low, high = int32(0), int32(rows)
    while high - low > 1:
        middle = int32((low + high) // 2)
        if table[int32(middle * width)] <= job:
            low = middle
        else:
            high = middle
    return low


@inlined
def _range_of(table, at, job):
    """The first element of this thread, and one past the last of its chunk."""
    first = int32((job - int32(table[at])) * CHUNK)
    last = int32(min(int32(table[at + 1]), int32(first + CHUNK)))
    return int32(first + int32(cuda.threadIdx.x)), last


def _sgd_body(table, numbers, rows):
    # rows of the table: first job, size, w, g, v; numbers (rows, 5)
    job = int32(cuda.blockIdx.x)
    row = _row_of(table, rows, 5, job)
    at, n = int32(row * 5), int32(row * 5)
    w, g, v = floats_at(table[at + 2]), floats_at(table[at + 3]), floats_at(table[at + 4])
    moving = table[at + 4] != 0
    lr, momentum, decay, fresh = numbers[n], numbers[n + 1], numbers[n + 2], numbers[n + 3]
    nesterov = numbers[n + 4] != float32(0)
    i, last = _range_of(table, at, job)
    while i < last:
        grad = g[i] + decay * w[i]
        step = fresh * grad
        if moving:
            step = momentum * v[i] + step
            v[i] = step
        if nesterov:
            step = grad + momentum * step
        w[i] = w[i] - lr * step
        i = int32(i + THREADS)


def _adam_body(table, numbers, rows):
    # rows of the table: first job, size, w, g, mean, square; numbers (rows, 8)
    job = int32(cuda.blockIdx.x)
    row = _row_of(table, rows, 6, job)
    at, n = int32(row * 6), int32(row * 8)
    w, g = floats_at(table[at + 2]), floats_at(table[at + 3])
    mean, square = floats_at(table[at + 4]), floats_at(table[at + 5])
    step, root, eps, decay = numbers[n], numbers[n + 1], numbers[n + 2], numbers[n + 3]
    new1, keep2, new2, shrink = numbers[n + 4], numbers[n + 5], numbers[n + 6], numbers[n + 7]
    i, last = _range_of(table, at, job)
    while i < last:
        grad = g[i] + decay * w[i]
        m = mean[i] + new1 * (grad - mean[i])
        s = keep2 * square[i] + new2 * grad * grad
        mean[i], square[i] = m, s
        w[i] = shrink * w[i] - step * m / (math.sqrt(s) * root + eps)
        i = int32(i + THREADS)


def _adagrad_body(table, numbers, rows):
    # rows of the table: first job, size, w, g, total; numbers (rows, 3)
    job = int32(cuda.blockIdx.x)
    row = _row_of(table, rows, 5, job)
    at, n = int32(row * 5), int32(row * 3)
    w, g, total = floats_at(table[at + 2]), floats_at(table[at + 3]), floats_at(table[at + 4])
    lr, decay, eps = numbers[n], numbers[n + 1], numbers[n + 2]
    i, last = _range_of(table, at, job)
    while i < last:
        grad = g[i] + decay * w[i]
        squares = total[i] + grad * grad
        total[i] = squares
        w[i] = w[i] - lr * grad / (math.sqrt(squares) + eps)
        i = int32(i + THREADS)


def _rmsprop_body(table, numbers, rows):
    # rows of the table: first job, size, w, g, square, v, mean; numbers (rows, 6)
    job = int32(cuda.blockIdx.x)
    row = _row_of(table, rows, 7, job)
    at, n = int32(row * 7), int32(row * 6)
    w, g, square = floats_at(table[at + 2]), floats_at(table[at + 3]), floats_at(table[at + 4])
    v, mean = floats_at(table[at + 5]), floats_at(table[at + 6])
    moving, centered = table[at + 5] != 0, table[at + 6] != 0
    lr, alpha, new = numbers[n], numbers[n + 1], numbers[n + 2]
    eps, decay, momentum = numbers[n + 3], numbers[n + 4], numbers[n + 5]
    i, last = _range_of(table, at, job)
    while i < last:
        grad = g[i] + decay * w[i]
        power = alpha * square[i] + new * grad * grad
        square[i] = power
        if centered:
            middle = mean[i] + new * (grad - mean[i])
            mean[i] = middle
            power = power - middle * middle
            power = float32(0) if power <= float32(0) else power  # rounding makes some of them negative
        step = grad / (math.sqrt(power) + eps)
        if moving:
            step = momentum * v[i] + step
            v[i] = step
        w[i] = w[i] - lr * step
        i = int32(i + THREADS)


_PARAMETERS = ("table", "float32", "int")
_SGD = CudaKernel("update-sgd", _sgd_body, _PARAMETERS, THREADS)
_ADAM = CudaKernel("update-adam", _adam_body, _PARAMETERS, THREADS)
_ADAGRAD = CudaKernel("update-adagrad", _adagrad_body, _PARAMETERS, THREADS)
_RMSPROP = CudaKernel("update-rmsprop", _rmsprop_body, _PARAMETERS, THREADS)


class Uploaded(list[Any]):
    """Rows whose table is on the device already, for launches that are recorded and replayed."""

    def __init__(self, rows: Sequence[Sequence[Any]]) -> None:
        super().__init__(rows)
        table, self.jobs = _table(rows)
        self.table = launch.upload(tuple(table))


def _table(rows: Sequence[Sequence[Any]]) -> tuple[list[Any], int]:
    """The table of the rows, and how many blocks they take."""
    table: list[Any] = []
    jobs = 0
    for row in rows:
        table += [jobs, row[0].size, *(0 if array is None else array.reshape(-1) for array in row)]
        jobs += -(-row[0].size // CHUNK)
    return table, jobs


def _run(kernel: CudaKernel, rows: Sequence[Sequence[Any]], numbers: Any) -> None:
    table, jobs = (rows.table, rows.jobs) if isinstance(rows, Uploaded) else _table(rows)
    kernel(jobs, table, numbers.reshape(-1), len(rows))


def sgd(rows: Sequence[Sequence[Any]], numbers: Any) -> None:
    """Update every row (w, g, v) in place; v is None without momentum. See :func:`.cpu_chunks.sgd`."""
    _run(_SGD, rows, numbers)


def adam(rows: Sequence[Sequence[Any]], numbers: Any) -> None:
    """Update every row (w, g, mean, square) in place. See :func:`.cpu_chunks.adam`."""
    _run(_ADAM, rows, numbers)


def adagrad(rows: Sequence[Sequence[Any]], numbers: Any) -> None:
    """Update every row (w, g, total) in place. See :func:`.cpu_chunks.adagrad`."""
    _run(_ADAGRAD, rows, numbers)


def rmsprop(rows: Sequence[Sequence[Any]], numbers: Any) -> None:
    """Update every row (w, g, square, v, mean) in place; see :func:`.cpu_chunks.rmsprop`."""
    _run(_RMSPROP, rows, numbers)
