"""Batches of normalised images, in an order that depends on seed and epoch only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..random import SHUFFLE, as_int, rng
from .background import Ahead, Waiting
from .datasets import ImageSource
from .transforms import Normalize, Transform
from .transforms.base import per_channel

Images = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]


class _Task(NamedTuple):
    """One batch to make."""

    number: int
    epoch: int
    indices: npt.NDArray[np.int64]


class DataLoader:
    """Cuts a dataset into batches, transforms them and normalises them channel by channel.

    A pixel u becomes ``(u / 255 - mean) / std``, computed in float64 and rounded once. With `num_workers` threads make the
    next batches while the caller works on this one; the batches are the same to the last bit for any number of them.

    Parameters
    ----------
    dataset : Dataset or another ImageSource
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
    transform : Transform, optional
        What to do to the bytes of every image, at random by `seed`, epoch and the image's position in the dataset. If it
        gives floating images (as `Normalize` does), they are taken as they are, and `mean` and `std` must be left out.
    num_workers : int
        Threads that make batches; 0 makes each when it is asked for. NumPy and Pillow let go of the interpreter while
        they compute, so threads suffice.
    prefetch_factor : int
        Batches under way or waiting for each of these threads, at least 1.

    Attributes
    ----------
    waiting : Waiting
        Of the latest iteration: the seconds that its user waited, and ``waiting.idle_share``.

    Raises
    ------
    TypeError
        If `dataset` is not an ImageSource, `transform` not a Transform, or a number not an integer.
    ValueError
        If the dataset is empty, there would be no batch, its images do not suit the transform, or another argument is out
        of range.
    """

    def __init__(
        self,
        dataset: ImageSource,
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: npt.DTypeLike = np.float32,
        transform: Transform | None = None,
        num_workers: int = 0,
        prefetch_factor: int = 2,
    ) -> None:
        if not isinstance(dataset, ImageSource):
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
        self.num_workers = as_int("num_workers", num_workers)
        self.prefetch_factor = as_int("prefetch_factor", prefetch_factor)
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}")
        if self.prefetch_factor < 1:
            raise ValueError(f"prefetch_factor must be at least 1, got {prefetch_factor}")
        self.waiting = Waiting()
        channels = dataset.shape[0]
        means = per_channel("mean", [0.0] * channels if mean is None else mean, channels)
        stds = per_channel("std", [1.0] * channels if std is None else std, channels)
        self._normalize = Normalize(means.tolist(), stds.tolist(), self.dtype)
        if transform is not None and not isinstance(transform, Transform):
            raise TypeError(f"transform must be a Transform, got {type(transform).__name__}")
        self.transform = transform
        if transform is not None:  # images that it cannot take are told here, not at the first batch
            tried = transform(np.zeros((1, *dataset.shape), np.uint8))
            if tried.dtype != np.uint8 and not (mean is None and std is None):
                raise ValueError("mean and std must be left out where the transform gives floating images itself")

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

    def __iter__(self) -> Ahead[_Task, tuple[Images, Labels]]:
        return self.batches()

    def batches(self, start: int = 0) -> Ahead[_Task, tuple[Images, Labels]]:
        """Iterate over the current epoch from one of its batches on.

        Parameters
        ----------
        start : int
            Batches to leave out, 0 to ``len(self)``; the rest is the same as in a whole epoch.

        Returns
        -------
        iterator
            Its threads end with it; ``close()``, also by ``with``, ends them before.

        Yields
        ------
        x : numpy.ndarray
            `dtype`, (B, C, H, W), transformed and normalised, C-contiguous, the caller's to keep.
        labels : numpy.ndarray
            int64, (B,).

        Raises
        ------
        ValueError
            If `start` is out of range. What a thread raises is raised where its batch is asked for.
        """
        if not 0 <= as_int("start", start) <= len(self):
            raise ValueError(f"start must be 0 to {len(self)}, the number of batches, got {start}")
        # Errors come with the call, and a later set_epoch leaves this iteration alone.
        order, size = self.order(), self.batch_size
        tasks = [_Task(i, self.epoch, order[i * size : (i + 1) * size]) for i in range(start, len(self))]
        self.waiting = Waiting()
        ahead = self.num_workers * self.prefetch_factor
        return Ahead(self._batch, tasks, self.num_workers, ahead, self.waiting)

    def _batch(self, task: _Task) -> tuple[Images, Labels]:
        try:
            pixels: npt.NDArray[Any] = self.dataset.pixels(task.indices)  # (B, C, H, W), uint8
            if self.transform is not None:
                pixels = self.transform(pixels, seed=self.seed, epoch=task.epoch, samples=task.indices)
            x = self._normalize(pixels) if pixels.dtype == np.uint8 else np.ascontiguousarray(pixels, self.dtype)
        except Exception as error:
            error.add_note(f"in batch {task.number} of epoch {task.epoch}, of the images {task.indices.tolist()}")
            raise
        return x, self.dataset.labels[task.indices]
