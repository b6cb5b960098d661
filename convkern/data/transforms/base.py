"""What all transforms share: their base, their composition, and checks of arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...random import AUGMENT, as_int, uniforms

Array = npt.NDArray[Any]
Uniforms = npt.NDArray[np.float64]

#: Pixels to transform at a time: what is computed in between stays in the cache and in memory that is mapped already.
#: A change of brightness on 128 images of 3x32x32 takes 26 µs an image in one go and 4 in pieces (Zen 5).
_PIECE = 96 << 10
_DTYPES = (np.uint8, np.float32, np.float64)


class Transform:
    """Base of all transforms; a subclass has `apply` and says in `draws` how many random numbers an image takes.

    Attributes
    ----------
    draws : int
        Uniform numbers that `apply` takes for each image.
    """

    draws: int = 0

    def apply(self, x: Array, u: Uniforms) -> Array:
        """Transform a batch by given random numbers.

        Parameters
        ----------
        x : numpy.ndarray
            uint8 (0 to 255), float32 or float64, (B, C, H, W); it is left as it is.
        u : numpy.ndarray
            float64, (B, draws), from 0 to below 1: one row an image.

        Returns
        -------
        numpy.ndarray
            (B, C, H', W').
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply(x, u)")

    def __call__(self, x: Array, *, seed: int = 0, epoch: int = 0, samples: npt.ArrayLike | None = None) -> Array:
        """Transform a batch by the random numbers of its images.

        Parameters
        ----------
        x : numpy.ndarray
            uint8, float32 or float64, (B, C, H, W).
        seed, epoch : int
            Keys of the random numbers; `DataLoader` gives its own.
        samples : array_like of int, optional
            (B,), the images' positions in the dataset, the third key; by default 0 to B - 1.

        Returns
        -------
        numpy.ndarray
            (B, C, H', W').

        Raises
        ------
        TypeError
            If `x` is not a NumPy array of these types or `samples` not integers.
        ValueError
            If a shape is wrong or the images do not suit the transform.
        """
        check_batch(x)
        keys = np.arange(len(x)) if samples is None else np.asarray(samples)
        if keys.shape != (len(x),):
            raise ValueError(f"samples must have shape ({len(x)},), one per image, got {keys.shape}")
        u = uniforms(seed, AUGMENT, epoch, keys, self.draws)
        step = max(1, _PIECE // math.prod(x.shape[1:]))
        if len(x) <= step:
            return self.apply(x, u)
        first = self.apply(x[:step], u[:step])
        out = np.empty((len(x), *first.shape[1:]), first.dtype)
        out[:step] = first
        for start in range(step, len(x), step):
            out[start : start + step] = self.apply(x[start : start + step], u[start : start + step])
        return out


def check_batch(x: Any) -> None:
    """Raise TypeError or ValueError where something is no batch of images."""
    if not isinstance(x, np.ndarray) or x.dtype not in _DTYPES:
        got = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"x must be a NumPy array of uint8, float32 or float64, got {got}")
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x must have shape (B, C, H, W) with C, H, W of at least 1, got {x.shape}")


class Compose(Transform):
    """Transforms one after the other, each with random numbers of its own.

    Parameters
    ----------
    transforms : sequence of Transform
        At least one.

    Raises
    ------
    TypeError
        If one of them is not a Transform.
    ValueError
        If there is none.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)
        if not self.transforms:
            raise ValueError("transforms must hold at least one Transform, got none")
        for i, transform in enumerate(self.transforms):
            if not isinstance(transform, Transform):
                raise TypeError(f"transforms[{i}] must be a Transform, got {type(transform).__name__}")
        self.draws = sum(transform.draws for transform in self.transforms)

    def apply(self, x: Array, u: Uniforms) -> Array:
        first = 0
        for transform in self.transforms:
            x = transform.apply(x, u[:, first : first + transform.draws])
            first += transform.draws
        return x


def pick(u: Uniforms, count: int | Array) -> npt.NDArray[np.int64]:
    """Whole numbers from 0 to count - 1, equally likely, from uniform ones."""
    return (u * count).astype(np.int64)


def between(u: Uniforms, ends: tuple[float, float]) -> Uniforms:
    """Uniform numbers between two ends."""
    return ends[0] + u * (ends[1] - ends[0])


def finite(name: str, value: Any) -> float:
    """Return an argument as float, or raise an error with its name."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def probability(name: str, value: Any) -> float:
    """Return an argument that is a probability, or raise an error with its name."""
    p = finite(name, value)
    if not 0 <= p <= 1:
        raise ValueError(f"{name} must be a probability, 0 to 1, got {value}")
    return p


def ordered(name: str, values: Any, least: float, most: float) -> tuple[float, float]:
    """Return an argument that is a pair of ends in order, or raise an error with its name."""
    if not isinstance(values, tuple | list) or len(values) != 2:
        raise TypeError(f"{name} must be a pair of numbers, got {values!r}")
    low, high = (finite(name, value) for value in values)
    if not least <= low <= high <= most:
        span = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
        raise ValueError(f"{name} must be two numbers {span}, the smaller first, got {values!r}")
    return low, high


def as_size(name: str, size: Any) -> tuple[int, int]:
    """Return an argument that is one side or height and width, or raise an error with its name."""
    sides = (size, size) if np.ndim(size) == 0 else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"{name} must be one integer or two, height and width, got {size!r}")
    height, width = (as_int(name, side) for side in sides)
    if min(height, width) < 1:
        raise ValueError(f"{name} must be at least 1, got {size!r}")
    return height, width


def per_channel(name: str, values: Any, channels: int | None = None) -> npt.NDArray[np.float64]:
    """Return an argument that is a number for each channel, or raise an error with its name."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.shape != (channels or max(len(array), 1),):
        count = "a number" if channels is None else f"{channels} numbers, one"
        raise ValueError(f"{name} must hold {count} per channel, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array.tolist()}")
    return array
