"""The steps of the optimizers on the CPU: a job is a chunk of one parameter.

The kernels find parameters, gradients and state by their addresses, in a table with a row for each parameter; reading and
writing memory is all that costs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from ..compiler import helper
from ..simd import lanes_of, load_tile, store_tile, store_tile_part, zero_tile
from ..threads import parallel
from ..tile_math import add, div, fma, load_part, mul, passed, splat_tile, sqrt, sub

CHUNK = 16384  # elements in a job


@intrinsic
def _pointer(typingctx, address, like):
    """An address as a pointer to elements of ``like``'s dtype."""
    kind = types.CPointer(like.dtype)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.int64, like), codegen


@helper
def _flat(address, size, like):
    return carray(_pointer(address, like), (size,))


@helper
def _place(job, chunks):
    """The row and the first element of a job; chunks[row] counts the jobs before that row."""
    row = 0
    while chunks[row + 1] <= job:
        row += 1
    return row, (job - chunks[row]) * CHUNK


@helper
def _sgd_vector(g, w, v, momentum, decay, fresh, rate, nesterov):
    """The new w and v."""
    g = fma(decay, w, g)
    v = fma(momentum, v, mul(fresh, g))
    return fma(rate, fma(momentum, v, g) if nesterov else v, w), v


@parallel
def _sgd(job, worker, table, chunks, numbers):
    # table (rows, 4): size, addresses of w, g and v (0 without momentum)
    # numbers (rows, 5): lr, momentum, weight_decay, 1 - dampening, 1 for Nesterov's momentum
    row, first = _place(job, chunks)
    size, moving, lanes = table[row, 0], table[row, 3] != 0, lanes_of(numbers)
    w, g = _flat(table[row, 1], size, numbers), _flat(table[row, 2], size, numbers)
    v = _flat(table[row, 3] if moving else table[row, 1], size, numbers)
    rate, fresh = splat_tile(numbers, -numbers[row, 0], 1), splat_tile(numbers, numbers[row, 3], 1)
    momentum, decay = splat_tile(numbers, numbers[row, 1], 1), splat_tile(numbers, numbers[row, 2], 1)
    nesterov, zero = numbers[row, 4] != 0, zero_tile(numbers, 1, 1)
    last = min(first + CHUNK, size)
    whole = first + (last - first) // lanes * lanes
    for i in range(first, whole, lanes):
        old = load_tile(v, i, 0, 1, 1) if moving else zero
        grad, weight = load_tile(g, i, 0, 1, 1), load_tile(w, i, 0, 1, 1)
        new, velocity = _sgd_vector(grad, weight, old, momentum, decay, fresh, rate, nesterov)
        store_tile(w, i, 0, new)
        if moving:
            store_tile(v, i, 0, velocity)
    if whole < last:
        rest = last - whole
        old = load_part(v, whole, rest, zero) if moving else zero
        grad, weight = load_part(g, whole, rest, zero), load_part(w, whole, rest, zero)
        new, velocity = _sgd_vector(grad, weight, old, momentum, decay, fresh, rate, nesterov)
        store_tile_part(w, whole, 0, new, 1, rest)
        if moving:
            store_tile_part(v, whole, 0, velocity, 1, rest)


@helper
def _adam_vector(g, w, mean, square, step, root, eps, decay, new1, keep2, new2, shrink):
    """The new w, mean and square."""
    g = fma(decay, w, g)
    mean = fma(new1, sub(g, mean), mean)
    square = fma(mul(new2, g), g, mul(keep2, square))
    return sub(mul(shrink, w), div(mul(step, mean), fma(sqrt(square), root, eps))), mean, square


@parallel
def _adam(job, worker, table, chunks, numbers):
    # table (rows, 5): size, addresses of w, g, mean and square
    # numbers (rows, 8): step, root, eps, weight_decay, 1 - beta1, beta2, 1 - beta2, factor of w
    row, first = _place(job, chunks)
    size, lanes, zero = table[row, 0], lanes_of(numbers), zero_tile(numbers, 1, 1)
    w, g = _flat(table[row, 1], size, numbers), _flat(table[row, 2], size, numbers)
    mean, square = _flat(table[row, 3], size, numbers), _flat(table[row, 4], size, numbers)
    step, root = splat_tile(numbers, numbers[row, 0], 1), splat_tile(numbers, numbers[row, 1], 1)
    eps, decay = splat_tile(numbers, numbers[row, 2], 1), splat_tile(numbers, numbers[row, 3], 1)
    new1, keep2 = splat_tile(numbers, numbers[row, 4], 1), splat_tile(numbers, numbers[row, 5], 1)
    new2, shrink = splat_tile(numbers, numbers[row, 6], 1), splat_tile(numbers, numbers[row, 7], 1)
    last = min(first + CHUNK, size)
    for i in range(first, last, lanes):
        rest = last - i
        grad, weight = load_part(g, i, rest, zero), load_part(w, i, rest, zero)
        before, power = load_part(mean, i, rest, zero), load_part(square, i, rest, zero)
        weight, before, power = _adam_vector(
            grad, weight, before, power, step, root, eps, decay, new1, keep2, new2, shrink
        )  # fmt: skip
        store_tile_part(w, i, 0, weight, 1, rest)
        store_tile_part(mean, i, 0, before, 1, rest)
        store_tile_part(square, i, 0, power, 1, rest)


@parallel
def _adagrad(job, worker, table, chunks, numbers):
    # table (rows, 4): size, addresses of w, g and total; numbers (rows, 3): lr, weight_decay, eps
    row, first = _place(job, chunks)
    size, lanes, zero = table[row, 0], lanes_of(numbers), zero_tile(numbers, 1, 1)
    w, g = _flat(table[row, 1], size, numbers), _flat(table[row, 2], size, numbers)
    total = _flat(table[row, 3], size, numbers)
    rate, decay = splat_tile(numbers, numbers[row, 0], 1), splat_tile(numbers, numbers[row, 1], 1)
    eps = splat_tile(numbers, numbers[row, 2], 1)
    last = min(first + CHUNK, size)
    for i in range(first, last, lanes):
        rest = last - i
        weight = load_part(w, i, rest, zero)
        grad = fma(decay, weight, load_part(g, i, rest, zero))
        squares = fma(grad, grad, load_part(total, i, rest, zero))
        store_tile_part(w, i, 0, sub(weight, div(mul(rate, grad), add(sqrt(squares), eps))), 1, rest)
        store_tile_part(total, i, 0, squares, 1, rest)


@parallel
def _rmsprop(job, worker, table, chunks, numbers):
    # table (rows, 6): size, addresses of w, g, square, v (0 without momentum) and mean (0 if not centered)
    # numbers (rows, 6): lr, alpha, 1 - alpha, eps, weight_decay, momentum
    row, first = _place(job, chunks)
    size, moving, centered = table[row, 0], table[row, 4] != 0, table[row, 5] != 0
    w, g = _flat(table[row, 1], size, numbers), _flat(table[row, 2], size, numbers)
    square = _flat(table[row, 3], size, numbers)
    v = _flat(table[row, 4] if moving else table[row, 1], size, numbers)
    mean = _flat(table[row, 5] if centered else table[row, 1], size, numbers)
    rate, keep = splat_tile(numbers, -numbers[row, 0], 1), splat_tile(numbers, numbers[row, 1], 1)
    new, eps = splat_tile(numbers, numbers[row, 2], 1), splat_tile(numbers, numbers[row, 3], 1)
    decay, momentum = splat_tile(numbers, numbers[row, 4], 1), splat_tile(numbers, numbers[row, 5], 1)
    lanes, zero = lanes_of(numbers), zero_tile(numbers, 1, 1)
    last = min(first + CHUNK, size)
    for i in range(first, last, lanes):
        rest = last - i
        weight = load_part(w, i, rest, zero)
        grad = fma(decay, weight, load_part(g, i, rest, zero))
        power = fma(mul(new, grad), grad, mul(keep, load_part(square, i, rest, zero)))
        store_tile_part(square, i, 0, power, 1, rest)
        if centered:
            old = load_part(mean, i, rest, zero)
            middle = fma(new, sub(grad, old), old)
            store_tile_part(mean, i, 0, middle, 1, rest)
            variance = sub(power, mul(middle, middle))
            power = passed(variance, variance)  # rounding makes some of them negative
        step = div(grad, add(sqrt(power), eps))
        if moving:
            step = fma(momentum, load_part(v, i, rest, zero), step)
            store_tile_part(v, i, 0, step, 1, rest)
        store_tile_part(w, i, 0, fma(rate, step, weight), 1, rest)


def _run(kernel: Any, rows: Sequence[Sequence[np.ndarray | None]], numbers: np.ndarray) -> None:
    table = np.array([[row[0].size, *map(_address, row)] for row in rows], np.int64)  # type: ignore[union-attr]
    chunks = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(-(-table[:, 0] // CHUNK), out=chunks[1:])
    kernel(int(chunks[-1]), table, chunks, numbers)


_Start = ctypes.c_char * 0


def _address(array: np.ndarray | None) -> int:
    # a quarter of the time that NumPy's own ways to ask take: there are thirty to ask for in a small network's step
    return 0 if array is None else ctypes.addressof(_Start.from_buffer(array.data))


def sgd(rows: Sequence[Sequence[np.ndarray | None]], numbers: np.ndarray) -> None:
    """Update every row (w, g, v) in place; v is None without momentum.

    Parameters
    ----------
    rows : sequence of (array, array, array or None)
        C-contiguous arrays of the dtype of ``numbers``; no two of them overlap.
    numbers : array, (rows, 5)
        lr, momentum, weight_decay, the factor of the gradient in the velocity, and 1 for Nesterov's momentum of each row.
    """
    _run(_sgd, rows, numbers)


def adam(rows: Sequence[Sequence[np.ndarray | None]], numbers: np.ndarray) -> None:
    """Update every row (w, g, mean, square) in place.

    Parameters
    ----------
    rows : sequence of (array, array, array, array)
        C-contiguous arrays of the dtype of ``numbers``; no two of them overlap.
    numbers : array, (rows, 8)
        lr / (1 - beta1**t), 1 / sqrt(1 - beta2**t), eps, weight_decay, 1 - beta1, beta2, 1 - beta2 and the factor that w
        takes before the step (AdamW's decay) of each row, at its step t. The differences come along because float32 would
        not find them again.
    """
    _run(_adam, rows, numbers)


def adagrad(rows: Sequence[Sequence[np.ndarray | None]], numbers: np.ndarray) -> None:
    """Update every row (w, g, total) in place.

    Parameters
    ----------
    rows : sequence of (array, array, array)
        C-contiguous arrays of the dtype of ``numbers``; no two of them overlap.
    numbers : array, (rows, 3)
        lr, weight_decay and eps of each row.
    """
    _run(_adagrad, rows, numbers)


def rmsprop(rows: Sequence[Sequence[np.ndarray | None]], numbers: np.ndarray) -> None:
    """Update every row (w, g, square, v, mean) in place; v is None without momentum, mean where it is not centered.

    Parameters
    ----------
    rows : sequence of (array, array, array, array or None, array or None)
        C-contiguous arrays of the dtype of ``numbers``; no two of them overlap.
    numbers : array, (rows, 6)
        lr, alpha, 1 - alpha, eps, weight_decay and momentum of each row.
    """
    _run(_rmsprop, rows, numbers)
