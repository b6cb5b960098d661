"""A pool of memory for large arrays: what a collected array leaves behind serves the next one of its size.

A fresh large array costs a page fault for every 4 KiB when it is first written, more than many kernels take. An array from
the pool is an ordinary NumPy array whose ``base`` is a `_Lease`; when the last view of it is gone, the lease ends and its
memory returns to the pool.
"""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import numpy as np

SMALLEST = 64 * 1024  # bytes; the allocator keeps smaller blocks itself
KEPT = 1 << 30  # bytes that wait in the pool at most
ALIGNMENT = 64


class _Block(NamedTuple):
    """Memory for arrays of one size class."""

    size: int  # bytes
    memory: bytearray
    start: int  # its first aligned byte


class _Pool:
    """Free blocks by size."""

    def __init__(self) -> None:
        self.free: dict[int, list[_Block]] = {}
        self.waiting = 0  # bytes
        self.missed = 0  # arrays for which nothing waited
        self.lock = threading.RLock()  # a collection inside may end leases on the same thread

    def take(self, size: int) -> _Block:
        with self.lock:
            blocks = self.free.get(size)
            if blocks:
                self.waiting -= size
                return blocks.pop()
            self.missed += 1
        memory = bytearray(size + ALIGNMENT)
        return _Block(size, memory, -np.frombuffer(memory, np.uint8).ctypes.data % ALIGNMENT)

    def give(self, block: _Block) -> None:
        with self.lock:
            if self.waiting + block.size <= KEPT:
                self.free.setdefault(block.size, []).append(block)
                self.waiting += block.size

    def clear(self) -> None:
        with self.lock:
            self.free.clear()
            self.waiting = 0


_pool = _Pool()


class _Lease(np.ndarray):
    """Holds a block of the pool for the arrays that use it."""

    block: _Block

    def __del__(self, give: Any = _pool.give) -> None:
        block = getattr(self, "block", None)
        if block is not None:  # views of a lease have none
            give(block)


def _size_class(nbytes: int) -> int:
    """``nbytes`` rounded up by at most an eighth, so that similar arrays share blocks."""
    step = max(4096, 1 << (nbytes.bit_length() - 4))
    return -(-nbytes // step) * step


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """As ``numpy.empty``, from the pool if the array is large."""
    kind = np.dtype(dtype)
    nbytes = math.prod(shape) * kind.itemsize
    if nbytes < SMALLEST:
        return np.empty(shape, kind)
    block = _pool.take(_size_class(nbytes))
    lease = np.ndarray.__new__(_Lease, (nbytes,), np.uint8, block.memory, block.start)
    lease.block = block
    return np.ndarray(shape, kind, lease)


def is_view(array: np.ndarray) -> bool:
    """True if the array shares another array's memory; one that fills a lease of its own does not."""
    return array.base is not None and type(array.base) is not _Lease


def misses() -> int:
    """How many large arrays took new memory so far, because none of their size was waiting."""
    return _pool.missed


def empty_cache() -> None:
    """Give the memory that waits in the pool back to the system."""
    _pool.clear()
