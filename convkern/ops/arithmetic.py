"""Elementwise arithmetic with broadcasting."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .. import device, graph
from ..device import whole
from ..graph import record
from . import arguments as arg
from .elementwise import elementwise, in_memory_order, plain_and_large
from .shape import sum_to


def _operand(value: Any, name: str) -> Any:
    """A plain array, or a Python number, which takes the other operand's dtype."""
    return (
        value if isinstance(value, (bool, int, float)) and type(value) is not np.float64 else arg.array_of(value, name)
    )


def _on_one_device(name: str, a: Any, b: Any) -> tuple[Any, Any]:
    """Both as they are, but for a NumPy array without axes beside CuPy's, which becomes a number."""
    if device.is_cupy(a) != device.is_cupy(b):
        a, b = arg.scalar(a), arg.scalar(b)
        arrays = {
            n: v for n, v in (("left operand", a), ("right operand", b)) if hasattr(v, "shape") and not np.isscalar(v)
        }
        device.one(name, arrays, arrays.values())
    return a, b


def _binary(
    name: str, compute: Callable[..., Any], a: Any, b: Any, vjp: Callable[..., Any], *saved: Any, before: Any = ()
) -> Any:
    """``compute(*before, a, b)`` of plain arrays and numbers, and ``vjp(needs, gy, *saved)``, both elementwise."""
    aa, ba = _operand(a, "left operand"), _operand(b, "right operand")
    if "cupy" in sys.modules:
        aa, ba = _on_one_device(name, aa, ba)
    try:
        y = whole(in_memory_order(compute, *before, aa, ba))
    except ValueError:
        raise ValueError(f"{name}: shapes {np.shape(aa)} and {np.shape(ba)} do not broadcast") from None

    shapes = np.shape(aa), np.shape(ba)

    def fitted(needs: list[bool], gy: Any, *saved: Any) -> list[Any]:
        grads = in_memory_order(partial(vjp, needs), gy, *saved)
        return [sum_to(g, shape) if need else None for g, shape, need in zip(grads, shapes, needs, strict=True)]

    return record(name, y, (a, b), fitted, saved)


def _sum(a: Any, b: Any) -> Any:
    """Where the images of a batch are added, as at the end of a residual block, all threads take part."""
    return elementwise("add", a, b) if plain_and_large(a, b) else np.add(a, b)


def add(a: Any, b: Any) -> Any:
    """a + b."""
    return _binary("add", _sum, a, b, lambda needs, gy: (gy, gy))


graph.add = add


def sub(a: Any, b: Any) -> Any:
    """a - b."""
    return _binary("sub", np.subtract, a, b, lambda needs, gy: (gy, -gy if needs[1] else None))


def mul(a: Any, b: Any) -> Any:
    """a · b."""

    def vjp(needs: list[bool], gy: Any, a: Any, b: Any) -> tuple[Any, Any]:
        return gy * b if needs[0] else None, gy * a if needs[1] else None

    return _binary("mul", np.multiply, a, b, vjp, arg.kept(a, b), arg.kept(b, a))


def div(a: Any, b: Any) -> Any:
    """a / b."""

    def vjp(needs: list[bool], gy: Any, a: Any, b: Any) -> tuple[Any, Any]:
        return gy / b if needs[0] else None, -gy * (a / b) / b if needs[1] else None

    return _binary("div", np.true_divide, a, b, vjp, arg.kept(a, b), arg.kept(b, a, b))


def _unary(name: str, x: Any, y: Any, vjp: Callable[..., Any], saved: tuple[Any, ...]) -> Any:
    """y is x's image under an elementwise function, whose ``vjp(gy, *saved)`` is elementwise too."""
    return record(name, whole(y), (x,), lambda needs, gy, *values: [in_memory_order(vjp, gy, *values)], saved)


def neg(x: Any) -> Any:
    """-x."""
    return _unary("neg", x, in_memory_order(np.negative, arg.array_of(x, "x")), lambda gy: -gy, ())


def pow(x: Any, exponent: float) -> Any:
    """x to the power of a number."""
    if not isinstance(exponent, (int, float, np.number)):
        raise TypeError(f"pow: exponent must be a number, got {type(exponent).__name__}")
    y = in_memory_order(lambda x: x**exponent, arg.array_of(x, "x"))

    def vjp(gy: Any, x: Any) -> Any:
        return gy * (exponent * x ** (exponent - 1)) if exponent != 0 else gy * 0

    return _unary("pow", x, y, vjp, (x,))


def exp(x: Any) -> Any:
    """e to the power of x."""
    y = whole(in_memory_order(np.exp, arg.array_of(x, "x")))
    return _unary("exp", x, y, lambda gy, y: gy * y, (y,))


def log(x: Any) -> Any:
    """Natural logarithm."""
    return _unary("log", x, in_memory_order(np.log, arg.array_of(x, "x")), lambda gy, x: gy / x, (x,))


def sqrt(x: Any) -> Any:
    """Square root."""
    y = whole(in_memory_order(np.sqrt, arg.array_of(x, "x")))
    return _unary("sqrt", x, y, lambda gy, y: gy / (2 * y), (y,))


def abs(x: Any) -> Any:
    """Absolute value; the derivative at 0 is 0."""
    y = in_memory_order(np.abs, arg.array_of(x, "x"))
    return _unary("abs", x, y, lambda gy, x: gy * np.sign(arg.array_of(x, "x")), (x,))


def clamp(x: Any, min: float | None = None, max: float | None = None) -> Any:
    """x, but at least ``min`` and at most ``max``; the derivative is 1 from one to the other and 0 outside."""
    if min is None and max is None:
        raise ValueError("clamp: min or max must be given")
    low, high = (-np.inf if min is None else min), (np.inf if max is None else max)
    y = in_memory_order(lambda x: np.clip(x, min, max), arg.array_of(x, "x"))
    return _unary("clamp", x, y, lambda gy, x: where((x < low) | (x > high), 0, gy), (x,))


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, b elsewhere; all three broadcast."""
    mask = arg.array_of(condition, "condition")
    if mask.dtype != np.bool_:
        raise TypeError(f"where: condition must be boolean, got {mask.dtype}")

    def vjp(needs: list[bool], gy: Any, mask: np.ndarray) -> tuple[Any, Any]:
        return where(mask, gy, 0) if needs[0] else None, where(mask, 0, gy) if needs[1] else None

    return _binary("where", np.where, a, b, vjp, mask, before=(mask,))


def erf(x: Any) -> Any:
    """The error function: 2/√π times the integral of exp(-t²) from 0 to x.

    Parameters
    ----------
    x : array or Tensor
        float32 or float64.

    Returns
    -------
    array or Tensor of x's shape
    """
    y = elementwise("erf", arg.native("erf", x))
    return _unary("erf", x, y, lambda gy, x: gy * exp(-(x * x)) * (2 / math.sqrt(math.pi)), (x,))
