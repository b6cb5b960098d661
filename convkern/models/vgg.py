"""VGG: stacks of 3x3 convolutions between poolings."""

from __future__ import annotations

from .. import nn
from ..nn import init

# Output channels of the 3x3 convolutions between two poolings: columns A, D and E of the paper's table 1.
VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG19 = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


def _stages(stages: tuple[tuple[int, ...], ...], channels: int, normalised: bool) -> list[nn.Module]:
    """The convolutions and poolings."""
    layers: list[nn.Module] = []
    for stage in stages:
        for wider in stage:
            layers.append(nn.Conv2d(channels, wider, 3, padding=1))
            layers += [nn.BatchNorm2d(wider), nn.ReLU()] if normalised else [nn.ReLU()]
            channels = wider
        layers.append(nn.MaxPool2d(2))
    return layers


def _vgg(
    name: str, stages: tuple[tuple[int, ...], ...], num_classes: int, in_channels: int, image_size: int,
    batch_norm: bool, seed: int,
) -> nn.Sequential:  # fmt: skip
    side = image_size // 2 ** len(stages)
    if side < 1:
        raise ValueError(f"{name}: image_size must be at least 32, got {image_size}")
    with init.seeded(seed):
        return nn.Sequential(
            *_stages(stages, in_channels, batch_norm),
            nn.Flatten(),
            nn.Linear(512 * side * side, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, num_classes),
        )


def vgg11(
    num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, batch_norm: bool = False, seed: int = 0
) -> nn.Sequential:
    """VGG with 8 convolutions and 3 linear layers; 132,863,336 parameters. See :func:`vgg16`.

    Parameters
    ----------
    num_classes : int
        Outputs.
    in_channels : int
        Channels of the image.
    image_size : int
        Height and width of the image in pixels, at least 32; it sets the inputs of the first linear layer.
    batch_norm : bool
        Batch normalisation before each ReLU of a convolution, which the paper does not have.
    seed : int
        Of the initial weights.

    Returns
    -------
    Sequential
        Takes (N, in_channels, image_size, image_size), gives logits (N, num_classes).
    """
    return _vgg("vgg11", VGG11, num_classes, in_channels, image_size, batch_norm, seed)


def vgg16(
    num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, batch_norm: bool = False, seed: int = 0
) -> nn.Sequential:
    """VGG with 13 convolutions and 3 linear layers; 138,357,544 parameters.

    Parameters
    ----------
    num_classes : int
        Outputs.
    in_channels : int
        Channels of the image.
    image_size : int
        Height and width of the image in pixels, at least 32; it sets the inputs of the first linear layer.
    batch_norm : bool
        Batch normalisation before each ReLU of a convolution, which the paper does not have.
    seed : int
        Of the initial weights.

    Returns
    -------
    Sequential
        Takes (N, in_channels, image_size, image_size), gives logits (N, num_classes).

    References
    ----------
    Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2015.
    """
    return _vgg("vgg16", VGG16, num_classes, in_channels, image_size, batch_norm, seed)


def vgg19(
    num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, batch_norm: bool = False, seed: int = 0
) -> nn.Sequential:
    """VGG with 16 convolutions and 3 linear layers; 143,667,240 parameters. See :func:`vgg16`.

    Parameters
    ----------
    num_classes : int
        Outputs.
    in_channels : int
        Channels of the image.
    image_size : int
        Height and width of the image in pixels, at least 32; it sets the inputs of the first linear layer.
    batch_norm : bool
        Batch normalisation before each ReLU of a convolution, which the paper does not have.
    seed : int
        Of the initial weights.

    Returns
    -------
    Sequential
        Takes (N, in_channels, image_size, image_size), gives logits (N, num_classes).
    """
    return _vgg("vgg19", VGG19, num_classes, in_channels, image_size, batch_norm, seed)


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
    with init.seeded(seed):
        layers = _stages(VGG16, in_channels, normalised=True)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * side * side, num_classes))
