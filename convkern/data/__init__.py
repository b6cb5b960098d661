"""Datasets and the loader that cuts them into batches.

>>> from convkern import data
>>> train = data.load("sample", "train")
>>> mean, std = data.channel_stats(train)
>>> loader = data.DataLoader(train, batch_size=64, shuffle=True, seed=0, mean=mean, std=std)
>>> x, labels = next(iter(loader))
>>> x.shape, labels.shape
((64, 1, 28, 28), (64,))
"""

from ..random import rng
from .datasets import NAMES, SPLITS, Dataset, channel_stats, load
from .loader import DataLoader

__all__ = ["NAMES", "SPLITS", "DataLoader", "Dataset", "channel_stats", "load", "rng"]
