"""Room for the frames of Python calls, for work that calls deeply and often, as compiling does."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

SLOTS = 1 << 16  # pointers: half a MiB of addresses, of which nothing is touched


def with_room(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Give all calls under a function frames in one chunk of memory.

    CPython keeps the frames of calls in chunks of 16 KiB (Python/pystate.c, ``push_chunk``). A call that finds the last
    chunk full maps another one, and unmaps it when it returns; a loop that runs at such a depth has the operating system do
    that for each of its calls. Numba takes a fifth longer to compile a kernel that way. A frame larger than a chunk gets one
    whose size is the next power of two, so here nearly half a MiB is left to the calls below it.
    """

    def roomy(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return function(*args, **kwargs)

    roomy.__code__ = roomy.__code__.replace(co_stacksize=SLOTS)
    return wraps(function)(roomy)
