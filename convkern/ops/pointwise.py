"""The 1x1 convolution and its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import amp, device
from ..device import dtype_name, kernel_array
from ..graph import record
from ..kernels.spec import PointwiseSpec
from ..kernels.variant import Problem
from ..plan import execute
from . import arguments as arg
from .activation import relu_grad
from .convolution import batched, bias_array, bias_grad, residual_array
from .halves import operands


def _matrix(w: np.ndarray, function: str) -> np.ndarray:
    """w as (K, C)."""
    if w.ndim not in (2, 4) or w.shape[2:] not in ((), (1, 1)) or 0 in w.shape:
        raise ValueError(f"{function}: w must have shape (K, C) or (K, C, 1, 1), got {w.shape}")
    return w.reshape(w.shape[:2])


def pointwise(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    residual: Any = None,
    activation: str | None = None,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """1x1 convolution: every pixel's channels are mixed by one matrix.

    Parameters
    ----------
    x : array or Tensor, (N, C, H, W) or (C, H, W)
        float32 or float64.
    w : array or Tensor, (K, C) or (K, C, 1, 1)
    bias : array or Tensor, (K,), optional
    residual, activation, out, precision
        As in :func:`convkern.conv2d`.

    Returns
    -------
    array or Tensor, (N, K, H, W) or (K, H, W)

    References
    ----------
    Lin, Chen and Yan, "Network In Network", 2013.
    """
    name = "pointwise"
    xa, wa = arg.float_arrays(name, halves=True, x=x, w=w)
    matrix, w_shape = _matrix(wa, name), wa.shape
    n, c, h, v = batched(xa.shape, name, "x")
    k = matrix.shape[0]
    if c != matrix.shape[1]:
        raise ValueError(f"{name}: x has {c} channels, but w of shape {wa.shape} takes {matrix.shape[1]}")
    spec = PointwiseSpec(n, c, k, h * v, arg.activation_code(activation))
    precision = amp.precision_for(precision, xa.dtype, device.of(xa))
    direction = "forward" if residual is None else "forward_residual"
    problem = Problem("pointwise", direction, device.of(xa), dtype_name(xa.dtype), arg.check_precision(precision), spec)
    y_shape = (n, k, h, v)[4 - xa.ndim :]
    added = [] if residual is None else [kernel_array(residual_array(residual, name, xa, y_shape))]
    y = arg.result_array(out, y_shape, xa.dtype, (x, w, bias, residual))
    left, right = operands(precision, xa, matrix)
    flat = kernel_array(left.reshape(n, c, h * v))
    inputs = flat, kernel_array(right), bias_array(bias, name, xa, k), *(a.reshape(n, k, h * v) for a in added)
    execute(problem, *inputs, out=y.reshape(n, k, h * v))
    y = arg.deliver(y, out, xa)

    def vjp(needs: list[bool], gy: Any, x: Any, w: Any, y: Any = None) -> list[Any]:
        if spec.activation:
            gy = relu_grad(gy, y)
        return [
            pointwise_input_grad(gy, w, precision=precision) if needs[0] else None,
            pointwise_weight_grad(x, gy, precision=precision).reshape(w_shape) if needs[1] else None,
            bias_grad(gy) if needs[2] else None,
            gy if needs[3] else None,
        ]

    saved = (arg.kept(x, w), arg.kept(w, x))
    return record(name, y, (x, w, bias, residual), vjp, (*saved, y) if spec.activation else saved)


def pointwise_input_grad(gy: Any, w: Any, *, out: np.ndarray | None = None, precision: str = "default") -> Any:
    """Gradient of :func:`pointwise` with respect to x: every pixel's gy mixed by the transposed matrix.

    Parameters
    ----------
    gy : array or Tensor, (N, K, H, W) or (K, H, W)
        Gradient with respect to the output.
    w : array or Tensor, (K, C) or (K, C, 1, 1)
    out, precision
        As in :func:`convkern.conv2d`.

    Returns
    -------
    array or Tensor, (N, C, H, W) or (C, H, W)
    """
    name = "pointwise_input_grad"
    ga, wa = arg.float_arrays(name, halves=True, gy=gy, w=w)
    matrix, w_shape = _matrix(wa, name), wa.shape
    n, k, h, v = batched(ga.shape, name, "gy")
    if k != matrix.shape[0]:
        raise ValueError(f"{name}: gy has {k} channels, but w of shape {wa.shape} gives {matrix.shape[0]}")
    spec = PointwiseSpec(n, matrix.shape[1], k, h * v)
    problem = Problem(
        "pointwise", "input_grad", device.of(ga), dtype_name(ga.dtype), arg.check_precision(precision), spec
    )
    gx = arg.result_array(out, (n, spec.c, h, v)[4 - ga.ndim :], ga.dtype, (gy, w))
    left, right = operands(precision, ga, matrix)
    execute(problem, kernel_array(left.reshape(n, k, h * v)), kernel_array(right), out=gx.reshape(n, spec.c, h * v))
    gx = arg.deliver(gx, out, ga)

    def vjp(needs: list[bool], ggx: Any, gy: Any, w: Any) -> list[Any]:
        return [
            pointwise(ggx, w, precision=precision) if needs[0] else None,
            pointwise_weight_grad(ggx, gy, precision=precision).reshape(w_shape) if needs[1] else None,
        ]

    return record(name, gx, (gy, w), vjp, (arg.kept(gy, w), arg.kept(w, gy)))


def pointwise_weight_grad(x: Any, gy: Any, *, out: np.ndarray | None = None, precision: str = "default") -> Any:
    """Gradient of :func:`pointwise` with respect to w: the products of x and gy summed over images and pixels.

    Parameters
    ----------
    x : array or Tensor, (N, C, H, W) or (C, H, W)
    gy : array or Tensor, (N, K, H, W) or (K, H, W)
        Gradient with respect to the output.
    out, precision
        As in :func:`convkern.conv2d`.

    Returns
    -------
    array or Tensor, (K, C)
    """
    name = "pointwise_weight_grad"
    xa, ga = arg.float_arrays(name, halves=True, x=x, gy=gy)
    n, c, h, v = batched(xa.shape, name, "x")
    k = batched(ga.shape, name, "gy")[1]
    expected = (n, k, h, v)[4 - xa.ndim :]
    if ga.shape != expected:
        raise ValueError(f"{name}: gy must have shape {expected} for x {xa.shape}, got {ga.shape}")
    spec = PointwiseSpec(n, c, k, h * v)
    problem = Problem(
        "pointwise", "weight_grad", device.of(xa), dtype_name(xa.dtype), arg.check_precision(precision), spec
    )
    gw = arg.result_array(out, (k, c), xa.dtype, (x, gy))
    xa, ga = operands(precision, xa, ga)
    execute(problem, kernel_array(xa.reshape(n, c, h * v)), kernel_array(ga.reshape(n, k, h * v)), out=gw)
    if out is not None:
        gw = arg.deliver(gw, out, gw)

    def vjp(needs: list[bool], ggw: Any, x: Any, gy: Any) -> list[Any]:
        return [
            pointwise_input_grad(gy, ggw, precision=precision) if needs[0] else None,
            pointwise(x, ggw, precision=precision) if needs[1] else None,
        ]

    return record(name, gw, (x, gy), vjp, (arg.kept(x, gy), arg.kept(gy, x)))
