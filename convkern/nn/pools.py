"""Pooling, unpooling and resizing layers."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import ops
from .module import Module


def _along(value: Any, axis: int) -> int:
    """One int for all axes, or one for each."""
    return int(value[axis] if isinstance(value, (tuple, list)) else value)


class _Pool(Module):
    """A layer that calls one function with the options that it was made with."""

    function: ClassVar[Any]
    options: tuple[Any, ...]

    def forward(self, x: Any) -> Any:
        return type(self).function(x, *self.options)


class _Windows(_Pool):
    """Pooling by windows of one size."""

    kernel_size: Any
    stride: Any
    padding: Any = 0
    dilation: Any = 1

    def window(self, axis: int, before: int, after: int) -> tuple[float, float]:
        taps = (_along(self.kernel_size, axis) - 1) * _along(self.dilation, axis) + 1
        return taps, _along(self.kernel_size if self.stride is None else self.stride, axis)

    def extra_repr(self) -> str:
        stride = self.kernel_size if self.stride is None else self.stride
        return f"kernel_size={self.kernel_size}, stride={stride}, padding={self.padding}"


class _MaxPool(_Windows):
    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        return_indices: bool = False, ceil_mode: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.options = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)


class MaxPool1d(_MaxPool):
    """The largest value of each window, see :func:`convkern.max_pool1d`."""

    function = staticmethod(ops.max_pool1d)


class MaxPool2d(_MaxPool):
    """The largest value of each window, see :func:`convkern.max_pool2d`."""

    function = staticmethod(ops.max_pool2d)


class MaxPool3d(_MaxPool):
    """The largest value of each window, see :func:`convkern.max_pool3d`."""

    function = staticmethod(ops.max_pool3d)


class AvgPool1d(_Windows):
    """The mean of each window, see :func:`convkern.avg_pool1d`."""

    function = staticmethod(ops.avg_pool1d)

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.options = (kernel_size, stride, padding, ceil_mode, count_include_pad)


class _AvgPool(_Windows):
    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


class AvgPool2d(_AvgPool):
    """The mean of each window, see :func:`convkern.avg_pool2d`."""

    function = staticmethod(ops.avg_pool2d)


class AvgPool3d(_AvgPool):
    """The mean of each window, see :func:`convkern.avg_pool3d`."""

    function = staticmethod(ops.avg_pool3d)


class _LPPool(_Windows):
    def __init__(self, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> None:
        super().__init__()
        self.norm_type, self.kernel_size, self.stride = norm_type, kernel_size, stride
        self.options = (norm_type, kernel_size, stride, ceil_mode)

    def extra_repr(self) -> str:
        return f"norm_type={self.norm_type}, {super().extra_repr()}"


class LPPool1d(_LPPool):
    """The root of each window's sum of powers, see :func:`convkern.lp_pool1d`."""

    function = staticmethod(ops.lp_pool1d)


class LPPool2d(_LPPool):
    """The root of each window's sum of powers, see :func:`convkern.lp_pool2d`."""

    function = staticmethod(ops.lp_pool2d)


class LPPool3d(_LPPool):
    """The root of each window's sum of powers, see :func:`convkern.lp_pool3d`."""

    function = staticmethod(ops.lp_pool3d)


class _Adaptive(_Pool):
    """Pooling to one size."""

    output_size: Any

    def window(self, axis: int, before: int, after: int) -> tuple[float, float]:
        return -(-before // after), before / after

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class _AdaptiveAvgPool(_Adaptive):
    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.output_size, self.options = output_size, (output_size,)


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """Means of as many windows as wanted, see :func:`convkern.adaptive_avg_pool1d`."""

    function = staticmethod(ops.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """Means of as many windows as wanted, see :func:`convkern.adaptive_avg_pool2d`; of one: global average pooling."""

    function = staticmethod(ops.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """Means of as many windows as wanted, see :func:`convkern.adaptive_avg_pool3d`."""

    function = staticmethod(ops.adaptive_avg_pool3d)


class _AdaptiveMaxPool(_Adaptive):
    def __init__(self, output_size: Any, return_indices: bool = False) -> None:
        super().__init__()
        self.output_size, self.options = output_size, (output_size, return_indices)


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """Maxima of as many windows as wanted, see :func:`convkern.adaptive_max_pool1d`."""

    function = staticmethod(ops.adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """Maxima of as many windows as wanted, see :func:`convkern.adaptive_max_pool2d`."""

    function = staticmethod(ops.adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """Maxima of as many windows as wanted, see :func:`convkern.adaptive_max_pool3d`."""

    function = staticmethod(ops.adaptive_max_pool3d)


class _MaxUnpool(_Windows):
    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.options = (kernel_size, stride, padding)

    def forward(self, x: Any, indices: Any, output_size: Any = None) -> Any:  # type: ignore[override]
        return type(self).function(x, indices, *self.options, output_size)

    def window(self, axis: int, before: int, after: int) -> tuple[float, float]:
        return 1, before / after


class MaxUnpool1d(_MaxUnpool):
    """Values back at the places where max pooling found them, see :func:`convkern.max_unpool1d`."""

    function = staticmethod(ops.max_unpool1d)


class MaxUnpool2d(_MaxUnpool):
    """Values back at the places where max pooling found them, see :func:`convkern.max_unpool2d`."""

    function = staticmethod(ops.max_unpool2d)


class MaxUnpool3d(_MaxUnpool):
    """Values back at the places where max pooling found them, see :func:`convkern.max_unpool3d`."""

    function = staticmethod(ops.max_unpool3d)


class Upsample(_Pool):
    """Another size by the nearest pixel or by linear interpolation, see :func:`convkern.interpolate`."""

    function = staticmethod(ops.interpolate)

    def __init__(
        self, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.size, self.scale_factor, self.mode, self.align_corners = size, scale_factor, mode, align_corners
        self.options = (size, scale_factor, mode, align_corners, recompute_scale_factor)

    def window(self, axis: int, before: int, after: int) -> tuple[float, float]:
        return 1 if self.mode == "nearest" else 2, before / after

    def extra_repr(self) -> str:
        wanted = f"scale_factor={self.scale_factor}" if self.size is None else f"size={self.size}"
        return f"{wanted}, mode={self.mode!r}"
