"""What a run learns from and how it gets there: data, augmentation and the threads that prepare both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import data
from ..data.transforms import augmentation, parse

if TYPE_CHECKING:
    from .config import Config

#: Pictures of a folder that mean and deviation are taken from: looking at them decodes them all.
_STATS_IMAGES = 2048


def check_data_options(config: Config) -> None:
    """Check augment, workers and image_size.

    Raises
    ------
    ValueError, TypeError
        Naming the option.
    """
    parse(config.augment)
    for name, value, least in (("workers", config.workers, 0), ("image_size", config.image_size, 1)):
        if value is None and name == "image_size":
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if config.data == "folder" and config.data_dir is None:
        raise ValueError("data_dir must be given for the data 'folder': the folder that holds train and test (or val)")
    if config.data != "folder" and config.image_size is not None:
        raise ValueError(f"image_size must be given for the data 'folder' alone, got {config.image_size}")


def load_split(config: Config, split: str, data_dir: str | None = None) -> data.ImageSource:
    """Load a split of a run's data set, from another folder if one is given."""
    return data.load(config.data, split, data_dir or config.data_dir, config.image_size)


def statistics(dataset: data.ImageSource) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every channel: over all images in memory, over some thousand pictures of a folder."""
    return data.channel_stats(dataset, None if isinstance(dataset, data.Dataset) else _STATS_IMAGES)


def build_loader(
    config: Config, dataset: data.ImageSource, mean: Sequence[float], std: Sequence[float]
) -> data.DataLoader:
    """The loader of a run's training images: shuffled, augmented, standardised, ahead of time with workers.

    Raises
    ------
    ValueError
        If the images are too small for the augmentation.
    """
    transform = augmentation(config.augment, dataset.shape, mean, std)
    return data.DataLoader(
        dataset,
        config.batch_size,
        shuffle=True,
        seed=config.seed,
        mean=mean if transform is None else None,
        std=std if transform is None else None,
        transform=transform,
        num_workers=config.workers,
    )
