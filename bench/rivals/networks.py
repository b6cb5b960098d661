"""The networks that training steps are measured on, as PyTorch's users write them; parameters are named as in ours."""

from __future__ import annotations

from typing import Any

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: a pooling
STAGES = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))  # channels in, channels out, stride
RESNET50 = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # channels of the 3x3 convolutions, blocks, stride


def lenet5() -> Any:
    """The twin of ``models.lenet5()``."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def vgg16_cifar() -> Any:
    """The twin of ``models.vgg16_cifar()``."""
    from torch import nn

    layers: list[Any] = []
    channels = 3
    for wider in VGG16:
        if wider == 0:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
            channels = wider
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def resnet18_cifar() -> Any:
    """The twin of ``models.resnet18_cifar()``."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, channels: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(channels)
            self.shortcut = nn.Sequential()
            if stride == 2:
                self.shortcut = nn.Sequential(nn.Conv2d(inputs, channels, 1, 2, bias=False), nn.BatchNorm2d(channels))

        def forward(self, x: Any) -> Any:
            y = self.bn1(self.conv1(x)).relu()
            return (self.bn2(self.conv2(y)) + self.shortcut(x)).relu()

    class ResNet18(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
            stages = (nn.Sequential(Block(a, b, stride), Block(b, b, 1)) for a, b, stride in STAGES)
            self.stages = nn.Sequential(*stages)
            self.head = nn.Linear(512, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.stages(self.stem(x)).mean((2, 3)))

    return ResNet18()


def resnet50() -> Any:
    """The twin of ``models.resnet50()``: table 1 of He, Zhang, Ren and Sun, 2016, with the stride in the 3x3 convolutions.

    25,557,032 parameters, as torchvision's.
    """
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(4 * width)
            self.relu = nn.ReLU(inplace=True)
            self.shortcut = nn.Sequential()
            if inputs != 4 * width:
                fitting = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
                self.shortcut = nn.Sequential(fitting, nn.BatchNorm2d(4 * width))

        def forward(self, x: Any) -> Any:
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            y += self.shortcut(x)
            return self.relu(y)

    class ResNet50(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.stem = nn.Sequential(stem, nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
            stages, inputs = [], 64
            for width, blocks, stride in RESNET50:
                members = [Bottleneck(inputs, width, stride)]
                inputs = 4 * width
                members += [Bottleneck(inputs, width, 1) for _ in range(blocks - 1)]
                stages.append(nn.Sequential(*members))
            self.stages = nn.Sequential(*stages)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.head = nn.Linear(inputs, 1000)

        def forward(self, x: Any) -> Any:
            return self.head(self.pool(self.stages(self.stem(x))).flatten(1))

    return ResNet50()
