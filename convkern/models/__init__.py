"""The networks, each a function that gives a Module."""

from __future__ import annotations

from typing import Any

from ..nn.module import Module
from .lenet import lenet5

__all__ = ["NAMES", "build", "lenet5"]

_BUILDERS = {"lenet5": lenet5}
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
