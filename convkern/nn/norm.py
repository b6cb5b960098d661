"""Normalising layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..device import refuse_capture
from ..ops import arguments as arg
from ..ops.row_norm import shape_of
from .module import Module, Parameter

AXES = {1: "L", 2: "H, W", 3: "D, H, W"}  # of the pixels, by their number


class _ChannelNorm(Module):
    """Parameters and running statistics of layers that normalise channels."""

    pixels: int  # axes of the pixels
    weight: Parameter | None
    bias: Parameter | None

    def _build(
        self, num_features: int, eps: float, momentum: float | None, affine: bool, track_running_stats: bool, dtype: Any
    ) -> None:
        super().__init__()
        name = type(self).__name__
        count = self.num_features = arg.integer(num_features, f"{name}: num_features", 1)
        self.eps = arg.number(eps, f"{name}: eps", 0.0)
        self.momentum = None if momentum is None else arg.number(momentum, f"{name}: momentum", 0.0, 1.0)
        self.affine, self.track_running_stats = bool(affine), bool(track_running_stats)
        self.weight = Parameter(np.ones(count, dtype)) if affine else None
        self.bias = Parameter(np.zeros(count, dtype)) if affine else None
        if track_running_stats:
            self.register_buffer("running_mean", np.zeros(count, dtype))
            self.register_buffer("running_var", np.ones(count, dtype))
            self.register_buffer("num_batches_tracked", np.array(0, np.int64))

    def _running(self) -> tuple[Any, Any]:
        return (self.running_mean, self.running_var) if self.track_running_stats else (None, None)

    def extra_repr(self) -> str:
        text = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"
        return f"{text}, track_running_stats={self.track_running_stats}"


class _BatchNorm(_ChannelNorm):
    without_pixels = False  # (N, C) is taken as well

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        track_running_stats: bool = True, *, dtype: Any = np.float32,
    ) -> None:  # fmt: skip
        self._build(num_features, eps, momentum, affine, track_running_stats, dtype)

    def _check(self, shape: tuple[int, ...]) -> None:
        fits = len(shape) == self.pixels + 2 or (self.without_pixels and len(shape) == 2)
        if not fits or shape[1] != self.num_features:
            wanted = f"(N, {self.num_features}, {AXES[self.pixels]})"
            wanted += f" or (N, {self.num_features})" * self.without_pixels
            raise ValueError(f"{type(self).__name__}: x must have shape {wanted}, got {shape}")

    def forward(self, x: Any, activation: str | None = None, residual: Any = None) -> Any:
        self._check(arg.array_of(x, "x").shape)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked[...] += 1
            if self.momentum is None:
                refuse_capture(
                    f"{type(self).__name__} with momentum=None", "the share of a batch changes from step to step"
                )
                momentum = 1 / int(self.num_batches_tracked)
        training = self.training or not self.track_running_stats
        mean, var = self._running()
        return ops.batch_norm(
            x, mean, var, self.weight, self.bias, training, momentum, self.eps, residual=residual, activation=activation
        )


class BatchNorm1d(_BatchNorm):
    """As :class:`BatchNorm2d`, for (N, C) or (N, C, L)."""

    pixels, without_pixels = 1, True


class BatchNorm2d(_BatchNorm):
    """Normalises every channel of (N, C, H, W), see :func:`convkern.nn.functional.batch_norm`.

    Parameters
    ----------
    num_features : int
        C.
    eps : float
        Added to the variance.
    momentum : float or None
        Share of a batch in the running statistics; None: their plain mean over all batches.
    affine : bool
        Have a trained weight (C,), first 1, and bias (C,), first 0.
    track_running_stats : bool
        Keep ``running_mean``, ``running_var`` and ``num_batches_tracked`` for evaluation; else a batch is always
        normalised with its own statistics.
    """

    pixels = 2


class BatchNorm3d(_BatchNorm):
    """As :class:`BatchNorm2d`, for (N, C, D, H, W)."""

    pixels = 3


class _InstanceNorm(_ChannelNorm):
    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = False,
        track_running_stats: bool = False, *, dtype: Any = np.float32,
    ) -> None:  # fmt: skip
        self._build(num_features, eps, momentum, affine, track_running_stats, dtype)

    def forward(self, x: Any) -> Any:
        shape = arg.array_of(x, "x").shape
        if len(shape) == self.pixels + 1 and shape[0] == self.num_features:  # one image without its batch
            return ops.reshape(self.forward(ops.reshape(x, (1, *shape))), shape)
        if len(shape) != self.pixels + 2 or shape[1] != self.num_features:
            wanted = f"([N, ]{self.num_features}, {AXES[self.pixels]})"
            raise ValueError(f"{type(self).__name__}: x must have shape {wanted}, got {shape}")
        own = self.training or not self.track_running_stats
        # PyTorch counts no batches here, and takes momentum None for 0
        momentum = 0.0 if self.momentum is None else self.momentum
        mean, var = self._running()
        return ops.instance_norm(x, mean, var, self.weight, self.bias, own, momentum, self.eps)


class InstanceNorm1d(_InstanceNorm):
    """As :class:`InstanceNorm2d`, for (N, C, L) or (C, L)."""

    pixels = 1


class InstanceNorm2d(_InstanceNorm):
    """Normalises every channel of every image of (N, C, H, W) or (C, H, W) with its own mean and variance.

    Parameters
    ----------
    num_features : int
        C.
    eps : float
        Added to the variance.
    momentum : float or None
        Share of a batch in the running statistics; None keeps them as they are.
    affine : bool
        Have a trained weight (C,), first 1, and bias (C,), first 0.
    track_running_stats : bool
        Keep running statistics, and normalise with them in evaluation.
    """

    pixels = 2


class InstanceNorm3d(_InstanceNorm):
    """As :class:`InstanceNorm2d`, for (N, C, D, H, W) or (C, D, H, W)."""

    pixels = 3


class LayerNorm(Module):
    """Normalises over the last axes, see :func:`convkern.nn.functional.layer_norm`.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        The last axes of x.
    eps : float
        Added to the variance.
    elementwise_affine : bool
        Have a trained weight and bias of shape normalized_shape.
    bias : bool
        False: a weight only.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self, normalized_shape: Any, eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True,
        *, dtype: Any = np.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        self.normalized_shape = shape_of(normalized_shape, "LayerNorm: normalized_shape")
        self.eps, self.elementwise_affine = arg.number(eps, "LayerNorm: eps", 0.0), bool(elementwise_affine)
        self.weight = Parameter(np.ones(self.normalized_shape, dtype)) if elementwise_affine else None
        self.bias = Parameter(np.zeros(self.normalized_shape, dtype)) if elementwise_affine and bias else None

    def forward(self, x: Any) -> Any:
        return ops.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(Module):
    """Normalises groups of channels of every image, see :func:`convkern.nn.functional.group_norm`.

    Parameters
    ----------
    num_groups : int
        Divides num_channels.
    num_channels : int
        C.
    eps : float
        Added to the variance.
    affine : bool
        Have a trained weight (C,), first 1, and bias (C,), first 0.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, *, dtype: Any = np.float32
    ) -> None:
        super().__init__()
        self.num_groups = arg.integer(num_groups, "GroupNorm: num_groups", 1)
        self.num_channels = arg.integer(num_channels, "GroupNorm: num_channels", 1)
        if self.num_channels % self.num_groups:
            raise ValueError(f"GroupNorm: num_groups={num_groups} must divide num_channels={num_channels}")
        self.eps = arg.number(eps, "GroupNorm: eps", 0.0)
        self.weight = Parameter(np.ones(num_channels, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_channels, dtype)) if affine else None

    def forward(self, x: Any) -> Any:
        shape = arg.array_of(x, "x").shape
        if len(shape) < 2 or shape[1] != self.num_channels:
            raise ValueError(f"GroupNorm: x must have shape (N, {self.num_channels}, …), got {shape}")
        return ops.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.weight is not None}"


class LocalResponseNorm(Module):
    """See :func:`convkern.nn.functional.local_response_norm`."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size = arg.integer(size, "LocalResponseNorm: size", 1)
        self.alpha = arg.number(alpha, "LocalResponseNorm: alpha")
        self.beta, self.k = arg.number(beta, "LocalResponseNorm: beta"), arg.number(k, "LocalResponseNorm: k")

    def forward(self, x: Any) -> Any:
        return ops.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
