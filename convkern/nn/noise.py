"""Layers that are random in training and do nothing in evaluation."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..ops import arguments as arg
from .module import Module


class Dropout(Module):
    """In training every element becomes 0 with probability p, and the others grow by 1 / (1 - p).

    Parameters
    ----------
    p : float
        0 to 1.
    inplace : bool
        Taken as in PyTorch; the input is not overwritten.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        self.p = arg.number(p, f"{type(self).__name__}: p", 0.0, 1.0)

    def forward(self, x: Any) -> Any:
        return ops.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout2d(Dropout):
    """As :class:`Dropout`, for whole channels of (N, C, H, W)."""

    def forward(self, x: Any) -> Any:
        return ops.dropout2d(x, self.p, self.training)


class GaussianNoise(Module):
    """In training x plus normal numbers of mean 0.

    Parameters
    ----------
    std : float
        Their standard deviation, at least 0.
    """

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        self.std = arg.number(std, "GaussianNoise: std", 0.0)

    def forward(self, x: Any) -> Any:
        return ops.gaussian_noise(x, self.std, self.training)

    def extra_repr(self) -> str:
        return f"std={self.std}"
