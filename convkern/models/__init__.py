"""The networks, each a function that gives a Module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..nn.module import Module
from .lenet import lenet5
from .resnet import resnet18_cifar
from .vgg import vgg16_cifar

__all__ = ["NAMES", "build", "lenet5", "resnet18_cifar", "vgg16_cifar"]

_BUILDERS: dict[str, Callable[..., Module]] = {
    "lenet5": lenet5,
    "resnet18_cifar": resnet18_cifar,
    "vgg16_cifar": vgg16_cifar,
}
NAMES = tuple(_BUILDERS)


def build(name: str, **options: Any) -> Module:
    """The model of that name.

    Parameters
    ----------
    name : str
        One of ``NAMES``.
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
    if name not in _BUILDERS:
        raise ValueError(f"model must be one of {', '.join(NAMES)}, got {name!r}")
    return _BUILDERS[name](**options)
