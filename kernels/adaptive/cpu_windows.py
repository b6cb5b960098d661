"""Pooling to a given size on the CPU: the loops of kernels/pool3d over a table of uneven windows."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..pool3d.cpu_windows import Tables, share_out, take_max, take_sums
from ..spec import AdaptiveSpec
from ..unpool import cpu_planes


@lru_cache(maxsize=1024)
def tables(spec: AdaptiveSpec) -> Tables:
    """The windows along each axis; not to be written to."""
    made = []
    for size, out in zip(spec.size, spec.out, strict=True):
        i = np.arange(out, dtype=np.int64)
        start, stop = i * size // out, -(-(i + 1) * size // out)
        made.append(np.stack([start, stop, stop - start], axis=1))
    return made[0], made[1], made[2]


def max_forward(x: np.ndarray, spec: AdaptiveSpec, workspace: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    """The largest value of each window, and its flat position in the input volume."""
    take_max(x, tables(spec), (1, 1, 1), indices, out)


def max_backward(
    gy: np.ndarray, indices: np.ndarray, spec: AdaptiveSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """Each output gradient goes to the pixel that won its window."""
    cpu_planes.scatter_add(gy, indices, spec.n * spec.c, out)


def avg_forward(x: np.ndarray, spec: AdaptiveSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """The mean of each window."""
    take_sums(x, tables(spec), 0, 0.0, 1, out)


def avg_backward(gy: np.ndarray, spec: AdaptiveSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Each output gradient is shared out evenly over its window."""
    share_out(gy, tables(spec), 0, out)
