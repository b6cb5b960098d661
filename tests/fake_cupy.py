"""A stand-in for the CuPy module on machines without a GPU: arrays in the host's memory, launches in the interpreter.

It proves which way arrays take through convkern, not that CuPy does what it is expected to: that needs a GPU. As CuPy does,
it refuses to become a NumPy array by the way.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from .gpu import interpreted


class ndarray(np.ndarray):
    """An array that NumPy's functions refuse; methods, views and operators work."""

    def __array_function__(self, function: Any, kinds: Any, args: Any, options: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} of a CuPy array")


def array(values: Any, dtype: Any = None) -> ndarray:
    return np.array(values, dtype=dtype).view(ndarray)


def empty(shape: Any, dtype: Any) -> ndarray:
    """Full of what would show if nobody wrote over it."""
    made = np.empty(shape, dtype)
    made.reshape(-1).view(np.uint8)[:] = 0xFF
    return made.view(ndarray)


def ascontiguousarray(values: ndarray) -> ndarray:
    return np.ascontiguousarray(values.view(np.ndarray)).view(ndarray)


def may_share_memory(a: ndarray, b: ndarray) -> bool:
    return np.may_share_memory(a.view(np.ndarray), b.view(np.ndarray))


def asnumpy(values: ndarray) -> np.ndarray:
    return np.array(values.view(np.ndarray))


@contextmanager
def installed() -> Iterator[Any]:
    """Inside the block ``import cupy`` gives this module."""
    module: Any = ModuleType("cupy")
    for name in ("ndarray", "array", "empty", "ascontiguousarray", "may_share_memory", "asnumpy"):
        setattr(module, name, globals()[name])
    previous = sys.modules.get("cupy")
    sys.modules["cupy"] = module
    try:
        with interpreted("sm_80"):
            yield module
    finally:
        del sys.modules["cupy"]
        if previous is not None:
            sys.modules["cupy"] = previous
