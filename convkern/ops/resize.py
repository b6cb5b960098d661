"""Resizing by the nearest pixel or by linear interpolation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..device import dtype_name, kernel_array, like_format, of
from ..graph import record
from ..kernels.spec import ResizeSpec
from ..kernels.variant import Problem
from ..memory import empty
from ..plan import execute
from . import arguments as arg

LINEAR = {"linear": 1, "bilinear": 2, "trilinear": 3}  # axes


def interpolate(
    x: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
) -> Any:
    """x in another size.

    Parameters
    ----------
    x : array or Tensor, (N, C, W), (N, C, H, W) or (N, C, T, H, W)
        float32 or float64.
    size : int or one int per axis, optional
        The size wanted.
    scale_factor : float or one float per axis, optional
        How many times the size, rounded down; either this or ``size``.
    mode : str
        "nearest", or by the number of axes "linear", "bilinear" or "trilinear".
    align_corners : bool, optional
        With a linear mode: the centres of the outermost pixels coincide; else, which is the default, their edges do.
    recompute_scale_factor : bool, optional
        Go from pixel to pixel by the ratio of the two sizes, even where ``scale_factor`` was given and is not just that.

    Returns
    -------
    array or Tensor, (N, C, …)

    Raises
    ------
    ValueError, TypeError
        Naming the argument that does not fit.
    """
    (xa,) = arg.float_arrays("interpolate", x=x)
    if xa.ndim not in (3, 4, 5) or 0 in xa.shape[1:]:
        raise ValueError(
            f"interpolate: x must have axes (N, C, W), (N, C, H, W) or (N, C, T, H, W) and pixels, got shape {xa.shape}"
        )
    axes = xa.ndim - 2
    if mode != "nearest" and LINEAR.get(mode) != axes:
        fitting = next(name for name, number in LINEAR.items() if number == axes)
        raise ValueError(f"interpolate: mode must be 'nearest' or {fitting!r} for x of shape {xa.shape}, got {mode!r}")
    if mode == "nearest" and align_corners is not None:
        raise ValueError(f"interpolate: align_corners is for linear modes, got {align_corners!r} with mode 'nearest'")
    out, scales = _scales(xa.shape[2:], size, scale_factor, bool(align_corners), bool(recompute_scale_factor))
    once = (1,) * (3 - axes)
    planes = xa.shape[0] * xa.shape[1]
    kind = "nearest" if mode == "nearest" else "linear"
    sizes = (*once, *xa.shape[2:]), (*once, *out), kind, int(bool(align_corners)), (*map(float, once), *scales)
    return _forward(x, ResizeSpec._make((planes, *sizes)), (*xa.shape[:2], *out))


def _scales(
    size: tuple[int, ...], wanted: Any, factor: Any, align_corners: bool, recompute: bool
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The new size, and how many pixels of x one pixel of the result stands for along each axis."""
    axes = len(size)
    if (wanted is None) == (factor is None):
        raise ValueError(f"interpolate: give either size or scale_factor, got {wanted!r} and {factor!r}")
    factors: tuple[float, ...] = ()
    if factor is None:
        if recompute:
            raise ValueError("interpolate: recompute_scale_factor is for scale_factor, but size is given")
        out = arg.per_axis(wanted, "interpolate: size", 1, axes)
    else:
        factors = tuple(factor) if isinstance(factor, (tuple, list)) else (factor,) * axes
        if len(factors) != axes or not all(_is_positive(f) for f in factors):
            raise ValueError(f"interpolate: scale_factor must be a positive number or {axes} of them, got {factor!r}")
        out = tuple(math.floor(n * f) for n, f in zip(size, factors, strict=True))
        if min(out) < 1:
            raise ValueError(f"interpolate: scale_factor {factor!r} leaves nothing of the size {size}")
    if align_corners:
        return out, tuple((n - 1) / (m - 1) if m > 1 else 0.0 for n, m in zip(size, out, strict=True))
    if factors and not recompute:
        return out, tuple(1 / f for f in factors)
    return out, tuple(n / m for n, m in zip(size, out, strict=True))


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _run(direction: str, array: np.ndarray, spec: ResizeSpec, shape: tuple[int, ...]) -> np.ndarray:
    result = empty(shape, array.dtype.newbyteorder("="))
    problem = Problem("resize", direction, of(array), dtype_name(result.dtype), "default", spec)
    ends = (spec.x_shape, spec.y_shape) if direction == "forward" else (spec.y_shape, spec.x_shape)
    execute(problem, kernel_array(array).reshape(ends[0]), out=result.reshape(ends[1]))
    return like_format(array, result)


def _forward(x: Any, spec: ResizeSpec, shape: tuple[int, ...]) -> Any:
    xa = arg.array_of(x, "x")
    x_shape = xa.shape
    y = _run("forward", xa, spec, shape)
    return record("interpolate", y, (x,), lambda needs, gy: [_backward(gy, spec, x_shape)])


def _backward(gy: Any, spec: ResizeSpec, shape: tuple[int, ...]) -> Any:
    """Every gradient back to the pixels of x in the same shares."""
    ga = arg.array_of(gy, "gy")
    y_shape = ga.shape
    gx = _run("backward", ga, spec, shape)
    return record("interpolate backward", gx, (gy,), lambda needs, ggx: [_forward(ggx, spec, y_shape)])
