"""Network in Network."""

from __future__ import annotations

from typing import Any

from .. import nn
from ..nn import init


def _block(in_channels: int, channels: int, kernel_size: int, **options: Any) -> list[nn.Module]:
    """A convolution and a small perceptron for each pixel: two 1x1 convolutions."""
    return [
        nn.Conv2d(in_channels, channels, kernel_size, **options),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
    ]


def nin(num_classes: int = 1000, in_channels: int = 3, seed: int = 0) -> nn.Sequential:
    """Network in Network for 224x224 images: no linear layer, the last block has a channel for each class.

    Parameters
    ----------
    num_classes : int
        Outputs.
    in_channels : int
        Channels of the image.
    seed : int
        Of the initial weights.

    Returns
    -------
    Sequential
        Takes (N, in_channels, 224, 224) or another size from 67x67 on, gives logits (N, num_classes).

    References
    ----------
    Lin, Chen and Yan, "Network in network", 2014.
    """
    with init.seeded(seed):
        return nn.Sequential(
            *_block(in_channels, 96, 11, stride=4),
            nn.MaxPool2d(3, stride=2),
            *_block(96, 256, 5, padding=2),
            nn.MaxPool2d(3, stride=2),
            *_block(256, 384, 3, padding=1),
            nn.MaxPool2d(3, stride=2),
            nn.Dropout(0.5),
            *_block(384, num_classes, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
