"""Max unpooling: each value back to where max pooling found it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..device import dtype_name, kernel_array, of
from ..graph import record
from ..kernels.spec import UnpoolSpec
from ..kernels.variant import Problem
from ..plan import execute
from . import arguments as arg
from .convolution import batched
from .shape import put_flat, reshape


def _output_size(
    function: str, axes: int, size: tuple[int, ...], kernel_size: Any, stride: Any, padding: Any, wanted: Any
) -> tuple[int, ...]:
    kernel = arg.per_axis(kernel_size, f"{function}: kernel_size", 1, axes)
    strides = kernel if stride is None else arg.per_axis(stride, f"{function}: stride", 1, axes)
    pads = arg.per_axis(padding, f"{function}: padding", 0, axes)
    usual = tuple((size[i] - 1) * strides[i] - 2 * pads[i] + kernel[i] for i in range(axes))
    if wanted is None:
        out = usual
    else:
        if isinstance(wanted, (tuple, list)) and len(wanted) == axes + 2:
            wanted = wanted[2:]  # the shape of what was pooled
        out = arg.per_axis(wanted, f"{function}: output_size", 1, axes)
        if any(abs(out[i] - usual[i]) >= strides[i] for i in range(axes)):
            raise ValueError(f"{function}: output_size must be less than stride {strides} from {usual}, got {out}")
    if min(out) < 1:
        raise ValueError(f"{function}: x of size {size} gives an output of size {out}")
    return out


def _max_unpool(axes: int, x: Any, indices: Any, kernel_size: Any, stride: Any, padding: Any, output_size: Any) -> Any:
    function = f"max_unpool{axes}d"
    (xa,) = arg.float_arrays(function, x=x)
    _, places = arg.kernel_inputs(function, x=xa, indices=indices)
    if places.dtype.kind not in "iu":
        raise TypeError(f"{function}: indices must be integers, got {places.dtype}")
    if places.shape != xa.shape:
        raise ValueError(f"{function}: indices must have the shape of x {xa.shape}, got {places.shape}")
    shape = batched(xa.shape, function, "x", axes)
    out = _output_size(function, axes, shape[2:], kernel_size, stride, padding, output_size)
    spec = UnpoolSpec(shape[0] * shape[1], math.prod(shape[2:]), math.prod(out))
    if places.size and not 0 <= places.min() <= places.max() < spec.outputs:
        raise ValueError(
            f"{function}: indices must be between 0 and {spec.outputs - 1}, the pixels of an output {out}, "
            f"got {places.min()} to {places.max()}"
        )
    # A copy: backward must find the indices as they were, whoever writes to them.
    places = places.astype(np.int64, order="C").reshape(spec.planes, spec.inputs)
    y = arg.new_array((*xa.shape[:-axes], *out), xa.dtype.newbyteorder("="), xa)
    flat = kernel_array(xa).reshape(spec.planes, spec.inputs)
    execute(_problem("forward", y, spec), flat, places, out=y.reshape(spec.planes, spec.outputs))
    x_shape = xa.shape
    return record(function, y, (x,), lambda needs, gy, places: [_grad(function, gy, places, x_shape, spec)], (places,))


def _problem(direction: str, array: np.ndarray, spec: UnpoolSpec) -> Problem:
    return Problem("unpool", direction, of(array), dtype_name(array.dtype), "default", spec)


def _grad(function: str, gy: Any, places: np.ndarray, shape: tuple[int, ...], spec: UnpoolSpec) -> Any:
    """Each value's gradient, read where it was put."""
    ga = arg.array_of(gy, "gy")
    gy_shape = ga.shape
    gx = arg.new_array(shape, ga.dtype, ga)
    flat = kernel_array(ga).reshape(spec.planes, spec.outputs)
    execute(_problem("backward", gx, spec), flat, places, out=gx.reshape(spec.planes, spec.inputs))

    def vjp(needs: list[bool], ggx: Any, places: np.ndarray) -> list[Any]:
        lines = reshape(ggx, (spec.planes, 1, spec.inputs))  # (planes, …) -> one line a plane
        put = put_flat(lines, places.reshape(spec.planes, 1, spec.inputs), (spec.planes, 1, spec.outputs))
        return [reshape(put, gy_shape)]

    return record(f"{function} backward", gx, (gy,), vjp, (places,))


def max_unpool1d(
    x: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Any:
    """Undo a max pooling, see :func:`max_unpool2d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, Q) or (C, Q)
        What :func:`max_pool1d` gave, or what was made of it.
    indices : integer array of the same shape
        What it gave with ``return_indices``; where several point to one place, the last stays.
    kernel_size, stride, padding : int or (int,)
        Those of the pooling.
    output_size : tuple of int, optional
        (W,) of the pooling's input, or its whole shape: with a stride inputs of several sizes give one output size.

    Returns
    -------
    array or Tensor, (N, C, W) or (C, W)
        By default W = (Q - 1)·stride - 2·padding + kernel_size.
    """
    return _max_unpool(1, x, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    x: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Any:
    """Undo a max pooling as far as that goes: its values at their places, zeros elsewhere.

    Parameters
    ----------
    x : array or Tensor, (N, C, P, Q) or (C, P, Q)
        What :func:`max_pool2d` gave, or what was made of it.
    indices : integer array of the same shape
        What it gave with ``return_indices``; where several point to one place, the last stays.
    kernel_size, stride, padding : int or (int, int)
        Those of the pooling.
    output_size : tuple of int, optional
        (H, W) of the pooling's input, or its whole shape: with a stride inputs of several sizes give one output size.

    Returns
    -------
    array or Tensor, (N, C, H, W) or (C, H, W)
        By default W = (Q - 1)·stride - 2·padding + kernel_size, and so on.
    """
    return _max_unpool(2, x, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    x: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Any:
    """Undo a max pooling, see :func:`max_unpool2d`.

    Parameters
    ----------
    x : array or Tensor, (N, C, O, P, Q) or (C, O, P, Q)
        What :func:`max_pool3d` gave, or what was made of it.
    indices : integer array of the same shape
        What it gave with ``return_indices``; where several point to one place, the last stays.
    kernel_size, stride, padding : int or (int, int, int)
        Those of the pooling.
    output_size : tuple of int, optional
        (T, H, W) of the pooling's input, or its whole shape: with a stride inputs of several sizes give one output size.

    Returns
    -------
    array or Tensor, (N, C, T, H, W) or (C, T, H, W)
        By default W = (Q - 1)·stride - 2·padding + kernel_size, and so on.
    """
    return _max_unpool(3, x, indices, kernel_size, stride, padding, output_size)
