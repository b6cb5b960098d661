"""LeNet-5."""

from __future__ import annotations

from .. import nn
from ..nn import init


def lenet5(num_classes: int = 10, in_channels: int = 1, image_size: int = 28, seed: int = 0) -> nn.Sequential:
    """LeNet-5 as courses teach it: 28x28 pixels padded to 32x32, ReLU, average pooling; 61,706 parameters.

    Parameters
    ----------
    num_classes : int
        Outputs.
    in_channels : int
        Channels of the image.
    image_size : int
        Height and width of the image in pixels, at least 12; it sets the inputs of the first linear layer.
    seed : int
        Of the initial weights.

    Returns
    -------
    Sequential
        Takes (N, in_channels, image_size, image_size), gives (N, num_classes).

    References
    ----------
    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.
    """
    side = (image_size // 2 - 4) // 2
    if side < 1:
        raise ValueError(f"lenet5: image_size must be at least 12, got {image_size}")
    with init.seeded(seed):
        return nn.Sequential(
            nn.Conv2d(in_channels, 6, 5, padding=2),  # 28x28
            nn.ReLU(),
            nn.AvgPool2d(2),  # 14x14
            nn.Conv2d(6, 16, 5),  # 10x10
            nn.ReLU(),
            nn.AvgPool2d(2),  # 5x5
            nn.Flatten(),
            nn.Linear(16 * side * side, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )
