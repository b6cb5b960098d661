"""Taking in and checking what users pass: every message names the argument, what came and what was expected."""

from __future__ import annotations

import math
import operator
import sys
from typing import Any

import numpy as np

from .. import device
from ..kernels.spec import ACTIVATIONS, Pair
from ..memory import empty
from ..plan import PRECISIONS, REDUCED
from ..tensor import Tensor


def array_of(value: Any, name: str) -> np.ndarray:
    """The array of a Tensor or of anything array-like."""
    return value.data if isinstance(value, Tensor) else device.as_array(value, name)


def kernel_inputs(function: str, **values: Any) -> list[np.ndarray]:
    """NumPy's or CuPy's arrays, all on one device."""
    taken = [v._data if isinstance(v, Tensor) else device.as_array(v, name) for name, v in values.items()]
    if "cupy" in sys.modules:
        device.one(function, values, taken)
    return taken


def new_array(shape: tuple[int, ...], dtype: Any, like: Any) -> np.ndarray:
    """A new array on the device of ``like``; large ones come from the pool of memory."""
    return device.empty(shape, dtype) if device.is_cupy(like) else empty(shape, dtype)


def image_array(shape: tuple[int, ...], dtype: Any, like: Any, last: bool) -> np.ndarray:
    """As :func:`new_array`; with ``last`` (N, C, H, W) lies channels-last."""
    if not last:
        return new_array(shape, dtype, like)
    n, c, h, w = shape
    return device.from_last(new_array((n, h, w, c), dtype, like))


def kept(value: Any, *others: Any) -> Any:
    """``value`` as the gradient of ``others`` will want it, or None where none of them requires one."""
    for other in others:
        if isinstance(other, Tensor) and other.requires_grad:
            break
    else:
        return None
    if isinstance(value, (Tensor, bool, int, float)):
        return value
    return scalar(device.as_array(value, "saved value"))


def scalar(array: Any) -> Any:
    """A NumPy array without axes as a number, which goes with arrays on every device."""
    return array[()] if isinstance(array, np.ndarray) and array.ndim == 0 else array


def float_arrays(function: str, *, halves: bool = False, **values: Any) -> list[np.ndarray]:
    """Arrays of one floating dtype, float32 or float64, all on one device; with ``halves`` also CuPy's float16."""
    taken = kernel_inputs(function, **values)
    if taken[0].dtype.char in "fd" and len({array.dtype for array in taken}) == 1:
        return taken
    arrays: dict[str, np.ndarray] = {}
    for (name, _), array in zip(values.items(), taken, strict=True):
        half = halves and array.dtype == np.float16 and device.is_cupy(array)
        if array.dtype.newbyteorder("=") not in device.FLOATS and not half:
            raise TypeError(f"{function}: {name} must be float32 or float64, got {array.dtype}")
        arrays[name] = array
    dtypes = {array.dtype.newbyteorder("=") for array in arrays.values()}
    if len(dtypes) > 1:
        listed = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        raise TypeError(f"{function}: arrays must have one dtype, got {listed}")
    return list(arrays.values())


def integer(value: Any, name: str, minimum: int) -> int:
    """An integer of at least ``minimum``; bool and float are refused."""
    if type(value) is int and value >= minimum:
        return value
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return number


def number(value: Any, name: str, minimum: float = -math.inf, maximum: float = math.inf) -> float:
    """A finite number from ``minimum`` to ``maximum``; bool is refused."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(value) and minimum <= value <= maximum):
        bounds = [f"at least {minimum:g}"] * (minimum > -math.inf) + [f"at most {maximum:g}"] * (maximum < math.inf)
        raise ValueError(f"{name} must be {' and '.join(bounds) or 'finite'}, got {value!r}")
    return float(value)


def positive(value: Any, name: str) -> float:
    """A finite number above 0."""
    if number(value, name, 0.0) == 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    return float(value)


def native(function: str, x: Any) -> np.ndarray:
    """A floating array in the machine's byte order."""
    (xa,) = float_arrays(function, x=x)
    return xa.astype(xa.dtype.newbyteorder("="), copy=False)


def per_axis(value: Any, name: str, minimum: int, axes: int = 2) -> tuple[int, ...]:
    """One int for all axes, or one for each."""
    if type(value) is int and value >= minimum:
        return (value,) * axes
    if isinstance(value, (tuple, list)):
        if len(value) != axes:
            raise ValueError(f"{name} must be an int or {axes} ints, got {value!r}")
        return tuple(integer(v, name, minimum) for v in value)
    try:
        return (integer(value, name, minimum),) * axes
    except TypeError:
        raise TypeError(f"{name} must be an int or {axes} ints, got {value!r}") from None


def sides(value: Any, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[Pair, ...]:
    """Padding as (before, after) per axis, from an int, ints, nested pairs, "same" or "valid"."""
    axes = len(kernel)
    if type(value) is int and value >= 0:
        return ((value, value),) * axes
    if isinstance(value, str):
        if value == "valid":
            return ((0, 0),) * axes
        if value != "same":
            raise ValueError(f"padding must be 'same', 'valid' or numbers, got {value!r}")
        if any(s != 1 for s in stride):
            raise ValueError(f"padding='same' needs stride 1, got stride {stride}")
        spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((span // 2, span - span // 2) for span in spans)
    if isinstance(value, (tuple, list)) and any(isinstance(v, (tuple, list)) for v in value):
        if len(value) != axes or not all(isinstance(v, (tuple, list)) and len(v) == 2 for v in value):
            raise ValueError(f"padding must have a (before, after) pair for each of {axes} axes, got {value!r}")
        return tuple((integer(v[0], "padding", 0), integer(v[1], "padding", 0)) for v in value)
    return tuple((v, v) for v in per_axis(value, "padding", 0, axes))


def activation_code(value: Any) -> int:
    if not isinstance(value, (str, type(None))) or value not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'relu', got {value!r}")
    return ACTIVATIONS[value]


def check_precision(value: Any) -> str:
    if not isinstance(value, str) or value not in (*PRECISIONS, *REDUCED):
        *names, last = map(repr, (*PRECISIONS, *REDUCED))
        raise ValueError(f"precision must be {', '.join(names)} or {last}, got {value!r}")
    return str(value)


def result_array(out: Any, shape: tuple[int, ...], dtype: np.dtype, parents: tuple[Any, ...]) -> np.ndarray:
    """An array for the result: ``out`` when it is given and fits, otherwise a new one, on the first parent's device."""
    dtype = dtype.newbyteorder("=")
    first = parents[0].data if isinstance(parents[0], Tensor) else parents[0]
    if out is None:
        return new_array(shape, dtype, first)
    library = device.library(first)
    if not isinstance(out, library.ndarray) or device.of(out) != device.of(first):
        kind = "CuPy" if device.is_cupy(first) else "NumPy"
        raise TypeError(f"out must be a {kind} array, got {type(out).__name__}")
    if out.shape != shape or out.dtype.newbyteorder("=") != dtype:
        raise ValueError(f"out must have shape {shape} and dtype {dtype}, got {out.shape} and {out.dtype}")
    if not getattr(out.flags, "writeable", True):  # CuPy's arrays always are
        raise ValueError("out is read-only")
    if any(isinstance(p, Tensor) for p in parents):
        raise TypeError("out is for arrays; a Tensor's operations make their own results")
    if any(p is not None and library.may_share_memory(out, device.as_array(p, "input")) for p in parents):
        raise ValueError("out overlaps an input")
    # A kernel writes plain rows; a strided out is filled from them at the end, see deliver().
    return out if device.kernel_array(out) is out else new_array(shape, dtype, first)


def deliver(result: np.ndarray, out: Any, like: np.ndarray) -> np.ndarray:
    """The result in the memory format of ``like``, or in the caller's ``out``."""
    if out is None:
        return device.like_format(like, result)
    if out is not result:
        out[...] = result
    return out
