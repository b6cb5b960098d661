"""The geometry that lets a convolution of any stride, padding and dilation run as plain shifts of a strip.

Copy some rows of the padded source so that they lie behind each other with one pitch. The source pixels that a tap meets
are then the results' positions shifted by a constant, over the whole flattened strip. The few positions at row ends that
mix two rows are computed and dropped.

A stride would tear the shifted pixels apart, so the copy sorts the source by phase (coordinate modulo stride), and within
a phase every tap is a plain shift again. The input gradient is the same sum over the output gradient, with the kernel
turned by 180 degrees; with a stride its pixels fall into classes (coordinate modulo stride) and each class meets its own
taps, so no zero is ever multiplied.

Source of the shifts: Zhang, Franchetti and Low, "High performance zero-memory overhead direct convolutions", 2018.
"""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

import numpy as np

from .. import simd
from ..compiler import helper
from ..rows import copy_row, rows_ahead, zero_row
from ..spec import ConvSpec, Pair

# Columns of a class table.
START_H, START_W, RESULTS_H, RESULTS_W, FIRST_TAP, TAPS, CLASS_FIELDS = range(7)
FEW_JOBS = 4  # that threads can share well enough


class Tap(NamedTuple):
    """Result i meets source coordinate (i + shift) * phases + phase through this tap."""

    number: int
    phase: int
    shift: int


class AxisClass(NamedTuple):
    """Results at start, start + step, … that meet the same taps."""

    start: int
    results: int
    taps: tuple[Tap, ...]


class Axis(NamedTuple):
    """One axis of a convolution or of its input gradient."""

    size: int  # of the source
    phases: int
    step: int
    classes: tuple[AxisClass, ...]

    @property
    def results(self) -> int:
        return max(c.results for c in self.classes)

    @property
    def used(self) -> tuple[int, ...]:
        """Phases that some tap reads."""
        return tuple(sorted({tap.phase for c in self.classes for tap in c.taps})) or (0,)

    @property
    def first(self) -> int:
        return min((tap.shift for c in self.classes for tap in c.taps), default=0)

    @property
    def span(self) -> int:
        """How far the taps of one result lie apart at most."""
        return max((tap.shift for c in self.classes for tap in c.taps), default=0) - self.first


def forward_axis(spec: ConvSpec, axis: int) -> Axis:
    """Output p meets input p * stride - padding + r * dilation."""
    stride = spec.stride[axis]
    positions = (r * spec.dilation[axis] - spec.padding[axis][0] for r in range(spec.kernel[axis]))
    taps = tuple(Tap(r, position % stride, position // stride) for r, position in enumerate(positions))
    return Axis(spec.size[axis], stride, 1, (AxisClass(0, spec.out[axis], taps),))


def gradient_axis(spec: ConvSpec, axis: int) -> Axis:
    """Input h meets output (h + padding - r * dilation) / stride where that is whole: the taps run backwards."""
    stride, size = spec.stride[axis], spec.size[axis]
    classes = []
    for start in range(min(stride, size)):
        positions = ((r, start + spec.padding[axis][0] - r * spec.dilation[axis]) for r in range(spec.kernel[axis]))
        taps = tuple(Tap(r, 0, position // stride) for r, position in positions if position % stride == 0)
        classes.append(AxisClass(start, -(-(size - start) // stride), taps))
    return Axis(spec.out[axis], 1, stride, tuple(classes))


def dense_axis(spec: ConvSpec, axis: int) -> Axis:
    """The taps over every pixel, whatever the stride: for kernels that step over those between the results."""
    shifts = (r * spec.dilation[axis] - spec.padding[axis][0] for r in range(spec.kernel[axis]))
    taps = tuple(Tap(r, 0, shift) for r, shift in enumerate(shifts))
    return Axis(spec.size[axis], 1, 1, (AxisClass(0, (spec.out[axis] - 1) * spec.stride[axis] + 1, taps),))


def is_inside(axis: Axis) -> bool:
    """Whether all taps of all results meet pixels of the source as it lies."""
    return axis.phases == 1 and axis.first == 0 and axis.span + axis.results <= axis.size


class Strip(NamedTuple):
    """Plain numbers that a kernel needs to copy a strip and to find its way in it."""

    source: Pair  # height and width of the source
    phases: Pair
    used: Pair  # number of phases kept
    first: Pair  # shift of the strip's first row and column
    rows: int  # source rows (of each phase) in a strip
    results: int  # result rows of a strip
    pitch: int  # elements from row to row
    plane: int  # elements from plane to plane

    @property
    def planes(self) -> int:
        """Planes of one channel."""
        return self.used[0] * self.used[1]


def make_strip(axes: tuple[Axis, Axis], channels: int, itemsize: int, budget: int, least: int = 1) -> Strip:
    """The strip of as many rows as ``budget`` bytes hold for ``channels``, cut so that all strips are alike; there are at
    least so many where there are rows enough."""
    vertical, horizontal = axes
    used = (len(vertical.used), len(horizontal.used))
    pitch = horizontal.results + horizontal.span
    row_bytes = channels * used[0] * used[1] * pitch * itemsize
    rows = max(1, min(-(-vertical.results // least), budget // row_bytes - vertical.span))
    rows = -(-vertical.results // -(-vertical.results // rows))
    height = rows + vertical.span
    # A phase's last row is written in whole vectors after the next phase's first one: there is room for them.
    beyond = -pitch % max(1, simd.VECTOR_BITS // (8 * itemsize)) if math.prod(used) > 1 else 0
    return Strip(
        (vertical.size, horizontal.size), (vertical.phases, horizontal.phases), used,
        (vertical.first, horizontal.first), height, rows, pitch, height * pitch + beyond,
    )  # fmt: skip


def strips_wanted(jobs: int) -> int:
    """Strips for each of so few jobs that threads could not share them: one, or three between two."""
    return -(-FEW_JOBS // jobs) if jobs in (1, 3) else 1


def most_taps(axes: tuple[Axis, Axis]) -> int:
    """Taps of the class with the most, at least one."""
    return math.prod(max(1, *(len(c.taps) for c in axis.classes)) for axis in axes)


def phase_table(axes: tuple[Axis, Axis], strip: Strip) -> np.ndarray:
    """Which phase each kept row and column plane holds, and the first column of a column plane that meets the source and
    the one after the last; (4, most)."""
    used = [axis.used for axis in axes]
    table = np.zeros((4, max(map(len, used))), np.int64)
    for axis in range(2):
        table[axis, : len(used[axis])] = used[axis]
    width, step = strip.source[1], strip.phases[1]
    left = strip.first[1] * step + table[1]  # source column of a plane's first element
    table[2] = np.clip(-(left // step), 0, strip.pitch)
    table[3] = np.clip((width - 1 - left) // step + 1, table[2], strip.pitch)
    return table


def class_tables(axes: tuple[Axis, Axis], strip: Strip, kernel_width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The classes (n, CLASS_FIELDS); and for the taps of all classes in turn, where each starts in a channel's planes
    of the strip and its number r * S + s in the kernel."""
    vertical, horizontal = axes
    classes: list[tuple[int, ...]] = []
    shifts: list[int] = []
    numbers: list[int] = []
    for v, h in product(vertical.classes, horizontal.classes):
        classes.append((v.start, h.start, v.results, h.results, len(shifts), len(v.taps) * len(h.taps)))
        for down, across in product(v.taps, h.taps):
            plane = vertical.used.index(down.phase) * strip.used[1] + horizontal.used.index(across.phase)
            place = (down.shift - vertical.first) * strip.pitch + across.shift - horizontal.first
            shifts.append(plane * strip.plane + place)
            numbers.append(down.number * kernel_width + across.number)
    as_table = np.array(classes, np.int64).reshape(-1, CLASS_FIELDS)
    return as_table, np.array(shifts, np.int64), np.array(numbers, np.int64)


def tap_ranges(axes: tuple[Axis, Axis]) -> np.ndarray:
    """Of every class's taps, those that meet rows of the source: (classes, rows of results, first and end)."""
    vertical, horizontal = axes
    ranges = np.zeros((len(vertical.classes) * len(horizontal.classes), vertical.results, 2), np.int64)
    for number, (v, h) in enumerate(product(vertical.classes, horizontal.classes)):
        rows = np.arange(vertical.results)[:, None] + [tap.shift for tap in v.taps]
        source_rows = rows * vertical.phases + [tap.phase for tap in v.taps]
        met = (source_rows >= 0) & (
            source_rows < vertical.size
        )  # neighbours among the taps, whose rows follow each other
        first = np.where(met.any(axis=1), met.argmax(axis=1), 0) if v.taps else 0
        ranges[number, :, 0] = first * len(h.taps)
        ranges[number, :, 1] = (first + met.sum(axis=1)) * len(h.taps)
    return ranges


@helper
def copy_strip(source, begin, channels, p0, strip, phases, scratch, at):
    """Copy the planes that start at source[begin] to scratch[at]: strip rows from result row p0 on, zeros for padding.

    Gives the position after the copy. Writes up to a vector more than that.
    """
    height, width = strip.source
    step = strip.phases[1]
    ahead = rows_ahead(height * width)
    for channel in range(channels):
        plane = begin + channel * height * width
        # In the order of the source's rows, whatever their phase: half the time of one phase after the other.
        for i in range(strip.rows):
            to = at + i * strip.pitch
            for a in range(strip.used[0]):
                h = (p0 + i + strip.first[0]) * strip.phases[0] + phases[0, a]
                row = plane + h * width + strip.first[1] * step
                for b in range(strip.used[1]):
                    if h < 0 or h >= height:
                        zero_row(scratch, to, strip.pitch)
                    else:
                        low, high = phases[2, b], phases[3, b]
                        copy_row(scratch, to, strip.pitch, source, row + phases[1, b], step, low, high, ahead)
                    to += strip.plane
        at += strip.used[0] * strip.used[1] * strip.plane
    return at
