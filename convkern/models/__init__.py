"""The networks, each a function that gives a Module."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..nn.module import Module
from .alexnet import alexnet
from .densenet import densenet121
from .googlenet import googlenet
from .lenet import lenet5
from .nin import nin
from .regression import linear_regression, logistic_regression, mlp, softmax_regression
from .resnet import (
    BasicBlock,
    Bottleneck,
    resnet18,
    resnet18_cifar,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    resnet101,
    resnet110,
    resnet152,
    resnext50_32x4d,
)
from .unet import unet
from .vgg import vgg11, vgg16, vgg16_cifar, vgg19

__all__ = [
    "NAMES",
    "PIXELWISE",
    "BasicBlock",
    "Bottleneck",
    "alexnet",
    "build",
    "build_for",
    "densenet121",
    "googlenet",
    "lenet5",
    "linear_regression",
    "logistic_regression",
    "mlp",
    "nin",
    "resnet18",
    "resnet18_cifar",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnext50_32x4d",
    "softmax_regression",
    "unet",
    "vgg11",
    "vgg16",
    "vgg16_cifar",
    "vgg19",
]

_BUILDERS: dict[str, Callable[..., Module]] = {
    "alexnet": alexnet,
    "densenet121": densenet121,
    "googlenet": googlenet,
    "lenet5": lenet5,
    "mlp": mlp,
    "nin": nin,
    "resnet101": resnet101,
    "resnet110": resnet110,
    "resnet152": resnet152,
    "resnet18": resnet18,
    "resnet18_cifar": resnet18_cifar,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet34": resnet34,
    "resnet44": resnet44,
    "resnet50": resnet50,
    "resnet56": resnet56,
    "resnext50_32x4d": resnext50_32x4d,
    "softmax_regression": softmax_regression,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "vgg16_cifar": vgg16_cifar,
    "vgg19": vgg19,
}
NAMES = tuple(_BUILDERS)
PIXELWISE: dict[str, Callable[..., Module]] = {"unet": unet}  # which give logits for every pixel, not for the image


def build(name: str, **options: Any) -> Module:
    """The model of that name.

    Parameters
    ----------
    name : str
        One of ``NAMES`` or ``PIXELWISE``.
    **options
        As in the function of that name.

    Returns
    -------
    Module

    Raises
    ------
    ValueError
        Naming the known models.
    """
    return _builder(name)(**options)


def build_for(name: str, image: tuple[int, int, int], **options: Any) -> Module:
    """The model of that name for images of one shape.

    Parameters
    ----------
    name : str
        One of ``NAMES`` or ``PIXELWISE``.
    image : (int, int, int)
        Channels, height and width.
    **options
        As in the function of that name, but for the image's.

    Returns
    -------
    Module

    Raises
    ------
    ValueError
        Naming the known models.
    """
    channels, height, _ = image
    if "image_size" in inspect.signature(_builder(name)).parameters:
        options["image_size"] = height  # only models whose linear layers see all pixels ask for it
    return build(name, in_channels=channels, **options)


def _builder(name: str) -> Callable[..., Module]:
    known = {**_BUILDERS, **PIXELWISE}
    if name not in known:
        raise ValueError(f"model must be one of {', '.join(known)}, got {name!r}")
    return known[name]
