"""Shapes as named tuples of integers, and the output-size rule, written once."""

from __future__ import annotations

from typing import NamedTuple

Pair = tuple[int, int]
Sides = tuple[Pair, Pair]

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
