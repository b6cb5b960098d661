"""AlexNet."""

from __future__ import annotations

from .. import nn
from ..nn import init


def _convolutions(in_channels: int, widths: tuple[int, ...], normalised: bool) -> list[nn.Module]:
    """Five convolutions and three overlapping poolings: 224x224 pixels become 6x6."""
    a, b, c, d, e = widths

    def norm() -> list[nn.Module]:
        # The paper sums squares where PyTorch's names take their mean: five times the paper's alpha.
        return [nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)] if normalised else []

    return [
        nn.Conv2d(in_channels, a, 11, stride=4, padding=2), nn.ReLU(), *norm(),
        nn.MaxPool2d(3, stride=2),  # 27x27
        nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), *norm(),
        nn.MaxPool2d(3, stride=2),  # 13x13
        nn.Conv2d(b, c, 3, padding=1), nn.ReLU(),
        nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
        nn.Conv2d(d, e, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(3, stride=2),  # 6x6
    ]  # fmt: skip


def alexnet(num_classes: int = 1000, in_channels: int = 3, variant: str = "2012", seed: int = 0) -> nn.Sequential:
    """AlexNet for 224x224 images.

    Parameters
    ----------
    num_classes : int
        Outputs.
    in_channels : int
        Channels of the image.
    variant : "2012" or "2014"
        "2012": the paper's widths 96-256-384-384-256 on one device, with local response normalisation; 62,378,344
        parameters. "2014": Krizhevsky's later widths 64-192-384-256-256 without it, PyTorch's; 61,100,840.
    seed : int
        Of the initial weights.

    Returns
    -------
    Sequential
        Takes (N, in_channels, 224, 224), gives logits (N, num_classes).

    References
    ----------
    Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks", 2012.
    Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.
    """
    widths = {"2012": (96, 256, 384, 384, 256), "2014": (64, 192, 384, 256, 256)}
    if variant not in widths:
        raise ValueError(f"alexnet: variant must be '2012' or '2014', got {variant!r}")
    with init.seeded(seed):
        return nn.Sequential(
            *_convolutions(in_channels, widths[variant], normalised=variant == "2012"),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, num_classes),
        )
