"""Images in both layouts: NCHW and channels-last, which are the same shape with other strides.

A kernel whose thread makes the i-th element of a result, as it lies in memory, asks its :class:`Layout` which one that is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .language import divider, inlined, int32, quotient


def is_last(array: Any) -> bool:
    """Whether an array of images is channels-last: it is C-contiguous otherwise."""
    return array.ndim > 2 and not array.flags.c_contiguous


def flat(array: Any) -> Any:
    """Its elements as they lie in memory."""
    return (array.transpose(0, *range(2, array.ndim), 1) if is_last(array) else array).reshape(-1)


class Lines(NamedTuple):
    """The channels of a pixel, and how to divide by them."""

    channels: int
    by_channels: int
    by_channels_shift: int


def lines(channels: int) -> Lines:
    return Lines(channels, *divider(channels))


class Layout(NamedTuple):
    """Inlined functions over elements in memory.

    ``split(i, planes, lines)`` gives for element i its plane, its channel and its pixel in the plane; ``planes`` has their
    pixels as ``plane`` and how to divide by them. ``place(pixel, channel, lines)`` gives an element of a pixel counted over
    all planes. In NCHW planes are those of N and C, and the channel is 0; channels-last has the planes of N.
    """

    suffix: str
    split: Callable[..., Any]
    place: Callable[..., Any]


@inlined
def _split_nchw(i, planes, lines):
    plane = quotient(i, planes.by_plane, planes.by_plane_shift)
    return plane, int32(0), int32(i - plane * planes.plane)


@inlined
def _place_nchw(pixel, channel, lines):
    return pixel


@inlined
def _split_last(i, planes, lines):
    pixel = quotient(i, lines.by_channels, lines.by_channels_shift)
    plane = quotient(pixel, planes.by_plane, planes.by_plane_shift)
    return plane, int32(i - pixel * lines.channels), int32(pixel - plane * planes.plane)


@inlined
def _place_last(pixel, channel, lines):
    return int32(pixel * lines.channels + channel)


NCHW = Layout("", _split_nchw, _place_nchw)
CHANNELS_LAST = Layout("-last", _split_last, _place_last)
