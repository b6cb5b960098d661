"""Which array library an array belongs to, where arrays live, and how foreign arrays come in."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
DEVICES = ("auto", "cpu", "cuda")
_PLACES = {"cpu": "cpu (NumPy)", "cuda": "cuda (CuPy)"}
_NAMES = {"f": "float32", "d": "float64"}


def gpu() -> tuple[str, str]:
    """The GPU's name, and in one sentence what is missing to use it; either may be empty."""
    try:
        import cupy
    except ImportError:
        return "", 'CuPy is not installed (pip install "convkern[cuda13]" or "convkern[cuda12]")'
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return "", f"the CUDA driver does not answer ({error})"
    if count == 0:
        return "", "the CUDA driver reports no device"
    name = str(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())
    from .kernels.cuda.compiler import missing

    return name, f"its kernels cannot be compiled: {missing()}" if missing() else ""


def gpu_status() -> str:
    """The GPU's name, or in one sentence the piece that is missing."""
    name, missing = gpu()
    return f"{name or 'none'}{', but ' if name else ': '}{missing}" if missing else name


class OutOfDeviceMemory(MemoryError):
    """A GPU has no room for an array.

    Attributes
    ----------
    asked : int
        Bytes that were asked for.
    free, total : int
        Bytes of the device, once CuPy's pool had given back what it keeps for later.
    """

    def __init__(self, asked: int, free: int, total: int) -> None:
        super().__init__(f"out of memory on the GPU: {asked:,} bytes asked for, {free:,} of {total:,} are free")
        self.asked, self.free, self.total = asked, free, total


def memory_error(error: MemoryError) -> MemoryError:
    """CuPy's error as one that names the bytes; any other as it is. CuPy's own pool has tried again by then."""
    cupy = sys.modules.get("cupy")
    if cupy is None or not isinstance(error, cupy.cuda.memory.OutOfMemoryError):
        return error
    asked = re.search(r"allocating ([\d,]+) bytes", str(error))
    free, total = cupy.cuda.runtime.memGetInfo()
    return OutOfDeviceMemory(int(asked[1].replace(",", "")), free, total) if asked else error


def empty(shape: Any, dtype: Any) -> Any:
    """A new CuPy array.

    Where there is no room, what CuPy's pool keeps for later is given back, and the array asked for once more.

    Raises
    ------
    OutOfDeviceMemory
        If there is no room even so.
    """
    cupy = sys.modules["cupy"]
    try:
        return cupy.empty(shape, dtype)
    except MemoryError:
        cupy.get_default_memory_pool().free_all_blocks()
    try:
        return cupy.empty(shape, dtype)
    except MemoryError as error:
        raise memory_error(error) from error


class _Capture(threading.local):
    active = False


_capture = _Capture()


@contextmanager
def captured() -> Iterator[None]:
    """Inside the block this thread's launches are recorded into a CUDA graph."""
    _capture.active = True
    try:
        yield
    finally:
        _capture.active = False


def capturing() -> bool:
    """Whether this thread's launches are recorded."""
    return _capture.active


def refuse_capture(what: str, why: str) -> None:
    """Raise RuntimeError while launches are recorded, for what replays would do wrong."""
    if _capture.active:
        raise RuntimeError(f"{what} cannot be captured: {why}")


def is_cupy(value: Any) -> bool:
    """True for a CuPy array. Whoever has one has imported CuPy, so this imports nothing."""
    if type(value) is np.ndarray:
        return False
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def library(array: Any) -> Any:
    """The module that an array belongs to: CuPy or NumPy."""
    return sys.modules["cupy"] if is_cupy(array) else np


def of(array: Any) -> str:
    """Where an array lives: "cpu" or "cuda"."""
    return "cpu" if type(array) is np.ndarray or not is_cupy(array) else "cuda"


def check(device: str) -> str:
    """Give the device that ``"auto"``, ``"cpu"`` or ``"cuda"`` stands for here.

    Raises
    ------
    ValueError
        For another name, and for "cuda" where it cannot be used; the message names what is missing.
    """
    if device not in DEVICES:
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device != "cuda":
        return "cpu"
    _, missing = gpu()
    if missing:
        raise ValueError(f"device 'cuda' cannot be used: {missing}")
    return "cuda"


def moved(array: np.ndarray, device: str) -> np.ndarray:
    """The array itself if it lives on ``device``, "cpu" or "cuda", otherwise a copy there."""
    if of(array) == device:
        return array
    if device == "cuda":
        import cupy

        return from_last(cupy.asarray(to_last(array))) if is_channels_last(array) else cupy.asarray(array)
    return sys.modules["cupy"].asnumpy(array)


def cpu_copy(array: np.ndarray) -> np.ndarray:
    """A copy in a NumPy array."""
    return sys.modules["cupy"].asnumpy(array) if is_cupy(array) else array.copy()


def one(function: str, names: Iterable[str], arrays: Iterable[Any]) -> None:
    """Raise TypeError unless all arrays live on one device: nothing is moved silently."""
    places = [of(array) for array in arrays]
    if len(set(places)) > 1:
        listed = ", ".join(f"{name} on {_PLACES[place]}" for name, place in zip(names, places, strict=True))
        raise TypeError(
            f"{function}: arrays must live on one device, got {listed}; to('cuda') or to('cpu') moves a Tensor"
        )


def whole(result: Any) -> np.ndarray:
    """An array: NumPy gives a scalar where no axes are left."""
    return np.asarray(result) if isinstance(result, np.generic) else result


def as_array(value: Any, name: str) -> np.ndarray:
    """Take in a NumPy or CuPy array, or anything with CPU ``__array__`` or ``__dlpack__``, without copying where it can.

    Raises
    ------
    TypeError
        If ``value`` is no array, or another library's on another device. ``name`` is named in the message.
    """
    if type(value) is np.ndarray or is_cupy(value):
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
    return not x.flags.c_contiguous and x.ndim == 4 and x.transpose(0, 2, 3, 1).flags.c_contiguous


def fits_channels_last(x: np.ndarray) -> bool:
    """True for (N, C, H, W) whose channels lie side by side in memory, whether or not it is NCHW as well."""
    return x.ndim == 4 and x.transpose(0, 2, 3, 1).flags.c_contiguous


def leans_channels_last(x: np.ndarray) -> bool:
    """True for channels-last (N, C, H, W), and for slices of such: neighbouring channels lie side by side."""
    return not x.flags.c_contiguous and x.ndim == 4 and x.shape[1] > 1 and x.strides[1] == x.dtype.itemsize


def to_last(x: Any) -> Any:
    """(N, C, H, W) seen as (N, H, W, C)."""
    return x.transpose(0, 2, 3, 1)


def from_last(x: Any) -> Any:
    """(N, H, W, C) seen as (N, C, H, W)."""
    return x.transpose(0, 3, 1, 2)


def copied(x: np.ndarray) -> np.ndarray:
    """A copy; of channels-last images in the same layout."""
    return x.copy("K" if is_channels_last(x) else "C")


def laid_out(x: np.ndarray, last: bool) -> np.ndarray:
    """The same values as a kernel takes them: channels-last (N, C, H, W) with ``last``, else C-contiguous."""
    return from_last(kernel_array(to_last(x))) if last else kernel_array(x)


def like_format(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Give y in the memory format of x: outputs follow their input."""
    if not is_channels_last(x):
        return y
    return from_last(library(y).ascontiguousarray(to_last(y)))


def wide_array(x: np.ndarray) -> np.ndarray:
    """The same CuPy array, or a copy that lies alike, where its first element is not one of whole 16 bytes."""
    return x if x.data.ptr % 16 == 0 else x.copy("K")  # type: ignore[attr-defined]


def kernel_array(x: np.ndarray) -> np.ndarray:
    """The same values as a kernel takes them: C-contiguous, aligned, writeable, in the machine's byte order."""
    if is_cupy(x):
        return library(x).ascontiguousarray(x)
    if x.flags.carray and x.dtype.isnative:
        return x
    return np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
