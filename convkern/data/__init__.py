"""Datasets and the loader that cuts them into batches.

>>> from convkern import data
>>> train = data.load("sample", "train")
>>> mean, std = data.channel_stats(train)
>>> loader = data.DataLoader(train, batch_size=64, shuffle=True, seed=0, mean=mean, std=std)
>>> x, labels = next(iter(loader))
>>> x.shape, labels.shape
((64, 1, 28, 28), (64,))

Augmented, and made ahead of time by a thread while the kernels work:

>>> augment = data.transforms.Compose([data.transforms.RandomCrop(28, padding=3), data.transforms.RandomHorizontalFlip()])
>>> loader = data.DataLoader(train, 64, shuffle=True, mean=mean, std=std, transform=augment, num_workers=1)
>>> x, labels = next(iter(loader))
>>> x.shape
(64, 1, 28, 28)
"""

from ..random import rng
from . import transforms
from .datasets import NAMES, SPLITS, Dataset, ImageSource, channel_stats, load
from .folder import ImageFolder
from .loader import DataLoader

__all__ = [
    "NAMES", "SPLITS", "DataLoader", "Dataset", "ImageFolder", "ImageSource", "channel_stats", "load", "rng", "transforms",
]  # fmt: skip
