"""Layer, group, instance and local response normalisation.

The first three give every row of some view of x mean 0 and variance 1: batch normalisation of (1, rows, L), whose kernels
they use.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..device import is_channels_last, like_format
from ..graph import record
from . import arguments as arg
from .arithmetic import add, mul, sub
from .arithmetic import pow as pow_
from .norm import batch_norm
from .shape import clone, expand, reshape


def _standardized(x: Any, rows: int, eps: float) -> Any:
    """x with every one of its consecutive rows at mean 0 and (biased) variance 1."""
    xa = arg.array_of(x, "x")
    if xa.size == 0:
        return clone(x)
    flat = reshape(x, (1, rows, xa.size // rows))  # any shape -> (1, rows, L)
    if xa.size == rows:
        return reshape(sub(flat, flat), xa.shape)  # a single value is its own mean
    return reshape(batch_norm(flat, None, None, training=True, eps=eps), xa.shape)


def _like(xa: np.ndarray, y: Any) -> Any:
    """y in the memory format of x."""
    if is_channels_last(arg.array_of(y, "y")) or not is_channels_last(xa):
        return y
    return record("memory format", like_format(xa, arg.array_of(y, "y")), (y,), lambda needs, gy: [gy])


def _affine(function: str, y: Any, weight: Any, bias: Any, shape: tuple[int, ...], column: tuple[int, ...]) -> Any:
    """y · weight + bias, both of ``shape`` and seen as ``column``."""
    for name, value, operation in (("weight", weight, mul), ("bias", bias, add)):
        if value is not None:
            _, va = arg.float_arrays(function, x=y, **{name: value})
            if va.shape != shape:
                raise ValueError(f"{function}: {name} must have shape {shape}, got {va.shape}")
            y = operation(y, reshape(value, column))
    return y


def layer_norm(x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Give every element of the batch mean 0 and variance 1 over its last axes, then scale and shift each of its values.

    Parameters
    ----------
    x : array or Tensor, (…, \\*normalized_shape)
        float32 or float64.
    normalized_shape : int or tuple of int
        The last axes of x.
    weight, bias : array or Tensor of shape normalized_shape, optional
        1 and 0 by default.
    eps : float
        Added to the variance, at least 0.

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    Ba, Kiros and Hinton, "Layer normalization", 2016.
    """
    xa, shape = arg.native("layer_norm", x), shape_of(normalized_shape, "layer_norm: normalized_shape")
    if xa.ndim < len(shape) or xa.shape[xa.ndim - len(shape) :] != shape:
        raise ValueError(f"layer_norm: x must have shape (…, {', '.join(map(str, shape))}), got {xa.shape}")
    eps = arg.number(eps, "layer_norm: eps", 0.0)
    y = _standardized(x, xa.size // math.prod(shape), eps)
    return _like(xa, _affine("layer_norm", y, weight, bias, shape, shape))


def shape_of(value: Any, name: str) -> tuple[int, ...]:
    """One size, or several."""
    sizes = value if isinstance(value, (tuple, list)) else (value,)
    if not sizes:
        raise ValueError(f"{name} must name at least one axis, got {value!r}")
    return tuple(arg.integer(size, name, 1) for size in sizes)


def group_norm(x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Give every group of channels of every image mean 0 and variance 1, then scale and shift each channel.

    Parameters
    ----------
    x : array or Tensor, (N, C, …)
        float32 or float64.
    num_groups : int
        Divides C.
    weight, bias : array or Tensor, (C,), optional
        1 and 0 by default.
    eps : float
        Added to the variance, at least 0.

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    Wu and He, "Group normalization", 2018.
    """
    xa = arg.native("group_norm", x)
    if xa.ndim < 2:
        raise ValueError(f"group_norm: x must have axes (N, C, …), got shape {xa.shape}")
    n, c = xa.shape[:2]
    groups = arg.integer(num_groups, "group_norm: num_groups", 1)
    if c % groups:
        raise ValueError(f"group_norm: num_groups={groups} must divide the {c} channels of x")
    y = _standardized(x, n * groups, arg.number(eps, "group_norm: eps", 0.0))
    return _like(xa, _affine("group_norm", y, weight, bias, (c,), (1, c, *(1,) * (xa.ndim - 2))))


def instance_norm(
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Give every channel of every image mean 0 and variance 1, then scale and shift it.

    Parameters
    ----------
    x : array or Tensor, (N, C, …)
        float32 or float64.
    running_mean, running_var : float array, (C,), optional
        Moved towards the images' statistics in place, as :func:`batch_norm` does it; those to normalise with if
        ``use_input_stats`` is False.
    weight, bias : array or Tensor, (C,), optional
        1 and 0 by default.
    use_input_stats : bool
        Normalise with each image's own statistics.
    momentum : float
        Share of this batch in the running statistics, 0 to 1.
    eps : float
        Added to the variance, at least 0.

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    Ulyanov, Vedaldi and Lempitsky, "Instance normalization: the missing ingredient for fast stylization", 2016.
    """
    xa = arg.native("instance_norm", x)
    if xa.ndim < 3:
        raise ValueError(f"instance_norm: x must have axes (N, C, …) with pixels, got shape {xa.shape}")
    if not use_input_stats:
        return batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    n, c = xa.shape[:2]
    if math.prod(xa.shape[2:]) < 2:
        raise ValueError(f"instance_norm: x needs more than one pixel in a channel, got shape {xa.shape}")
    if n == 0:
        return clone(x)
    repeated = []
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and arg.array_of(value, name).shape != (c,):
            raise ValueError(f"instance_norm: {name} must have shape ({c},), got {arg.array_of(value, name).shape}")
        repeated.append(None if value is None else reshape(expand(value, (n, c)), (n * c,)))
    kept = [value for value in (running_mean, running_var) if value is not None]
    for name, value in (("running_mean", running_mean), ("running_var", running_var)):
        if kept and (value is None or arg.array_of(value, name).shape != (c,)):
            raise ValueError(f"instance_norm: {name} must have shape ({c},), got {np.shape(value)}")
    # (C,) -> (N·C,): every image moves statistics of its own, whose mean over the images is kept
    running: list[Any] = [np.tile(arg.array_of(value, "running"), n) for value in kept] or [None, None]
    flat = reshape(x, (1, n * c, *xa.shape[2:]))  # (N, C, …) -> (1, N·C, …)
    y = batch_norm(flat, running[0], running[1], repeated[0], repeated[1], True, momentum, eps)
    for value, moved in zip(kept, running, strict=False):
        arg.array_of(value, "running")[...] = moved.reshape(n, c).mean(axis=0)
    return _like(xa, reshape(y, xa.shape))


def local_response_norm(x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
    """x divided by (k + alpha/size · Σ x²) to the power of beta; the sum is over ``size`` channels around each.

    Parameters
    ----------
    x : array or Tensor, (N, C, …)
        float32 or float64.
    size : int
        Channels of the sum: size // 2 before and (size - 1) // 2 after each; there are zeros beyond the ends.
    alpha, beta, k : float

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks", 2012, where alpha is
    not divided by size.
    """
    xa = arg.native("local_response_norm", x)
    if xa.ndim < 3:
        raise ValueError(f"local_response_norm: x must have axes (N, C, …) with pixels, got shape {xa.shape}")
    size = arg.integer(size, "local_response_norm: size", 1)
    alpha, beta, k = (
        arg.number(value, f"local_response_norm: {name}")
        for name, value in (("alpha", alpha), ("beta", beta), ("k", k))
    )
    squares = _channel_sums(mul(x, x), size // 2, (size - 1) // 2)
    return _like(xa, mul(x, pow_(add(mul(squares, alpha / size), k), -beta)))


def _channel_sums(x: Any, before: int, after: int) -> Any:
    """Sums over ``before`` channels, the channel itself and ``after`` channels."""
    xa = arg.array_of(x, "x")
    y = xa.copy("K")
    for d in range(1, before + 1):
        y[:, d:] += xa[:, :-d]
    for d in range(1, after + 1):
        y[:, :-d] += xa[:, d:]
    return record("channel_sums", y, (x,), lambda needs, gy: [_channel_sums(gy, after, before)])
