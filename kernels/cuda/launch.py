"""Loading cubins and launching them through CuPy: on the arrays' device and its current stream, with raw pointers.

With CONVKERN_DEBUG=1 every launch is waited for, so that what goes wrong in a kernel is raised by the call that ran it.

Untried on a GPU so far: there was none.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from . import compiler

if TYPE_CHECKING:
    from .kernel import CudaKernel

STATIC_SHARED = 48 * 1024  # bytes that a kernel may have without asking the driver for more
DEBUG = os.environ.get("CONVKERN_DEBUG") == "1"

Packed = tuple[Any, ...]
_functions: dict[tuple[str, int], Any] = {}
_lock = threading.Lock()


def pack(kernel: CudaKernel, args: tuple[Any, ...]) -> Packed:
    """Arrays as they are, numbers as int32, named tuples field by field, tables as tuples of numbers and arrays.

    Raises
    ------
    TypeError
        If the arguments are not those that the kernel declares.
    OverflowError
        If a number does not fit into 32 bits.
    """
    if len(args) != len(kernel.parameters):
        raise TypeError(f"{kernel.name} takes {len(kernel.parameters)} arguments, got {len(args)}")
    packed: list[Any] = []
    for number, (kind, value) in enumerate(zip(kernel.parameters, args, strict=True)):
        if kind == "int":
            packed.append(np.int32(value))
        elif kind == "float":
            packed.append(np.float32(value))
        elif kind == "table":
            packed.append(tuple(value))
        elif isinstance(kind, str):
            if value.dtype != kind or not value.flags.c_contiguous:
                got = f"{value.dtype}{'' if value.flags.c_contiguous else ', not contiguous'}"
                raise TypeError(f"{kernel.name}: argument {number} must be a contiguous {kind} array, got {got}")
            packed.append(value)
        elif isinstance(value, kind):
            packed.extend(_words(value))
        else:
            raise TypeError(f"{kernel.name}: argument {number} must be a {kind.__name__}, got {type(value).__name__}")
    return tuple(packed)


@lru_cache(maxsize=4096)
def _words(numbers: tuple[int, ...]) -> tuple[np.int32, ...]:
    return tuple(map(np.int32, numbers))


def _load(kernel: CudaKernel, device: Any) -> Any:
    """The kernel's function on a device, loaded once."""
    import cupy

    key = (kernel.name, device.id)
    with _lock:
        if key not in _functions:
            path = compiler.cubin(kernel, compiler.target(device.compute_capability))
            function = cupy.RawModule(path=str(path)).get_function(compiler.entry_name(path.with_suffix(".ptx")))
            if kernel.shared > STATIC_SHARED:
                function.max_dynamic_shared_size_bytes = kernel.shared
            _functions[key] = function
        return _functions[key]


def _uploaded(table: tuple[Any, ...]) -> Any:
    """A table on the device, with the arrays' addresses."""
    import cupy

    return cupy.array([entry if isinstance(entry, int) else entry.data.ptr for entry in table], "int64")


def _devices(kernel: CudaKernel, args: Packed) -> set[int]:
    """The numbers of the devices that the arrays among packed arguments live on, those of tables too."""
    found: set[int] = set()
    for place in kernel.pointers:
        value = args[place]
        entries = [entry for entry in value if not isinstance(entry, int)] if isinstance(value, tuple) else [value]
        found.update(array.data.device_id for array in entries)
    return found


def cupy_launcher(kernel: CudaKernel, blocks: int, args: Packed) -> None:
    """Launch on the device that the arrays live on, on this thread's current stream of it.

    Raises
    ------
    ValueError
        If the arrays live on several devices.
    RuntimeError
        With CONVKERN_DEBUG=1, if the kernel fails; the message names it.
    """
    import cupy

    devices = _devices(kernel, args)
    if len(devices) > 1:
        raise ValueError(f"{kernel.name}: arrays must live on one device, got devices {sorted(devices)}")
    current = cupy.cuda.get_device_id()
    number = devices.pop() if devices else current
    if number == current:
        _launch(kernel, blocks, args, number)
    else:
        with cupy.cuda.Device(number):
            _launch(kernel, blocks, args, number)


def _launch(kernel: CudaKernel, blocks: int, args: Packed, number: int) -> None:
    """Launch on the current device, which has this number."""
    import cupy

    function = _functions.get((kernel.name, number)) or _load(kernel, cupy.cuda.Device(number))
    if "table" in kernel.parameters:
        args = tuple(_uploaded(value) if isinstance(value, tuple) else value for value in args)
    function((blocks,), (kernel.threads,), args, shared_mem=kernel.shared)
    if DEBUG:
        try:
            cupy.cuda.get_current_stream().synchronize()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise RuntimeError(f"the kernel {kernel.name} failed in {blocks} blocks: {error}") from error


launcher: Callable[[CudaKernel, int, Packed], None] = cupy_launcher


def device_capability() -> int | None:
    """Compute capability of CuPy's current device, 80 for 8.0; None where there is no CuPy, driver or device."""
    cupy = sys.modules.get("cupy")
    try:
        return None if cupy is None else int(cupy.cuda.Device().compute_capability)
    except (AttributeError, RuntimeError):
        return None


asked: Callable[[], int | None] = device_capability


def capability() -> int | None:
    """The compute capability to plan for."""
    return asked()
