"""Batches of normalised images, in an order that depends on seed and epoch only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..random import SHUFFLE, as_int, rng
from .datasets import Dataset

Images = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]


def _per_channel(name: str, values: Sequence[float] | None, channels: int, default: float) -> npt.NDArray[np.float64]:
    if values is None:
        return np.full(channels, default)
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (channels,):
        raise ValueError(f"{name} must hold {channels} numbers, one per channel, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array.tolist()}")
    return array


class DataLoader:
    """Cuts a dataset into batches and normalises them channel by channel.

    A pixel u becomes ``(u / 255 - mean) / std``, computed in float64 and rounded once.

    Parameters
    ----------
    dataset : Dataset
        At least one image.
    batch_size : int
        Images in a batch; the last may have fewer.
    shuffle : bool
        Whether each epoch has an order of its own, drawn from `seed` and the epoch. Unlike PyTorch's, the order
        changes by `set_epoch`, not by iterating, so that any epoch can be repeated.
    seed : int
        Seed of the order.
    drop_last : bool
        Whether to leave out a last batch with fewer images.
    mean, std : sequence of float, optional
        One number per channel, on the scale where 255 is 1. Without them pixels are only scaled to [0, 1].
    dtype : dtype
        float32 or float64.

    Raises
    ------
    TypeError
        If `dataset` is not a Dataset or `batch_size` is not an integer.
    ValueError
        If the dataset is empty, there would be no batch, or another argument is out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise TypeError(f"dataset must be a Dataset, got {type(dataset).__name__}")
        if len(dataset) == 0:
            raise ValueError("dataset must hold at least one image, got 0")
        self.dataset = dataset
        self.batch_size = as_int("batch_size", batch_size)
        if self.batch_size <= 0:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if drop_last and self.batch_size > len(dataset):
            raise ValueError(f"batch_size must be at most {len(dataset)}, all images, with drop_last, got {batch_size}")
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, got {self.dtype}")
        self.epoch = 0
        rng(seed)  # a bad seed is told here, not at the first batch
        channels = dataset.shape[0]
        means = _per_channel("mean", mean, channels, 0.0)
        stds = _per_channel("std", std, channels, 1.0)
        if not (stds > 0).all():
            raise ValueError(f"std must be above 0, got {stds.tolist()}")
        # A byte has 256 values: every normalised pixel there can be, (C, 256).
        self._table = ((np.arange(256) / 255 - means[:, None]) / stds[:, None]).astype(self.dtype)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iterations have.

        Parameters
        ----------
        epoch : int
            From 0.

        Raises
        ------
        TypeError
            If `epoch` is not an integer.
        ValueError
            If it is negative.
        """
        epoch = as_int("epoch", epoch)
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        self.epoch = epoch

    def order(self) -> npt.NDArray[np.int64]:
        """Return the indices of the images in the order of the current epoch, (N,)."""
        if not self.shuffle:
            return np.arange(len(self.dataset))
        return rng(self.seed, SHUFFLE, self.epoch).permutation(len(self.dataset))

    def __iter__(self) -> Iterator[tuple[Images, Labels]]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[tuple[Images, Labels]]:
        """Iterate over the current epoch from one of its batches on.

        Parameters
        ----------
        start : int
            Batches to leave out, 0 to ``len(self)``; the rest is the same as in a whole epoch.

        Yields
        ------
        x : numpy.ndarray
            `dtype`, (B, C, H, W), normalised, C-contiguous, the caller's to keep.
        labels : numpy.ndarray
            int64, (B,).

        Raises
        ------
        ValueError
            If `start` is out of range.
        """
        if not 0 <= as_int("start", start) <= len(self):
            raise ValueError(f"start must be 0 to {len(self)}, the number of batches, got {start}")
        # Not a generator itself: errors come with the call, and a later set_epoch leaves this iteration alone.
        order = self.order()
        bounds = range(start * self.batch_size, len(self) * self.batch_size, self.batch_size)
        return (self._batch(order[first : first + self.batch_size]) for first in bounds)

    def _batch(self, indices: npt.NDArray[np.int64]) -> tuple[Images, Labels]:
        pixels = self.dataset.images[indices]  # (B, C, H, W), uint8
        x = np.empty(pixels.shape, dtype=self.dtype)
        for channel, table in enumerate(self._table):
            x[:, channel] = table.take(pixels[:, channel])
        return x, self.dataset.labels[indices]
