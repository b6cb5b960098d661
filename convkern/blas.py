"""Matrix products through NumPy's BLAS, on one thread where they are small, and CuPy's cuBLAS, of halves where asked for.

OpenBLAS's threads spin for many milliseconds after their last work. Between the layers of a network our own helpers need
the same cores then, and what they lose is more than a second thread gains on a small product.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from . import cublas, device
from .device import is_cupy
from .plan import HALVES

SMALL = 3e7  # multiply-adds: half a millisecond on one core

_lock = threading.Lock()


class _Mode(threading.local):
    own = False


_mode = _Mode()


@contextmanager
def own_products() -> Iterator[None]:
    """Inside the block this thread's products on a GPU are our kernels', which CUDA graphs can hold, and not cuBLAS'."""
    before, _mode.own = _mode.own, True
    try:
        yield
    finally:
        _mode.own = before


def _own_product(a: Any, b: Any, precision: str) -> Any:
    """a · b by a pointwise layer's kernels: the three directions are the products of plain and transposed matrices."""
    from .kernels.spec import PointwiseSpec
    from .kernels.variant import Problem
    from .plan import execute

    (m, inner), n = a.shape, b.shape[1]
    out = device.empty((m, n), a.dtype)
    plain_a, plain_b = (array.flags.c_contiguous for array in (a, b))
    if plain_a and not plain_b:  # gw (K, C) = gy (K, pixels) · x (C, pixels)ᵀ
        spec = PointwiseSpec(1, n, m, inner)
        arrays = device.kernel_array(b.T)[None], a[None]
        execute(Problem("pointwise", "weight_grad", "cuda", "float32", precision, spec), *arrays, out=out)
        return out
    b = device.kernel_array(b)
    if not plain_a:  # gx (C, pixels) = w (K, C)ᵀ · gy (K, pixels)
        problem = Problem("pointwise", "input_grad", "cuda", "float32", precision, PointwiseSpec(1, m, inner, n))
        execute(problem, b[None], device.kernel_array(a.T), out=out[None])
        return out
    problem = Problem("pointwise", "forward", "cuda", "float32", precision, PointwiseSpec(1, inner, m, n))
    execute(problem, b[None], a, device.empty(0, a.dtype), out=out[None])
    return out


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


def product(a: np.ndarray, b: np.ndarray, precision: str = "default") -> np.ndarray:
    """``numpy.matmul(a, b)``, for CuPy's arrays CuPy's; the number of BLAS threads is as before when it is done.

    With the precision "float16" or "bfloat16" two float32 matrices of CuPy's are rounded to it, and summed in float32; where
    :func:`own_products` is asked for, by our own kernels.
    """
    if _mode.own and is_cupy(a):
        if a.ndim == b.ndim == 2 and a.dtype == b.dtype == np.float32:
            return _own_product(a, b, precision if precision in HALVES else "strict")
        device.refuse_capture(
            f"a matrix product of shapes {a.shape} and {b.shape} in {a.dtype}",
            "cuBLAS is not recorded, and our own kernels take two float32 matrices",
        )
    if precision in HALVES and is_cupy(a):
        return cublas.half_product(a, b, precision)
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
