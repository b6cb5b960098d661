"""Where the pixels of a pointwise convolution lie: in a plane one behind the other, or, with a stride, on a grid in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..compiler import helper
from ..rows import copy_row, rows_ahead, spread_row, write_row, zero_pixels
from ..spec import ConvSpec, PointwiseSpec


class Grid(NamedTuple):
    """The pixels that take part, as lines of evenly spaced elements of a plane."""

    lines: int  # in a plane
    width: int  # pixels of a line
    pitch: int  # elements from line to line
    step: int  # elements from pixel to pixel
    row: int  # elements of a row of the plane; a line owns the pitch // row rows from its own on
    size: int  # elements of the plane
    pixels: int  # that take part: lines * width
    dense: int  # 1: these are all pixels of the plane, as one line


def whole(pixels: int) -> Grid:
    """All pixels of a plane, as one line."""
    return Grid(1, pixels, pixels, 1, pixels, pixels, pixels, 1)


def strided(spec: ConvSpec) -> Grid:
    """The input pixels that a 1x1 kernel meets."""
    (height, width), (p, q) = spec.size, spec.out
    if spec.size == spec.out:
        return whole(height * width)
    return Grid(p, q, spec.stride[0] * width, spec.stride[1], width, height * width, p * q, 0)


def as_convolution(spec: PointwiseSpec) -> ConvSpec:
    """The same work as a convolution of pictures of one line."""
    line, none = (1, spec.pixels), ((0, 0), (0, 0))
    return ConvSpec(spec.n, spec.c, spec.k, 1, line, (1, 1), (1, 1), none, (1, 1), line, spec.activation)


@helper
def place_of(grid, pixel):
    """(image, line, pixel of the line) of a pixel counted through all images."""
    line = pixel // grid.width
    return line // grid.lines, line % grid.lines, pixel % grid.width


@helper
def address_of(grid, planes, pixel):
    """Where a pixel counted through all images lies in its image's first plane; an image has ``planes`` of them."""
    n, p, q = place_of(grid, pixel)
    return n * planes * grid.size + p * grid.pitch + q * grid.step


@helper
def gather(source, grid, channels, first, count, panel, width):
    """panel[c * width + j] = channel c of pixel first + j, for j < count; up to a vector more is written."""
    n0, p0, q0 = place_of(grid, first)
    ahead = rows_ahead(grid.size)
    for c in range(channels):
        n, p, q = n0, p0, q0
        at, end = c * width, c * width + count
        while at < end:
            run = min(grid.width - q, end - at)
            start = (n * channels + c) * grid.size + p * grid.pitch + q * grid.step
            copy_row(panel, at, run, source, start, grid.step, 0, run, ahead)
            at, p, q = at + run, p + 1, 0
            if p == grid.lines:
                n, p = n + 1, 0


@helper
def tabulate(grid, planes, first, count, places):
    """places[j] = where pixel first + j lies in its image's first plane, counted from pixel first."""
    n, p, q = place_of(grid, first)
    start = n * planes * grid.size + p * grid.pitch + q * grid.step
    for j in range(count):
        places[j] = n * planes * grid.size + p * grid.pitch + q * grid.step - start
        q += 1
        if q == grid.width:
            p, q = p + 1, 0
            if p == grid.lines:
                n, p = n + 1, 0


@helper
def collect(source, start, plane, channels, places, count, panel, width):
    """panel[c * width + j] = source[start + c * plane + places[j]] for j < count."""
    for c in range(channels):
        # Unsigned, because Numba asks of every other index whether it is negative.
        here, at = np.uint64(start + c * plane), np.uint64(c * width)
        for j in range(np.uint64(count)):
            panel[at + j] = source[here + places[j]]


@helper
def scatter(target, grid, planes, c0, channels, first, count, panel, start_at, width):
    """Pixel first + j of channel c0 + i = panel[start_at + i * width + j], for i < channels and j < count; the elements
    between the pixels become zero. An image has ``planes`` channels."""
    n0, p0, q0 = place_of(grid, first)
    for i in range(channels):
        n, p, q = n0, p0, q0
        at, end = start_at + i * width, start_at + i * width + count
        while at < end:
            run = min(grid.width - q, end - at)
            plane = (n * planes + c0 + i) * grid.size
            start = plane + p * grid.pitch + q * grid.step
            if grid.dense:
                write_row(target, start, panel, at, run)
            else:
                # A pixel owns the elements up to the next pixel of its line, and those below up to the next line.
                elements = run * grid.step if q + run < grid.width else grid.row - q * grid.step
                spread_row(target, start, panel, at, run, grid.step, elements)
                below = start + grid.row
                while below < min(plane + (p + 1) * grid.pitch, plane + grid.size):
                    zero_pixels(target, below, elements)
                    below += grid.row
            at, p, q = at + run, p + 1, 0
            if p == grid.lines:
                n, p = n + 1, 0
