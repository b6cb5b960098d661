"""Losses that compare numbers with numbers; those of class labels are in `entropy`.

In all of them the target must have the input's shape: broadcasting one to the other is nearly always a mistake.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..graph import record
from . import arguments as arg
from .arithmetic import _unary, clamp, log, mul, sub
from .arithmetic import abs as abs_
from .nonlinear import logsigmoid
from .reduce import mean as mean_
from .reduce import sum as sum_

REDUCTIONS = ("mean", "sum", "none")
LOG_FLOOR = -100.0  # logarithms of probabilities are not lower, as in PyTorch


def check_reduction(reduction: Any, function: str) -> None:
    """Raise unless it is one of the three."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"{function}: reduction must be one of {REDUCTIONS}, got {reduction!r}")


def reduced(losses: Any, reduction: str) -> Any:
    """The mean or the sum of all losses, or the losses."""
    if reduction == "none":
        return losses
    return mean_(losses) if reduction == "mean" else sum_(losses)


def _check(function: str, input: Any, target: Any, reduction: Any) -> np.ndarray:
    check_reduction(reduction, function)
    xa, ta = arg.float_arrays(function, input=input, target=target)
    if xa.shape != ta.shape:
        raise ValueError(f"{function}: target must have input's shape {xa.shape}, got {ta.shape}")
    if xa.size == 0 and reduction == "mean":
        raise ValueError(f"{function}: the mean over an empty batch does not exist")
    return xa


def mse_loss(input: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Squared differences.

    Parameters
    ----------
    input, target : array or Tensor
        Of one shape and one dtype, float32 or float64.
    reduction : "mean", "sum" or "none"

    Returns
    -------
    array or Tensor
        A scalar, or the shape of input with ``reduction="none"``.
    """
    _check("mse_loss", input, target, reduction)
    difference = sub(input, target)
    return reduced(mul(difference, difference), reduction)


def l1_loss(input: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Absolute differences.

    Parameters
    ----------
    input, target : array or Tensor
        Of one shape and one dtype, float32 or float64.
    reduction : "mean", "sum" or "none"

    Returns
    -------
    array or Tensor
        A scalar, or the shape of input with ``reduction="none"``.
    """
    _check("l1_loss", input, target, reduction)
    return reduced(abs_(sub(input, target)), reduction)


def _huber(difference: Any, delta: float) -> Any:
    """d²/2 where |d| is at most delta, else delta · (|d| - delta/2)."""
    size = np.abs(arg.array_of(difference, "input"))
    near = np.minimum(size, delta)
    return _unary(
        "huber", difference, near * (size - near / 2), lambda gy, d: gy * clamp(d, -delta, delta), (difference,)
    )


def huber_loss(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Any:
    """Half the squared difference d up to |d| = delta, beyond it delta · (|d| - delta/2).

    Parameters
    ----------
    input, target : array or Tensor
        Of one shape and one dtype, float32 or float64.
    reduction : "mean", "sum" or "none"
    delta : float
        Above 0.

    Returns
    -------
    array or Tensor
        A scalar, or the shape of input with ``reduction="none"``.

    References
    ----------
    Huber, "Robust estimation of a location parameter", 1964.
    """
    _check("huber_loss", input, target, reduction)
    return reduced(_huber(sub(input, target), arg.positive(delta, "huber_loss: delta")), reduction)


def smooth_l1_loss(input: Any, target: Any, *, reduction: str = "mean", beta: float = 1.0) -> Any:
    """d²/(2·beta) up to |d| = beta, beyond it |d| - beta/2: the Huber loss divided by its delta.

    Parameters
    ----------
    input, target : array or Tensor
        Of one shape and one dtype, float32 or float64.
    reduction : "mean", "sum" or "none"
    beta : float
        At least 0; 0 gives the absolute difference.

    Returns
    -------
    array or Tensor
        A scalar, or the shape of input with ``reduction="none"``.

    References
    ----------
    Girshick, "Fast R-CNN", 2015.
    """
    _check("smooth_l1_loss", input, target, reduction)
    beta = arg.number(beta, "smooth_l1_loss: beta", 0.0)
    difference = sub(input, target)
    return reduced(_huber(difference, beta) / beta if beta else abs_(difference), reduction)


def _scaled(losses: Any, weight: Any, function: str) -> Any:
    """The losses times a weight that broadcasts to them."""
    if weight is None:
        return losses
    (wa,) = arg.float_arrays(function, weight=weight)
    if np.broadcast_shapes(wa.shape, losses.shape) != losses.shape:
        raise ValueError(f"{function}: weight of shape {wa.shape} does not broadcast to {losses.shape}")
    return mul(losses, weight)


def binary_cross_entropy(input: Any, target: Any, weight: Any = None, *, reduction: str = "mean") -> Any:
    """-(t · log x + (1 - t) · log(1 - x)), each logarithm at least -100.

    Parameters
    ----------
    input : array or Tensor
        Probabilities from 0 to 1, float32 or float64.
    target : array or Tensor
        The true ones, of input's shape and dtype.
    weight : array or Tensor, optional
        Multiplies the losses; broadcasts to them.
    reduction : "mean", "sum" or "none"

    Returns
    -------
    array or Tensor
        A scalar, or the shape of input with ``reduction="none"``.
    """
    function = "binary_cross_entropy"
    xa = _check(function, input, target, reduction)
    if ((xa < 0) | (xa > 1)).any():
        raise ValueError(f"{function}: input must be between 0 and 1, got {xa.min():g} … {xa.max():g}")
    ta = arg.array_of(target, "target")
    with np.errstate(divide="ignore"):
        y = -(ta * np.maximum(np.log(xa), LOG_FLOOR) + (1 - ta) * np.maximum(np.log1p(-xa), LOG_FLOOR))

    def vjp(needs: list[bool], gy: Any, x: Any, t: Any) -> list[Any]:
        lowest = math.exp(LOG_FLOOR)
        return [
            gy * (x - t) / clamp(x * (1 - x), 1e-12) if needs[0] else None,
            gy * (log(clamp(1 - x, lowest)) - log(clamp(x, lowest))) if needs[1] else None,
        ]

    losses = record(function, y, (input, target), vjp, (input, target))
    return reduced(_scaled(losses, weight, function), reduction)


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, *, reduction: str = "mean", pos_weight: Any = None
) -> Any:
    """The binary cross-entropy of sigmoid(input), without overflow.

    Parameters
    ----------
    input : array or Tensor
        Logits, float32 or float64.
    target : array or Tensor
        True probabilities, of input's shape and dtype.
    weight : array or Tensor, optional
        Multiplies the losses; broadcasts to them.
    reduction : "mean", "sum" or "none"
    pos_weight : array or Tensor, optional
        Multiplies the part t · log(sigmoid(x)); broadcasts to input.

    Returns
    -------
    array or Tensor
        A scalar, or the shape of input with ``reduction="none"``.
    """
    function = "binary_cross_entropy_with_logits"
    xa = _check(function, input, target, reduction)
    logs = logsigmoid(input)
    if pos_weight is not None:
        (pa,) = arg.float_arrays(function, pos_weight=pos_weight)
        if np.broadcast_shapes(pa.shape, xa.shape) != xa.shape:
            raise ValueError(f"{function}: pos_weight of shape {pa.shape} does not broadcast to {xa.shape}")
        logs = mul(logs, 1 + mul(sub(pos_weight, 1), target))
    # log(1 - sigmoid(x)) = logsigmoid(x) - x
    losses = mul(sub(1, target), input) - logs
    return reduced(_scaled(losses, weight, function), reduction)
