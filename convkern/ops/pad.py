"""Padding with zeros, another constant, a mirror, the border, or the other side."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..device import dtype_name, kernel_array, of
from ..graph import record
from ..kernels.spec import PadSpec, Pair
from ..kernels.variant import Problem
from ..memory import empty
from ..plan import execute
from . import arguments as arg

MODES = ("constant", "reflect", "replicate", "circular")


def pad(x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    """x with more pixels around it, along its last one to three axes.

    Parameters
    ----------
    x : array or Tensor, (…, W), (…, H, W) or (…, T, H, W)
        float32 or float64.
    pad : sequence of int
        (left, right), (left, right, top, bottom) or (left, right, top, bottom, front, back): pixels on each side, the last
        axis first. With mode "constant" a negative number cuts pixels off.
    mode : str
        "constant"; "reflect": mirrored at the border, which is not repeated, so less than the size; "replicate": the
        border's pixel again and again; "circular": the other side, at most the size.
    value : float, optional
        What "constant" fills with; 0 by default.

    Returns
    -------
    array or Tensor

    Raises
    ------
    ValueError, TypeError
        Naming the argument that does not fit.
    """
    (xa,) = arg.float_arrays("pad", x=x)
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"pad: mode must be one of {', '.join(MODES)}, got {mode!r}")
    if value is not None and mode != "constant":
        raise ValueError(f"pad: mode {mode!r} takes no value, got {value!r}")
    if not isinstance(pad, (tuple, list)) or len(pad) not in (2, 4, 6) or len(pad) // 2 > xa.ndim:
        raise ValueError(f"pad: pad must be 2, 4 or 6 ints, two an axis of x {xa.shape}, got {pad!r}")
    least = -max(xa.shape, default=0) if mode == "constant" else 0
    numbers = [arg.integer(v, "pad: pad", least) for v in pad]
    sides = tuple((numbers[i], numbers[i + 1]) for i in range(len(pad) - 2, -1, -2))
    return pad_sides(x, sides, mode, 0.0 if value is None else float(value))


def pad_sides(x: Any, sides: tuple[Pair, ...], mode: str, value: float = 0.0) -> Any:
    """x padded by (before, after) along each of its last axes."""
    xa = arg.array_of(x, "x")
    axes = len(sides)
    lead, size = xa.shape[: xa.ndim - axes], xa.shape[xa.ndim - axes :]
    for axis, (length, (before, after)) in enumerate(zip(size, sides, strict=True)):
        most = {"reflect": length - 1, "circular": length}.get(mode)
        if most is not None and max(before, after) > most:
            raise ValueError(
                f"pad: mode {mode!r} takes at most {most} along axis {len(lead) + axis} of x {xa.shape}, "
                f"got {(before, after)}"
            )
        out = length + before + after
        if out < 1 or (length < 1 and mode != "constant") or min(before, after) < -length:
            raise ValueError(f"pad: {(before, after)} leaves nothing of axis {len(lead) + axis} of x {xa.shape}")
    none = 3 - axes
    padding = (*((0, 0),) * none, *sides)
    spec = PadSpec(math.prod(lead), (*(1,) * none, *size), padding, mode, value)  # type: ignore[arg-type]
    return _forward(x, spec, lead, axes)


def _run(direction: str, array: np.ndarray, spec: PadSpec, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    result = empty(shapes[1], array.dtype.newbyteorder("="))
    problem = Problem("pad", direction, of(array), dtype_name(result.dtype), "default", spec)
    ends = (spec.x_shape, spec.y_shape) if direction == "forward" else (spec.y_shape, spec.x_shape)
    execute(problem, kernel_array(array).reshape(ends[0]), out=result.reshape(ends[1]))
    return result


def _forward(x: Any, spec: PadSpec, lead: tuple[int, ...], axes: int) -> Any:
    shapes = (*lead, *spec.size[3 - axes :]), (*lead, *spec.out[3 - axes :])
    y = _run("forward", arg.array_of(x, "x"), spec, shapes)
    return record("pad", y, (x,), lambda needs, gy: [_backward(gy, spec, lead, axes)])


def _backward(gy: Any, spec: PadSpec, lead: tuple[int, ...], axes: int) -> Any:
    """Add every gradient to the pixel that was seen at its place."""
    shapes = (*lead, *spec.out[3 - axes :]), (*lead, *spec.size[3 - axes :])
    gx = _run("backward", arg.array_of(gy, "gy"), spec, shapes)
    zero = spec._replace(value=0.0)
    return record("pad backward", gx, (gy,), lambda needs, ggx: [_forward(ggx, zero, lead, axes)])
