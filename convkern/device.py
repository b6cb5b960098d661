"""Which array library an array belongs to, where arrays live, and how foreign arrays come in."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_NAMES = {"f": "float32", "d": "float64"}


def gpu_status() -> str:
    """The GPU's name, or in one sentence the piece that is missing."""
    try:
        import cupy
    except ImportError:
        return 'none: CuPy is not installed (pip install "convkern[cuda13]" or "convkern[cuda12]")'
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"none: the CUDA driver does not answer ({error})"
    if count == 0:
        return "none: the CUDA driver reports no device"
    name = str(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())
    from .kernels.cuda.compiler import missing

    return f"{name}, but its kernels cannot be compiled: {missing()}" if missing() else name


def is_cupy(value: Any) -> bool:
    """True for a CuPy array. Whoever has one has imported CuPy, so this imports nothing."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def library(array: Any) -> Any:
    """The module that an array belongs to: CuPy or NumPy."""
    return sys.modules["cupy"] if is_cupy(array) else np


def of(array: Any) -> str:
    """Where an array lives: "cpu" or "cuda"."""
    return "cuda" if is_cupy(array) else "cpu"


def check(device: str) -> str:
    """Give the device that ``"auto"``, ``"cpu"`` or ``"cuda"`` stands for here.

    Raises
    ------
    ValueError
        For another name, and for "cuda", on which no model runs yet.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cuda":
        raise ValueError(f"device 'cuda' cannot be used: models do not run on GPUs yet; GPU here: {gpu_status()}")
    return "cpu"


def as_array(value: Any, name: str) -> np.ndarray:
    """Take in a NumPy array, or anything with CPU ``__array__`` or ``__dlpack__``, without copying where it can.

    Raises
    ------
    TypeError
        If ``value`` is no array, or lives on another device. ``name`` is named in the message.
    """
    if type(value) is np.ndarray:
        return value
    if is_cupy(value):
        raise TypeError(f"{name} is a CuPy array; this takes NumPy arrays and arrays on the CPU")
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) != 1:  # DLPack's kDLCPU
        raise TypeError(f"{name} lives on another device; NumPy arrays and arrays on the CPU are taken")
    try:
        if hasattr(value, "__array__"):
            return np.asarray(value)
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
    except (RuntimeError, TypeError, ValueError, BufferError) as error:
        raise TypeError(f"{name}: {type(value).__name__} does not give its array: {error}") from error
    raise TypeError(f"{name} must be an array or a Tensor, got {type(value).__name__}")


def dtype_name(dtype: np.dtype) -> str:
    """``dtype.name``, which takes NumPy longer than a small kernel takes for its work."""
    return _NAMES.get(dtype.char) or dtype.name


def kernel_input(value: Any, name: str) -> np.ndarray:
    """As :func:`as_array`, but a CuPy array is taken as it is: for operations that have CUDA rows."""
    return value if is_cupy(value) else as_array(value, name)


def is_channels_last(x: np.ndarray) -> bool:
    """True for (N, C, H, W) whose channels lie side by side in memory (and which is not NCHW as well)."""
    return x.ndim == 4 and not x.flags.c_contiguous and x.transpose(0, 2, 3, 1).flags.c_contiguous


def like_format(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Give y in the memory format of x: outputs follow their input."""
    if not is_channels_last(x):
        return y
    return library(y).ascontiguousarray(y.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def kernel_array(x: np.ndarray) -> np.ndarray:
    """The same values as a kernel takes them: C-contiguous, aligned, writeable, in the machine's byte order."""
    if is_cupy(x):
        return library(x).ascontiguousarray(x)
    flags = x.flags
    if flags.c_contiguous and flags.aligned and flags.writeable and x.dtype.isnative:
        return x
    return np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
