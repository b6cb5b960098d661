"""The layers, under PyTorch's names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import ops
from ..ops import arguments as arg
from .activation import ReLU
from .convs import Conv2d, draw_like_pytorch
from .module import Module, Parameter
from .norm import BatchNorm1d, BatchNorm2d, BatchNorm3d


class Sequential(Module):
    """Modules one after the other."""

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        for i, module in enumerate(modules):
            if not isinstance(module, Module):
                raise TypeError(f"Sequential: member {i} must be a Module, got {type(module).__name__}")
            self._modules[str(i)] = module

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __getitem__(self, index: int | slice) -> Any:
        members = list(self._modules.values())[index]
        return Sequential(*members) if isinstance(members, list) else members

    def forward(self, x: Any) -> Any:
        modules = list(self._modules.values())
        i = 0
        while i < len(modules):
            if i + 1 < len(modules) and _fuse(modules[i], modules[i + 1]):
                x = modules[i](x, activation="relu")
                i += 2
            else:
                x = modules[i](x)
                i += 1
        return x


def _fuse(module: Module, after: Module) -> bool:
    """A layer whose result only a ReLU sees computes both in one pass; hooks want to see both."""
    return type(after) is ReLU and type(module) in _FUSING and not module._hooks and not after._hooks


class Linear(Module):
    """x · weightᵀ + bias, weight (out, in), bias (out,)."""

    weight: Parameter
    bias: Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, dtype: Any = np.float32) -> None:
        super().__init__()
        inputs = arg.integer(in_features, "Linear: in_features", 1)
        outputs = arg.integer(out_features, "Linear: out_features", 1)
        self.weight = Parameter(np.empty((outputs, inputs), dtype))
        self.bias = Parameter(np.empty(outputs, dtype)) if bias else None
        draw_like_pytorch(self.weight, self.bias)

    def forward(self, x: Any, activation: str | None = None) -> Any:
        return ops.linear(x, self.weight, self.bias, activation=activation)

    def multiply_adds(self, y_shape: tuple[int, ...]) -> int:
        return math.prod(y_shape) * self.weight.shape[1]

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}{', bias=False' if self.bias is None else ''}"


_FUSING = (Conv2d, BatchNorm1d, BatchNorm2d, BatchNorm3d, Linear)


class Flatten(Module):
    """(N, C, H, W) -> (N, C·H·W)."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Any) -> Any:
        return ops.flatten(x, self.start_dim, self.end_dim)
