"""Transposed convolution: the input gradient of a convolution, taken as a layer of its own.

Its weight (C, K/groups, …) is the one of the convolution that goes the other way, from K channels to C; so its own
gradients are that convolution and its weight gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import amp, device
from ..graph import record
from . import arguments as arg
from .activation import relu_grad
from .convolution import LETTERS, batched, bias_array, bias_grad, convolve, input_grad, weight_grad
from .pad import pad_sides
from .shape import getitem


def _sizes(
    function: str, axes: int, x_shape: tuple[int, ...], w_shape: tuple[int, ...], stride: Any, padding: Any,
    output_padding: Any, dilation: Any,
) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:  # fmt: skip
    """What the convolution reaches, what the output padding adds behind that, and the convolution's options."""
    strides = arg.per_axis(stride, f"{function}: stride", 1, axes)
    pads = arg.per_axis(padding, f"{function}: padding", 0, axes)
    more = arg.per_axis(output_padding, f"{function}: output_padding", 0, axes)
    dilations = arg.per_axis(dilation, f"{function}: dilation", 1, axes)
    reached, extra, sides = [], [], []
    for i in range(axes):
        if more[i] >= max(strides[i], dilations[i]):
            raise ValueError(
                f"{function}: output_padding must be smaller than stride or dilation, got output_padding {more}, "
                f"stride {strides}, dilation {dilations}"
            )
        size = (x_shape[2 + i] - 1) * strides[i] - 2 * pads[i] + dilations[i] * (w_shape[2 + i] - 1) + 1 + more[i]
        if x_shape[2 + i] < 1 or size < 1:
            raise ValueError(
                f"{function}: x of shape {x_shape} with w of shape {w_shape}, stride {strides}, padding {pads} and "
                f"output_padding {more} leaves an output of size {size} along axis {2 + i}"
            )
        # Below a stride the convolution's size rounds the output padding away; beyond it, the last padding is the less.
        rounded = more[i] < strides[i]
        after = pads[i] if rounded else max(pads[i] - more[i], 0)
        behind = 0 if rounded else max(more[i] - pads[i], 0)
        reached.append(size - behind)
        extra.append(behind)
        sides.append((pads[i], after))
    return tuple(reached), tuple(extra), dict(stride=strides, padding=tuple(sides), dilation=dilations)


def transposed(
    axes: int, x: Any, w: Any, bias: Any, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any,
    activation: Any, out: np.ndarray | None, precision: Any,
) -> Any:  # fmt: skip
    """See :func:`convkern.conv_transpose2d`, along ``axes`` axes."""
    function = f"conv_transpose{axes}d"
    xa, wa = arg.float_arrays(function, x=x, w=w)
    shape, relu = batched(xa.shape, function, "x", axes), arg.activation_code(activation)
    groups = arg.integer(groups, f"{function}: groups", 1)
    if wa.ndim != axes + 2 or min(wa.shape) < 1:
        letters = LETTERS[axes][1]
        raise ValueError(f"{function}: w must have {axes + 2} axes (C, K/groups, {letters}), got shape {wa.shape}")
    if shape[1] != wa.shape[0] or shape[1] % groups:
        raise ValueError(
            f"{function}: x has {shape[1]} channels, but w of shape {wa.shape} takes {wa.shape[0]}, in groups={groups}"
        )
    reached, extra, options = _sizes(function, axes, shape, wa.shape, stride, padding, output_padding, dilation)
    options.update(groups=groups, precision=amp.precision_for(arg.check_precision(precision), xa.dtype, device.of(xa)))
    k, lead = wa.shape[1] * groups, shape[:1] if xa.ndim > axes + 1 else ()
    added = bias_array(bias, function, xa, k)
    sizes = tuple(a + b for a, b in zip(reached, extra, strict=True))
    result = arg.result_array(out, (*lead, k, *sizes), xa.dtype, (x, w, bias)) if out is not None else None
    y = input_grad(axes, xa, wa, (*lead, k, *reached), **options)
    if any(extra):
        y = pad_sides(y, tuple((0, behind) for behind in extra), "constant")
    if bias is not None:
        y += added.reshape(k, *(1,) * axes)
    if relu:
        np.maximum(y, 0, out=y)
    if result is not None:
        out[...] = y  # type: ignore[index]
        y = out
    middle = (Ellipsis, *(slice(size) for size in reached))

    def vjp(needs: list[bool], gy: Any, x: Any, w: Any, y: Any = None) -> list[Any]:
        if relu:
            gy = relu_grad(gy, y)
        core = getitem(gy, middle) if any(extra) else gy
        return [
            convolve(axes, core, w, **options) if needs[0] else None,
            weight_grad(axes, core, x, wa.shape[2:], **options) if needs[1] else None,
            bias_grad(gy, axes) if needs[2] else None,
        ]

    saved = (arg.kept(x, w), arg.kept(w, x))
    return record(function, y, (x, w, bias), vjp, (*saved, y) if relu else saved)


def conv_transpose1d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    activation: str | None = None,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """Transposed convolution, see :func:`conv_transpose2d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, W) or (C, W)
    w : array or Tensor, (C, K/groups, S)
    bias : array or Tensor, (K,), optional
    stride, padding, output_padding, groups, dilation, activation, out, precision
        As in :func:`conv_transpose2d`.

    Returns
    -------
    array or Tensor, (N, K, Q) or (K, Q)
    """
    last = (activation, out, precision)
    return transposed(1, x, w, bias, stride, padding, output_padding, groups, dilation, *last)


def conv_transpose2d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    activation: str | None = None,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """Transposed convolution, which enlarges: every input pixel lays its multiple of the kernel down, ``stride`` apart.

    It is the gradient of :func:`conv2d` with respect to its input; also called up-convolution and, wrongly, deconvolution.

    Parameters
    ----------
    x : array or Tensor, (N, C, H, W) or (C, H, W)
        float32 or float64.
    w : array or Tensor, (C, K/groups, R, S)
    bias : array or Tensor, (K,), optional
    stride, dilation : int or (int, int)
        Pixels of the output between the kernels of two inputs, and between a kernel's taps.
    padding : int or (int, int)
        Pixels cut off on every side of the output.
    output_padding : int or (int, int)
        Pixels more at the output's bottom and right, fewer than the stride or the dilation: with a stride, convolutions
        of several sizes give the same, and this says which of them is meant.
    groups : int
        As in :func:`conv2d`.
    activation, out, precision
        As in :func:`conv2d`.

    Returns
    -------
    array or Tensor, (N, K, P, Q) or (K, P, Q)
        P = (H - 1)·stride - 2·padding + dilation·(R - 1) + output_padding + 1, Q likewise.

    Raises
    ------
    ValueError, TypeError
        Naming the argument that does not fit.

    References
    ----------
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, chapter 4.
    """
    last = (activation, out, precision)
    return transposed(2, x, w, bias, stride, padding, output_padding, groups, dilation, *last)


def conv_transpose3d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    activation: str | None = None,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """Transposed convolution, see :func:`conv_transpose2d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, T, H, W) or (C, T, H, W)
    w : array or Tensor, (C, K/groups, U, R, S)
    bias : array or Tensor, (K,), optional
    stride, padding, output_padding, groups, dilation, activation, out, precision
        As in :func:`conv_transpose2d`.

    Returns
    -------
    array or Tensor, (N, K, O, P, Q) or (K, O, P, Q)
    """
    last = (activation, out, precision)
    return transposed(3, x, w, bias, stride, padding, output_padding, groups, dilation, *last)
