"""Matrix products: through NumPy's BLAS or CuPy's cuBLAS, and those of small linear layers by our own kernels on the CPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import amp, device
from ..blas import SMALL, product
from ..device import dtype_name, is_cupy, kernel_array
from ..graph import record
from ..kernels.spec import LinearSpec
from ..kernels.variant import Problem
from ..memory import empty
from ..plan import execute
from ..tensor import Tensor
from . import arguments as arg
from .activation import relu_grad
from .halves import operands
from .reduce import sum as sum_
from .shape import reshape, sum_to, transpose


def _swapped(x: Any) -> Any:
    """The last two axes exchanged."""
    axes = list(range(arg.array_of(x, "x").ndim))
    axes[-2:] = axes[-1], axes[-2]
    return transpose(x, axes)


def matmul(a: Any, b: Any) -> Any:
    """Matrix product with NumPy's rules: stacks of matrices broadcast, one-dimensional operands are vectors."""
    return _matmul(a, b, "default")


def _matmul(a: Any, b: Any, precision: str) -> Any:
    """With the operands rounded to a precision of halves, here and in the gradients; matrices then."""
    aa, ba = arg.kernel_inputs("matmul", **{"left operand": a, "right operand": b})
    if aa.ndim == 0 or ba.ndim == 0:
        raise ValueError(f"matmul: operands must have axes, got shapes {aa.shape} and {ba.shape}")
    if aa.ndim == 1:
        y = _matmul(reshape(a, (1, -1)), b, precision)
        return reshape(y, (*y.shape[:-2], y.shape[-1])) if ba.ndim > 1 else reshape(y, ())
    if ba.ndim == 1:
        y = _matmul(a, reshape(b, (-1, 1)), precision)
        return reshape(y, y.shape[:-1])
    if aa.shape[-1] != ba.shape[-2]:
        raise ValueError(f"matmul: inner sizes differ, {aa.shape} times {ba.shape}")

    a_shape, b_shape = aa.shape, ba.shape
    try:
        left, right = operands(precision, aa, ba)
        y = product(left, right, precision)
    except ValueError:
        raise ValueError(f"matmul: the stacks do not broadcast, {a_shape} times {b_shape}") from None

    def vjp(needs: list[bool], gy: Any, a: Any, b: Any) -> list[Any]:
        return [
            sum_to(_matmul(gy, _swapped(b), precision), a_shape) if needs[0] else None,
            sum_to(_matmul(_swapped(a), gy, precision), b_shape) if needs[1] else None,
        ]

    return record("matmul", y, (a, b), vjp, (arg.kept(a, b), arg.kept(b, a)))


def linear(x: Any, w: Any, bias: Any = None, *, activation: str | None = None) -> Any:
    """x · wᵀ + bias.

    Parameters
    ----------
    x : array or Tensor, (…, in)
        float32 or float64.
    w : array or Tensor, (out, in)
    bias : array or Tensor, (out,), optional
    activation : None or "relu"
        Applied to the result in the same pass.

    Returns
    -------
    array or Tensor, (…, out)
    """
    xa, wa = arg.float_arrays("linear", x=x, w=w)
    if xa.ndim < 1:
        raise ValueError("linear: x must have axes (…, in), got shape ()")
    if wa.ndim != 2 or xa.shape[-1] != wa.shape[1]:
        raise ValueError(f"linear: x of shape {xa.shape} needs w of shape (out, {xa.shape[-1]}), got {wa.shape}")
    precision = amp.precision_for("default", xa.dtype, device.of(xa))
    outputs, inputs = wa.shape
    ba = None
    if bias is not None:
        *_, ba = arg.float_arrays("linear", x=x, w=w, bias=bias)
        if ba.shape != (outputs,):
            raise ValueError(f"linear: bias must have shape ({outputs},), got {ba.shape}")
    lead = xa.shape[:-1]
    spec = LinearSpec(math.prod(lead), inputs, outputs, arg.activation_code(activation))
    y = _product(xa, wa, ba, spec, precision).reshape(*lead, outputs)

    def vjp(needs: list[bool], gy: Any, x: Any, w: Any, y: Any = None) -> list[Any]:
        if spec.activation:
            gy = relu_grad(gy, y)
        if isinstance(gy, Tensor) or spec.multiply_adds > SMALL or is_cupy(gy):
            rows = reshape(gy, (-1, outputs))  # (…, out) -> (rows, out)
            return [
                reshape(_matmul(rows, w, precision), (*lead, inputs)) if needs[0] else None,
                _matmul(transpose(rows), reshape(x, (-1, inputs)), precision) if needs[1] else None,
                sum_(rows, 0) if needs[2] else None,
            ]
        plain = LinearSpec(spec.n, inputs, outputs)
        rows = kernel_array(gy.reshape(spec.n, outputs))
        return [
            _gradient("input_grad", plain, (rows, w), (*lead, inputs), precision) if needs[0] else None,
            _gradient("weight_grad", plain, (x, rows), (outputs, inputs), precision) if needs[1] else None,
            np.add.reduce(rows, 0) if needs[2] else None,
        ]

    saved = (arg.kept(x, w), arg.kept(w, x))
    return record("linear", y, (x, w, bias), vjp, (*saved, y) if spec.activation else saved)


def _problem(direction: str, spec: LinearSpec, dtype: np.dtype) -> Problem:
    return Problem("linear", direction, "cpu", dtype_name(dtype), "default", spec)


def _product(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, spec: LinearSpec, precision: str) -> np.ndarray:
    """(N, out); small ones by our own kernel: BLAS is slow on them, and its threads stay in the way."""
    rows, w = operands(precision, x.reshape(spec.n, spec.inputs), w)
    if spec.multiply_adds > SMALL or is_cupy(x):
        y = product(rows, w.T, precision)
        if bias is not None:
            y += bias
        return np.maximum(y, 0, out=y) if spec.activation else y
    dtype = x.dtype.newbyteorder("=")
    y = empty((spec.n, spec.outputs), dtype)
    added = np.empty(0, dtype) if bias is None else kernel_array(bias)
    execute(_problem("forward", spec, dtype), kernel_array(rows), kernel_array(w), added, out=y)
    return y


def _gradient(
    direction: str, spec: LinearSpec, factors: tuple[Any, Any], shape: tuple[int, ...], precision: str
) -> np.ndarray:
    arrays = operands(precision, *(arg.array_of(a, "saved value") for a in factors))
    left, right = map(kernel_array, arrays)
    out = empty(shape, left.dtype)
    execute(_problem(direction, spec, out.dtype), left, right, out=out)
    return out
