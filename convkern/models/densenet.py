"""DenseNet: every layer sees the outputs of all layers before it."""

from __future__ import annotations

from typing import Any

from .. import nn
from ..nn import init
from ..ops import concatenate


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 1x1 bottleneck, batch norm, ReLU, 3x3: ``growth`` new channels beside the old ones."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Any) -> Any:
        y = self.conv1(self.norm1(x, activation="relu"))
        y = self.conv2(self.norm2(y, activation="relu"))
        return concatenate([x, y], 1)


def densenet121(num_classes: int = 1000, in_channels: int = 3, seed: int = 0) -> nn.Sequential:
    """DenseNet-121: blocks of 6, 12, 24 and 16 layers that add 32 channels each; 7,978,856 parameters.

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
    Huang, Liu, van der Maaten and Weinberger, "Densely connected convolutional networks", 2017.
    """
    growth, channels = 32, 64
    with init.seeded(seed):
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        for block, count in enumerate((6, 12, 24, 16)):
            if block:  # a transition: half the channels, half the size
                layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
                layers.append(nn.AvgPool2d(2))
                channels //= 2
            for _ in range(count):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(channels, num_classes))
