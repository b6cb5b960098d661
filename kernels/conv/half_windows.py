"""Where the operands and results of :mod:`.half_products` lie: the geometry of its products, and the functions that read it.

Operands lie channels-last, each group's channels padded; see there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from ..cuda.half_layout import padded
from ..cuda.language import divider, inlined, int32, quotient
from ..cuda.panels import OUTSIDE, Operand
from ..spec import ConvSpec
from .lattice import Axis, gradient_axis


class Window(NamedTuple):
    """How pixels and taps meet in a picture, channels-last; and where results lie."""

    height: int  # of the picture
    width: int
    pitch: int  # its elements from pixel to pixel
    channels: int  # of a group, padded
    pixels: int  # rows of the product in an image
    row: int  # of them in a line
    by_pixels: int
    by_pixels_shift: int
    by_row: int
    by_row_shift: int
    stride_h: int
    stride_w: int
    by_channels: int
    by_channels_shift: int
    by_across: int  # taps of a line
    by_across_shift: int
    across: int
    first_h: int  # where tap (0, 0) of pixel (0, 0) lies
    first_w: int
    step_h: int  # from tap to tap
    step_w: int
    columns: int  # results of a group
    taps: int  # R·S of the filters in memory
    first_tap: int  # number of tap (0, 0)
    tap_down: int
    tap_across: int
    images: int
    out_image: int  # from an image's results to the next one's
    out_group: int
    apart: int  # from one filter's results to the next one's
    out_first: int  # where the result of pixel (0, 0) lies in its plane
    out_down: int
    out_across: int


@inlined
def _pixel(group, m, g):
    """What a pixel says about where its window starts."""
    n = quotient(m, g.by_pixels, g.by_pixels_shift)
    rest = int32(m - n * g.pixels)
    p = quotient(rest, g.by_row, g.by_row_shift)
    down, across = int32(p * g.stride_h), int32((rest - p * g.row) * g.stride_w)
    return int32(((n * g.height + down) * g.width + across) * g.pitch + group * g.channels), down, across


@inlined
def _tap(group, t, g):
    """What t = tap · channels + channel says about where in the window it lies."""
    number = quotient(t, g.by_channels, g.by_channels_shift)
    i = quotient(number, g.by_across, g.by_across_shift)
    down = int32(g.first_h + i * g.step_h)
    across = int32(g.first_w + (number - i * g.across) * g.step_w)
    return int32((down * g.width + across) * g.pitch + t - number * g.channels), down, across


@inlined
def _filter(group, j, g):
    return int32((group * g.columns + j) * g.taps * g.channels), int32(0), int32(0)


@inlined
def _filter_tap(group, t, g):
    number = quotient(t, g.by_channels, g.by_channels_shift)
    i = quotient(number, g.by_across, g.by_across_shift)
    tap = int32(g.first_tap + i * g.tap_down + (number - i * g.across) * g.tap_across)
    return int32(tap * g.channels + t - number * g.channels), int32(0), int32(0)


@inlined
def pixel_place(part, group, m, g):
    """Where the first filter's result of a pixel lies."""
    n = quotient(m, g.by_pixels, g.by_pixels_shift)
    rest = int32(m - n * g.pixels)
    p = quotient(rest, g.by_row, g.by_row_shift)
    place = int32(g.out_first + p * g.out_down + (rest - p * g.row) * g.out_across)
    return int32((part * g.images + n) * g.out_image + group * g.out_group + place)


@inlined
def _gradient(group, j, g):
    return int32(group * g.out_across + j), int32(0), int32(0)


@inlined
def _gradient_pixel(group, t, g):
    return int32(t * g.out_image), int32(0), int32(0)


@inlined
def _gradient_line(group, j, g):
    return int32((group * g.columns + j) * g.pixels), int32(0), int32(0)


@inlined
def _gradient_place(group, t, g):
    n = quotient(t, g.by_pixels, g.by_pixels_shift)
    return int32(n * g.out_image + t - n * g.pixels), int32(0), int32(0)


@inlined
def _line_pixel(group, t, g):
    """As :func:`_pixel` where the pixels of an image are padded; a pixel that is none lies outside."""
    offset, down, across = _pixel(group, t, g)
    rest = int32(t - quotient(t, g.by_pixels, g.by_pixels_shift) * g.pixels)
    return offset, down if rest < g.out_group else int32(OUTSIDE), across


@inlined
def tap_place(part, group, m, g):
    """Where the first filter's gradient at m = tap · padded channels + channel lies, in one part's gradient of w."""
    number = quotient(m, g.by_channels, g.by_channels_shift)
    channel = int32(m - number * g.channels)
    if channel < g.out_down:
        return int32((part * g.out_first + group * g.columns) * g.apart + channel * g.taps + number)
    return int32(-1)


PICTURE = Operand(_pixel, _tap, padded=True, along_terms=True)
FILTERS = Operand(_filter, _filter_tap, padded=False, along_terms=True)
TAPS = Operand(_tap, _pixel, padded=True, along_terms=False)
GRADIENT = Operand(_gradient, _gradient_pixel, padded=False, along_terms=False)
LINE_TAPS = Operand(_tap, _line_pixel, padded=True, along_terms=False)
LINES = Operand(_gradient_line, _gradient_place, padded=False, along_terms=True)


def _classes(axis: Axis) -> Iterator[tuple[int, int, int, int, int, int, int]]:
    """For each class of results (start, results, taps, first tap, its step, first shift, its step)."""
    for each in axis.classes:
        taps = each.taps
        numbers, shifts = [tap.number for tap in taps] or [0], [tap.shift for tap in taps] or [0]
        steps = (numbers[1] - numbers[0], shifts[1] - shifts[0]) if len(taps) > 1 else (0, 0)
        yield each.start, each.results, len(taps), numbers[0], steps[0], shifts[0], steps[1]


@lru_cache(maxsize=1024)
def windows(
    spec: ConvSpec, over_input: bool, last: bool = False, kind: str = "float16"
) -> tuple[tuple[Window, int], ...]:
    """The products of the forward direction (one) or of the input gradient (one for each class), with their terms.

    ``last`` where results are channels-last.
    """
    channels = padded((spec.k if over_input else spec.c) // spec.groups, kind)
    columns = (spec.c if over_input else spec.k) // spec.groups
    size, out = (spec.out, spec.size) if over_input else (spec.size, spec.out)
    plane, pixel = out[0] * out[1], spec.groups * columns if last else 1  # pixel: from a result to the next pixel's
    image, apart = spec.groups * columns * plane, 1 if last else plane
    if over_input:
        axes = [list(_classes(gradient_axis(spec, axis))) for axis in range(2)]
        strides, steps = (1, 1), spec.stride
    else:
        axes = [
            [(0, spec.out[axis], spec.kernel[axis], 0, 1, -spec.padding[axis][0], spec.dilation[axis])]
            for axis in range(2)
        ]
        strides, steps = spec.stride, (1, 1)
    made = []
    for (y0, tall, down, r0, dr, h0, dh), (x0, wide, across, s0, ds, v0, dv) in product(*axes):
        window = Window(
            *size, spec.groups * channels, channels, tall * wide, wide, *divider(max(tall * wide, 1)),
            *divider(max(wide, 1)), *strides, *divider(channels), *divider(max(across, 1)), across, h0, v0, dh, dv,
            columns, spec.kernel[0] * spec.kernel[1], r0 * spec.kernel[1] + s0, dr * spec.kernel[1], ds,
            spec.n, image, columns * apart, apart, (y0 * out[1] + x0) * pixel, steps[0] * out[1] * pixel, steps[1] * pixel,
        )  # fmt: skip
        made.append((window, down * across * channels))
    return tuple(made)
