"""Writing rows of scratch and of results in whole vectors."""

from __future__ import annotations

from .compiler import helper
from .simd import (
    add_scalar,
    lanes_of,
    load_every,
    load_tile,
    load_window,
    prefetch,
    relu_tile,
    store_tile,
    store_tile_part,
    zero_tile,
)  # fmt: skip
from .squares import spread_vector

AHEAD = 1024  # elements that a copy is fetched ahead, at least: twice the speed from the third-level cache (Zen 5)
FAR_PLANE = 8192  # elements of planes too large to fetch the next one's rows into the first-level cache
SLACK = 64  # elements behind scratch that whole vectors may reach, more than any vector has

# AMD cores forward no data from a masked store to a later load, so rows of scratch are written in whole vectors that
# overshoot by up to a vector; rows follow each other upwards, and the next one overwrites what was too much.


@helper
def zero_row(scratch, at, count):
    """Zeros at scratch[at] … scratch[at + count - 1], and up to a vector more."""
    zero = zero_tile(scratch, 1, 1)
    for j in range(0, count, lanes_of(scratch)):
        store_tile(scratch, at + j, 0, zero)


@helper
def rows_ahead(plane):
    """Elements to fetch ahead when the same rows of many planes of this size are copied: those of a plane that follows."""
    return AHEAD if plane > FAR_PLANE else (AHEAD + plane - 1) // plane * plane


@helper
def copy_row(scratch, at, count, source, start, step, low, high, ahead):
    """scratch[at + j] = source[start + j * step] for low <= j < high, zero for other j < count; writes up to a vector
    more. Elements ``ahead`` behind are fetched.

    Every vector is masked: a branch for those that need no mask takes twice the time.
    """
    lanes = lanes_of(scratch)
    if step == 1:
        for j in range(0, count, lanes):
            prefetch(source, start + j + ahead, 1, 1)
            store_tile(scratch, at + j, 0, load_window(source, start + j, low - j, high - j))
    elif step == 2:
        for j in range(0, count, lanes):
            prefetch(source, start + 2 * j + ahead, 2, 1)
            store_tile(scratch, at + j, 0, load_every(source, start + 2 * j, 2, low - j, high - j))
    elif step == 3:
        for j in range(0, count, lanes):
            prefetch(source, start + 3 * j + ahead, 3, 1)
            store_tile(scratch, at + j, 0, load_every(source, start + 3 * j, 3, low - j, high - j))
    elif step == 4:
        for j in range(0, count, lanes):
            prefetch(source, start + 4 * j + ahead, 4, 1)
            store_tile(scratch, at + j, 0, load_every(source, start + 4 * j, 4, low - j, high - j))
    else:
        zero_row(scratch, at, count)
        # Slices first: Numba then knows that the indices are not negative.
        middle, pixels = scratch[at + low : at + high], source[start + low * step :]
        for j in range(middle.size):
            middle[j] = pixels[j * step]


@helper
def finish_row(y, first, scratch, at, count, add, relu, limit):
    """y[first + i] = scratch[at + i] + add for i < count, through the ReLU if ``relu``; up to a vector more is written,
    but nothing from y[limit] on."""
    for i in range(0, count, lanes_of(y)):
        vector = add_scalar(load_tile(scratch, at + i, 0, 1, 1), add)
        if relu:
            vector = relu_tile(vector)
        if first + i + lanes_of(y) > limit:
            store_tile_part(y, first + i, 0, vector, 1, limit - first - i)
        else:
            store_tile(y, first + i, 0, vector)


@helper
def write_row(y, first, scratch, at, count):
    """y[first + i] = scratch[at + i] for i < count, and nothing else."""
    lanes = lanes_of(y)
    whole = count - count % lanes
    for i in range(0, whole, lanes):
        store_tile(y, first + i, 0, load_tile(scratch, at + i, 0, 1, 1))
    if whole < count:
        store_tile_part(y, first + whole, 0, load_tile(scratch, at + whole, 0, 1, 1), 1, count - whole)


@helper
def zero_pixels(y, first, count):
    """y[first + i] = 0 for i < count, and nothing else."""
    zero, lanes = zero_tile(y, 1, 1), lanes_of(y)
    whole = count - count % lanes
    for i in range(0, whole, lanes):
        store_tile(y, first + i, 0, zero)
    if whole < count:
        store_tile_part(y, first + whole, 0, zero, 1, count - whole)


@helper
def spread_row(y, first, scratch, at, count, step, elements):
    """y[first + i * step] = scratch[at + i] for i < count, other y[first …] up to ``elements`` zero, and nothing else."""
    if step == 1:
        write_row(y, first, scratch, at, elements)
    elif step == 2:
        lanes = 2 * lanes_of(y)
        whole = elements - elements % lanes
        for i in range(0, whole, lanes):
            store_tile(y, first + i, 0, spread_vector(scratch, at + i // 2))
        if whole < elements:
            store_tile_part(y, first + whole, 0, spread_vector(scratch, at + whole // 2), 1, elements - whole)
    else:
        zero_pixels(y, first, elements)
        for i in range(count):
            y[first + i * step] = scratch[at + i]
