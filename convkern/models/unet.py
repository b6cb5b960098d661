"""U-Net: a picture in, a picture of classes out."""

from __future__ import annotations

from typing import Any

from .. import nn
from ..nn import init
from ..ops import concatenate


def _double(in_channels: int, channels: int) -> nn.Sequential:
    """Two 3x3 convolutions with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """Down to small images of many channels and up again, with a bridge from each size to its like on the other side."""

    def __init__(self, in_channels: int, num_classes: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width << i for i in range(depth + 1)]
        inputs = [in_channels, *widths[:-1]]
        self.down = nn.Sequential(*(_double(a, b) for a, b in zip(inputs, widths, strict=True)))
        self.pool = nn.MaxPool2d(2)
        self.widen = nn.Sequential(*(nn.ConvTranspose2d(2 * b, b, 2, stride=2) for b in widths[-2::-1]))
        self.up = nn.Sequential(*(_double(2 * b, b) for b in widths[-2::-1]))
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Any) -> Any:
        unit = 2 ** len(self.up)
        if any(size % unit for size in x.shape[-2:]):
            raise ValueError(f"UNet: height and width of x must be multiples of {unit}, got shape {tuple(x.shape)}")
        bridges: list[Any] = []
        for i, convolve in enumerate(self.down):
            x = convolve(self.pool(x) if i else x)
            bridges.append(x)
        bridges.pop()
        for widen, convolve in zip(self.widen, self.up, strict=True):
            x = convolve(concatenate([bridges.pop(), widen(x)], 1))
        return self.head(x)


def unet(num_classes: int = 2, in_channels: int = 3, width: int = 64, depth: int = 4, seed: int = 0) -> UNet:
    """U-Net, with padded convolutions and batch norm, so that the result is as large as the picture.

    Parameters
    ----------
    num_classes : int
        Channels of the result.
    in_channels : int
        Channels of the picture.
    width : int
        Channels at full size; each halving doubles them.
    depth : int
        Halvings.
    seed : int
        Of the initial weights.

    Returns
    -------
    UNet
        Takes (N, in_channels, H, W), H and W multiples of 2**depth, gives logits (N, num_classes, H, W).

    References
    ----------
    Ronneberger, Fischer and Brox, "U-Net: convolutional networks for biomedical image segmentation", 2015.
    """
    with init.seeded(seed):
        return UNet(in_channels, num_classes, width, depth)
