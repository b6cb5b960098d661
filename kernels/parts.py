"""Adding partial sums in a fixed order."""

from __future__ import annotations

import numpy as np

from .threads import parallel

CHUNK = 4096


@parallel
def _add_parts(job, worker, parts, out):
    # parts (parts, elements), out (elements,); a job is a chunk of elements
    first, last = job * CHUNK, min((job + 1) * CHUNK, out.size)
    for i in range(first, last):
        out[i] = parts[0, i]
    for part in range(1, parts.shape[0]):
        for i in range(first, last):
            out[i] += parts[part, i]


def even_parts(most: int) -> int:
    """The largest power of two up to ``most``, at least 1: parts that usual numbers of threads share evenly."""
    return 1 << max(0, most.bit_length() - 1)


def add_parts(parts: np.ndarray, out: np.ndarray) -> None:
    """out = parts[0] + parts[1] + …, in that order, for parts (parts, elements)."""
    _add_parts(-(-out.size // CHUNK), parts, out)
