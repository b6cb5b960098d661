"""Pooling to a given size on a GPU: a thread computes one pixel of the result, so the order of every sum is fixed.

Window i of ``out`` along an axis of ``size`` goes from floor(i · size / out) to ceil((i + 1) · size / out) - 1; so pixel t
lies in the windows from floor(t · out / size) to ceil((t + 1) · out / size) - 1.

Layout: x (N, C, T, H, W), y (N, C, O, P, Q), all C-contiguous or all with channels last in memory; out never aliases an
input.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from ..cuda.images import CHANNELS_LAST, NCHW, Lines, flat, is_last, lines
from ..cuda.kernel import CudaKernel
from ..cuda.language import divider, float32, inlined, int32, int64, quotient, thread
from ..spec import AdaptiveSpec

THREADS = 256


class Axis(NamedTuple):
    """Along one axis: its sizes, and how to divide by them."""

    size: int
    out: int
    by_size: int
    by_size_shift: int
    by_out: int
    by_out_shift: int


class Volumes(NamedTuple):
    """How many pixels the result has over all planes, and how to divide by those of one plane, and of one of its frames."""

    total: int
    plane: int
    by_plane: int
    by_plane_shift: int
    frame: int
    by_frame: int
    by_frame_shift: int
    row: int
    by_row: int
    by_row_shift: int


@lru_cache(maxsize=1024)
def _geometry(spec: AdaptiveSpec, over_input: bool) -> tuple[Volumes, Axis, Axis, Axis]:
    _, height, width = shape = spec.size if over_input else spec.out
    numbers = (math.prod(shape), height * width, width)
    divided = [v for number in numbers for v in (number, *divider(number))]
    t, h, v = (Axis(s, o, *divider(s), *divider(o)) for s, o in zip(spec.size, spec.out, strict=True))
    return Volumes(spec.n * spec.c * math.prod(shape), *divided), t, h, v


@inlined
def _pixel(i, g, lines, split):
    """Plane, channel, frame, row and column of the i-th element of the result."""
    plane, channel, rest = split(i, g, lines)
    frame = quotient(rest, g.by_frame, g.by_frame_shift)
    rest = int32(rest - frame * g.frame)
    row = quotient(rest, g.by_row, g.by_row_shift)
    return plane, channel, frame, row, int32(rest - row * g.row)


@inlined
def _start(i, axis):
    """The first pixel of window i."""
    return quotient(int32(i * axis.size), axis.by_out, axis.by_out_shift)


@inlined
def _stop(i, axis):
    """One past its last pixel."""
    return quotient(int32((i + 1) * axis.size + axis.out - 1), axis.by_out, axis.by_out_shift)


@inlined
def _from(t, axis):
    """The first window that holds pixel t."""
    return quotient(int32(t * axis.out), axis.by_size, axis.by_size_shift)


@inlined
def _to(t, axis):
    """One past the last."""
    return quotient(int32((t + 1) * axis.out + axis.size - 1), axis.by_size, axis.by_size_shift)


def _max_forward(split, place):
    def body(x, indices, y, g, at, ah, av, lines):
        i = thread()
        if i < g.total:
            plane, channel, o, p, q = _pixel(i, g, lines, split)
            first_h, end_h, first_v, end_v = _start(p, ah), _stop(p, ah), _start(q, av), _stop(q, av)
            t, end_t = _start(o, at), _stop(o, at)
            best, where = float32(-math.inf), int32((t * ah.size + first_h) * av.size + first_v)
            base = int32(plane * at.size * ah.size * av.size)
            while t < end_t:
                h = first_h
                while h < end_h:
                    v = first_v
                    while v < end_v:
                        here = int32((t * ah.size + h) * av.size + v)
                        value = x[place(int32(base + here), channel, lines)]
                        if value > best or value != value:
                            best, where = value, here
                        v = int32(v + 1)
                    h = int32(h + 1)
                t = int32(t + 1)
            y[i] = best
            indices[i] = int64(where)

    return body


def _max_backward(split, place):
    def body(gy, indices, gx, g, at, ah, av, lines):
        i = thread()
        if i < g.total:
            plane, channel, t, h, v = _pixel(i, g, lines, split)
            here = int64(int32((t * ah.size + h) * av.size + v))
            first_p, end_p, first_q, end_q = _from(h, ah), _to(h, ah), _from(v, av), _to(v, av)
            o, end_o = _from(t, at), _to(t, at)
            total = float32(0)
            while o < end_o:
                p = first_p
                while p < end_p:
                    q = first_q
                    while q < end_q:
                        window = place(int32(((plane * at.out + o) * ah.out + p) * av.out + q), channel, lines)
                        if indices[window] == here:
                            total += gy[window]
                        q = int32(q + 1)
                    p = int32(p + 1)
                o = int32(o + 1)
            gx[i] = total

    return body


def _avg_forward(split, place):
    def body(x, y, g, at, ah, av, lines):
        i = thread()
        if i < g.total:
            plane, channel, o, p, q = _pixel(i, g, lines, split)
            first_h, end_h, first_v, end_v = _start(p, ah), _stop(p, ah), _start(q, av), _stop(q, av)
            t, end_t = _start(o, at), _stop(o, at)
            count = int32((end_t - t) * (end_h - first_h) * (end_v - first_v))
            base, total = int32(plane * at.size), float32(0)
            while t < end_t:
                h = first_h
                while h < end_h:
                    v = first_v
                    while v < end_v:
                        total += x[place(int32(((base + t) * ah.size + h) * av.size + v), channel, lines)]
                        v = int32(v + 1)
                    h = int32(h + 1)
                t = int32(t + 1)
            y[i] = total / float32(count)

    return body


def _avg_backward(split, place):
    def body(gy, gx, g, at, ah, av, lines):
        i = thread()
        if i < g.total:
            plane, channel, t, h, v = _pixel(i, g, lines, split)
            first_p, end_p, first_q, end_q = _from(h, ah), _to(h, ah), _from(v, av), _to(v, av)
            o, end_o = _from(t, at), _to(t, at)
            total = float32(0)
            while o < end_o:
                frames = int32(_stop(o, at) - _start(o, at))
                p = first_p
                while p < end_p:
                    rows = int32(frames * (_stop(p, ah) - _start(p, ah)))
                    q = first_q
                    while q < end_q:
                        count = float32(int32(rows * (_stop(q, av) - _start(q, av))))
                        window = place(int32(((plane * at.out + o) * ah.out + p) * av.out + q), channel, lines)
                        total += gy[window] / count
                        q = int32(q + 1)
                    p = int32(p + 1)
                o = int32(o + 1)
            gx[i] = total

    return body


_F = "float32"
_BODIES = {
    "max_forward": (_max_forward, (_F, "int64", _F)),
    "max_backward": (_max_backward, (_F, "int64", _F)),
    "avg_forward": (_avg_forward, (_F, _F)),
    "avg_backward": (_avg_backward, (_F, _F)),
}
_KERNELS = {
    (name, layout is CHANNELS_LAST): CudaKernel(
        f"adaptive-{name}{layout.suffix}", body(layout.split, layout.place),
        (*arrays, Volumes, Axis, Axis, Axis, Lines), THREADS,
    )
    for name, (body, arrays) in _BODIES.items()
    for layout in (NCHW, CHANNELS_LAST)
}  # fmt: skip


def _run(name: str, spec: AdaptiveSpec, over_input: bool, *images) -> None:
    volumes, *axes = _geometry(spec, over_input)
    kernel = _KERNELS[name, any(map(is_last, images))]
    kernel(-(-volumes.total // THREADS), *map(flat, images), volumes, *axes, lines(spec.c))


def max_forward(x, spec: AdaptiveSpec, workspace, indices, out) -> None:
    """The largest value of each window, and its flat position in the input volume."""
    _run("max_forward", spec, False, x, indices, out)


def max_backward(gy, indices, spec: AdaptiveSpec, workspace, out) -> None:
    """Each output gradient goes to the pixel that won its window."""
    _run("max_backward", spec, True, gy, indices, out)


def avg_forward(x, spec: AdaptiveSpec, workspace, out) -> None:
    """The mean of each window."""
    _run("avg_forward", spec, False, x, out)


def avg_backward(gy, spec: AdaptiveSpec, workspace, out) -> None:
    """Each output gradient is shared out evenly over its window."""
    _run("avg_backward", spec, True, gy, out)
