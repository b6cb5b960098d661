"""Residual networks: for small images, and for ImageNet's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .. import nn
from ..device import library
from ..nn import init
from ..nn.functional import adaptive_avg_pool2d
from ..ops import concatenate
from ..ops.arguments import array_of

Block = Callable[[int, int, int], nn.Module]  # of the channels that come in, the block's channels, and the stride


def _projection(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class PlainShortcut(nn.Module):
    """A shortcut without parameters: every stride-th pixel, and zeros for the channels that are new."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, channels - in_channels

    def forward(self, x: Any) -> Any:
        x = x[:, :, :: self.stride, :: self.stride]
        if not self.new:
            return x
        n, _, h, w = x.shape
        return concatenate([x, library(array_of(x, "x")).zeros((n, self.new, h, w), x.dtype)], 1)

    def window(self, axis: int, before: int, after: int) -> tuple[float, float]:
        return 1, self.stride

    def extra_repr(self) -> str:
        return f"stride={self.stride}, new={self.new}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: y = relu(bn(conv(relu(bn(conv(x))))) + x).

    Where the size or the number of channels changes, a 1x1 convolution fits x to the sum, or (``project=False``) what is
    missing is zero.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, project: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = (_projection if project else PlainShortcut)(in_channels, channels, stride)

    def forward(self, x: Any) -> Any:
        y = self.bn1(self.conv1(x), activation="relu")
        return self.bn2(self.conv2(y), activation="relu", residual=self.shortcut(x))


class Bottleneck(nn.Module):
    """A 1x1 convolution to few channels, a 3x3 convolution there, a 1x1 convolution back, beside a shortcut.

    The 3x3 convolution has the stride, and its channels may be cut into groups (ResNeXt).
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, groups: int = 1, group_width: int = 64
    ) -> None:
        super().__init__()
        width, wide = channels * group_width // 64 * groups, self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != wide:
            self.shortcut = _projection(in_channels, wide, stride)

    def forward(self, x: Any) -> Any:
        y = self.bn1(self.conv1(x), activation="relu")
        y = self.bn2(self.conv2(y), activation="relu")
        return self.bn3(self.conv3(y), activation="relu", residual=self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, four stages of blocks (the last three halve the image), the mean over the image, one linear layer."""

    def __init__(self, blocks: tuple[int, ...], num_classes: int, in_channels: int) -> None:
        super().__init__()
        stem = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(64), nn.ReLU())
        self.stages = _stages(BasicBlock, blocks, 64, 1)
        self.head = nn.Linear(512, num_classes)

    def forward(self, x: Any) -> Any:
        y = adaptive_avg_pool2d(self.stages(self.stem(x)), 1)
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


def _stages(block: Block, blocks: tuple[int, ...], width: int, expansion: int) -> nn.Sequential:
    """Stages of blocks; each but the first halves the image and doubles the channels."""
    channels, stages = width, []
    for stage, count in enumerate(blocks):
        members = []
        for i in range(count):
            members.append(block(channels, width << stage, 2 if stage and i == 0 else 1))
            channels = expansion * width << stage
        stages.append(nn.Sequential(*members))
    return nn.Sequential(*stages)


class ImageNetResNet(nn.Module):
    """A 7x7 stem and a pooling, four stages, the mean over the image, one linear layer: table 1 of the paper."""

    def __init__(
        self, block: Block, blocks: tuple[int, ...], expansion: int, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        stem = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
        self.stages = _stages(block, blocks, 64, expansion)
        self.head = nn.Linear(512 * expansion, num_classes)

    def forward(self, x: Any) -> Any:
        y = adaptive_avg_pool2d(self.stages(self.stem(x)), 1)
        return self.head(y.reshape(y.shape[:2]))


def _basic(blocks: tuple[int, ...], num_classes: int, in_channels: int, seed: int) -> ImageNetResNet:
    with init.seeded(seed):
        return ImageNetResNet(BasicBlock, blocks, 1, num_classes, in_channels)


def _deep(
    blocks: tuple[int, ...], num_classes: int, in_channels: int, seed: int, groups: int = 1, group_width: int = 64
) -> ImageNetResNet:
    def block(inputs: int, channels: int, stride: int) -> Bottleneck:
        return Bottleneck(inputs, channels, stride, groups, group_width)

    with init.seeded(seed):
        return ImageNetResNet(block, blocks, Bottleneck.expansion, num_classes, in_channels)


def resnet18(num_classes: int = 1000, in_channels: int = 3, seed: int = 0) -> ImageNetResNet:
    """ResNet-18; 11,689,512 parameters. See :func:`resnet50`.

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
    ImageNetResNet
        Takes (N, in_channels, H, W), gives logits (N, num_classes).
    """
    return _basic((2, 2, 2, 2), num_classes, in_channels, seed)


def resnet34(num_classes: int = 1000, in_channels: int = 3, seed: int = 0) -> ImageNetResNet:
    """ResNet-34; 21,797,672 parameters. See :func:`resnet50`.

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
    ImageNetResNet
        Takes (N, in_channels, H, W), gives logits (N, num_classes).
    """
    return _basic((3, 4, 6, 3), num_classes, in_channels, seed)


def resnet50(num_classes: int = 1000, in_channels: int = 3, seed: int = 0) -> ImageNetResNet:
    """ResNet-50, with the stride in the 3x3 convolution of a bottleneck; 25,557,032 parameters.

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
    ImageNetResNet
        Takes (N, in_channels, H, W) of any size from 32x32 on, gives logits (N, num_classes).

    References
    ----------
    He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016.
    """
    return _deep((3, 4, 6, 3), num_classes, in_channels, seed)


def resnet101(num_classes: int = 1000, in_channels: int = 3, seed: int = 0) -> ImageNetResNet:
    """ResNet-101; 44,549,160 parameters. See :func:`resnet50`.

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
    ImageNetResNet
        Takes (N, in_channels, H, W), gives logits (N, num_classes).
    """
    return _deep((3, 4, 23, 3), num_classes, in_channels, seed)


def resnet152(num_classes: int = 1000, in_channels: int = 3, seed: int = 0) -> ImageNetResNet:
    """ResNet-152; 60,192,808 parameters. See :func:`resnet50`.

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
    ImageNetResNet
        Takes (N, in_channels, H, W), gives logits (N, num_classes).
    """
    return _deep((3, 8, 36, 3), num_classes, in_channels, seed)


def resnext50_32x4d(num_classes: int = 1000, in_channels: int = 3, seed: int = 0) -> ImageNetResNet:
    """ResNeXt-50 32x4d: ResNet-50 whose 3x3 convolutions have 32 groups of 4 channels at first; 25,028,904 parameters.

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
    ImageNetResNet
        Takes (N, in_channels, H, W), gives logits (N, num_classes).

    References
    ----------
    Xie, Girshick, Dollár, Tu and He, "Aggregated residual transformations for deep neural networks", 2017.
    """
    return _deep((3, 4, 6, 3), num_classes, in_channels, seed, groups=32, group_width=4)


class SmallResNet(nn.Module):
    """A 3x3 stem, three stages of 16, 32 and 64 channels, the mean over the image, one linear layer."""

    def __init__(self, blocks: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(16), nn.ReLU())
        self.stages = _stages(partial(BasicBlock, project=False), (blocks,) * 3, 16, 1)
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Any) -> Any:
        y = adaptive_avg_pool2d(self.stages(self.stem(x)), 1)
        return self.head(y.reshape(y.shape[:2]))


def _small(depth: int, num_classes: int, in_channels: int, seed: int) -> SmallResNet:
    with init.seeded(seed):
        return SmallResNet((depth - 2) // 6, num_classes, in_channels)


def resnet20(num_classes: int = 10, in_channels: int = 3, seed: int = 0) -> SmallResNet:
    """The paper's ResNet for 32x32 images with 20 layers, shortcuts without parameters; 269,722 parameters.

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
    SmallResNet
        Takes (N, in_channels, H, W) of any size, gives logits (N, num_classes).

    References
    ----------
    He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016, section 4.2.
    """
    return _small(20, num_classes, in_channels, seed)


def resnet32(num_classes: int = 10, in_channels: int = 3, seed: int = 0) -> SmallResNet:
    """As :func:`resnet20`, with 32 layers; 464,154 parameters.

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
    SmallResNet
        Takes (N, in_channels, H, W), gives logits (N, num_classes).
    """
    return _small(32, num_classes, in_channels, seed)


def resnet44(num_classes: int = 10, in_channels: int = 3, seed: int = 0) -> SmallResNet:
    """As :func:`resnet20`, with 44 layers; 658,586 parameters.

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
    SmallResNet
        Takes (N, in_channels, H, W), gives logits (N, num_classes).
    """
    return _small(44, num_classes, in_channels, seed)


def resnet56(num_classes: int = 10, in_channels: int = 3, seed: int = 0) -> SmallResNet:
    """As :func:`resnet20`, with 56 layers; 853,018 parameters.

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
    SmallResNet
        Takes (N, in_channels, H, W), gives logits (N, num_classes).
    """
    return _small(56, num_classes, in_channels, seed)


def resnet110(num_classes: int = 10, in_channels: int = 3, seed: int = 0) -> SmallResNet:
    """As :func:`resnet20`, with 110 layers; 1,727,962 parameters.

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
    SmallResNet
        Takes (N, in_channels, H, W), gives logits (N, num_classes).
    """
    return _small(110, num_classes, in_channels, seed)
