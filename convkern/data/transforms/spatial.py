"""Random crops, mirror images and blanks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...random import as_int
from .base import Array, Transform, Uniforms, as_size, between, finite, ordered, pick, probability

PADDING_MODES = ("constant", "edge", "reflect", "symmetric")


class RandomCrop(Transform):
    """Cut a window out of every image, each place equally likely; ``torchvision.transforms.v2.RandomCrop``.

    Parameters
    ----------
    size : int or (int, int)
        Height and width of the window.
    padding : int or sequence of 2 or 4 int, optional
        Pixels to add first on every side, or (left and right, top and bottom), or (left, top, right, bottom).
    fill : float
        Value of the added pixels where `padding_mode` is "constant".
    padding_mode : str
        "constant", "edge", "reflect" (without the edge) or "symmetric" (with it).

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these; on use, if the window is larger than the padded image.
    """

    draws = 2  # row and column

    def __init__(
        self,
        size: int | Sequence[int],
        padding: int | Sequence[int] | None = None,
        fill: float = 0,
        padding_mode: str = "constant",
    ) -> None:
        self.size = as_size("size", size)
        given = () if padding is None else tuple(padding) if isinstance(padding, Sequence) else (padding,)
        sides = [as_int("padding", side) for side in given]
        if len(sides) not in (0, 1, 2, 4) or any(side < 0 for side in sides):
            raise ValueError(f"padding must be one, two or four integers of at least 0, got {padding!r}")
        self.padding = tuple((sides * (4 // len(sides))) if sides else (0, 0, 0, 0))  # left, top, right, bottom
        self.fill = finite("fill", fill)
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        self.padding_mode = padding_mode

    def apply(self, x: Array, u: Uniforms) -> Array:
        padded = self._padded(x)
        (height, width), (h, w) = padded.shape[2:], self.size
        if h > height or w > width:
            raise ValueError(
                f"size must be at most the image's with its padding, {height}x{width}, got {h}x{w}: "
                "take a smaller size or more padding"
            )
        top, left = pick(u[:, 0], height - h + 1), pick(u[:, 1], width - w + 1)
        out = np.empty((*x.shape[:2], h, w), x.dtype)
        for i, (row, column) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
            out[i] = padded[i, :, row : row + h, column : column + w]
        return out

    def _padded(self, x: Array) -> Array:
        left, top, right, bottom = self.padding
        if not any(self.padding):
            return x
        options: dict[str, Any] = {"constant_values": self.fill} if self.padding_mode == "constant" else {}
        inside = self.padding_mode == "reflect"
        if inside and (max(top, bottom) >= x.shape[2] or max(left, right) >= x.shape[3]):
            raise ValueError(
                f"padding must be below the image's {x.shape[2]}x{x.shape[3]} to reflect it, got {self.padding}"
            )
        return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), mode=self.padding_mode, **options)  # type: ignore


class RandomHorizontalFlip(Transform):
    """Mirror an image from left to right with some probability; ``torchvision.transforms.v2.RandomHorizontalFlip``.

    Parameters
    ----------
    p : float
        The probability, 0 to 1.

    Raises
    ------
    TypeError, ValueError
        If `p` is not a probability.
    """

    draws = 1

    def __init__(self, p: float = 0.5) -> None:
        self.p = probability("p", p)

    def apply(self, x: Array, u: Uniforms) -> Array:
        out = x.copy()
        flipped = u[:, 0] < self.p
        out[flipped] = x[flipped, :, :, ::-1]
        return out


class Cutout(Transform):
    """Blank a square whose centre is any pixel, each equally likely; what stands out of the image is cut off.

    DeVries and Taylor, "Improved regularization of convolutional neural networks with Cutout" (2017). They blank after
    standardising, where 0 is the mean.

    Parameters
    ----------
    size : int
        Side of the square, at least 1: rows y - size // 2 to y - size // 2 + size - 1 for the centre y.
    n_holes : int
        Squares, at least 1.
    fill : float
        Value of the blank.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these; on use, if the square is larger than the image.
    """

    def __init__(self, size: int, n_holes: int = 1, fill: float = 0) -> None:
        self.size, self.n_holes, self.fill = as_int("size", size), as_int("n_holes", n_holes), finite("fill", fill)
        for name, value in (("size", self.size), ("n_holes", self.n_holes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.draws = 2 * self.n_holes

    def apply(self, x: Array, u: Uniforms) -> Array:
        height, width = x.shape[2:]
        if self.size > min(height, width):
            raise ValueError(f"size must be at most the image's {height}x{width}, got {self.size}")
        out = x.copy()
        for hole in range(self.n_holes):
            top = pick(u[:, 2 * hole], height) - self.size // 2
            left = pick(u[:, 2 * hole + 1], width) - self.size // 2
            blank(out, top, left, np.full(len(x), self.size), np.full(len(x), self.size), self.fill)
        return out


class RandomErasing(Transform):
    """Blank a rectangle of random area and shape with some probability; ``torchvision.transforms.v2.RandomErasing``.

    Zhong et al., "Random erasing data augmentation" (2017).

    Parameters
    ----------
    p : float
        The probability, 0 to 1.
    scale : (float, float)
        Least and largest area as shares of the image's, 0 to 1.
    ratio : (float, float)
        Least and largest height over width, above 0; its logarithm is uniform.
    value : float
        Value of the blank.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these.
    """

    tries = 10  # for a rectangle smaller than the image; without one the image stays whole, as torchvision has it
    draws = 3 + 2 * tries  # whether, row, column; area and ratio of every try

    def __init__(
        self,
        p: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        value: float = 0,
    ) -> None:
        self.p = probability("p", p)
        self.scale = ordered("scale", scale, 0.0, 1.0)
        self.ratio = ordered("ratio", ratio, 0.0, math.inf)
        if self.ratio[0] == 0:
            raise ValueError(f"ratio must be above 0, got {ratio!r}")
        self.value = finite("value", value)

    def apply(self, x: Array, u: Uniforms) -> Array:
        height, width = x.shape[2:]
        area = height * width * between(u[:, 3::2], self.scale)  # (B, tries)
        ratio = np.exp(between(u[:, 4::2], (math.log(self.ratio[0]), math.log(self.ratio[1]))))
        h, w = np.rint(np.sqrt(area * ratio)).astype(np.int64), np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (h < height) & (w < width)
        erased = np.flatnonzero((u[:, 0] < self.p) & fits.any(axis=1))
        first = fits.argmax(axis=1)[erased]
        h, w = h[erased, first], w[erased, first]
        top, left = pick(u[erased, 1], height - h + 1), pick(u[erased, 2], width - w + 1)
        blanked = x[erased]
        blank(blanked, top, left, h, w, self.value)
        out = x.copy()
        out[erased] = blanked
        return out


def blank(x: Array, top: Array, left: Array, height: Array, width: Array, fill: float) -> None:
    """Fill one rectangle of every image in place; each argument but `x` and `fill` is (B,), parts outside are left out."""
    rows, columns = np.arange(x.shape[2]), np.arange(x.shape[3])
    in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])  # (B, H)
    in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])  # (B, W)
    np.copyto(x, x.dtype.type(fill), where=(in_rows[:, :, None] & in_columns[:, None, :])[:, None])
