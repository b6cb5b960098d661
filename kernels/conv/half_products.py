"""Convolution and its gradients on tensor cores with operands of halves, or of TF32; sums in float32, any shape.

There are four families of kernels: of single warps (compute capability 8.0 and later) and of warpgroups (9.0), each for
halves and for TF32.

kind is "float16", "bfloat16" or "tf32". Arrays are C-contiguous, or all images channels-last: float32, whose values are
rounded to ``kind`` on the way to the tensor cores and whose result is float32, or halves as the uint16 of their bits (NumPy
has no bfloat16), whose result is rounded once. out never aliases an input.

Operands are first laid out channels-last in the workspace, each group's channels padded with zeros to whole 16 bytes: so
any number of channels is taken, and every copy to shared memory is 16 aligned bytes. Images that are channels-last (the
same shape with other strides) in halves, or for TF32 in float32, with channels in whole 16 bytes, are read where they lie,
and then results are channels-last too. Forward: rows of the product are pixels, columns filters, terms (r, s, c). Input
gradient with a stride: the pixels of x are cut into classes of those that meet the same taps, each of which is such a
product over gy; a class without taps is zero. Weight gradient: rows are (r, s, c), columns filters, terms pixels, both
operands in columns (:mod:`..cuda.panels`); for TF32 gy lies in rows instead, as (N, K, P·Q), each plane padded with zeros to
whole 16 bytes. Where blocks are few the terms are cut into parts, which are added in order.

Accuracy: with operands that are halves already, γ of float32 over 2·n + 2 terms (tensor cores may cut off where they add)
plus the rounding of the result; rounding float32 operands adds a relative 2^-10 (float16, within its range) or 2^-7
(bfloat16) of the sum of magnitudes. TF32: what is laid out is rounded to 10 fraction bits, to nearest; what is read where it
lies is cut off after them, a relative 2^-10 for each operand. γ over 2·n + 2 + TF32_TERMS (kernels/cuda/tiles.py) terms
holds for both.

Source: Chetlur et al., "cuDNN: Efficient primitives for deep learning", 2014; NVIDIA, CUTLASS, "Implicit GEMM convolution".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..cuda.half_gemm import half_kernel
from ..cuda.half_layout import padded, spread, turn
from ..cuda.images import flat, is_last
from ..cuda.kernel import CudaKernel
from ..cuda.language import CHUNKS, HALVES, divider
from ..cuda.stored import bits
from ..cuda.sums import FINISH, finish
from ..cuda.tiles import (
    HALF_TILES,
    TF32_WEIGHT_TILES,
    WARPGROUP_TF32_TILES,
    WARPGROUP_TILES,
    WarpTile,
    choose_half_tile,
    half_parts,
    make_grid,
)
from ..cuda.warpgroup_gemm import warpgroup_kernel
from ..spec import ConvSpec
from .half_windows import (
    FILTERS,
    GRADIENT,
    LINE_TAPS,
    LINES,
    PICTURE,
    TAPS,
    Window,
    pixel_place,
    tap_place,
    windows,
)


class Family(NamedTuple):
    """Kernels of forward direction and input gradient, which are the same, for each kind and result, without and with a
    residual; of the weight gradient for each kind; and the tiles of both."""

    tiles: tuple[WarpTile, ...]
    kernels: dict[tuple[str, str, bool], list[CudaKernel]]
    weight_tiles: tuple[WarpTile, ...]
    weight_grad: dict[str, list[CudaKernel]]


def _family(
    name: str,
    make: Callable[..., CudaKernel],
    tiles: tuple[WarpTile, ...],
    weight_tiles: tuple[WarpTile, ...],
    kinds: tuple[str, ...] = tuple(HALVES),
) -> Family:
    left, right = (LINE_TAPS, LINES) if kinds == ("tf32",) else (TAPS, GRADIENT)
    kernels = {
        (kind, stored, added): [
            make(
                f"conv-{name}{kind}-to-{stored}{'-residual' * added}-{t.rows}x{t.columns}", kind, t, PICTURE, FILTERS,
                pixel_place, Window, stored, added,
            )
            for t in tiles
        ]
        for kind in kinds
        for stored in (("float32", kind) if kind in HALVES else ("float32",))
        for added in (False, True)
    }  # fmt: skip
    weight_grad = {
        kind: [
            make(
                f"conv-{name}{kind}-weight_grad-{t.rows}x{t.columns}", kind, t, left, right, tap_place, Window, "float32",
            )
            for t in weight_tiles
        ]
        for kind in kinds
    }  # fmt: skip
    return Family(tiles, kernels, weight_tiles, weight_grad)


WARPS = _family("", half_kernel, HALF_TILES, HALF_TILES)
# With a wider tile the assembler would wait for each product of the weight gradient before the next (its C7515).
WARPGROUPS = _family("warpgroup-", warpgroup_kernel, WARPGROUP_TILES, WARPGROUP_TILES[:1])
TF32_WARPS = _family("", half_kernel, HALF_TILES, TF32_WEIGHT_TILES, ("tf32",))
TF32_WARPGROUPS = _family("warpgroup-", warpgroup_kernel, WARPGROUP_TF32_TILES, WARPGROUP_TF32_TILES, ("tf32",))


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


def _held(kind: str) -> str:
    """The type of arrays that kernels read operands of a kind from."""
    return "uint16" if kind in HALVES else "float32"


def _step(kind: str) -> int:
    """Terms of a slice."""
    return 8 * CHUNKS[kind]


def _window_parts(spec: ConvSpec, over_input: bool, kind: str) -> int:
    """Into how many parts the sums are cut: as many as the product with the most terms may have."""
    made = windows(spec, over_input, False, kind)
    window, terms = max(made, key=lambda pair: pair[1])
    if len(made) > 1:
        return 1  # classes share the device already, and each has its own number of slices
    wanted = half_parts(spec.n * window.pixels, window.columns, terms, spec.groups)
    return make_grid(HALF_TILES[0], 1, 1, terms, parts=wanted, step=_step(kind)).parts


def _weight_pixels(spec: ConvSpec, kind: str) -> int:
    """Terms of an image in the weight gradient."""
    pixels = spec.out[0] * spec.out[1]
    return pixels if kind in HALVES else padded(pixels, kind)


def _weight_parts(spec: ConvSpec, kind: str) -> int:
    rows = spec.kernel[0] * spec.kernel[1] * padded(spec.c // spec.groups, kind)
    terms = spec.n * _weight_pixels(spec, kind)
    wanted = half_parts(rows, spec.k // spec.groups, terms, spec.groups)
    return make_grid(HALF_TILES[0], 1, 1, terms, parts=wanted, step=_step(kind)).parts


def parts(direction: str, spec: ConvSpec, kind: str = "float16") -> int:
    """Into how many parts the sums of a direction are cut."""
    if direction == "weight_grad":
        return _weight_parts(spec, kind)
    return _window_parts(spec, direction == "input_grad", kind)


def workspace_bytes(direction: str, spec: ConvSpec, halves: bool, last: bool = False, kind: str = "float16") -> int:
    """Scratch of a direction; ``halves`` where the arrays hold halves, ``last`` where images are channels-last."""
    (h, w), (p, q), taps, size = spec.size, spec.out, spec.kernel[0] * spec.kernel[1], 16 // CHUNKS[kind]
    inner, outer, cut = spec.c // spec.groups, spec.k // spec.groups, parts(direction, spec, kind)

    def images(pixels: int, channels: int) -> int:
        ready = (halves or kind == "tf32") and last and channels == padded(channels, kind)
        return 0 if ready else size * spec.n * pixels * spec.groups * padded(channels, kind)

    def filters(rows: int, channels: int) -> int:
        return size * rows * taps * padded(channels, kind)

    if direction == "weight_grad":
        lines = _weight_pixels(spec, kind)
        gradient = 0 if lines == p * q and not last else size * spec.n * spec.k * lines
        pieces = [
            images(h * w, inner),
            gradient if kind == "tf32" else images(p * q, outer),
            4 * cut * spec.k * inner * taps if halves or cut > 1 else 0,
        ]
    elif direction.startswith("forward"):
        pieces = [filters(spec.k, inner), images(h * w, inner), 4 * cut * spec.n * spec.k * p * q]
    else:
        pieces = [filters(spec.c, outer), images(p * q, outer), 4 * cut * spec.n * spec.c * h * w]
    if cut == 1 and direction != "weight_grad":
        pieces.pop()
    return sum(-(-piece // 256) * 256 for piece in pieces)


def _lay_out(images, kind: str, spec: ConvSpec, channels: int, pieces: _Pieces) -> Any:
    """Images as the kernels read them; those that lie so already are taken as they are."""
    n, pixels, last = images.shape[0], math.prod(images.shape[2:]), is_last(images)
    source = bits(flat(images))
    if last and source.dtype == _held(kind) and channels == padded(channels, kind):
        return source
    picture = pieces.take(n * pixels * spec.groups * padded(channels, kind), _held(kind))
    if last:
        spread(source, picture, kind, channels)
    else:
        turn(source, picture, kind, n, spec.groups, channels, pixels)
    return picture


def _lay_out_lines(gy, spec: ConvSpec, pieces: _Pieces) -> Any:
    """gy as (N, K, padded P·Q); taken as it is where it lies so already."""
    pixels, last, source = spec.out[0] * spec.out[1], is_last(gy), flat(gy)
    lines = _weight_pixels(spec, "tf32")
    if not last and lines == pixels:
        return source
    gradient = pieces.take(spec.n * spec.k * lines, "float32")
    if last:
        turn(source, gradient, "tf32", spec.n, 1, pixels, spec.k)
    else:
        spread(source, gradient, "tf32", pixels)
    return gradient


def _run_windows(
    family: Family, kind: str, picture, filters, bias, residual, spec: ConvSpec, over_input: bool, pieces: _Pieces, out
) -> None:
    """Forward direction or input gradient, over operands that are laid out."""
    last, stored, cut = is_last(out), _stored(kind, out), _window_parts(spec, over_input, kind)
    out, relu = bits(flat(out)), 0 if over_input else spec.activation
    target = out if cut == 1 else pieces.take(cut * out.size, "float32")
    residual = residual if residual is None else bits(flat(residual))
    kernels = family.kernels[kind, stored if cut == 1 else "float32", residual is not None and cut == 1]
    made = windows(spec, over_input, last, kind)
    for window, terms in made:
        number = choose_half_tile(window.columns, family.tiles)
        extras = dict(biased=bias.size > 0, relu=relu) if cut == 1 else {}
        rows, step = spec.n * window.pixels, _step(kind)
        grid = make_grid(family.tiles[number], rows, window.columns, terms, spec.groups, cut, step=step, **extras)
        more = (array if array is not None and array.size and cut == 1 else target for array in (bias, residual))
        kernels[number](grid.blocks, picture, filters, *more, target, window, grid)
    if cut > 1:
        channels, apart = made[0][0].columns * spec.groups, made[0][0].apart
        finish(target, bias, residual, out, cut, channels, apart, relu, FINISH[stored])


def forward(
    kind: str, x, w, bias, spec: ConvSpec, workspace, out, family: Family = WARPS, residual: Any = None
) -> None:
    """Cross-correlation of x (N, C, H, W) and w (K, C/groups, R, S), plus bias and residual, through the activation.

    The residual has out's shape, dtype and order in memory.
    """
    inner, taps, pieces = spec.c // spec.groups, spec.kernel[0] * spec.kernel[1], _Pieces(workspace)
    filters = pieces.take(spec.k * taps * padded(inner, kind), _held(kind))
    turn(bits(w), filters, kind, spec.k, 1, inner, taps)
    picture = _lay_out(x, kind, spec, inner, pieces)
    _run_windows(family, kind, picture, filters, bits(bias), residual, spec, False, pieces, out)


def input_grad(kind: str, gy, w, spec: ConvSpec, workspace, out, family: Family = WARPS) -> None:
    """Gradient with respect to x, from gy (N, K, P, Q) and w (K, C/groups, R, S)."""
    inner, outer = spec.c // spec.groups, spec.k // spec.groups
    taps, pieces = spec.kernel[0] * spec.kernel[1], _Pieces(workspace)
    filters = pieces.take(spec.c * taps * padded(outer, kind), _held(kind))  # (C, R·S, K/groups)
    turn(bits(w), filters, kind, spec.groups, 1, outer, inner * taps)
    picture = _lay_out(gy, kind, spec, outer, pieces)
    _run_windows(family, kind, picture, filters, bits(flat(out))[:0], None, spec, True, pieces, out)


def weight_grad(kind: str, x, gy, spec: ConvSpec, workspace, out, family: Family = WARPS) -> None:
    """Gradient with respect to w, from x (N, C, H, W) and gy (N, K, P, Q)."""
    inner, outer, pieces = spec.c // spec.groups, spec.k // spec.groups, _Pieces(workspace)
    taps, pixels = spec.kernel[0] * spec.kernel[1], _weight_pixels(spec, kind)
    picture = _lay_out(x, kind, spec, inner, pieces)
    gradient = _lay_out(gy, kind, spec, outer, pieces) if kind in HALVES else _lay_out_lines(gy, spec, pieces)
    stored, cut, number = _stored(kind, out), _weight_parts(spec, kind), choose_half_tile(outer, family.weight_tiles)
    direct = cut == 1 and stored == "float32"
    sums = out if direct else pieces.take(cut * out.size, "float32")
    # Fields that place results of the forward direction place those of this one.
    window = windows(spec, False, False, kind)[0][0]._replace(
        columns=outer, apart=inner * taps, out_first=spec.k, out_down=inner,
    )  # fmt: skip
    if kind in HALVES:
        window = window._replace(out_image=spec.groups * padded(outer), out_across=padded(outer))
    else:
        by_pixels, shift = divider(pixels)
        window = window._replace(
            out_image=spec.k * pixels,
            out_group=window.pixels,
            pixels=pixels,
            by_pixels=by_pixels,
            by_pixels_shift=shift,
        )
    rows, terms, step = taps * padded(inner, kind), spec.n * pixels, _step(kind)
    grid = make_grid(family.weight_tiles[number], rows, outer, terms, spec.groups, cut, step=step)
    family.weight_grad[kind][number](grid.blocks, picture, gradient, sums, sums, sums, window, grid)
    if not direct:
        finish(sums, None, None, bits(out), cut, kernels=FINISH[stored])
