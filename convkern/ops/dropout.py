"""Noise in training: dropout and Gaussian noise. The draws are those of :func:`convkern.random.noise`; on a GPU they go over
channels-last images in the order of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..device import from_last, is_channels_last, is_cupy, of, to_last
from ..random import noise
from . import arguments as arg
from .arithmetic import add, mul


def _dropped(x: Any, p: float, drawn: tuple[int, ...]) -> Any:
    """x times 0 with probability p, else times 1 / (1 - p)."""
    xa = arg.array_of(x, "x")
    dtype = xa.dtype.newbyteorder("=")
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return mul(x, _as_it_lies(xa, drawn, lambda shape: (_random(xa, shape) >= p) * dtype.type(scale)))


def _random(xa: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return noise(of(xa)).random(shape, dtype=xa.dtype.newbyteorder("="))


def _as_it_lies(xa: np.ndarray, shape: tuple[int, ...], draw: Callable[[tuple[int, ...]], np.ndarray]) -> np.ndarray:
    """What ``draw`` gives for a shape; on a GPU, for all of a channels-last x, in the order of x's memory."""
    if not is_cupy(xa) or not is_channels_last(xa) or shape != xa.shape:
        return draw(shape)
    return from_last(draw(to_last(xa).shape))


def dropout(x: Any, p: float = 0.5, training: bool = True) -> Any:
    """In training every element becomes 0 with probability p, and the others grow by 1 / (1 - p).

    Parameters
    ----------
    x : array or Tensor
        float32 or float64.
    p : float
        0 to 1.
    training : bool
        False gives x itself.

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: a simple way to prevent neural networks from
    overfitting", 2014.
    """
    (xa,) = arg.float_arrays("dropout", x=x)
    p = arg.number(p, "dropout: p", 0.0, 1.0)
    return _dropped(x, p, xa.shape) if training and p else x


def dropout2d(x: Any, p: float = 0.5, training: bool = True) -> Any:
    """In training every channel of every image becomes 0 with probability p, and the others grow by 1 / (1 - p).

    Parameters
    ----------
    x : array or Tensor, (N, C, …)
        float32 or float64.
    p : float
        0 to 1.
    training : bool
        False gives x itself.

    Returns
    -------
    array or Tensor of x's shape

    References
    ----------
    Tompson, Goroshin, Jain, LeCun and Bregler, "Efficient object localization using convolutional networks", 2015.
    """
    (xa,) = arg.float_arrays("dropout2d", x=x)
    p = arg.number(p, "dropout2d: p", 0.0, 1.0)
    if xa.ndim < 3:
        raise ValueError(f"dropout2d: x must have axes (N, C, …) with pixels, got shape {xa.shape}")
    return _dropped(x, p, (*xa.shape[:2], *(1,) * (xa.ndim - 2))) if training and p else x


def gaussian_noise(x: Any, std: float = 0.1, training: bool = True) -> Any:
    """In training x plus normal numbers.

    Parameters
    ----------
    x : array or Tensor
        float32 or float64.
    std : float
        Standard deviation of the noise, at least 0.
    training : bool
        False gives x itself.

    Returns
    -------
    array or Tensor of x's shape
    """
    (xa,) = arg.float_arrays("gaussian_noise", x=x)
    std = arg.number(std, "gaussian_noise: std", 0.0)
    if not training or std == 0:
        return x
    dtype = xa.dtype.newbyteorder("=")
    draw = noise(of(xa)).standard_normal
    return add(x, _as_it_lies(xa, xa.shape, lambda shape: draw(shape, dtype=dtype) * dtype.type(std)))
