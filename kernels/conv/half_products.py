"""Convolution and its gradients on tensor cores with operands of halves; sums in float32, any shape.

There are two families of kernels: of single warps (compute capability 8.0 and later) and of warpgroups (9.0).

kind is "float16" or "bfloat16". Arrays are C-contiguous, or all images channels-last: float32, whose values are rounded
to ``kind`` on the way to the tensor cores and whose result is float32, or halves as the uint16 of their bits (NumPy has
no bfloat16), whose result is rounded once. out never aliases an input.

Operands are first laid out channels-last in the workspace, each group's channels padded with zeros to whole 16 bytes: so
any number of channels is taken, and every copy to shared memory is 16 aligned bytes. Images that are channels-last (the
same shape with other strides) in halves, with channels in whole 16 bytes, are read where they lie, and then results are
channels-last too. Forward: rows of the product are pixels, columns filters, terms (r, s, c). Input gradient with a
stride: the pixels of x are cut into classes of those that meet the same taps, each of which is such a product over gy; a
class without taps is zero. Weight gradient: rows are (r, s, c), columns filters, terms pixels, both operands in columns
(:mod:`..cuda.panels`). Where blocks are few the terms are cut into parts, which are added in order.

Accuracy: with operands that are halves already, γ of float32 over 2·n + 2 terms (tensor cores may cut off where they add)
plus the rounding of the result; rounding float32 operands adds a relative 2^-10 (float16, within its range) or 2^-7
(bfloat16) of the sum of magnitudes.

Source: Chetlur et al., "cuDNN: Efficient primitives for deep learning", 2014; NVIDIA, CUTLASS, "Implicit GEMM convolution".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ..cuda.half_gemm import half_kernel
from ..cuda.half_layout import finish, padded, spread, turn
from ..cuda.kernel import CudaKernel
from ..cuda.language import HALVES, divider, inlined, int32, quotient
from ..cuda.panels import Operand
from ..cuda.tiles import (
    HALF_STEP,
    HALF_TILES,
    WARPGROUP_TILES,
    WarpTile,
    choose_half_tile,
    half_parts,
    make_grid,
)
from ..cuda.warpgroup_gemm import warpgroup_kernel
from ..spec import ConvSpec
from .lattice import Axis, gradient_axis


class Window(NamedTuple):
    """How pixels and taps meet in a picture, channels-last; and where results lie."""

    height: int  # of the picture
    width: int
    pitch: int  # its halves from pixel to pixel
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
def _pixel_place(part, group, m, g):
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
def _tap_place(part, group, m, g):
    """Where the first filter's gradient at m = tap · padded channels + channel lies, in one part's gradient of w."""
    number = quotient(m, g.by_channels, g.by_channels_shift)
    channel = int32(m - number * g.channels)
    if channel < g.out_down:
        return int32((part * g.out_first + group * g.columns) * g.apart + channel * g.taps + number)
    return int32(-1)


_PICTURE = Operand(_pixel, _tap, padded=True, along_terms=True)
_FILTERS = Operand(_filter, _filter_tap, padded=False, along_terms=True)
_TAPS = Operand(_tap, _pixel, padded=True, along_terms=False)
_GRADIENT = Operand(_gradient, _gradient_pixel, padded=False, along_terms=False)


class Family(NamedTuple):
    """Kernels of forward direction and input gradient, which are the same, for each kind and result, without and with a
    residual; of the weight gradient for each kind; and the tiles of both."""

    tiles: tuple[WarpTile, ...]
    kernels: dict[tuple[str, str, bool], list[CudaKernel]]
    weight_tiles: tuple[WarpTile, ...]
    weight_grad: dict[str, list[CudaKernel]]


def _family(
    name: str, make: Callable[..., CudaKernel], tiles: tuple[WarpTile, ...], weight_tiles: tuple[WarpTile, ...]
) -> Family:
    kernels = {
        (kind, stored, added): [
            make(
                f"conv-{name}{kind}-to-{stored}{'-residual' * added}-{t.rows}x{t.columns}", kind, t, _PICTURE, _FILTERS,
                _pixel_place, Window, stored, added,
            )
            for t in tiles
        ]
        for kind in HALVES
        for stored in ("float32", kind)
        for added in (False, True)
    }  # fmt: skip
    weight_grad = {
        kind: [
            make(
                f"conv-{name}{kind}-weight_grad-{t.rows}x{t.columns}", kind, t, _TAPS, _GRADIENT, _tap_place, Window,
                "float32",
            )
            for t in weight_tiles
        ]
        for kind in HALVES
    }  # fmt: skip
    return Family(tiles, kernels, weight_tiles, weight_grad)


WARPS = _family("", half_kernel, HALF_TILES, HALF_TILES)
# With a wider tile the assembler would wait for each product of the weight gradient before the next (its C7515).
WARPGROUPS = _family("warpgroup-", warpgroup_kernel, WARPGROUP_TILES, WARPGROUP_TILES[:1])


class _Pieces:
    """Pieces of a workspace, one behind the other."""

    def __init__(self, workspace: Any) -> None:
        self.workspace, self.taken = workspace, 0

    def take(self, count: int, dtype: str) -> Any:
        nbytes = count * np.dtype(dtype).itemsize
        first, self.taken = self.taken, self.taken + -(-nbytes // 256) * 256
        return self.workspace[first : first + nbytes].view(dtype)


def _stored(kind: str, array: Any) -> str:
    return "float32" if array.dtype == "float32" else kind


def _bits(array: Any) -> Any:
    """Halves as the uint16 of their bits."""
    return array if array.dtype == "float32" else array.view("uint16")


def _classes(axis: Axis) -> Iterator[tuple[int, int, int, int, int, int, int]]:
    """For each class of results (start, results, taps, first tap, its step, first shift, its step)."""
    for each in axis.classes:
        taps = each.taps
        numbers, shifts = [tap.number for tap in taps] or [0], [tap.shift for tap in taps] or [0]
        steps = (numbers[1] - numbers[0], shifts[1] - shifts[0]) if len(taps) > 1 else (0, 0)
        yield each.start, each.results, len(taps), numbers[0], steps[0], shifts[0], steps[1]


@lru_cache(maxsize=1024)
def windows(spec: ConvSpec, over_input: bool, last: bool = False) -> tuple[tuple[Window, int], ...]:
    """The products of the forward direction (one) or of the input gradient (one for each class), with their terms.

    ``last`` where results are channels-last.
    """
    channels = padded((spec.k if over_input else spec.c) // spec.groups)
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


def _window_parts(spec: ConvSpec, over_input: bool) -> int:
    """Into how many parts the sums are cut: as many as the product with the most terms may have."""
    made = windows(spec, over_input)
    window, terms = max(made, key=lambda pair: pair[1])
    if len(made) > 1:
        return 1  # classes share the device already, and each has its own number of slices
    wanted = half_parts(spec.n * window.pixels, window.columns, terms, spec.groups)
    return make_grid(HALF_TILES[0], 1, 1, terms, parts=wanted, step=HALF_STEP).parts


def _weight_parts(spec: ConvSpec) -> int:
    rows = spec.kernel[0] * spec.kernel[1] * padded(spec.c // spec.groups)
    terms = spec.n * spec.out[0] * spec.out[1]
    wanted = half_parts(rows, spec.k // spec.groups, terms, spec.groups)
    return make_grid(HALF_TILES[0], 1, 1, terms, parts=wanted, step=HALF_STEP).parts


def parts(direction: str, spec: ConvSpec) -> int:
    """Into how many parts the sums of a direction are cut."""
    return _weight_parts(spec) if direction == "weight_grad" else _window_parts(spec, direction == "input_grad")


def workspace_bytes(direction: str, spec: ConvSpec, halves: bool, last: bool = False) -> int:
    """Scratch of a direction; ``halves`` where the arrays hold halves, ``last`` where images are channels-last."""
    (h, w), (p, q), taps = spec.size, spec.out, spec.kernel[0] * spec.kernel[1]
    inner, outer, cut = spec.c // spec.groups, spec.k // spec.groups, parts(direction, spec)

    def images(pixels: int, channels: int) -> int:
        ready = halves and last and channels == padded(channels)
        return 0 if ready else 2 * spec.n * pixels * spec.groups * padded(channels)

    if direction == "weight_grad":
        pieces = [
            images(h * w, inner),
            images(p * q, outer),
            4 * cut * spec.k * inner * taps if halves or cut > 1 else 0,
        ]
    elif direction.startswith("forward"):
        pieces = [2 * spec.k * taps * padded(inner), images(h * w, inner), 4 * cut * spec.n * spec.k * p * q]
    else:
        pieces = [2 * spec.c * taps * padded(outer), images(p * q, outer), 4 * cut * spec.n * spec.c * h * w]
    if cut == 1 and direction != "weight_grad":
        pieces.pop()
    return sum(-(-piece // 256) * 256 for piece in pieces)


def _is_last(array: Any) -> bool:
    """Whether an array of images is channels-last: it is C-contiguous otherwise."""
    return array.ndim > 2 and not array.flags.c_contiguous


def _flat(array: Any) -> Any:
    """Its elements as they lie in memory."""
    return (array.transpose(0, *range(2, array.ndim), 1) if _is_last(array) else array).reshape(-1)


def _lay_out(images, kind: str, spec: ConvSpec, channels: int, pieces: _Pieces) -> Any:
    """Images as the kernels read them; halves that lie so already are taken as they are."""
    n, pixels, last = images.shape[0], math.prod(images.shape[2:]), _is_last(images)
    source = _bits(_flat(images))
    if last and source.dtype != "float32" and channels == padded(channels):
        return source
    picture = pieces.take(n * pixels * spec.groups * padded(channels), "uint16")
    if last:
        spread(source, picture, kind, channels)
    else:
        turn(source, picture, kind, n, spec.groups, channels, pixels)
    return picture


def _run_windows(
    family: Family, kind: str, picture, filters, bias, residual, spec: ConvSpec, over_input: bool, pieces: _Pieces, out
) -> None:
    """Forward direction or input gradient, over operands that are laid out."""
    last, stored, cut = _is_last(out), _stored(kind, out), _window_parts(spec, over_input)
    out, relu = _bits(_flat(out)), 0 if over_input else spec.activation
    target = out if cut == 1 else pieces.take(cut * out.size, "float32")
    residual = residual if residual is None else _bits(_flat(residual))
    kernels = family.kernels[kind, stored if cut == 1 else "float32", residual is not None and cut == 1]
    made = windows(spec, over_input, last)
    for window, terms in made:
        number = choose_half_tile(window.columns, family.tiles)
        extras = dict(biased=bias.size > 0, relu=relu) if cut == 1 else {}
        rows, step = spec.n * window.pixels, HALF_STEP
        grid = make_grid(family.tiles[number], rows, window.columns, terms, spec.groups, cut, step=step, **extras)
        more = (array if array is not None and array.size and cut == 1 else target for array in (bias, residual))
        kernels[number](grid.blocks, picture, filters, *more, target, window, grid)
    if cut > 1:
        finish(target, bias, residual, out, stored, cut, made[0][0].columns * spec.groups, made[0][0].apart, relu)


def forward(
    kind: str, x, w, bias, spec: ConvSpec, workspace, out, family: Family = WARPS, residual: Any = None
) -> None:
    """Cross-correlation of x (N, C, H, W) and w (K, C/groups, R, S), plus bias and residual, through the activation.

    The residual has out's shape, dtype and order in memory.
    """
    inner, taps, pieces = spec.c // spec.groups, spec.kernel[0] * spec.kernel[1], _Pieces(workspace)
    filters = pieces.take(spec.k * taps * padded(inner), "uint16")
    turn(_bits(w), filters, kind, spec.k, 1, inner, taps)
    picture = _lay_out(x, kind, spec, inner, pieces)
    _run_windows(family, kind, picture, filters, _bits(bias), residual, spec, False, pieces, out)


def input_grad(kind: str, gy, w, spec: ConvSpec, workspace, out, family: Family = WARPS) -> None:
    """Gradient with respect to x, from gy (N, K, P, Q) and w (K, C/groups, R, S)."""
    inner, outer = spec.c // spec.groups, spec.k // spec.groups
    taps, pieces = spec.kernel[0] * spec.kernel[1], _Pieces(workspace)
    filters = pieces.take(spec.c * taps * padded(outer), "uint16")  # (C, R·S, K/groups)
    turn(_bits(w), filters, kind, spec.groups, 1, outer, inner * taps)
    picture = _lay_out(gy, kind, spec, outer, pieces)
    _run_windows(family, kind, picture, filters, _bits(_flat(out))[:0], None, spec, True, pieces, out)


def weight_grad(kind: str, x, gy, spec: ConvSpec, workspace, out, family: Family = WARPS) -> None:
    """Gradient with respect to w, from x (N, C, H, W) and gy (N, K, P, Q)."""
    inner, outer, pieces = spec.c // spec.groups, spec.k // spec.groups, _Pieces(workspace)
    taps, terms = spec.kernel[0] * spec.kernel[1], spec.n * spec.out[0] * spec.out[1]
    picture, gradient = _lay_out(x, kind, spec, inner, pieces), _lay_out(gy, kind, spec, outer, pieces)
    stored, cut, number = _stored(kind, out), _weight_parts(spec), choose_half_tile(outer, family.weight_tiles)
    direct = cut == 1 and stored == "float32"
    sums = out if direct else pieces.take(cut * out.size, "float32")
    # Fields that place results of the forward direction place those of this one.
    window = windows(spec, False)[0][0]._replace(
        columns=outer, out_image=spec.groups * padded(outer), apart=inner * taps, out_first=spec.k, out_down=inner,
        out_across=padded(outer),
    )  # fmt: skip
    grid = make_grid(family.weight_tiles[number], taps * padded(inner), outer, terms, spec.groups, cut, step=HALF_STEP)
    family.weight_grad[kind][number](grid.blocks, picture, gradient, sums, sums, sums, window, grid)
    if not direct:
        finish(sums, sums[:0], None, _bits(out), stored, cut)
