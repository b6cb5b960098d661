"""Padding on the CPU, row by row.

A table for each axis says which coordinate of x is seen at each place, -1 where there is none; so all modes share one
loop. The middle of a row is copied as it stands, its two ends go through the table. Backward adds along the same way;
a job is a group of planes, so what is folded back needs no atomics.

Layout: (planes, T, H, W), C-contiguous; out never aliases an input.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..spec import PadSpec
from ..threads import parallel

PIXELS = 16384  # output pixels that make a job


@lru_cache(maxsize=1024)
def _tables(spec: PadSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every axis the coordinate of x that is seen at each place of y; not to be written to."""
    tables = []
    for size, (before, _), out in zip(spec.size, spec.padding, spec.out, strict=True):
        place = np.arange(-before, out - before, dtype=np.int64)
        if spec.mode == "constant":
            seen = np.where((place >= 0) & (place < size), place, -1)
        elif spec.mode == "replicate":
            seen = np.clip(place, 0, size - 1)
        elif spec.mode == "circular":
            seen = place % size
        else:
            seen = (size - 1) - np.abs((size - 1) - np.abs(place))
        tables.append(seen)
    return tables[0], tables[1], tables[2]


def _middle(spec: PadSpec) -> tuple[int, int, int]:
    """First and one-past-last place in a row where x stands as it is, and what to add for its coordinate."""
    before = spec.padding[2][0]
    first = min(max(before, 0), spec.out[2])
    return first, max(first, min(before + spec.size[2], spec.out[2])), -before


def _planes_per_job(spec: PadSpec) -> int:
    return max(1, PIXELS // max(1, spec.out[0] * spec.out[1] * spec.out[2]))


@parallel
def _forward(job, worker, x, times, heights, widths, middle, planes, value, y):
    # x (planes, T, H, W), y (planes, …)
    first, last, shift = middle
    for plane in range(job * planes, min((job + 1) * planes, y.shape[0])):
        for t in range(y.shape[1]):
            for h in range(y.shape[2]):
                row = y[plane, t, h]
                if times[t] < 0 or heights[h] < 0:
                    row[:] = value
                    continue
                pixels = x[plane, times[t], heights[h]]
                inner, seen = row[first:last], pixels[first + shift : last + shift]
                for i in range(inner.size):
                    inner[i] = seen[i]
                for i in range(first):
                    row[i] = value if widths[i] < 0 else pixels[widths[i]]
                for i in range(last, row.size):
                    row[i] = value if widths[i] < 0 else pixels[widths[i]]


def forward(x: np.ndarray, spec: PadSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """x with the padding around it."""
    planes = _planes_per_job(spec)
    value = out.dtype.type(spec.value)
    _forward(-(-spec.planes // planes), x, *_tables(spec), _middle(spec), planes, value, out)


@parallel
def _backward(job, worker, gy, times, heights, widths, middle, planes, gx):
    first, last, shift = middle
    for plane in range(job * planes, min((job + 1) * planes, gx.shape[0])):
        gx[plane] = 0
        for t in range(gy.shape[1]):
            for h in range(gy.shape[2]):
                if times[t] < 0 or heights[h] < 0:
                    continue
                row, pixels = gy[plane, t, h], gx[plane, times[t], heights[h]]
                inner, seen = row[first:last], pixels[first + shift : last + shift]
                for i in range(inner.size):
                    seen[i] += inner[i]
                for i in range(first):
                    if widths[i] >= 0:
                        pixels[widths[i]] += row[i]
                for i in range(last, row.size):
                    if widths[i] >= 0:
                        pixels[widths[i]] += row[i]


def backward(gy: np.ndarray, spec: PadSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Each gradient goes back to the pixel that was seen at its place."""
    planes = _planes_per_job(spec)
    _backward(-(-spec.planes // planes), gy, *_tables(spec), _middle(spec), planes, out)
