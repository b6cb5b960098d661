"""Activation functions beyond ReLU, sigmoid and softmax; each derivative is written in public operations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..graph import record
from . import arguments as arg
from .activation import sigmoid
from .arithmetic import _unary, erf, exp, where
from .elementwise import in_memory_order
from .shape import reshape, sum_to

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
ROOT_HALF = math.sqrt(0.5)
TANH_SCALE = math.sqrt(2 / math.pi)
TANH_CUBE = 0.044715


def relu6(x: Any) -> Any:
    """min(max(x, 0), 6); the derivative at 0 and at 6 is 0.

    Parameters
    ----------
    x : array or Tensor
        float32 or float64.

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    Krizhevsky, "Convolutional deep belief networks on CIFAR-10", 2010.
    """
    xa = arg.native("relu6", x)
    y = in_memory_order(lambda x: np.clip(x, 0, 6), xa)
    return _unary("relu6", x, y, lambda gy, x: where((x <= 0) | (x >= 6), 0, gy), (x,))


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    """x where it is positive, else negative_slope · x.

    Parameters
    ----------
    x : array or Tensor
        float32 or float64.
    negative_slope : float

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", 2013.
    """
    slope = arg.number(negative_slope, "leaky_relu: negative_slope")
    xa = arg.native("leaky_relu", x)
    y = in_memory_order(lambda x: np.where(x > 0, x, x * slope), xa)
    return _unary("leaky_relu", x, y, lambda gy, x: where(x > 0, gy, gy * slope), (x,))


def prelu(x: Any, weight: Any) -> Any:
    """x where it is positive, else weight · x, where the weight is trained.

    Parameters
    ----------
    x : array or Tensor, (N, C, …)
        float32 or float64.
    weight : array or Tensor, (1,) or (C,)
        One slope for all, or one for each channel.

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015.
    """
    xa, wa = arg.float_arrays("prelu", x=x, weight=weight)
    channels = xa.shape[1] if xa.ndim > 1 else 1
    if wa.ndim > 1 or wa.size not in (1, channels):
        raise ValueError(
            f"prelu: weight must have shape (1,) or ({channels},) for x of shape {xa.shape}, got {wa.shape}"
        )
    shape = wa.shape
    column = (1, -1, *(1,) * (xa.ndim - 2)) if wa.size > 1 else (1,) * xa.ndim  # (C,) -> (1, C, 1, …)
    y = in_memory_order(lambda x, w: np.where(x > 0, x, x * w), xa, wa.reshape(column))

    def vjp(needs: list[bool], gy: Any, x: Any, weight: Any) -> list[Any]:
        w = reshape(weight, column)
        gx = where(x > 0, gy, gy * w) if needs[0] else None
        gw = reshape(sum_to(where(x > 0, 0, gy * x), w.shape), shape) if needs[1] else None
        return [gx, gw]

    return record("prelu", y, (x, weight), vjp, (x, weight))


def _elu(name: str, x: Any, alpha: float, scale: float) -> Any:
    """scale · (x where it is positive, else alpha · (exp(x) - 1))."""
    xa = arg.native(name, x)
    y = in_memory_order(lambda x: np.where(x > 0, x * scale, scale * alpha * np.expm1(np.minimum(x, 0))), xa)

    def vjp(gy: Any, x: Any) -> Any:
        return where(x > 0, gy * scale, gy * (scale * alpha) * exp(where(x > 0, 0, x)))

    return _unary(name, x, y, vjp, (x,))


def elu(x: Any, alpha: float = 1.0) -> Any:
    """x where it is positive, else alpha · (exp(x) - 1).

    Parameters
    ----------
    x : array or Tensor
        float32 or float64.
    alpha : float

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    Clevert, Unterthiner and Hochreiter, "Fast and accurate deep network learning by exponential linear units", 2016.
    """
    return _elu("elu", x, arg.number(alpha, "elu: alpha"), 1.0)


def selu(x: Any) -> Any:
    """ELU, scaled such that mean 0 and variance 1 stay from layer to layer.

    Parameters
    ----------
    x : array or Tensor
        float32 or float64.

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    Klambauer, Unterthiner, Mayr and Hochreiter, "Self-normalizing neural networks", 2017.
    """
    return _elu("selu", x, SELU_ALPHA, SELU_SCALE)


def silu(x: Any) -> Any:
    """x · sigmoid(x), known as Swish.

    Parameters
    ----------
    x : array or Tensor
        float32 or float64.

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    Ramachandran, Zoph and Le, "Searching for activation functions", 2017.
    """
    xa = arg.native("silu", x)

    def vjp(gy: Any, x: Any) -> Any:
        s = sigmoid(x)
        return gy * (s * (1 + x * (1 - s)))

    return _unary("silu", x, xa * sigmoid(xa), vjp, (x,))


def gelu(x: Any, approximate: str = "none") -> Any:
    """x · Φ(x), where Φ is the distribution function of the normal distribution.

    Parameters
    ----------
    x : array or Tensor
        float32 or float64.
    approximate : "none" or "tanh"
        Φ(x) = (1 + erf(x/√2)) / 2, or (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2.

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    Hendrycks and Gimpel, "Gaussian error linear units", 2016.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    xa = arg.native("gelu", x)
    if approximate == "none":
        y = in_memory_order(lambda x: 0.5 * x * (1 + erf(x * ROOT_HALF)), xa)
        return _unary("gelu", x, y, _gelu_grad, (x,))
    y = in_memory_order(lambda x: 0.5 * x * (1 + np.tanh(_inner(x))), xa)
    return _unary("gelu", x, y, _tanh_gelu_grad, (x,))


def _inner(x: Any) -> Any:
    return TANH_SCALE * (x + TANH_CUBE * x * x * x)


def _gelu_grad(gy: Any, x: Any) -> Any:
    """Φ(x) + x · φ(x)."""
    return gy * (0.5 * (1 + erf(x * ROOT_HALF)) + x * exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi)))


def _tanh_gelu_grad(gy: Any, x: Any) -> Any:
    from .activation import tanh

    t = tanh(_inner(x))
    slope = TANH_SCALE * (1 + 3 * TANH_CUBE * x * x)
    return gy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope)


def hardswish(x: Any) -> Any:
    """x · min(max(x + 3, 0), 6) / 6; the derivative is 0 at -3 and 1 at 3.

    Parameters
    ----------
    x : array or Tensor
        float32 or float64.

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    Howard et al., "Searching for MobileNetV3", 2019.
    """
    xa = arg.native("hardswish", x)
    y = in_memory_order(lambda x: x * np.clip(x + 3, 0, 6) / 6, xa)

    def vjp(gy: Any, x: Any) -> Any:
        return where(x <= -3, 0, where(x >= 3, gy, gy * (x / 3 + 0.5)))

    return _unary("hardswish", x, y, vjp, (x,))


def logsigmoid(x: Any) -> Any:
    """Logarithm of the sigmoid, without overflow.

    Parameters
    ----------
    x : array or Tensor
        float32 or float64.

    Returns
    -------
    array or Tensor of x's shape
    """
    xa = arg.native("logsigmoid", x)
    y = in_memory_order(lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))), xa)
    return _unary("logsigmoid", x, y, lambda gy, x: gy * sigmoid(-x), (x,))
