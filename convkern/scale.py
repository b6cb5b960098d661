"""The scale of losses in a GPU's memory: gradients are divided by it and it is adjusted there, and no host waits."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import device


def inverse(scale: np.float32) -> np.float32:
    """What gradients are multiplied by to take a scale out again."""
    with np.errstate(all="ignore"):
        return np.float32(1 / np.float64(scale))


class Division:
    """Gradients that will be divided, perhaps again and again, and room for the results.

    Attributes
    ----------
    divided : list of cupy.ndarray, float32
    found : cupy.ndarray, (1,), float32
        0 if all of these are finite.
    """

    def __init__(self, gradients: list[Any]) -> None:
        from .kernels.update.cuda_chunks import Uploaded

        self.divided = [device.empty(gradient.shape, "float32") for gradient in gradients]
        self.rows = Uploaded(list(zip(map(device.kernel_array, gradients), self.divided, strict=True)))
        self.findings, self.found = device.empty((self.rows.jobs,), "float32"), device.empty((1,), "float32")


class DeviceScale:
    """A scale, and how many steps without an overflow there were since it changed.

    Its arrays stay where they are: graphs that are replayed know their addresses.

    Attributes
    ----------
    factor : cupy.ndarray, (), float32
        The scale.
    """

    def __init__(self, scale: np.float32, tracker: int) -> None:
        self._numbers, self._tracker = device.empty((2,), "float32"), device.empty((1,), "int64")
        self.factor = self._numbers[:1].reshape(())
        self.set(scale, tracker)

    def set(self, scale: np.float32, tracker: int) -> None:
        """Overwrite both."""
        self._numbers.set(np.array([scale, inverse(scale)], np.float32))
        self._tracker.set(np.array([tracker], np.int64))

    def get(self) -> tuple[np.float32, int]:
        """The scale and the count; this waits for the device."""
        return np.float32(self._numbers.get()[0]), int(self._tracker.item())

    def divided(self, gradients: list[Any]) -> tuple[list[Any], Any]:
        """New arrays with gradients divided by the scale, and float32 (1,): 0 if all of them are finite.

        Parameters
        ----------
        gradients : list of cupy.ndarray, float32

        Raises
        ------
        OutOfDeviceMemory
            If there is no room for the new arrays.
        """
        division = Division(gradients)
        self.divide(division)
        return division.divided, division.found

    def divide(self, division: Division) -> None:
        """Fill the new arrays, and find out whether a number in them is not finite."""
        from .kernels.update import cuda_scale

        cuda_scale.unscale(division.rows, self._numbers, division.findings, division.found)

    def adjust(self, found: Any, growth: float, backoff: float, interval: int) -> None:
        """Shrink or grow as :meth:`convkern.amp.GradScaler.update` does, by what ``found`` holds."""
        from .kernels.update import cuda_scale

        cuda_scale.adjust(self._numbers, self._tracker, found, growth, backoff, interval)
