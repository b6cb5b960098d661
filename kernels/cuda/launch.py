"""Loading cubins and launching them: on the arrays' device and CuPy's current stream of it, with raw pointers.

The driver takes a launch's parameters as one block of memory, laid out as the kernel reads them. Each thread keeps one block,
which `struct` fills in a single call: dozens of numbers cost little more than one.

With CONVKERN_DEBUG=1 every launch is waited for, so that what goes wrong in a kernel is raised by the call that ran it.

Untried on a GPU so far: there was none.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import compiler

if TYPE_CHECKING:
    from .kernel import CudaKernel

STATIC_SHARED = 48 * 1024  # bytes that a kernel may have without asking the driver for more
LARGEST_BLOCK = 4096  # bytes of parameters that every driver takes
DEBUG = os.environ.get("CONVKERN_DEBUG") == "1"

Packed = tuple[Any, ...]
_functions: dict[tuple[str, int], tuple[int, Any]] = {}
_lock = threading.Lock()


class _Frame(threading.local):
    """A thread's block of parameters, and what tells the driver where it is (cuLaunchKernel's ``extra``)."""

    BLOCK, SIZE, END = 1, 2, 0  # CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE and _END
    AT = 5 * 8  # where the block's size is written, and the block itself after it

    def __init__(self) -> None:
        self.room = ctypes.create_string_buffer(self.AT + 8 + LARGEST_BLOCK)
        self.address = ctypes.addressof(self.room)
        size, block = self.address + self.AT, self.address + self.AT + 8
        struct.pack_into("@5P", self.room, 0, self.BLOCK, block, self.SIZE, size, self.END)
        self.ready: set[int] = set()  # devices that have a context on this thread


_frame = _Frame()


def pack(kernel: CudaKernel, args: tuple[Any, ...]) -> Packed:
    """Arrays and numbers as they are, named tuples field by field, tables as tuples or as `upload` gave them.

    Raises
    ------
    TypeError
        If the arguments are not those that the kernel declares.
    """
    if len(args) != len(kernel.kinds):
        raise TypeError(f"{kernel.name} takes {len(kernel.kinds)} arguments, got {len(args)}")
    packed: list[Any] = []
    for number, (kind, value) in enumerate(zip(kernel.kinds, args, strict=True)):
        if isinstance(kind, np.dtype):
            if value.dtype != kind or not value.flags.c_contiguous:
                got = f"{value.dtype}{'' if value.flags.c_contiguous else ', not contiguous'}"
                raise TypeError(f"{kernel.name}: argument {number} must be a contiguous {kind} array, got {got}")
            packed.append(value)
        elif isinstance(kind, str):
            packed.append(tuple(value) if isinstance(value, list) else value)
        elif isinstance(value, kind):
            packed.extend(value)
        else:
            raise TypeError(f"{kernel.name}: argument {number} must be a {kind.__name__}, got {type(value).__name__}")
    return tuple(packed)


def write(kernel: CudaKernel, values: list[Any], room: Any, at: int = 0) -> None:
    """Write the size of a launch's parameters, and after it the parameters: addresses, int32 and float32.

    Raises
    ------
    OverflowError
        If a number does not fit into 32 bits.
    """
    try:
        kernel.layout.pack_into(room, at, kernel.layout.size - 8, *values)
    except struct.error as error:
        raise OverflowError(f"{kernel.name}: {error}, got {values}") from error


def _load(kernel: CudaKernel, device: Any) -> tuple[int, Any]:
    """The kernel's function on a device, loaded once, and what keeps it loaded."""
    import cupy

    key = (kernel.name, device.id)
    with _lock:
        if key not in _functions:
            path = compiler.cubin(kernel, compiler.target(device.compute_capability))
            loaded = cupy.RawModule(path=str(path)).get_function(compiler.entry_name(path.with_suffix(".ptx")))
            if kernel.shared > STATIC_SHARED:
                loaded.max_dynamic_shared_size_bytes = kernel.shared
            function = loaded.kernel  # of the current device
            _functions[key] = function.ptr, function
        return _functions[key]


def cupy_upload(table: tuple[Any, ...]) -> Any:
    """A table on the device, with the arrays' addresses. Who launches with it keeps the arrays."""
    import cupy

    return cupy.array([entry if isinstance(entry, int) else entry.data.ptr for entry in table], "int64")


def _addresses(kernel: CudaKernel, args: Packed) -> tuple[list[Any], int | None]:
    """Packed arguments with addresses for arrays, and the number of the device that arrays (those of tables too) live on."""
    values, found = list(args), []
    for place in kernel.pointers:
        value = args[place]
        if isinstance(value, tuple):
            found += [entry.data.device_id for entry in value if not isinstance(entry, int)]
        else:
            memory = value.data
            values[place] = memory.ptr
            found.append(memory.device_id)
    if found and found.count(found[0]) != len(found):
        raise ValueError(f"{kernel.name}: arrays must live on one device, got devices {sorted(set(found))}")
    return values, found[0] if found else None


def cupy_launcher(kernel: CudaKernel, blocks: int, args: Packed) -> None:
    """Launch on the device that the arrays live on, on this thread's current stream of it.

    Raises
    ------
    ValueError
        If the arrays live on several devices.
    RuntimeError
        With CONVKERN_DEBUG=1, if the kernel fails; the message names it.
    """
    cupy = sys.modules["cupy"]
    values, number = _addresses(kernel, args)
    current = cupy.cuda.get_device_id()
    if number is None or number == current:
        _launch(kernel, blocks, values, current)
    else:
        with cupy.cuda.Device(number):
            _launch(kernel, blocks, values, number)


def _launch(kernel: CudaKernel, blocks: int, values: list[Any], number: int) -> None:
    """Launch on the current device, which has this number."""
    cupy = sys.modules["cupy"]
    if number not in _frame.ready:
        cupy.cuda.runtime.free(0)  # makes a context, which CuPy's own launches do for themselves
        _frame.ready.add(number)
    function, _ = _functions.get((kernel.name, number)) or _load(kernel, cupy.cuda.Device(number))
    tables = []  # kept until the launch, which comes before any other use of their memory on this stream
    if kernel.tables:
        for place in kernel.tables:
            if isinstance(values[place], tuple):
                tables.append(cupy_upload(values[place]))
                values[place] = tables[-1].data.ptr
    write(kernel, values, _frame.room, _frame.AT)
    stream = cupy.cuda.get_current_stream()
    cupy.cuda.driver.launchKernel(
        function, blocks, 1, 1, kernel.threads, 1, 1, kernel.shared, stream.ptr, 0, _frame.address
    )
    if DEBUG and not stream.is_capturing():  # what is captured does not run yet
        try:
            stream.synchronize()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise RuntimeError(f"the kernel {kernel.name} failed in {blocks} blocks: {error}") from error


launcher: Callable[[CudaKernel, int, Packed], None] = cupy_launcher
upload: Callable[[tuple[Any, ...]], Any] = cupy_upload


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
