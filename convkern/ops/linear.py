"""Matrix products, through NumPy's BLAS."""

from __future__ import annotations

from typing import Any

from ..blas import product
from ..graph import record
from . import arguments as arg
from .reduce import sum as sum_
from .shape import reshape, sum_to, transpose


def _swapped(x: Any) -> Any:
    """The last two axes exchanged."""
    axes = list(range(arg.array_of(x, "x").ndim))
    axes[-2:] = axes[-1], axes[-2]
    return transpose(x, axes)


def matmul(a: Any, b: Any) -> Any:
    """Matrix product with NumPy's rules: stacks of matrices broadcast, one-dimensional operands are vectors."""
    aa, ba = arg.array_of(a, "left operand"), arg.array_of(b, "right operand")
    if aa.ndim == 0 or ba.ndim == 0:
        raise ValueError(f"matmul: operands must have axes, got shapes {aa.shape} and {ba.shape}")
    if aa.ndim == 1:
        y = matmul(reshape(a, (1, -1)), b)
        return reshape(y, (*y.shape[:-2], y.shape[-1])) if ba.ndim > 1 else reshape(y, ())
    if ba.ndim == 1:
        y = matmul(a, reshape(b, (-1, 1)))
        return reshape(y, y.shape[:-1])
    if aa.shape[-1] != ba.shape[-2]:
        raise ValueError(f"matmul: inner sizes differ, {aa.shape} times {ba.shape}")

    a_shape, b_shape = aa.shape, ba.shape
    try:
        y = product(aa, ba)
    except ValueError:
        raise ValueError(f"matmul: the stacks do not broadcast, {a_shape} times {b_shape}") from None

    def vjp(needs: list[bool], gy: Any, a: Any, b: Any) -> list[Any]:
        return [
            sum_to(matmul(gy, _swapped(b)), a_shape) if needs[0] else None,
            sum_to(matmul(_swapped(a), gy), b_shape) if needs[1] else None,
        ]

    return record("matmul", y, (a, b), vjp, (arg.kept(a, b), arg.kept(b, a)))


def linear(x: Any, w: Any, bias: Any = None) -> Any:
    """x · wᵀ + bias.

    Parameters
    ----------
    x : array or Tensor, (…, in)
        float32 or float64.
    w : array or Tensor, (out, in)
    bias : array or Tensor, (out,), optional

    Returns
    -------
    array or Tensor, (…, out)
    """
    xa, wa = arg.float_arrays("linear", x=x, w=w)
    if xa.ndim < 1:
        raise ValueError("linear: x must have axes (…, in), got shape ()")
    if wa.ndim != 2 or xa.shape[-1] != wa.shape[1]:
        raise ValueError(f"linear: x of shape {xa.shape} needs w of shape (out, {xa.shape[-1]}), got {wa.shape}")
    outputs, inputs = wa.shape
    y = product(xa, wa.T) if xa.ndim > 1 else xa @ wa.T
    if bias is not None:
        *_, ba = arg.float_arrays("linear", x=x, w=w, bias=bias)
        if ba.shape != (outputs,):
            raise ValueError(f"linear: bias must have shape ({outputs},), got {ba.shape}")
        y += ba

    def vjp(needs: list[bool], gy: Any, x: Any, w: Any) -> list[Any]:
        rows = reshape(gy, (-1, outputs))  # (…, out) -> (rows, out)
        return [
            matmul(gy, w) if needs[0] else None,
            matmul(transpose(rows), reshape(x, (-1, inputs))) if needs[1] else None,
            sum_(rows, 0) if needs[2] else None,
        ]

    return record("linear", y, (x, w, bias), vjp, (arg.kept(x, w), arg.kept(w, x)))
