"""VGG for small images."""

from __future__ import annotations

from .. import nn
from ..nn import init

# Output channels of the 3x3 convolutions between two poolings: column D of the paper's table 1.
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16_cifar(num_classes: int = 10, in_channels: int = 3, image_size: int = 32, seed: int = 0) -> nn.Sequential:
    """VGG16 with batch normalisation and one linear layer, for 32x32 images; 14,728,266 parameters.

    Parameters
    ----------
    num_classes : int
        Outputs.
    in_channels : int
        Channels of the image.
    image_size : int
        Height and width of the image in pixels, at least 32; it sets the inputs of the linear layer.
    seed : int
        Of the initial weights.

    Returns
    -------
    Sequential
        Takes (N, in_channels, image_size, image_size), gives (N, num_classes).

    References
    ----------
    Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2015.
    """
    side = image_size // 2 ** len(VGG16)
    if side < 1:
        raise ValueError(f"vgg16_cifar: image_size must be at least 32, got {image_size}")
    layers: list[nn.Module] = []
    channels = in_channels
    with init.seeded(seed):
        for stage in VGG16:
            for wider in stage:
                layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
                channels = wider
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Flatten(), nn.Linear(channels * side * side, num_classes)]
    return nn.Sequential(*layers)
