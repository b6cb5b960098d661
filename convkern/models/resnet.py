"""Residual networks for small images."""

from __future__ import annotations

from typing import Any

from .. import nn
from ..nn import init
from ..nn.functional import avg_pool2d


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: y = relu(bn(conv(relu(bn(conv(x))))) + x).

    Where the size or the number of channels changes, a 1x1 convolution fits x to the sum.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            project = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(channels))

    def forward(self, x: Any) -> Any:
        y = self.bn1(self.conv1(x), activation="relu")
        return self.bn2(self.conv2(y), activation="relu", residual=self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, four stages of blocks (the last three halve the image), the mean over the image, one linear layer."""

    def __init__(self, blocks: tuple[int, ...], num_classes: int, in_channels: int) -> None:
        super().__init__()
        stem = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(64), nn.ReLU())
        channels, stages = 64, []
        for stage, count in enumerate(blocks):
            wider = 64 << stage
            members = []
            for i in range(count):
                members.append(BasicBlock(channels, wider, stride=2 if stage and i == 0 else 1))
                channels = wider
            stages.append(nn.Sequential(*members))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Any) -> Any:
        y = self.stages(self.stem(x))  # (N, C, H, W)
        y = avg_pool2d(y, y.shape[2:])  # (N, C, 1, 1)
        return self.head(y.reshape(y.shape[:2]))


def resnet18_cifar(num_classes: int = 10, in_channels: int = 3, seed: int = 0) -> ResNet:
    """ResNet-18 for small images: a 3x3 stem and no first pooling; 11,173,962 parameters.

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
    ResNet
        Takes (N, in_channels, H, W) of any size, gives (N, num_classes).

    References
    ----------
    He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016.
    """
    with init.seeded(seed):
        return ResNet((2, 2, 2, 2), num_classes, in_channels)
