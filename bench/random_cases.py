"""Random legal convolutions from a fixed seed: where the table of layers does not look, no shape may fall off a cliff."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

from ..kernels.spec import Pair, output_size, reach

COUNT, SEED = 150, 20
SMALLEST, LARGEST = 400_000, 600_000_000  # multiply-adds
MOST_ELEMENTS = 3_000_000  # of input and output each: a sweep over all of them is to end in minutes

Shape = tuple[int, int, Pair, int, Pair, Pair, Pair, Pair, int]
_T = TypeVar("_T")


def random_shapes(count: int = COUNT, seed: int = SEED) -> Iterator[Shape]:
    """So many legal convolutions: odd channels, rectangular kernels and images, strides from 1 to 3, dilation 1 or 2,
    groups up to depthwise, batches from 1 to 64.

    Parameters
    ----------
    count, seed : int
        The same numbers give the same shapes on every machine.

    Yields
    ------
    tuple
        N, C, (H, W), K, (R, S), stride, padding, dilation, groups.
    """
    rng = random.Random(seed)
    while count:
        n, c, size, k, kernel, stride, padding, dilation, groups = shape = _draw(rng)
        pads = [(pad, pad) for pad in padding]
        p, q = (output_size(size[i], kernel[i], stride[i], pads[i], dilation[i]) for i in range(2))
        macs = n * k * p * q * (c // groups) * kernel[0] * kernel[1]
        if SMALLEST <= macs <= LARGEST and max(n * c * size[0] * size[1], n * k * p * q) <= MOST_ELEMENTS:
            count -= 1
            yield shape


def _pick(rng: random.Random, values: Sequence[_T]) -> _T:
    return values[int(rng.random() * len(values))]  # random() alone promises the same draws in every Python


def _between(rng: random.Random, low: int, high: int) -> int:
    """An integer from low to high; from 1 to 2 is as likely as from 100 to 200."""
    return min(high, int(low * ((high + 1) / low) ** rng.random()))


def _pair(rng: random.Random, values: Sequence[int], alike: float) -> Pair:
    """Two of the values; the same one twice with at least this probability."""
    first, second = _pick(rng, values), _pick(rng, values)
    return (first, first) if rng.random() < alike else (first, second)


def _draw(rng: random.Random) -> Shape:
    groups, c_each, k_each = _channels(rng)
    height, width = _between(rng, 4, 112), _between(rng, 4, 112)
    size = (height, height) if rng.random() < 0.4 else (height, width)
    kernel = _pair(rng, (1, 2, 3, 3, 4, 5, 7), 0.5)
    stride = _pair(rng, (1, 1, 1, 2, 3), 0.6)
    dilation = _pair(rng, (1, 1, 1, 2), 0)
    padding = []
    for axis in range(2):
        short = max(0, reach(kernel[axis], dilation[axis]) - size[axis])  # a kernel larger than the image needs padding
        padding.append(max(_pick(rng, (0, kernel[axis] // 2, kernel[axis] // 2, 1)), -(-short // 2)))
    n = _between(rng, 1, 64)
    return n, groups * c_each, size, groups * k_each, kernel, stride, (padding[0], padding[1]), dilation, groups


def _channels(rng: random.Random) -> tuple[int, int, int]:
    """Groups, and the input and output channels of each."""
    kind = rng.random()
    if kind < 0.7:
        return 1, _between(rng, 1, 400), _between(rng, 2, 400)
    if kind < 0.85:
        return _between(rng, 2, 40), _between(rng, 1, 12), _between(rng, 1, 12)
    return _between(rng, 8, 200), 1, _pick(rng, (1, 1, 1, 2))
