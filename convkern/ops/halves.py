"""Rounding to half precision, where kernels do not do it themselves: values are rounded, arrays stay float32."""

from __future__ import annotations

import numpy as np

from .. import device
from ..plan import HALVES


def rounded(x: np.ndarray, kind: str) -> np.ndarray:
    """The nearest values that ``kind`` can hold, ties to even, in an array of x's dtype; a new array.

    Beyond its range stand infinities: above 65504 for "float16", above about 3.4e38 for "bfloat16", which keeps float32's
    range and 8 bits of precision.
    """
    if kind == "float16":
        with np.errstate(over="ignore", under="ignore"):
            return x.astype(np.float16).astype(x.dtype)
    bits = x.astype(np.float32).view(np.uint32)  # a copy
    nan = x != x
    bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    bits &= np.uint32(0xFFFF0000)
    bits[nan] = 0x7FC00000
    return bits.view(np.float32).astype(x.dtype, copy=False)


def operands(precision: str, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """A product's operands as ``precision`` wants them on the CPU; on GPUs the rows round by themselves, into halves."""
    if precision not in HALVES or device.of(arrays[0]) != "cpu":
        return arrays
    return tuple(rounded(array, precision) for array in arrays)
