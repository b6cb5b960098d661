"""Convolutional layers of one to three axes, plain and transposed."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..kernels.spec import output_size
from ..ops import arguments as arg
from ..ops.pad import pad_sides
from . import init
from .module import Module, Parameter
from .summary import conv_multiply_adds

# PyTorch's names of the padding modes, and those of `convkern.nn.functional.pad`.
PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def draw_like_pytorch(weight: Parameter, bias: Parameter | None) -> None:
    """PyTorch's default: weight and bias uniform in ±1/√fan_in."""
    init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(init.fans(weight)[0])
        init.uniform_(bias, -bound, bound)


class _Weighted(Module):
    """What plain and transposed convolutions of any number of axes share."""

    axes: ClassVar[int]
    function: ClassVar[Any]
    weight: Parameter
    bias: Parameter | None
    padding: Any
    padding_mode: str

    def _take_sizes(
        self, in_channels: Any, out_channels: Any, kernel_size: Any, stride: Any, dilation: Any, groups: Any
    ) -> str:
        name = type(self).__name__
        self.in_channels = arg.integer(in_channels, f"{name}: in_channels", 1)
        self.out_channels = arg.integer(out_channels, f"{name}: out_channels", 1)
        self.groups = arg.integer(groups, f"{name}: groups", 1)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"{name}: groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}"
            )
        self.kernel_size = arg.per_axis(kernel_size, f"{name}: kernel_size", 1, self.axes)
        self.stride = arg.per_axis(stride, f"{name}: stride", 1, self.axes)
        self.dilation = arg.per_axis(dilation, f"{name}: dilation", 1, self.axes)
        return name

    def _make_parameters(self, shape: tuple[int, ...], outputs: int, bias: bool, dtype: Any) -> None:
        self.weight = Parameter(np.empty(shape, dtype))
        self.bias = Parameter(np.empty(outputs, dtype)) if bias else None
        draw_like_pytorch(self.weight, self.bias)

    def extra_repr(self) -> str:
        sizes = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        text = f"{self.in_channels}, {self.out_channels}, {sizes}"
        text += f", dilation={self.dilation}" if self.dilation != (1,) * self.axes else ""
        text += f", groups={self.groups}" if self.groups != 1 else ""
        text += f", padding_mode={self.padding_mode!r}" if self.padding_mode != "zeros" else ""
        return text + (", bias=False" if self.bias is None else "")


class _Conv(_Weighted):
    """What convolutions of any number of axes share."""

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
        padding_mode: str = "zeros",
        *,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__()
        name = self._take_sizes(in_channels, out_channels, kernel_size, stride, dilation, groups)
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"{name}: padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        # Refuses what no call would take.
        self._sides = arg.sides(padding, self.kernel_size, self.stride, self.dilation)
        self.padding, self.padding_mode = padding, padding_mode
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self._make_parameters(shape, self.out_channels, bias, dtype)

    def forward(self, x: Any, activation: str | None = None) -> Any:
        padding = self.padding
        if self.padding_mode != "zeros" and any(map(any, self._sides)):
            if arg.array_of(x, "x").ndim not in (self.axes + 1, self.axes + 2):
                raise ValueError(
                    f"{type(self).__name__}: x must have {self.axes + 1} or {self.axes + 2} axes, got shape {x.shape}"
                )
            x, padding = pad_sides(x, self._sides, PADDING_MODES[self.padding_mode]), 0
        options = (self.stride, padding, self.dilation, self.groups)
        return type(self).function(x, self.weight, self.bias, *options, activation=activation)

    def window(self, axis: int, before: int, after: int) -> tuple[float, float]:
        return (self.kernel_size[axis] - 1) * self.dilation[axis] + 1, self.stride[axis]

    def multiply_adds(self, y_shape: tuple[int, ...]) -> int:
        return conv_multiply_adds(y_shape, self.weight.shape)


class Conv1d(_Conv):
    """One-dimensional convolution, see :func:`convkern.conv1d`; weight (K, C/groups, S), bias (K,).

    Parameters are those of :class:`Conv2d`.
    """

    axes, function = 1, staticmethod(ops.conv1d)


class Conv2d(_Conv):
    """Two-dimensional convolution, see :func:`convkern.conv2d`; weight (K, C/groups, R, S), bias (K,).

    Parameters
    ----------
    in_channels, out_channels : int
        C and K.
    kernel_size, stride, padding, dilation, groups
        As in :func:`convkern.conv2d`.
    bias : bool
        Have a bias (K,).
    padding_mode : str
        What stands around the input: "zeros", "reflect" (mirrored without the border), "replicate" (the border) or
        "circular" (the other side).
    """

    axes, function = 2, staticmethod(ops.conv2d)


class Conv3d(_Conv):
    """Three-dimensional convolution, see :func:`convkern.conv3d`; weight (K, C/groups, U, R, S), bias (K,).

    Parameters are those of :class:`Conv2d`.
    """

    axes, function = 3, staticmethod(ops.conv3d)


class _ConvTranspose(_Weighted):
    """What transposed convolutions of any number of axes share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        *,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__()
        name = self._take_sizes(in_channels, out_channels, kernel_size, stride, dilation, groups)
        if padding_mode != "zeros":
            raise ValueError(f"{name}: padding_mode must be 'zeros', got {padding_mode!r}")
        self.padding = arg.per_axis(padding, f"{name}: padding", 0, self.axes)
        self.output_padding = arg.per_axis(output_padding, f"{name}: output_padding", 0, self.axes)
        self.padding_mode = padding_mode
        shape = (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
        self._make_parameters(shape, self.out_channels, bias, dtype)

    def forward(self, x: Any, output_size: Any = None, activation: str | None = None) -> Any:
        more = self.output_padding if output_size is None else self._more(arg.array_of(x, "x").shape, output_size)
        options = (self.stride, self.padding, more, self.groups, self.dilation)
        return type(self).function(x, self.weight, self.bias, *options, activation=activation)

    def _more(self, x_shape: tuple[int, ...], output_size: Any) -> tuple[int, ...]:
        """The output padding that gives the wanted size."""
        name = type(self).__name__
        wanted = arg.per_axis(output_size, f"{name}: output_size", 1, self.axes)
        size = x_shape[-self.axes :]
        least = [
            (size[i] - 1) * self.stride[i] - 2 * self.padding[i] + self.dilation[i] * (self.kernel_size[i] - 1) + 1
            for i in range(self.axes)
        ]
        most = [least[i] + max(self.stride[i], self.dilation[i]) - 1 for i in range(self.axes)]
        if any(not a <= v <= b for a, v, b in zip(least, wanted, most, strict=True)):
            raise ValueError(f"{name}: output_size must be between {least} and {most} for x {x_shape}, got {wanted}")
        return tuple(v - a for v, a in zip(wanted, least, strict=True))

    def window(self, axis: int, before: int, after: int) -> tuple[float, float]:
        taps = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
        return -(-taps // self.stride[axis]), 1 / self.stride[axis]

    def multiply_adds(self, y_shape: tuple[int, ...]) -> int:
        """Each input pixel meets K/groups·R·S weights."""
        sizes = (
            output_size(y_shape[i - self.axes], self.kernel_size[i], self.stride[i], (p, p), self.dilation[i])
            for i, p in enumerate(self.padding)
        )
        return math.prod(y_shape[: -self.axes - 1]) * self.weight.size * math.prod(sizes)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text + (f", output_padding={self.output_padding}" if any(self.output_padding) else "")


class ConvTranspose1d(_ConvTranspose):
    """One-dimensional transposed convolution, see :func:`convkern.conv_transpose1d`; weight (C, K/groups, S), bias (K,).

    Parameters are those of :class:`ConvTranspose2d`.
    """

    axes, function = 1, staticmethod(ops.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose):
    """Two-dimensional transposed convolution, see :func:`convkern.conv_transpose2d`; weight (C, K/groups, R, S), bias (K,).

    Parameters
    ----------
    in_channels, out_channels : int
        C and K.
    kernel_size, stride, padding, output_padding, groups, dilation
        As in :func:`convkern.conv_transpose2d`. A call may say ``output_size`` instead of the output padding.
    bias : bool
        Have a bias (K,).
    padding_mode : str
        "zeros".
    """

    axes, function = 2, staticmethod(ops.conv_transpose2d)


class ConvTranspose3d(_ConvTranspose):
    """Three-dimensional transposed convolution, see :func:`convkern.conv_transpose3d`; weight (C, K/groups, U, R, S).

    Parameters are those of :class:`ConvTranspose2d`.
    """

    axes, function = 3, staticmethod(ops.conv_transpose3d)
