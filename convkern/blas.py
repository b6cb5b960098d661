"""Matrix products through NumPy's BLAS, on one thread where they are small.

OpenBLAS's threads spin for many milliseconds after their last work. Between the layers of a network our own helpers need
the same cores then, and what they lose is more than a second thread gains on a small product.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .device import is_cupy

SMALL = 3e7  # multiply-adds: half a millisecond on one core

_lock = threading.Lock()


@cache
def _openblas() -> tuple[Any, Any] | None:
    """Functions that get and set the number of threads of the OpenBLAS in NumPy's wheel; None for another BLAS."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for path in sorted(folder.glob("*openblas*")):
            library = ctypes.CDLL(str(path))  # loaded already: this only gives a handle
            for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
                try:
                    read = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")
                    write = getattr(library, f"{prefix}openblas_set_num_threads{suffix}")
                except AttributeError:
                    continue
                read.restype, read.argtypes = ctypes.c_int, []
                write.restype, write.argtypes = None, [ctypes.c_int]
                return read, write
    return None


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``numpy.matmul(a, b)``, for CuPy's arrays CuPy's; the number of BLAS threads is as before when it is done."""
    if is_cupy(a) or a.size * b.shape[-1] > SMALL or (functions := _openblas()) is None:
        return np.matmul(a, b)
    read, write = functions
    with _lock:  # the number is the process's: two callers must not restore each other's
        before = read()
        if before == 1:
            return np.matmul(a, b)
        write(1)
        try:
            return np.matmul(a, b)
        finally:
            write(before)
