"""The layers, under PyTorch's names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import ops
from ..ops import arguments as arg
from .convs import Conv2d, draw_like_pytorch
from .module import Module, Parameter


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
    return (
        type(module) in (Conv2d, BatchNorm2d, Linear) and type(after) is ReLU and not module._hooks and not after._hooks
    )


class BatchNorm2d(Module):
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

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        track_running_stats: bool = True, *, dtype: Any = np.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_features = arg.integer(num_features, "BatchNorm2d: num_features", 1)
        self.eps, self.momentum, self.track_running_stats = eps, momentum, bool(track_running_stats)
        self.weight = Parameter(np.ones(num_features, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_features, dtype)) if affine else None
        if track_running_stats:
            self.register_buffer("running_mean", np.zeros(num_features, dtype))
            self.register_buffer("running_var", np.ones(num_features, dtype))
            self.register_buffer("num_batches_tracked", np.array(0, np.int64))

    def forward(self, x: Any, activation: str | None = None, residual: Any = None) -> Any:
        shape = arg.array_of(x, "x").shape
        if len(shape) != 4 or shape[1] != self.num_features:
            raise ValueError(f"BatchNorm2d: x must have shape (N, {self.num_features}, H, W), got {shape}")
        mean, var = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked[...] += 1
            if self.momentum is None:
                momentum = 1 / int(self.num_batches_tracked)
        training = self.training or not self.track_running_stats
        return ops.batch_norm(
            x, mean, var, self.weight, self.bias, training, momentum, self.eps, residual=residual, activation=activation
        )

    def extra_repr(self) -> str:
        text = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}"
        return f"{text}, track_running_stats={self.track_running_stats}"


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


class Flatten(Module):
    """(N, C, H, W) -> (N, C·H·W)."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Any) -> Any:
        return ops.flatten(x, self.start_dim, self.end_dim)


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Any) -> Any:
        return ops.relu(x)


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Any) -> Any:
        return ops.sigmoid(x)


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x: Any) -> Any:
        return ops.tanh(x)


class Softmax(Module):
    """exp(x) divided by its sum along ``dim``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Any) -> Any:
        return ops.softmax(x, self.dim)


class LogSoftmax(Softmax):
    """Logarithm of the softmax along ``dim``."""

    def forward(self, x: Any) -> Any:
        return ops.log_softmax(x, self.dim)


class CrossEntropyLoss(Module):
    """See :func:`convkern.nn.functional.cross_entropy`."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, logits: Any, labels: Any) -> Any:
        return ops.cross_entropy(logits, labels, self.reduction)
