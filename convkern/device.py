"""Which array library an array belongs to, where arrays live, and how foreign arrays come in."""

from __future__ import annotations

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
    return str(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())


def check(device: str) -> str:
    """Give the device that ``"auto"``, ``"cpu"`` or ``"cuda"`` stands for here.

    Raises
    ------
    ValueError
        For another name, and for "cuda", which has no kernels yet.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cuda":
        raise ValueError(f"device 'cuda' cannot be used: convkern has no CUDA kernels yet; GPU here: {gpu_status()}")
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


def is_channels_last(x: np.ndarray) -> bool:
    """True for (N, C, H, W) whose channels lie side by side in memory (and which is not NCHW as well)."""
    return x.ndim == 4 and not x.flags.c_contiguous and x.transpose(0, 2, 3, 1).flags.c_contiguous


def like_format(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Give y in the memory format of x: outputs follow their input."""
    if not is_channels_last(x):
        return y
    return np.ascontiguousarray(y.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def kernel_array(x: np.ndarray) -> np.ndarray:
    """The same values as a kernel takes them: C-contiguous, aligned, writeable, in the machine's byte order."""
    flags = x.flags
    if flags.c_contiguous and flags.aligned and flags.writeable and x.dtype.isnative:
        return x
    return np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
