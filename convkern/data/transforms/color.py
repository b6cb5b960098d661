"""Random changes of brightness, contrast, saturation and hue, and standardising."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import Array, Transform, Uniforms, between, finite, ordered, per_channel

#: Weights of red, green and blue in grey, ITU-R BT.601 as torchvision rounds them.
GREY = (0.2989, 0.587, 0.114)
Range = float | tuple[float, float]


def grey(x: Array) -> Array:
    """Grey of images (B, 1 or 3, H, W), as (B, 1, H, W)."""
    if x.shape[1] == 1:
        return x
    r, g, b = GREY
    return (r * x[:, 0] + g * x[:, 1] + b * x[:, 2])[:, None]


def adjust_brightness(x: Array, factor: Array) -> Array:
    """Multiply images (B, C, H, W) of 0 to 1 by factors (B, 1, 1, 1); what goes above 1 becomes 1."""
    return np.minimum(x * factor, 1)


def adjust_contrast(x: Array, factor: Array) -> Array:
    """Move every pixel from the mean of the image's grey by factors (B, 1, 1, 1): 0 leaves that grey alone."""
    mean = grey(x).reshape(len(x), -1).mean(axis=1).reshape(-1, 1, 1, 1)
    return np.clip(mean + factor * (x - mean), 0, 1)


def adjust_saturation(x: Array, factor: Array) -> Array:
    """Move every pixel from its own grey by factors (B, 1, 1, 1): 0 leaves a grey image."""
    if x.shape[1] == 1:
        return x
    own = grey(x)
    return np.clip(own + factor * (x - own), 0, 1)


def adjust_hue(x: Array, factor: Array) -> Array:
    """Turn the hue of every pixel by factors (B, 1, 1, 1) of the whole circle; value and saturation stay.

    In the hexagon of hues a channel of hue h is ``V - (V - m) * clip(min(k, 4 - k), 0, 1)`` with k = (n + 6 h) mod 6 and
    n = 5, 3, 1 for red, green and blue, V and m the largest and the smallest channel (Smith, "Color gamut transform
    pairs", 1978, written without cases).
    """
    if x.shape[1] == 1:
        return x
    red, green, blue = x[:, 0], x[:, 1], x[:, 2]
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    divisor = np.where(chroma == 0, x.dtype.type(1), chroma)
    # Sixths of the circle from red; where two channels are largest both cases give the same hue.
    turned = np.where(
        value == red,
        (green - blue) / divisor,
        np.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    turned += 6 * factor[:, 0]
    out = np.empty_like(x)
    for channel, n in enumerate((5, 3, 1)):
        k = turned + n
        k -= 6 * np.floor(k / 6)  # mod 6, several times as fast as NumPy's own
        out[:, channel] = value - chroma * np.clip(np.minimum(k, 4 - k), 0, 1)
    return out


class ColorJitter(Transform):
    """Change brightness, contrast, saturation and hue at random, in random order; ``torchvision.transforms.v2.ColorJitter``.

    Bytes count as u / 255 and are rounded once, at the end; torchvision rounds bytes after each of the four. Grey images
    have neither saturation nor hue: these two leave them alone.

    Parameters
    ----------
    brightness, contrast, saturation : float or (float, float)
        A factor is drawn from max(0, 1 - value) to 1 + value, or from between two numbers of at least 0.
    hue : float or (float, float)
        A turn is drawn from -value to value, at most 0.5, or from between two numbers from -0.5 to 0.5.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these; on use, if the images have another number of channels than 1 or 3, or floating
        images go outside 0 to 1.
    """

    def __init__(self, brightness: Range = 0, contrast: Range = 0, saturation: Range = 0, hue: Range = 0) -> None:
        self.brightness = _span("brightness", brightness)
        self.contrast = _span("contrast", contrast)
        self.saturation = _span("saturation", saturation)
        self.hue = _span("hue", hue, middle=0.0, least=-0.5, most=0.5)
        named: tuple[tuple[tuple[float, float], float, Callable[[Array, Array], Array]], ...] = (
            (self.brightness, 1.0, adjust_brightness),
            (self.contrast, 1.0, adjust_contrast),
            (self.saturation, 1.0, adjust_saturation),
            (self.hue, 0.0, adjust_hue),
        )
        self._changes = [(ends, change) for ends, nothing, change in named if ends != (nothing, nothing)]
        self.draws = 2 * len(self._changes)  # the factors, then the numbers that give the order

    def apply(self, x: Array, u: Uniforms) -> Array:
        if x.shape[1] not in (1, 3):
            raise ValueError(f"x must have 1 or 3 channels to change its colours, got shape {x.shape}")
        if x.dtype != np.uint8 and x.size and not (x.min() >= 0 and x.max() <= 1):
            raise ValueError(
                f"x must be from 0 to 1 to change its colours, got {x.min()} to {x.max()}: do it before Normalize"
            )
        count = len(self._changes)
        out = x / np.float32(255) if x.dtype == np.uint8 else x.copy()
        order = np.argsort(u[:, count:], axis=1, kind="stable")  # (B, count): which change comes first, second, ...
        for place, (which, (ends, change)) in itertools.product(range(count), enumerate(self._changes)):
            chosen = np.flatnonzero(order[:, place] == which)
            if len(chosen):
                factor = between(u[chosen, which], ends).astype(out.dtype).reshape(-1, 1, 1, 1)
                out[chosen] = change(out[chosen], factor)
        return np.rint(out * 255).astype(np.uint8) if x.dtype == np.uint8 else out


class Normalize(Transform):
    """Standardise every channel: ``(x - mean) / std``, where a byte u counts as u / 255.

    Bytes are computed in float64 and rounded once; floating images stay in their own type, as in
    ``torchvision.transforms.v2.Normalize``.

    Parameters
    ----------
    mean, std : sequence of float
        One number per channel, `std` above 0.
    dtype : dtype
        float32 or float64: what bytes become.

    Raises
    ------
    ValueError
        If an argument is none of these; on use, if the images have another number of channels.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype: npt.DTypeLike = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, got {self.dtype}")
        self.mean = per_channel("mean", mean)
        self.std = per_channel("std", std, len(self.mean))
        if not (self.std > 0).all():
            raise ValueError(f"std must be above 0, got {self.std.tolist()}")
        # A byte has 256 values: every standardised pixel there can be, (C, 256).
        self._table = ((np.arange(256) / 255 - self.mean[:, None]) / self.std[:, None]).astype(self.dtype)

    def apply(self, x: Array, u: Uniforms) -> Array:
        if x.shape[1] != len(self.mean):
            raise ValueError(f"x must have {len(self.mean)} channels, as mean and std have, got shape {x.shape}")
        if x.dtype != np.uint8:
            mean, std = (a.astype(x.dtype).reshape(1, -1, 1, 1) for a in (self.mean, self.std))
            return (x - mean) / std
        out = np.empty(x.shape, self.dtype)
        for channel, table in enumerate(self._table):
            out[:, channel] = table.take(x[:, channel])
        return out


def _span(name: str, value: Any, middle: float = 1.0, least: float = 0.0, most: float = np.inf) -> tuple[float, float]:
    """The ends that a factor is drawn from."""
    if isinstance(value, tuple | list):
        return ordered(name, value, least, most)
    amount = finite(name, value)
    if amount < 0 or amount > most:
        wanted = "at least 0" if most == np.inf else f"0 to {most:g}"
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return max(least, middle - amount), middle + amount
