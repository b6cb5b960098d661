"""Running elementwise kernel rows; the operations are in the files beside."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import device
from ..device import FLOATS, dtype_name, kernel_array
from ..kernels.spec import ElementwiseSpec
from ..kernels.variant import Problem
from ..memory import SMALLEST
from ..plan import execute
from .arguments import new_array


def elementwise(direction: str, *arrays: np.ndarray) -> np.ndarray:
    """Run an elementwise row over arrays of one shape and one floating dtype."""
    out = new_array(arrays[0].shape, arrays[0].dtype.newbyteorder("="), arrays[0])
    problem = Problem(
        "elementwise", direction, device.of(out), dtype_name(out.dtype), "default", ElementwiseSpec(out.size)
    )
    execute(problem, *(kernel_array(a).reshape(-1) for a in arrays), out=out.reshape(-1))
    return out


def plain_and_large(a: Any, b: Any) -> bool:
    """Two float arrays of one shape that lie in memory as kernels take them, and are worth a parallel loop."""
    return (
        (isinstance(a, np.ndarray) or device.is_cupy(a))
        and (isinstance(b, np.ndarray) or device.is_cupy(b))
        and a.nbytes >= SMALLEST
        and a.shape == b.shape
        and a.dtype == b.dtype
        and a.dtype in FLOATS
        and a.flags.c_contiguous
        and b.flags.c_contiguous
    )
