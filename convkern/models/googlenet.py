"""GoogLeNet: inception blocks."""

from __future__ import annotations

from typing import Any

from .. import nn
from ..nn import init
from ..ops import concatenate


class Inception(nn.Module):
    """Four views of the same pixels, their channels side by side: 1x1, 3x3 and 5x5 convolutions and a pooling.

    1x1 convolutions before the larger ones, and after the pooling, keep the channels few.
    """

    def __init__(self, in_channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(in_channels, one, 1)
        self.reduce3 = nn.Conv2d(in_channels, three[0], 1)
        self.three = nn.Conv2d(three[0], three[1], 3, padding=1)
        self.reduce5 = nn.Conv2d(in_channels, five[0], 1)
        self.five = nn.Conv2d(five[0], five[1], 5, padding=2)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.project = nn.Conv2d(in_channels, pooled, 1)

    def forward(self, x: Any) -> Any:
        branches = [
            _relu(self.one, x),
            _relu(self.three, _relu(self.reduce3, x)),
            _relu(self.five, _relu(self.reduce5, x)),
            _relu(self.project, self.pool(x)),
        ]
        return concatenate(branches, 1)


def _relu(convolution: nn.Conv2d, x: Any) -> Any:
    return convolution(x, activation="relu")


def googlenet(num_classes: int = 1000, in_channels: int = 3, seed: int = 0) -> nn.Sequential:
    """GoogLeNet for 224x224 images, without the auxiliary heads: table 1 of the paper; 6,998,552 parameters.

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
        Takes (N, in_channels, H, W) from 32x32 on, gives logits (N, num_classes).

    References
    ----------
    Szegedy et al., "Going deeper with convolutions", 2015.
    """

    def halve() -> nn.Module:
        return nn.MaxPool2d(3, stride=2, padding=1)

    def normalise() -> nn.Module:
        return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)

    with init.seeded(seed):
        return nn.Sequential(
            nn.Conv2d(in_channels, 64, 7, stride=2, padding=3), nn.ReLU(), halve(), normalise(),
            nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 192, 3, padding=1), nn.ReLU(), normalise(), halve(),
            Inception(192, 64, (96, 128), (16, 32), 32),  # 3a
            Inception(256, 128, (128, 192), (32, 96), 64),  # 3b
            halve(),
            Inception(480, 192, (96, 208), (16, 48), 64),  # 4a
            Inception(512, 160, (112, 224), (24, 64), 64),  # 4b
            Inception(512, 128, (128, 256), (24, 64), 64),  # 4c
            Inception(512, 112, (144, 288), (32, 64), 64),  # 4d
            Inception(528, 256, (160, 320), (32, 128), 128),  # 4e
            halve(),
            Inception(832, 256, (160, 320), (32, 128), 128),  # 5a
            Inception(832, 384, (192, 384), (48, 128), 128),  # 5b
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.4),
            nn.Linear(1024, num_classes),
        )  # fmt: skip
