"""Writing rows of scratch and of results in whole vectors."""

from __future__ import annotations

from .compiler import helper
from .simd import (
    add_scalar,
    lanes_of,
    load_every_second,
    load_tile,
    load_window,
    prefetch,
    relu_tile,
    store_tile,
    store_tile_part,
    zero_tile,
)  # fmt: skip

AHEAD = 1024  # elements that a copy is fetched ahead: twice the speed from the third-level cache (Zen 5)
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
def copy_row(scratch, at, count, source, start, step, low, high):
    """scratch[at + j] = source[start + j * step] for low <= j < high, zero for other j < count; writes up to a vector
    more."""
    if step == 1:
        for j in range(0, count, lanes_of(scratch)):
            prefetch(source, start + j + AHEAD)
            store_tile(scratch, at + j, 0, load_window(source, start + j, low - j, high - j))
    elif step == 2:
        for j in range(0, count, lanes_of(scratch)):
            prefetch(source, start + 2 * j + AHEAD)
            prefetch(source, start + 2 * j + AHEAD + lanes_of(source))
            store_tile(scratch, at + j, 0, load_every_second(source, start + 2 * j, low - j, high - j))
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
