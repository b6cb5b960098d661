"""Shapes as named tuples of integers, and the output-size rule, written once."""

from __future__ import annotations

import math
from typing import NamedTuple

Pair = tuple[int, int]
Sides = tuple[Pair, Pair]
Triple = tuple[int, int, int]
Sides3 = tuple[Pair, Pair, Pair]

ACTIVATIONS = {None: 0, "relu": 1}


class ConvSpec(NamedTuple):
    """One two-dimensional convolution: x (N, C, H, W), w (K, C/groups, R, S), y (N, K, P, Q)."""

    n: int
    c: int
    k: int
    groups: int
    size: Pair  # (H, W)
    kernel: Pair  # (R, S)
    stride: Pair
    padding: Sides  # ((top, bottom), (left, right))
    dilation: Pair
    out: Pair  # (P, Q)
    activation: int = 0  # a value of ACTIVATIONS

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.n, self.c, *self.size)

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        return (self.k, self.c // self.groups, *self.kernel)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return (self.n, self.k, *self.out)

    @property
    def multiply_adds(self) -> int:
        """Multiplications of the direct sum, padding counted."""
        r, s = self.kernel
        p, q = self.out
        return self.n * self.k * p * q * (self.c // self.groups) * r * s


class Conv3dSpec(NamedTuple):
    """One three-dimensional convolution: x (N, C, T, H, W), w (K, C/groups, U, R, S), y (N, K, O, P, Q)."""

    n: int
    c: int
    k: int
    groups: int
    size: Triple  # (T, H, W)
    kernel: Triple  # (U, R, S)
    stride: Triple
    padding: Sides3  # (before, after) along each axis
    dilation: Triple
    out: Triple  # (O, P, Q)
    activation: int = 0  # a value of ACTIVATIONS

    @property
    def x_shape(self) -> tuple[int, int, int, int, int]:
        return (self.n, self.c, *self.size)

    @property
    def w_shape(self) -> tuple[int, int, int, int, int]:
        return (self.k, self.c // self.groups, *self.kernel)

    @property
    def y_shape(self) -> tuple[int, int, int, int, int]:
        return (self.n, self.k, *self.out)

    @property
    def multiply_adds(self) -> int:
        """Multiplications of the direct sum, padding counted."""
        return math.prod(self.y_shape) * math.prod(self.w_shape[1:])


class PoolSpec(NamedTuple):
    """One two-dimensional pooling: x (N, C, H, W), y (N, C, P, Q); every window holds at least one pixel of x."""

    n: int
    c: int
    size: Pair
    kernel: Pair
    stride: Pair
    padding: Sides
    dilation: Pair
    out: Pair
    count_include_pad: int = 1  # average only
    divisor: int = 0  # average only; 0: the window's own size

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.n, self.c, *self.size)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return (self.n, self.c, *self.out)


class Pool3dSpec(NamedTuple):
    """One pooling of volumes: x (N, C, T, H, W), y (N, C, O, P, Q); every window holds at least one pixel of x."""

    n: int
    c: int
    size: Triple
    kernel: Triple
    stride: Triple
    padding: Sides3
    dilation: Triple
    out: Triple
    count_include_pad: int = 1  # average only
    divisor: int = 0  # average only; 0: the window's own size
    power: float = 0.0  # Lp only

    @property
    def x_shape(self) -> tuple[int, int, int, int, int]:
        return (self.n, self.c, *self.size)

    @property
    def y_shape(self) -> tuple[int, int, int, int, int]:
        return (self.n, self.c, *self.out)


class AdaptiveSpec(NamedTuple):
    """One pooling to a given size: x (N, C, T, H, W), y (N, C, O, P, Q), windows as even as they can be."""

    n: int
    c: int
    size: Triple
    out: Triple

    @property
    def x_shape(self) -> tuple[int, int, int, int, int]:
        return (self.n, self.c, *self.size)

    @property
    def y_shape(self) -> tuple[int, int, int, int, int]:
        return (self.n, self.c, *self.out)


class UnpoolSpec(NamedTuple):
    """One unpooling: x and indices (planes, inputs), y (planes, outputs)."""

    planes: int  # N * C
    inputs: int
    outputs: int


class ResizeSpec(NamedTuple):
    """One resizing of volumes: x (planes, T, H, W), y (planes, O, P, Q); a picture has T = O = 1."""

    planes: int  # N * C
    size: Triple
    out: Triple
    mode: str  # "nearest" or "linear"
    align_corners: int  # linear only: the outermost pixels' centres coincide, not the edges
    scales: tuple[float, float, float]  # pixels of x for one of y

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.planes, *self.size)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return (self.planes, *self.out)


class PadSpec(NamedTuple):
    """Padding of volumes: x (planes, T, H, W), y (planes, …) with the sizes of ``out``; a picture has T = 1."""

    planes: int  # N * C
    size: Triple  # (T, H, W)
    padding: Sides3  # (before, after) along each axis; below zero: cut off
    mode: str  # "constant", "reflect", "replicate" or "circular"
    value: float = 0.0  # constant only

    @property
    def out(self) -> Triple:
        t, h, w = (size + sum(sides) for size, sides in zip(self.size, self.padding, strict=True))
        return (t, h, w)

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.planes, *self.size)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return (self.planes, *self.out)


class PointwiseSpec(NamedTuple):
    """One 1x1 convolution over flattened pixels: x (N, C, L), w (K, C), y (N, K, L)."""

    n: int
    c: int
    k: int
    pixels: int  # L = H * W
    activation: int = 0

    @property
    def multiply_adds(self) -> int:
        return self.n * self.k * self.c * self.pixels


class NormSpec(NamedTuple):
    """One batch normalisation: x (N, C, L), where L runs over the pixels."""

    n: int
    c: int
    pixels: int
    activation: int = 0
    residual: int = 0  # 1: another array is added before the activation


class LinearSpec(NamedTuple):
    """One linear layer: x (N, I), w (O, I), y (N, O)."""

    n: int
    inputs: int
    outputs: int
    activation: int = 0

    @property
    def multiply_adds(self) -> int:
        return self.n * self.inputs * self.outputs


class ChannelSpec(NamedTuple):
    """One elementwise operation that also sums over every channel: (N, C, L), where L runs over the pixels."""

    n: int
    c: int
    pixels: int


class ElementwiseSpec(NamedTuple):
    """One elementwise operation over flat arrays."""

    size: int


def reach(kernel: int, dilation: int) -> int:
    """Pixels that a dilated kernel spans along one axis."""
    return dilation * (kernel - 1) + 1


def empty_window(size: int, kernel: int, stride: int, before: int, dilation: int, out: int) -> int | None:
    """The first window position whose taps all lie in the padding; None when every window holds a pixel."""
    for position in range(out):
        start = position * stride - before
        if not any(0 <= start + i * dilation < size for i in range(kernel)):
            return position
    return None


def output_size(
    size: int, kernel: int, stride: int = 1, padding: Pair = (0, 0), dilation: int = 1, ceil_mode: bool = False
) -> int:
    """Number of window positions along one axis; zero or less when the kernel does not fit.

    floor((size + before + after - reach) / stride) + 1. With ``ceil_mode`` the division rounds up, and a last window
    that would start in the padding after the input is dropped (PyTorch's rule).
    """
    room = size + padding[0] + padding[1] - reach(kernel, dilation)
    if not ceil_mode:
        return room // stride + 1
    out = -(-room // stride) + 1
    if (out - 1) * stride >= size + padding[0]:
        out -= 1
    return out
