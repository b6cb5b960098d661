"""The device of the stand-in for CuPy: its memory, its streams, and graphs that record what a captured stream does.

A graph's launch does everything again where it was done, with the numbers of that time, and raises where memory has been
given back since: a number that should have changed, or an array that moved, shows in the results or as an error.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class OutOfMemoryError(MemoryError):
    """As CuPy's, which raises it after its pool gave back what it kept and the driver refused again."""


class MemoryPool:
    """Memory from it stays what it is as long as the pool lives, also when nobody has an array there any more."""

    def malloc(self, size: int) -> Any:
        raise AssertionError("only its name is used")


@contextmanager
def using_allocator(malloc: Any) -> Iterator[None]:
    before, memory.pool = memory.pool, malloc.__self__
    try:
        yield
    finally:
        memory.pool = before


class Graph:
    """What was done while a stream was captured, with the memory of that time; nothing of it was carried out then."""

    def __init__(self) -> None:
        self.nodes: list[tuple[Callable[[], None], list[Any]]] = []

    def add(self, run: Callable[[], None], arrays: list[Any]) -> None:
        owners = [array if array.base is None else array.base for array in arrays]
        self.nodes.append((run, [(weakref.ref(owner), owner.pool) for owner in owners]))

    def launch(self, stream: Any = None) -> None:
        """Do it all again, where it was done: in memory that is still there."""
        assert memory.graph is None
        for run, places in self.nodes:
            for owner, pool in places:
                if owner() is None and (pool is None or pool() is None):
                    raise AssertionError("the graph reaches memory that was given back")
            run()


class Stream:
    """A stream; 0 is the default one. Everything is done at once, so there is nothing to wait for."""

    def __init__(self, ptr: int | None = None, non_blocking: bool = False) -> None:
        self.ptr = id(self) if ptr is None else ptr

    def __enter__(self) -> Stream:
        self.before, memory.stream = memory.stream, self
        return self

    def __exit__(self, *error: Any) -> None:
        memory.stream = self.before

    def synchronize(self) -> None:
        synchronous("a wait for the stream")

    def begin_capture(self) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        assert memory.graph is None
        assert memory.stream is self
        memory.graph = Graph()

    def end_capture(self) -> Graph:
        made, memory.graph = memory.graph, None
        assert made is not None
        return made


class Memory:
    """The device's: what is in use, which allocations fail, and the graph that is being captured."""

    def __init__(self) -> None:
        self.graph: Graph | None = None
        self.pool: MemoryPool | None = None  # that arrays are made in; None: the default one
        self.stream: Any = Stream(0)
        self.arrays: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # that are alive
        self.used = self.taken = self.given_back = 0  # bytes, allocations, calls that empty the pool
        self.fails: Callable[[int], bool] = lambda number: False  # by the allocation's number

    def take(self, array: Any) -> None:
        self.taken += 1
        if self.fails(self.taken - 1):
            raise OutOfMemoryError(
                f"Out of memory allocating {array.nbytes:,} bytes (allocated so far: {self.used:,} bytes)."
            )
        self.used += array.nbytes
        self.arrays[id(array)] = array
        weakref.finalize(array, self._give, array.nbytes)

    def _give(self, nbytes: int) -> None:
        self.used -= nbytes

    def free_all_blocks(self) -> None:
        self.given_back += 1


memory = Memory()


def synchronous(what: str) -> None:
    """What a captured stream cannot do."""
    if memory.graph is not None:
        raise OSError(f"cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing ({what})")
