"""Activation functions as modules.

``inplace`` is taken as in PyTorch, where it saves memory and changes no value; here no module overwrites its input.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..ops import arguments as arg
from .module import Module, Parameter


class ReLU(Module):
    """max(x, 0)."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()

    def forward(self, x: Any) -> Any:
        return ops.relu(x)


class ReLU6(Module):
    """min(max(x, 0), 6)."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()

    def forward(self, x: Any) -> Any:
        return ops.relu6(x)


class LeakyReLU(Module):
    """x where it is positive, else negative_slope · x."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope = arg.number(negative_slope, "LeakyReLU: negative_slope")

    def forward(self, x: Any) -> Any:
        return ops.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class PReLU(Module):
    """x where it is positive, else weight · x; weight (num_parameters,) is trained.

    Parameters
    ----------
    num_parameters : int
        1, or the channels of x.
    init : float
        First weight.
    """

    weight: Parameter

    def __init__(self, num_parameters: int = 1, init: float = 0.25, *, dtype: Any = np.float32) -> None:
        super().__init__()
        count = arg.integer(num_parameters, "PReLU: num_parameters", 1)
        self.weight = Parameter(np.full(count, arg.number(init, "PReLU: init"), dtype))

    def forward(self, x: Any) -> Any:
        return ops.prelu(x, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.weight.size}"


class ELU(Module):
    """x where it is positive, else alpha · (exp(x) - 1)."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        self.alpha = arg.number(alpha, "ELU: alpha")

    def forward(self, x: Any) -> Any:
        return ops.elu(x, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class SELU(Module):
    """The self-normalising ELU, see :func:`convkern.nn.functional.selu`."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()

    def forward(self, x: Any) -> Any:
        return ops.selu(x)


class SiLU(Module):
    """x · sigmoid(x), known as Swish."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()

    def forward(self, x: Any) -> Any:
        return ops.silu(x)


class Hardswish(Module):
    """x · min(max(x + 3, 0), 6) / 6."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()

    def forward(self, x: Any) -> Any:
        return ops.hardswish(x)


class GELU(Module):
    """x · Φ(x), see :func:`convkern.nn.functional.gelu`."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELU: approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def forward(self, x: Any) -> Any:
        return ops.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


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
