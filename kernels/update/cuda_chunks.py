"""The steps of the optimizers on a GPU: one launch over all parameters of a model, a block for each chunk of one.

As on the CPU, the kernels find parameters, gradients and state by their addresses, in a table with a row for each parameter:
the jobs before it, its size, and the addresses, 0 for what it does not have. Reading and writing memory is all that costs.

Where a step may have to be left out, as in float16, the kernels look themselves whether an overflow was found: the host need
not wait to know. It does not know then how many steps were made either, so they are counted here, behind each parameter's
state, and the numbers that depend on the count are computed by one thread for each parameter before the step. The count is a
float32, as PyTorch's is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..cuda import launch
from ..cuda.kernel import CudaKernel
from ..cuda.language import cuda, float32, floats_at, inlined, int32, thread

THREADS = 256
CHUNK = 2048  # elements of a block


class Sizes(NamedTuple):
    """Of a step's table and numbers."""

    rows: int
    entries: int  # of a row of the table
    numbers: int  # of a row
    guarded: int  # 1: nothing is done where found[0] is not 0


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


@inlined
def _left_out(found, sizes):
    """Whether an overflow was found."""
    return sizes.guarded != 0 and found[0] != float32(0)


def _sgd_body(table, numbers, found, sizes):
    # rows of the table: first job, size, w, g, v; numbers (rows, 5 or more)
    job = int32(cuda.blockIdx.x)
    row = _row_of(table, sizes.rows, sizes.entries, job)
    at, n = int32(row * sizes.entries), int32(row * sizes.numbers)
    w, g, v = floats_at(table[at + 2]), floats_at(table[at + 3]), floats_at(table[at + 4])
    moving = table[at + 4] != 0
    lr, momentum, decay, fresh = numbers[n], numbers[n + 1], numbers[n + 2], numbers[n + 3]
    nesterov = numbers[n + 4] != float32(0)
    i, last = _range_of(table, at, job)
    if _left_out(found, sizes):
        return
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


def _adam_body(table, numbers, found, sizes):
    # rows of the table: first job, size, w, g, mean, square; numbers (rows, 8 or more)
    job = int32(cuda.blockIdx.x)
    row = _row_of(table, sizes.rows, sizes.entries, job)
    at, n = int32(row * sizes.entries), int32(row * sizes.numbers)
    w, g = floats_at(table[at + 2]), floats_at(table[at + 3])
    mean, square = floats_at(table[at + 4]), floats_at(table[at + 5])
    step, root, eps, decay = numbers[n], numbers[n + 1], numbers[n + 2], numbers[n + 3]
    new1, keep2, new2, shrink = numbers[n + 4], numbers[n + 5], numbers[n + 6], numbers[n + 7]
    i, last = _range_of(table, at, job)
    if _left_out(found, sizes):
        return
    while i < last:
        grad = g[i] + decay * w[i]
        m = mean[i] + new1 * (grad - mean[i])
        s = keep2 * square[i] + new2 * grad * grad
        mean[i], square[i] = m, s
        w[i] = shrink * w[i] - step * m / (math.sqrt(s) * root + eps)
        i = int32(i + THREADS)


def _adagrad_body(table, numbers, found, sizes):
    # rows of the table: first job, size, w, g, total; numbers (rows, 3 or more)
    job = int32(cuda.blockIdx.x)
    row = _row_of(table, sizes.rows, sizes.entries, job)
    at, n = int32(row * sizes.entries), int32(row * sizes.numbers)
    w, g, total = floats_at(table[at + 2]), floats_at(table[at + 3]), floats_at(table[at + 4])
    lr, decay, eps = numbers[n], numbers[n + 1], numbers[n + 2]
    i, last = _range_of(table, at, job)
    if _left_out(found, sizes):
        return
    while i < last:
        grad = g[i] + decay * w[i]
        squares = total[i] + grad * grad
        total[i] = squares
        w[i] = w[i] - lr * grad / (math.sqrt(squares) + eps)
        i = int32(i + THREADS)


def _rmsprop_body(table, numbers, found, sizes):
    # rows of the table: first job, size, w, g, square, v, mean; numbers (rows, 6 or more)
    job = int32(cuda.blockIdx.x)
    row = _row_of(table, sizes.rows, sizes.entries, job)
    at, n = int32(row * sizes.entries), int32(row * sizes.numbers)
    w, g, square = floats_at(table[at + 2]), floats_at(table[at + 3]), floats_at(table[at + 4])
    v, mean = floats_at(table[at + 5]), floats_at(table[at + 6])
    moving, centered = table[at + 5] != 0, table[at + 6] != 0
    lr, alpha, new = numbers[n], numbers[n + 1], numbers[n + 2]
    eps, decay, momentum = numbers[n + 3], numbers[n + 4], numbers[n + 5]
    i, last = _range_of(table, at, job)
    if _left_out(found, sizes):
        return
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


@inlined
def _count_of(table, sizes, row):
    """Where a parameter's steps are counted: at the last address of its row."""
    return floats_at(table[int32((row + 1) * sizes.entries - 1)])


def _sgd_count_body(table, numbers, found, sizes):
    # behind the 5 numbers: the gradient's factor in the velocity after the first step
    row = thread()
    if row < sizes.rows and not _left_out(found, sizes):
        steps, n = _count_of(table, sizes, row), int32(row * sizes.numbers)
        made = steps[0]
        numbers[n + 3] = numbers[n + 5] if made > float32(0) else float32(1)
        steps[0] = made + float32(1)


def _adam_count_body(table, numbers, found, sizes):
    # behind the 8 numbers: lr, ln beta1, ln beta2. 1 - beta**t is -expm1(t ln beta), which cancels nothing.
    row = thread()
    if row < sizes.rows and not _left_out(found, sizes):
        steps, n = _count_of(table, sizes, row), int32(row * sizes.numbers)
        t = steps[0] + float32(1)
        steps[0] = t
        numbers[n] = numbers[n + 8] / -math.expm1(t * numbers[n + 9])
        numbers[n + 1] = float32(1) / math.sqrt(-math.expm1(t * numbers[n + 10]))


def _adagrad_count_body(table, numbers, found, sizes):
    # behind the 3 numbers: lr, lr_decay
    row = thread()
    if row < sizes.rows and not _left_out(found, sizes):
        steps, n = _count_of(table, sizes, row), int32(row * sizes.numbers)
        made = steps[0]
        numbers[n] = numbers[n + 3] / (float32(1) + made * numbers[n + 4])
        steps[0] = made + float32(1)


_PARAMETERS = ("table", "float32", "float32", Sizes)
_SGD = CudaKernel("update-sgd", _sgd_body, _PARAMETERS, THREADS)
_ADAM = CudaKernel("update-adam", _adam_body, _PARAMETERS, THREADS)
_ADAGRAD = CudaKernel("update-adagrad", _adagrad_body, _PARAMETERS, THREADS)
_RMSPROP = CudaKernel("update-rmsprop", _rmsprop_body, _PARAMETERS, THREADS)
_SGD_COUNT = CudaKernel("update-sgd-count", _sgd_count_body, _PARAMETERS, THREADS)
_ADAM_COUNT = CudaKernel("update-adam-count", _adam_count_body, _PARAMETERS, THREADS)
_ADAGRAD_COUNT = CudaKernel("update-adagrad-count", _adagrad_count_body, _PARAMETERS, THREADS)


class Uploaded(list[Any]):
    """Rows whose table is on the device already, for launches that are recorded and replayed."""

    def __init__(self, rows: Sequence[Sequence[Any]]) -> None:
        super().__init__(rows)
        table: list[Any] = []
        self.jobs = 0  # blocks that the rows take
        for row in rows:
            table += [self.jobs, row[0].size, *(0 if array is None else array.reshape(-1) for array in row)]
            self.jobs += -(-row[0].size // CHUNK)
        self.entries = len(table) // max(len(rows), 1)
        self.table = launch.upload(tuple(table))


def _run(
    kernel: CudaKernel, rows: Sequence[Sequence[Any]], numbers: Any, found: Any = None, count: CudaKernel | None = None
) -> None:
    held = rows if isinstance(rows, Uploaded) else Uploaded(rows)
    sizes = Sizes(len(held), held.entries, numbers.shape[-1], int(found is not None))
    given = held.table, numbers.reshape(-1), numbers.reshape(-1) if found is None else found, sizes
    if count is not None:
        count(-(-len(held) // THREADS), *given)
    kernel(held.jobs, *given)


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


def sgd_unless(rows: Sequence[Sequence[Any]], numbers: Any, found: Any) -> None:
    """:func:`sgd` where found (1,) holds 0; otherwise nothing changes.

    Rows are (w, g, v, steps): float32 (1,), the steps made so far, which grows by one. numbers (rows, 6): those of sgd, and
    the gradient's factor in the velocity after the first step; at the first one it is 1.
    """
    _run(_SGD, rows, numbers, found, _SGD_COUNT)


def adam_unless(rows: Sequence[Sequence[Any]], numbers: Any, found: Any) -> None:
    """:func:`adam` where found (1,) holds 0; otherwise nothing changes.

    Rows are (w, g, mean, square, steps), numbers (rows, 11): those of adam, the first two of which are computed here, lr, and
    the natural logarithms of beta1 and beta2.
    """
    _run(_ADAM, rows, numbers, found, _ADAM_COUNT)


def adagrad_unless(rows: Sequence[Sequence[Any]], numbers: Any, found: Any) -> None:
    """:func:`adagrad` where found (1,) holds 0; otherwise nothing changes.

    Rows are (w, g, total, steps), numbers (rows, 5): those of adagrad, the first of which is computed here, lr and lr_decay.
    """
    _run(_ADAGRAD, rows, numbers, found, _ADAGRAD_COUNT)


def rmsprop_unless(rows: Sequence[Sequence[Any]], numbers: Any, found: Any) -> None:
    """:func:`rmsprop` where found (1,) holds 0; otherwise nothing changes. Its numbers do not depend on the step."""
    _run(_RMSPROP, rows, numbers, found)
