"""What this machine can do at most: multiply-adds a second, and bytes a second from each level of its memory.

A kernel's roofline is the smaller of the two limits: the peak, or its arithmetic intensity (operations a byte) times the
bandwidth. Both are measured here with the threads and the vector type that the kernels use.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures",
2009; the copy is that of McCalpin's STREAM, both of its sides counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import host, simd
from .compiler import helper
from .simd import add_lane_sums, add_outer, add_products, lanes_of, load_tile, store_tile, zero_tile
from .threads import num_threads, parallel

ROWS, COLUMNS = (8, 3) if simd.REGISTERS == 32 else (6, 2)  # as many sums as leave registers for the operands
TERMS = 256  # products for each sum; their operands stay in the first-level cache
PEAK_JOBS = 32  # for each thread: little of the time is spent waiting for the last one
PEAK_REPEATS = 64
TURNS = 9  # the best of so many
STREAM_BYTES = 32 << 20  # read in a turn at least, so that starting the threads does not count
LARGEST = 512 << 20
VECTORS = 8  # loaded before the next ones are asked for


class Level(NamedTuple):
    """One level of the memory, measured with a working set that fits into no smaller one."""

    name: str
    working_set: int  # bytes, all threads together
    read: float  # bytes a second, all threads together
    copy: float  # bytes read and bytes written a second

    @property
    def bandwidth(self) -> float:
        return max(self.read, self.copy)


class Calibration(NamedTuple):
    """What the machine can do at most.

    Attributes
    ----------
    dtype : str
    threads : int
        That took part in ``peak`` and in the bandwidths.
    peak, peak_one : float
        Operations a second (a multiply-add is two), of all threads and of one.
    levels : tuple of Level
        From the smallest to the main memory.
    """

    dtype: str
    threads: int
    peak: float
    peak_one: float
    levels: tuple[Level, ...]

    def level(self, working_set: int) -> Level:
        """The level that holds so many bytes."""
        return next((level for level in self.levels if working_set <= level.working_set), self.levels[-1])

    def roofline(self, operations: float, nbytes: float, working_set: int | None = None) -> float:
        """Operations a second that the machine can do at most for a problem.

        Parameters
        ----------
        operations, nbytes : float
            Of the problem: arithmetic, and bytes that have to be read or written.
        working_set : int, optional
            Bytes that are used again and again; by default more than any cache holds.
        """
        level = self.levels[-1] if working_set is None else self.level(working_set)
        return min(self.peak, operations / nbytes * level.bandwidth)


@parallel
def _multiply_add(job, worker, a, b, y):
    # a (TERMS, ROWS), b (TERMS, COLUMNS vectors), y (jobs, a tile)
    for _ in range(PEAK_REPEATS):
        tile = zero_tile(y, ROWS, COLUMNS)
        for t in range(TERMS):
            tile = add_outer(tile, a, t * ROWS, b, t * COLUMNS * lanes_of(y))
        store_tile(y, job * y.shape[1], COLUMNS * lanes_of(y), tile)


@helper
def _sum_vectors(tile, x, first, ones, zeros):
    return add_products(tile, x, first, lanes_of(x), ones, 0, zeros, 0)


@parallel
def _read(job, worker, passes, ones, zeros, x, sums):
    # x (jobs, elements), sums (jobs, VECTORS); the sums keep the compiler from dropping the loads
    step = VECTORS * lanes_of(x)
    tile = zero_tile(x, VECTORS, 1)
    for _ in range(passes):
        for i in range(job * x.shape[1], (job + 1) * x.shape[1], step):
            tile = _sum_vectors(tile, x, i, ones, zeros)
    add_lane_sums(sums, job * VECTORS, 1, tile, VECTORS, 1)


@parallel
def _copy(job, worker, passes, x, y):
    # x, y (jobs, elements)
    step = VECTORS * lanes_of(x)
    for _ in range(passes):
        for i in range(job * x.shape[1], (job + 1) * x.shape[1], step):
            store_tile(y, i, lanes_of(x), load_tile(x, i, lanes_of(x), VECTORS, 1))


def _seconds(call: Callable[[], Any]) -> float:
    """The fastest of some calls: what disturbs the machine makes it slower only."""
    call()
    best = float("inf")
    for _ in range(TURNS):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best


def measure_peak(dtype: str = "float32", threads: int | None = None) -> float:
    """Operations a second of register tiles whose operands lie in the first-level cache, on so many or all threads."""
    lanes = simd.VECTOR_BITS // (8 * np.dtype(dtype).itemsize)
    threads = threads or num_threads()
    jobs = PEAK_JOBS * threads
    a, b = np.full((TERMS, ROWS), 0.5, dtype), np.full((TERMS, COLUMNS * lanes), 0.5, dtype)
    y = np.zeros((jobs, ROWS * COLUMNS * lanes), dtype)
    seconds = _seconds(lambda: _multiply_add(jobs, a, b, y, limit=threads))
    return 2 * y.size * TERMS * PEAK_REPEATS / seconds


def measure_level(name: str, working_set: int, dtype: str = "float32") -> Level:
    """Bandwidths of a working set, shared evenly by the threads."""
    threads, itemsize = num_threads(), np.dtype(dtype).itemsize
    step = VECTORS * simd.VECTOR_BITS // (8 * itemsize)
    elements = max(step, working_set // (threads * itemsize) // step * step)
    x, zeros = np.ones((threads, elements), dtype), np.zeros(1, np.int64)
    ones, sums = np.ones(step, dtype), np.zeros((threads, VECTORS), dtype)
    passes = max(1, STREAM_BYTES // x.nbytes)
    read = _seconds(lambda: _read(threads, passes, ones, zeros, x, sums))
    half = elements // 2 // step * step or step  # source and target together are the working set
    source, target = x.reshape(-1)[: threads * half].reshape(threads, half), np.zeros((threads, half), dtype)
    twice = max(1, STREAM_BYTES // (2 * source.nbytes))
    copy = _seconds(lambda: _copy(threads, twice, source, target))
    return Level(name, x.nbytes, passes * x.nbytes / read, 2 * twice * source.nbytes / copy)


def calibrate(dtype: str = "float32") -> Calibration:
    """Measure the peak and the bandwidths of this machine now, with as many threads as kernels use; about half a second.

    Parameters
    ----------
    dtype : str
        "float32" or "float64".
    """
    threads = num_threads()
    sizes = [("L2", threads * host.l2_bytes() // 2), ("L3", host.l3_bytes() // 2)]
    sizes.append(("memory", min(LARGEST, max(4 * host.l3_bytes(), 4 * sizes[0][1], 128 << 20))))
    if sizes[1][1] <= 2 * sizes[0][1]:  # no third level, or one that holds little more than the second
        del sizes[1]
    peak = measure_peak(dtype)
    peak_one = measure_peak(dtype, 1) if threads > 1 else peak
    return Calibration(dtype, threads, peak, peak_one, tuple(measure_level(*size, dtype) for size in sizes))


@lru_cache
def _of_this_process(dtype: str, threads: int) -> Calibration:
    return calibrate(dtype)


def calibration(dtype: str = "float32") -> Calibration:
    """The calibration for the present number of threads, measured once in a process."""
    return _of_this_process(dtype, num_threads())
