"""Running CUDA rows on a GPU from NumPy arrays: each launch's arrays travel there between guards, and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from convkern import device
from convkern.kernels.cuda import launch
from convkern.kernels.cuda.kernel import CudaKernel

# Bytes on both sides, a multiple of every alignment that kernels ask for. Without guards (CONVKERN_TEST_GUARDS=0) each array
# is an allocation of its own, to whose last byte compute-sanitizer can hold a kernel.
GUARD = 512 if os.environ.get("CONVKERN_TEST_GUARDS") != "0" else 0
MARK = 0xA5

Launcher = Callable[[CudaKernel, int, launch.Packed], None]


def missing() -> str:
    """Why rows cannot run on a GPU here; "" where they can."""
    return device.gpu()[1]


def _first_byte(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


class Travels:
    """Host arrays on the device for one launch; those that overlap on the host do so there."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        import cupy

        ranges: list[list[int]] = []  # first byte, last byte + 1
        for first, end in sorted({(_first_byte(a), _first_byte(a) + a.nbytes) for a in arrays}):
            if ranges and first < ranges[-1][1]:
                ranges[-1][1] = max(ranges[-1][1], end)
            else:
                ranges.append([first, end])
        self.arrays = {id(array): array for array in arrays}
        self.ranges = [(first, cupy.array(np.full(end - first + 2 * GUARD, MARK, "u1"))) for first, end in ranges]
        for array in arrays:
            self.there(array)[...] = cupy.array(np.ascontiguousarray(array).reshape(-1).view("u1"))

    def there(self, array: np.ndarray) -> Any:
        """An array's bytes on the device."""
        first, room = max((pair for pair in self.ranges if pair[0] <= _first_byte(array)), key=lambda pair: pair[0])
        at = GUARD + _first_byte(array) - first
        return room[at : at + array.nbytes]

    def back(self, name: str) -> None:
        """Copy everything back, and raise AssertionError where a guard was written to."""
        for _, room in self.ranges:
            host = room.get()
            assert (host[:GUARD] == MARK).all(), f"{name} wrote before the start of an array"
            assert (host[host.size - GUARD :] == MARK).all(), f"{name} wrote past the end of an array"
        for array in self.arrays.values():
            if array.flags.writeable:
                array.reshape(-1).view("u1")[...] = self.there(array).get()


def travelling(inner: Launcher) -> Launcher:
    """The launcher that takes NumPy arrays and gives ``inner`` CuPy's."""

    def launcher(kernel: CudaKernel, blocks: int, args: launch.Packed) -> None:
        flat = [entry for value in args for entry in (value if isinstance(value, tuple) else (value,))]
        travels = Travels([value for value in flat if isinstance(value, np.ndarray)])

        def moved(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(moved, value))
            return travels.there(value).view(value.dtype) if isinstance(value, np.ndarray) else value

        inner(kernel, blocks, tuple(map(moved, args)))
        travels.back(kernel.name)

    return launcher


@contextmanager
def on_device() -> Iterator[None]:
    """Inside the block CUDA rows take NumPy arrays and run on the GPU."""
    import cupy

    if not GUARD:
        cupy.cuda.set_allocator(None)
    previous = launch.launcher, launch.upload
    launch.launcher = travelling(launch.cupy_launcher)
    launch.upload = lambda table: table  # its arrays travel with the launch
    try:
        yield
    finally:
        launch.launcher, launch.upload = previous
