"""Running elementwise kernel rows; the operations are in the files beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import device
from ..device import FLOATS, dtype_name, kernel_array
from ..kernels.spec import ElementwiseSpec
from ..kernels.variant import Problem
from ..memory import SMALLEST
from ..plan import execute
from ..tensor import Tensor
from .arguments import new_array


def elementwise(direction: str, *arrays: np.ndarray) -> np.ndarray:
    """Run an elementwise row over arrays of one shape and one floating dtype; the result lies in memory as the last does."""
    if device.is_channels_last(arrays[-1]) or (device.is_cupy(arrays[-1]) and device.leans_channels_last(arrays[-1])):
        return device.from_last(elementwise(direction, *map(device.to_last, arrays)))
    out = new_array(arrays[0].shape, arrays[0].dtype.newbyteorder("="), arrays[0])
    problem = Problem(
        "elementwise", direction, device.of(out), dtype_name(out.dtype), "default", ElementwiseSpec(out.size)
    )
    execute(problem, *(kernel_array(a).reshape(-1) for a in arrays), out=out.reshape(-1))
    return out


def in_memory_order(compute: Callable[..., Any], *operands: Any) -> Any:
    """``compute(*operands)``, elementwise with broadcasting: an array, or a tuple of arrays and None.

    CuPy gives C-contiguous results whatever the operands are. So where one is channels-last, all of them go in turned, and
    the results come out channels-last.
    """
    last = any(device.is_cupy(a) and device.leans_channels_last(a) for a in operands)
    if not last or any(isinstance(a, Tensor) or getattr(a, "ndim", 0) > 4 for a in operands):
        return compute(*operands)
    result = compute(*map(_turned, operands))
    if isinstance(result, tuple):
        return tuple(None if r is None else device.from_last(r) for r in result)
    return device.from_last(result)


def _turned(operand: Any) -> Any:
    """What broadcasts with (N, C, H, W), so that it broadcasts with (N, H, W, C)."""
    axes = getattr(operand, "ndim", 0)
    return device.to_last(operand.reshape((1,) * (4 - axes) + operand.shape)) if axes else operand


def plain_and_large(a: Any, b: Any) -> bool:
    """Two float arrays of one shape that lie in memory as kernels take them, and are worth a parallel loop."""
    return (
        (isinstance(a, np.ndarray) or device.is_cupy(a))
        and (isinstance(b, np.ndarray) or device.is_cupy(b))
        and a.nbytes >= SMALLEST
        and a.shape == b.shape
        and a.dtype == b.dtype
        and a.dtype in FLOATS
        and (
            (a.flags.c_contiguous and b.flags.c_contiguous)
            or (device.is_channels_last(a) and device.is_channels_last(b))
        )
    )
