"""The layers, under PyTorch's names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import ops
from ..ops import arguments as arg
from . import init
from .activation import ReLU
from .module import Module, Parameter
from .norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .summary import conv_multiply_adds


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
                x = modules[i].forward(x, activation="relu")
                i += 2
            else:
                x = modules[i](x)
                i += 1
        return x


def _fuse(module: Module, after: Module) -> bool:
    """A layer whose result only a ReLU sees computes both in one pass; hooks want to see both."""
    fusing = (Conv2d, BatchNorm1d, BatchNorm2d, BatchNorm3d, Linear)
    return type(module) in fusing and type(after) is ReLU and not module._hooks and not after._hooks


def _draw_like_pytorch(weight: Parameter, bias: Parameter | None) -> None:
    """PyTorch's default: weight and bias uniform in ±1/√fan_in."""
    init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(init.fans(weight)[0])
        init.uniform_(bias, -bound, bound)


class Conv2d(Module):
    """Two-dimensional convolution, see :func:`convkern.conv2d`; weight (K, C/groups, R, S), bias (K,)."""

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__()
        c = arg.integer(in_channels, "Conv2d: in_channels", 1)
        k = arg.integer(out_channels, "Conv2d: out_channels", 1)
        groups = arg.integer(groups, "Conv2d: groups", 1)
        if c % groups or k % groups:
            raise ValueError(f"Conv2d: groups={groups} must divide in_channels={c} and out_channels={k}")
        self.kernel_size = arg.per_axis(kernel_size, "Conv2d: kernel_size", 1)
        self.stride = arg.per_axis(stride, "Conv2d: stride", 1)
        self.dilation = arg.per_axis(dilation, "Conv2d: dilation", 1)
        arg.sides(padding, self.kernel_size, self.stride, self.dilation)  # refuses what no call would take
        self.padding, self.groups = padding, groups
        self.weight = Parameter(np.empty((k, c // groups, *self.kernel_size), dtype))
        self.bias = Parameter(np.empty(k, dtype)) if bias else None
        _draw_like_pytorch(self.weight, self.bias)

    def forward(self, x: Any, activation: str | None = None) -> Any:
        options = (self.stride, self.padding, self.dilation, self.groups)
        return ops.conv2d(x, self.weight, self.bias, *options, activation=activation)

    def multiply_adds(self, y_shape: tuple[int, ...]) -> int:
        return conv_multiply_adds(y_shape, self.weight.shape)

    def extra_repr(self) -> str:
        k, c = self.weight.shape[:2]
        text = f"{c * self.groups}, {k}, kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        text += f", dilation={self.dilation}" if self.dilation != (1, 1) else ""
        text += f", groups={self.groups}" if self.groups != 1 else ""
        return text + (", bias=False" if self.bias is None else "")


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
        _draw_like_pytorch(self.weight, self.bias)

    def forward(self, x: Any, activation: str | None = None) -> Any:
        return ops.linear(x, self.weight, self.bias, activation=activation)

    def multiply_adds(self, y_shape: tuple[int, ...]) -> int:
        return math.prod(y_shape) * self.weight.shape[1]

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}{', bias=False' if self.bias is None else ''}"


class MaxPool2d(Module):
    """The largest value of each window, see :func:`convkern.max_pool2d`."""

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        return_indices: bool = False, ceil_mode: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.options = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)

    def forward(self, x: Any) -> Any:
        return ops.max_pool2d(x, *self.options)

    def extra_repr(self) -> str:
        kernel_size, stride, padding, *_ = self.options
        return f"kernel_size={kernel_size}, stride={stride or kernel_size}, padding={padding}"


class AvgPool2d(Module):
    """The mean of each window, see :func:`convkern.avg_pool2d`."""

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)

    def forward(self, x: Any) -> Any:
        return ops.avg_pool2d(x, *self.options)

    def extra_repr(self) -> str:
        kernel_size, stride, padding, *_ = self.options
        return f"kernel_size={kernel_size}, stride={stride or kernel_size}, padding={padding}"


class Flatten(Module):
    """(N, C, H, W) -> (N, C·H·W)."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Any) -> Any:
        return ops.flatten(x, self.start_dim, self.end_dim)
