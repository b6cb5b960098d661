"""The numbers that kernels of :mod:`.cuda_direct` are given, for both layouts."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..cuda.language import divider
from ..spec import ConvSpec


class Geometry(NamedTuple):
    """The numbers of a ConvSpec that a kernel needs, and how to divide by some of them."""

    inner: int  # channels of x in a group
    outer: int  # channels of y in a group
    channels: int  # of x
    filters: int  # channels of y
    height: int
    width: int
    out_height: int
    out_width: int
    taps: int  # R·S
    stride_h: int
    stride_w: int
    top: int
    left: int
    dilation_h: int
    dilation_w: int
    by_taps: int  # multiplier and shift of R·S; of a group's channels where these lie side by side
    by_taps_shift: int
    by_kernel_width: int  # of S
    by_kernel_width_shift: int
    by_pixels: int  # of the columns' plane: P·Q, or H·W for the input gradient
    by_pixels_shift: int
    by_row: int  # of its rows
    by_row_shift: int
    kernel_width: int
    pixels: int  # of the columns' plane
    row: int
    by_stride_h: int
    by_stride_h_shift: int
    by_stride_w: int
    by_stride_w_shift: int
    results: int  # elements of the columns' planes, of all images


@lru_cache(maxsize=1024)
def geometry_of(spec: ConvSpec, over_input: bool) -> Geometry:
    (height, width), (out_height, out_width), (r, s) = spec.size, spec.out, spec.kernel
    row = width if over_input else out_width
    pixels = row * (height if over_input else out_height)
    return Geometry(
        spec.c // spec.groups, spec.k // spec.groups, spec.c, spec.k, height, width, out_height, out_width, r * s,
        *spec.stride, spec.padding[0][0], spec.padding[1][0], *spec.dilation,
        *divider(r * s), *divider(s), *divider(pixels), *divider(row), s, pixels, row,
        *divider(spec.stride[0]), *divider(spec.stride[1]), spec.n * pixels * (spec.c if over_input else spec.k),
    )  # fmt: skip


@lru_cache(maxsize=1024)
def geometry_of_last(spec: ConvSpec, over_input: bool) -> Geometry:
    """As :func:`geometry_of`, over channels-last images: terms count a group's channels first, then kernel positions."""
    channels = (spec.k if over_input else spec.c) // spec.groups
    by_taps, shift = divider(channels)
    return geometry_of(spec, over_input)._replace(by_taps=by_taps, by_taps_shift=shift)
