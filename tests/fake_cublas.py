"""The stand-in CuPy's cuBLAS: cublasGemmEx by its definition, over addresses in the stand-in's memory.

It notes every call, and raises on what cuBLAS would refuse and on addresses outside of the arrays that are alive.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

from . import fake_device
from .bounds import from_halves

TYPES = {0: "float32", 2: "float16", 14: "bfloat16"}  # CUDA's library_types.h
FLOAT32_SUMS, ALGORITHMS = 68, (-1, 99)  # cublas_api.h
HANDLE = 17


class Call(NamedTuple):
    """What a call was given, and the stream that it went to."""

    turned: tuple[int, int]
    sizes: tuple[int, int, int]
    types: tuple[str, str, str]
    pitches: tuple[int, int, int]
    addresses: tuple[int, int, int]
    stream: Any


calls: list[Call] = []


def _matrix(address: int, kind: str, rows: int, columns: int, pitch: int) -> np.ndarray:
    """A matrix whose columns begin ``pitch`` elements apart; its last element lies in the array that has the first."""
    dtype = np.dtype("uint16" if kind == "bfloat16" else kind)
    if pitch < max(1, rows):
        raise ValueError(f"a pitch of {pitch} is shorter than a column of {rows}")
    if address % dtype.itemsize:
        raise ValueError("the address is not aligned")
    for array in list(fake_device.memory.arrays.values()):
        first, host = array.host.ctypes.data, array.host
        if first <= address < first + host.nbytes:
            room = host.reshape(-1).view(np.uint8)[address - first :]
            strides = (dtype.itemsize, pitch * dtype.itemsize)
            try:
                return np.ndarray((rows, columns), dtype, room, strides=strides)
            except (TypeError, ValueError) as error:
                raise ValueError(f"a matrix of {rows} x {columns}, {pitch} apart, leaves its array") from error
    raise ValueError("the address lies in no array")


def _values(matrix: np.ndarray, kind: str) -> np.ndarray:
    return matrix if kind == "float32" else from_halves(np.ascontiguousarray(matrix), kind)


def gemmEx(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, a: int, a_type: int, lda: int, b: int,
    b_type: int, ldb: int, beta: int, c: int, c_type: int, ldc: int, compute_type: int, algorithm: int,
) -> None:  # fmt: skip
    """C ← alpha · op(A) · op(B) + beta · C, column by column; alpha and beta on the host."""
    if fake_device.memory.graph is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    if handle != HANDLE or compute_type != FLOAT32_SUMS or algorithm not in ALGORITHMS or {transa, transb} - {0, 1}:
        raise ValueError("CUBLAS_STATUS_INVALID_VALUE")
    kinds = TYPES[a_type], TYPES[b_type], TYPES[c_type]
    if kinds[0] != kinds[1] or kinds[2] != "float32":
        raise ValueError(f"the stand-in does not compute {kinds}")
    left = _matrix(a, kinds[0], *((k, m) if transa else (m, k)), lda)
    right = _matrix(b, kinds[1], *((n, k) if transb else (k, n)), ldb)
    out = _matrix(c, kinds[2], m, n, ldc)
    factor, kept = (ctypes.cast(place, ctypes.POINTER(ctypes.c_float))[0] for place in (alpha, beta))
    with np.errstate(all="ignore"):
        left, right = _values(left, kinds[0]), _values(right, kinds[1])
        product = np.float32(factor) * ((left.T if transa else left) @ (right.T if transb else right))
        out[...] = product + np.float32(kept) * out if kept else product
    calls.append(Call((transa, transb), (m, n, k), kinds, (lda, ldb, ldc), (a, b, c), fake_device.memory.stream))
