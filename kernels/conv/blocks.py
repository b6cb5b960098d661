"""The geometry of Winograd's convolution: an image cut into blocks of pixels, and vectors of neighbouring blocks.

Rows of blocks ("lines") are counted over all images. A vector holds one value of ``lanes`` neighbouring blocks of a line, or,
cut into parts, of several lines, so that narrow images fill it too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import simd
from ..compiler import helper
from ..rows import copy_row, rows_ahead, zero_row
from ..spec import Pair


class Lines(NamedTuple):
    """Where the pixels of a line lie in (N, channels, height, width)."""

    channels: int
    height: int
    width: int
    top: int  # rows of padding
    left: int
    size: int  # pixels of a block or patch, each way
    step: int  # pixels from block to block
    down: int  # lines of an image
    pitch: int  # elements of a copied row


class Blocks(NamedTuple):
    """How the blocks of some lines fill vectors."""

    down: int
    across: int
    lines: int  # over all images
    rows: int  # lines at a time
    parts: int
    in_row: int  # parts that a line fills
    segments: int  # parts in all, in whole vectors
    share: int  # lanes of a part
    used: int  # blocks at a time, in whole vectors
    room: int  # the same with what the last part writes too much, for channels that are written at the same time

    def lines_of(self, channels: int, plane: Pair, pad: Pair, size: int, step: int) -> Lines:
        pitch = self.in_row * self.share * step + (size - 1) // step * step
        return Lines(channels, *plane, *pad, size, step, self.down, pitch)

    def places(self, *sides: tuple[int, int, int]) -> np.ndarray:
        """The number of each part's first block; then, for (rows of a line, elements of a row, step), its first pixel."""
        index = np.minimum(np.arange(self.segments), self.rows * self.in_row - 1)  # a last vector repeats the last part
        row, column = index // self.in_row, index % self.in_row * self.share
        table = [row * self.across + column]
        table += [row * size * pitch + column * step for size, pitch, step in sides]
        return np.ascontiguousarray(np.stack(table), np.int64)


def whole(value: int, unit: int) -> int:
    """``value`` rounded up to a multiple of ``unit``."""
    return -(-value // unit) * unit


def count_blocks(n: int, plane: Pair, step: int) -> int:
    """Blocks of step x step that cover n planes."""
    return n * -(-plane[0] // step) * -(-plane[1] // step)


def make_blocks(n: int, plane: Pair, step: int, itemsize: int, most: int, groups: int = 1) -> Blocks:
    """Cut (N, …, plane) into blocks of step x step; about ``most`` blocks at a time, in groups of lines that are alike and
    as many as a multiple of ``groups``."""
    lanes = simd.VECTOR_BITS // (8 * itemsize)
    down, across = -(-plane[0] // step), -(-plane[1] // step)
    lines = n * down
    possible = [parts for parts in (1, 2, 4) if parts <= step and lanes // parts >= min(4, lanes)]
    parts = min(possible, key=lambda parts: (whole(across, lanes // parts), parts))
    share = lanes // parts
    rows = max(1, min(lines, most // across))
    rows = -(-lines // min(lines, whole(-(-lines // rows), groups)))
    in_row = -(-across // share)
    segments = whole(rows * in_row, parts)
    used, room = whole(rows * across, lanes), whole((rows - 1) * across + in_row * share, lanes)
    return Blocks(down, across, lines, rows, parts, in_row, segments, share, used, room)


def channels_together(channels: int) -> int:
    """Channels in a job that transforms: while one is written the next one's lines are fetched, which another thread must
    not be writing (four times the time, Zen 5)."""
    return max(1, min(8, channels // 8))


@helper
def copy_lines(source, channel, line, rows, lines, scratch):
    """Copy the pixels of ``rows`` lines of one channel to scratch, ``size`` rows for each line, zeros for padding."""
    at, ahead = 0, rows_ahead(lines.height * lines.width)
    for g in range(line, line + rows):
        n, i = g // lines.down, g % lines.down
        plane = (n * lines.channels + channel) * lines.height * lines.width
        first = i * lines.step - lines.top
        low = min(lines.pitch, max(0, lines.left))
        high = max(low, min(lines.pitch, lines.width + lines.left))
        for h in range(first, first + lines.size):
            if h < 0 or h >= lines.height:
                zero_row(scratch, at, lines.pitch)
            else:
                row = plane + h * lines.width - lines.left
                copy_row(scratch, at, lines.pitch, source, row, 1, low, high, ahead)
            at += lines.pitch
