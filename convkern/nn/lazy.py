"""Layers that learn the number of their inputs from the first batch.

They have no parameters before: run a batch (or ``model.summary(shape)``) first, make the optimizer then. From the first call
on such a layer is of the class that it stands for, as in PyTorch.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..ops import arguments as arg
from . import init
from .blame import locate
from .layers import Conv2d, Linear
from .module import Module
from .norm import BatchNorm1d, BatchNorm2d, BatchNorm3d


class _Lazy(Module):
    """Keeps the options of a layer until its input is known."""

    kind: ClassVar[Any]  # the class that it stands for
    axis: ClassVar[int] = 1  # of x, whose size is missing

    def _keep(self, *options: Any, dtype: Any) -> None:
        super().__init__()
        self.options, self.dtype = options, dtype
        with init.seeded(0):  # the trial draws nothing from the model's stream
            self._made(self._trial(), np.dtype(np.float32))  # refuses what no input would make right

    def _trial(self) -> int:
        """A number of inputs that the options allow."""
        return 1

    def _made(self, inputs: int, dtype: Any) -> Module:
        return self.kind(inputs, *self.options, dtype=self.dtype or dtype)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            self._become(arg.array_of(args[0] if args else kwargs.get("x"), "x"))
        except (ValueError, TypeError) as error:
            locate(error, self, args)
            raise
        return self(*args, **kwargs)  # of the class that it is now

    def forward(self, x: Any, **kwargs: Any) -> Any:
        self._become(arg.array_of(x, "x"))
        return self.forward(x, **kwargs)

    def _become(self, x: Any) -> None:
        """Turn into a layer for inputs like x, its parameters being of x's dtype unless another was asked for."""
        if not -x.ndim <= self.axis < x.ndim:
            raise ValueError(f"{type(self).__name__}: x has no channels, got shape {x.shape}")
        kind, made = self.kind, self._made(x.shape[self.axis], x.dtype.newbyteorder("="))
        made.train(self.training)
        made.__dict__["_hooks"] = self._hooks  # the same dict: handles take their hooks out of it
        self.__dict__.clear()
        self.__dict__.update(made.__dict__)
        object.__setattr__(self, "__class__", kind)

    def _check_ready(self, name: str) -> None:
        raise RuntimeError(f"{type(self).__name__} {name!r} has no parameters yet: run a batch through the model first")

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.options))


class LazyConv2d(_Lazy):
    """:class:`Conv2d` that takes ``in_channels`` from its first input; dtype None takes the dtype as well."""

    kind = Conv2d
    axis = -3  # (N, C, H, W) or (C, H, W)

    def __init__(
        self, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
        bias: bool = True, *, dtype: Any = None,
    ) -> None:  # fmt: skip
        self._keep(out_channels, kernel_size, stride, padding, dilation, groups, bias, dtype=dtype)

    def _trial(self) -> int:
        return arg.integer(self.options[5], "LazyConv2d: groups", 1)


class LazyLinear(_Lazy):
    """:class:`Linear` that takes ``in_features`` from its first input; dtype None takes the dtype as well."""

    kind = Linear
    axis = -1

    def __init__(self, out_features: int, bias: bool = True, *, dtype: Any = None) -> None:
        self._keep(out_features, bias, dtype=dtype)


class _LazyBatchNorm(_Lazy):
    def __init__(
        self, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True, track_running_stats: bool = True,
        *, dtype: Any = None,
    ) -> None:  # fmt: skip
        self._keep(eps, momentum, affine, track_running_stats, dtype=dtype)


class LazyBatchNorm1d(_LazyBatchNorm):
    """:class:`BatchNorm1d` that takes ``num_features`` from its first input; dtype None takes the dtype as well."""

    kind = BatchNorm1d


class LazyBatchNorm2d(_LazyBatchNorm):
    """:class:`BatchNorm2d` that takes ``num_features`` from its first input; dtype None takes the dtype as well."""

    kind = BatchNorm2d


class LazyBatchNorm3d(_LazyBatchNorm):
    """:class:`BatchNorm3d` that takes ``num_features`` from its first input; dtype None takes the dtype as well."""

    kind = BatchNorm3d
