"""Activation functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..device import (
    FLOATS,
    dtype_name,
    from_last,
    is_channels_last,
    is_cupy,
    kernel_array,
    laid_out,
    like_format,
    of,
    to_last,
    whole,
)
from ..graph import record
from ..kernels.spec import ChannelSpec
from ..kernels.variant import Problem
from ..plan import execute
from . import arguments as arg
from .elementwise import elementwise, in_memory_order
from .reduce import axes_of, largest
from .reduce import sum as sum_


def relu(x: Any) -> Any:
    """max(x, 0); NaN stays NaN, and the derivative at 0 is 0.

    Parameters
    ----------
    x : array or Tensor

    Returns
    -------
    array or Tensor of x's shape
    """
    (xa,) = arg.kernel_inputs("relu", x=x)
    if xa.dtype.newbyteorder("=") in FLOATS:
        y = elementwise("relu", xa)
    else:
        y = whole(np.maximum(xa, 0))
    return record("relu", y, (x,), lambda needs, gy, y: [relu_grad(gy, y)], (y,))


def relu_grad(gy: Any, y: Any) -> Any:
    """gy where the ReLU let something through, else 0."""
    result = arg.array_of(y, "y")
    gx = elementwise("relu_grad", arg.array_of(gy, "gy"), result)
    return record("relu backward", gx, (gy,), lambda needs, ggx, y: [relu_grad(ggx, y)], (result,))


def relu_bias_grad(gy: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`relu_grad` of arrays (N, C, …) or (C, …) and its sum over every channel (C,), in one pass."""
    if is_cupy(y) and is_channels_last(y):  # every pixel as an image of its own
        pixels = -1, y.shape[1], 1, 1
        g, sums = relu_bias_grad(kernel_array(to_last(gy)).reshape(pixels), to_last(y).reshape(pixels))
        return from_last(g.reshape(to_last(y).shape)), sums
    shape = gy.shape if gy.ndim > 3 else (1, *gy.shape)
    spec = ChannelSpec(shape[0], shape[1], math.prod(shape[2:]))
    dtype = y.dtype.newbyteorder("=")
    g, sums = arg.new_array(gy.shape, dtype, gy), arg.new_array((spec.c,), dtype, gy)
    problem = Problem("elementwise", "relu_bias_grad", of(gy), dtype_name(dtype), "default", spec)
    rows = (kernel_array(a).reshape(spec) for a in (gy, y))
    execute(problem, *rows, out=(g.reshape(spec), sums))
    return like_format(y, g), sums


def pooled_relu_bias_grad(gy: np.ndarray, y: np.ndarray, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """As `relu_bias_grad`, of the gradient that an average pooling of y gives for its own gy (N, C, P, Q)."""
    spec, last = problem.spec, problem.layout == "channels_last"
    g, sums = arg.image_array(y.shape, gy.dtype, y, last), arg.new_array((spec.c,), gy.dtype, y)
    results = laid_out(y, last).reshape(spec.x_shape)
    execute(problem, gy, results, out=(g.reshape(spec.x_shape), sums))
    return like_format(y, g), sums


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), without overflow.

    Parameters
    ----------
    x : array or Tensor

    Returns
    -------
    array or Tensor of x's shape
    """
    y = whole(in_memory_order(_sigmoid, arg.array_of(x, "x")))
    return record("sigmoid", y, (x,), lambda needs, gy, y: [in_memory_order(_sigmoid_grad, gy, y)], (y,))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _sigmoid_grad(gy: Any, y: Any) -> Any:
    return gy * y * (1 - y)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent.

    Parameters
    ----------
    x : array or Tensor

    Returns
    -------
    array or Tensor of x's shape
    """
    y = whole(in_memory_order(np.tanh, arg.array_of(x, "x")))
    return record("tanh", y, (x,), lambda needs, gy, y: [in_memory_order(lambda gy, y: gy * (1 - y * y), gy, y)], (y,))


def softmax(x: Any, dim: int) -> Any:
    """exp(x) divided by its sum along ``dim``.

    Parameters
    ----------
    x : array or Tensor
        float32 or float64; large values do not overflow.
    dim : int

    Returns
    -------
    array or Tensor of x's shape
    """
    (xa,) = arg.float_arrays("softmax", x=x)
    axes = axes_of(dim, xa.ndim)
    e = np.exp(xa - largest(xa, axes))
    y = whole(e / e.sum(axis=axes, keepdims=True))

    def vjp(needs: list[bool], gy: Any, y: Any) -> list[Any]:
        return [y * (gy - sum_(gy * y, dim, True))]

    return record("softmax", y, (x,), vjp, (y,))


def log_softmax(x: Any, dim: int) -> Any:
    """Logarithm of the softmax along ``dim``, computed without it.

    Parameters
    ----------
    x : array or Tensor
        float32 or float64.
    dim : int

    Returns
    -------
    array or Tensor of x's shape
    """
    (xa,) = arg.float_arrays("log_softmax", x=x)
    axes = axes_of(dim, xa.ndim)
    shifted = xa - largest(xa, axes)
    y = whole(shifted - np.log(np.exp(shifted).sum(axis=axes, keepdims=True)))

    def vjp(needs: list[bool], gy: Any, y: Any) -> list[Any]:
        from .arithmetic import exp

        return [gy - exp(y) * sum_(gy, dim, True)]

    return record("log_softmax", y, (x,), vjp, (y,))
