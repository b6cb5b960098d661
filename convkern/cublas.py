"""Products of two matrices in halves, summed in float32, by CuPy's cuBLAS.

CuPy's own matmul has no bfloat16 and rounds float16 products to halves; its cublasGemmEx takes addresses and both types, and
writes float32. The operands are float32 matrices, which our kernels round to halves whose rows begin at whole 16 bytes:
so cuBLAS may take its fastest kernels for any number of columns.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from . import device

# Numbers of CUDA's library_types.h and cublas_api.h; CuPy 13 has no name for bfloat16.
_FLOAT32, _HALVES = 0, {"float16": 2, "bfloat16": 14}  # CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF
_PLAIN, _TRANSPOSED = 0, 1  # CUBLAS_OP_N, CUBLAS_OP_T
_SUMS_IN_FLOAT32 = 68  # CUBLAS_COMPUTE_32F
_ON_TENSOR_CORES = 99  # CUBLAS_GEMM_DEFAULT_TENSOR_OP

_ONE, _ZERO = np.ones((), np.float32), np.zeros((), np.float32)  # alpha and beta lie on the host


class _Operand(NamedTuple):
    """A matrix of halves as it lies in memory, row by row."""

    bits: Any  # uint16
    pitch: int  # elements from row to row
    turned: bool  # the operand is the transposed of what lies there


def _rounded(matrix: Any, kind: str) -> _Operand:
    """A float32 matrix, or the transposed of one, in halves of ``kind``, zeros behind each row."""
    from .kernels.cuda import LARGEST
    from .kernels.cuda.half_layout import padded, spread

    turned = not matrix.flags.c_contiguous and matrix.T.flags.c_contiguous
    source = device.kernel_array(matrix.T if turned else matrix)
    (rows, columns), pitch = source.shape, padded(source.shape[1], kind)
    bits = device.empty((rows, pitch), "uint16")
    most = LARGEST // pitch  # rows whose elements a kernel can count
    for first in range(0, rows, most):
        part = slice(first, first + most)
        spread(source[part].reshape(-1), bits[part].reshape(-1), kind, columns)
    return _Operand(bits, pitch, turned)


def half_product(a: Any, b: Any, kind: str) -> Any:
    """a · b with both rounded to halves, to nearest, ties to even; their products are exact and summed in float32.

    Parameters
    ----------
    a : cupy.ndarray, (m, n), float32
    b : cupy.ndarray, (n, k), float32
        Both as they are or transposed in memory; another order is copied first.
    kind : "float16" or "bfloat16"

    Returns
    -------
    cupy.ndarray, (m, k), float32

    Raises
    ------
    NotImplementedError
        By CuPy, on a stream that is being captured.

    References
    ----------
    NVIDIA, "cuBLAS", 2.8.13, cublasGemmEx.
    """
    cupy = sys.modules["cupy"]
    (m, n), k = a.shape, b.shape[1]
    if 0 in (m, n, k):
        return cupy.zeros((m, k), "float32")
    left, right, out = _rounded(a, kind), _rounded(b, kind), device.empty((m, k), "float32")
    # To cuBLAS, which reads column by column, rows are the columns of the transposed: out.T = b.T · a.T.
    cupy.cuda.cublas.gemmEx(
        cupy.cuda.get_cublas_handle(), *(_TRANSPOSED if o.turned else _PLAIN for o in (right, left)), k, m, n,
        _ONE.ctypes.data, right.bits.data.ptr, _HALVES[kind], right.pitch, left.bits.data.ptr, _HALVES[kind], left.pitch,
        _ZERO.ctypes.data, out.data.ptr, _FLOAT32, k, _SUMS_IN_FLOAT32, _ON_TENSOR_CORES,
    )  # fmt: skip
    return out
