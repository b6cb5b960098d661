"""Batch normalisation on the CPU, plane by plane: every pass reads memory once, in whole vectors.

The sums of a channel are cut into parts of some images, whose results are put together in float64. The variance of a part
is summed around the mean of its first image: the squares then cannot outgrow the variance by more than the number of
images, so float32 sums are safe however large the mean is.

Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.

Layout: x, y, gy, gx, residual (N, C, L), flat; affine (3 or 5, C), flat. Outputs never alias inputs.
"""

from __future__ import annotations

import numpy as np

from ..compiler import helper
from ..simd import lanes_of, load_tile, relu_tile, store_tile, store_tile_part, zero_tile
from ..spec import NormSpec
from ..threads import parallel
from ..tile_math import add, fma, load_part, passed, splat_tile, sub, tile_sum
from ..variant import Problem

PART = 16384  # elements of one channel in a partial sum: each lane adds up a few hundred of them
BLOCK = 16384  # elements in a job of the passes that write
WIDE = 4  # vectors in flight


@helper
def _whole(pixels, like):
    """Pixels of a plane that fill wide tiles."""
    wide = WIDE * lanes_of(like)
    return pixels // wide * wide


@parallel
def _statistics(job, worker, spec, parts, images, partial, x):
    # partial (C, parts, 2): mean and sum of squared differences from it, over some images of a channel
    c, part = job // parts, job % parts
    first, last = part * images, min((part + 1) * images, spec.n)
    lanes, whole = lanes_of(x), _whole(spec.pixels, x)
    total = zero_tile(x, 1, 1)
    plane = (first * spec.c + c) * spec.pixels
    for i in range(0, spec.pixels, lanes):
        total = add(total, load_part(x, plane + i, spec.pixels - i, zero_tile(x, 1, 1)))
    guess = x.dtype.type(tile_sum(total) / spec.pixels)

    wide_guess, thin_guess = splat_tile(x, guess, WIDE), splat_tile(x, guess, 1)
    wide_sum, wide_squares = zero_tile(x, 1, WIDE), zero_tile(x, 1, WIDE)
    thin_sum, thin_squares = zero_tile(x, 1, 1), zero_tile(x, 1, 1)
    for n in range(first, last):
        plane = (n * spec.c + c) * spec.pixels
        for i in range(0, whole, WIDE * lanes):
            wide = sub(load_tile(x, plane + i, 0, 1, WIDE), wide_guess)
            wide_sum, wide_squares = add(wide_sum, wide), fma(wide, wide, wide_squares)
        for i in range(whole, spec.pixels, lanes):
            thin = sub(load_part(x, plane + i, spec.pixels - i, thin_guess), thin_guess)
            thin_sum, thin_squares = add(thin_sum, thin), fma(thin, thin, thin_squares)
    count = (last - first) * spec.pixels
    moved = np.float64(tile_sum(wide_sum)) + np.float64(tile_sum(thin_sum))
    squares = np.float64(tile_sum(wide_squares)) + np.float64(tile_sum(thin_squares))
    partial[c, part, 0] = np.float64(guess) + moved / count
    partial[c, part, 1] = max(squares - moved * moved / count, np.float64(0)) if squares == squares else squares


@parallel
def _join(job, worker, spec, parts, images, partial, out):
    # out (2, C): mean and variance of all parts together
    for c in range(spec.c):
        count, mean, squares = 0, np.float64(0), np.float64(0)
        for part in range(parts):
            more = (min((part + 1) * images, spec.n) - part * images) * spec.pixels
            step = partial[c, part, 0] - mean
            squares += partial[c, part, 1] + step * step * (np.float64(count) * more / (count + more))
            mean += step * more / (count + more)
            count += more
        out[0, c] = mean
        out[1, c] = squares / count


def _parts(spec: NormSpec) -> tuple[int, int]:
    """Partial sums of a channel, and images in each; from the shape alone."""
    images = max(1, PART // max(spec.pixels, 1))
    return -(-spec.n // images), images


def workspace_bytes(problem: Problem) -> int:
    """Two float64 for each partial sum."""
    return problem.spec.c * _parts(problem.spec)[0] * 16


def _partial_sums(spec: NormSpec, parts: int, workspace: np.ndarray) -> np.ndarray:
    return workspace[: spec.c * parts * 16].view(np.float64).reshape(spec.c, parts, 2)


def statistics(x: np.ndarray, spec: NormSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """out (2, C) float64: mean and biased variance of every channel. The batch must not be empty."""
    parts, images = _parts(spec)
    partial = _partial_sums(spec, parts, workspace)
    _statistics(spec.c * parts, spec, parts, images, partial, x.reshape(-1))
    _join(1, spec, parts, images, partial, out)


@parallel
def _forward(job, worker, spec, planes, x, residual, affine, y):
    lanes, whole = lanes_of(y), _whole(spec.pixels, y)
    for number in range(job * planes, min((job + 1) * planes, spec.n * spec.c)):
        c, plane = number % spec.c, number * spec.pixels
        center, scale, shift = affine[c], affine[spec.c + c], affine[2 * spec.c + c]
        wide_center, thin_center = splat_tile(y, center, WIDE), splat_tile(y, center, 1)
        wide_scale, thin_scale = splat_tile(y, scale, WIDE), splat_tile(y, scale, 1)
        wide_shift, thin_shift = splat_tile(y, shift, WIDE), splat_tile(y, shift, 1)
        for i in range(0, whole, WIDE * lanes):
            wide = fma(sub(load_tile(x, plane + i, 0, 1, WIDE), wide_center), wide_scale, wide_shift)
            if spec.residual:
                wide = add(wide, load_tile(residual, plane + i, 0, 1, WIDE))
            if spec.activation:
                wide = relu_tile(wide)
            store_tile(y, plane + i, 0, wide)
        for i in range(whole, spec.pixels, lanes):
            rest = spec.pixels - i
            thin = fma(sub(load_part(x, plane + i, rest, thin_center), thin_center), thin_scale, thin_shift)
            if spec.residual:
                thin = add(thin, load_part(residual, plane + i, rest, thin_center))
            if spec.activation:
                thin = relu_tile(thin)
            store_tile_part(y, plane + i, 0, thin, 1, rest)


def _blocks(spec: NormSpec) -> tuple[int, int]:
    """Jobs of a pass that writes, and planes in each."""
    planes = max(1, BLOCK // max(spec.pixels, 1))
    return -(-spec.n * spec.c // planes), planes


def forward(
    x: np.ndarray, residual: np.ndarray, affine: np.ndarray, spec: NormSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y = (x - center[c]) · scale[c] + shift[c] + residual, through the ReLU; residual is empty without ``spec.residual``."""
    jobs, planes = _blocks(spec)
    _forward(jobs, spec, planes, x.reshape(-1), residual.reshape(-1), affine.reshape(-1), out.reshape(-1))


@parallel
def _sums(job, worker, spec, parts, images, partial, x, gy, y, affine, g):
    # partial (C, parts, 2): sums over some images of a channel
    c, part = job // parts, job % parts
    first, last = part * images, min((part + 1) * images, spec.n)
    lanes, whole = lanes_of(x), _whole(spec.pixels, x)
    center, scale, shift = affine[c], affine[spec.c + c], affine[2 * spec.c + c]
    wide_center, thin_center = splat_tile(x, center, WIDE), splat_tile(x, center, 1)
    wide_scale, thin_scale = splat_tile(x, scale, WIDE), splat_tile(x, scale, 1)
    wide_shift, thin_shift = splat_tile(x, shift, WIDE), splat_tile(x, shift, 1)
    wide_sum, wide_products = zero_tile(x, 1, WIDE), zero_tile(x, 1, WIDE)
    thin_sum, thin_products = zero_tile(x, 1, 1), zero_tile(x, 1, 1)
    for n in range(first, last):
        plane = (n * spec.c + c) * spec.pixels
        for i in range(0, whole, WIDE * lanes):
            wide = load_tile(gy, plane + i, 0, 1, WIDE)
            moved = sub(load_tile(x, plane + i, 0, 1, WIDE), wide_center)
            if spec.activation:
                if spec.residual:
                    wide = passed(wide, load_tile(y, plane + i, 0, 1, WIDE))
                    store_tile(g, plane + i, 0, wide)
                else:  # the argument of the ReLU again, to the last bit as _forward had it: cheaper than reading y
                    wide = passed(wide, fma(moved, wide_scale, wide_shift))
            wide_sum, wide_products = add(wide_sum, wide), fma(wide, moved, wide_products)
        for i in range(whole, spec.pixels, lanes):
            rest = spec.pixels - i
            thin = load_part(gy, plane + i, rest, zero_tile(x, 1, 1))
            shifted = sub(load_part(x, plane + i, rest, thin_center), thin_center)
            if spec.activation:
                if spec.residual:
                    thin = passed(thin, load_part(y, plane + i, rest, thin_center))
                    store_tile_part(g, plane + i, 0, thin, 1, rest)
                else:
                    thin = passed(thin, fma(shifted, thin_scale, thin_shift))
            thin_sum, thin_products = add(thin_sum, thin), fma(thin, shifted, thin_products)
    partial[c, part, 0] = np.float64(tile_sum(wide_sum)) + np.float64(tile_sum(thin_sum))
    partial[c, part, 1] = np.float64(tile_sum(wide_products)) + np.float64(tile_sum(thin_products))


def sums(
    x: np.ndarray, gy: np.ndarray, y: np.ndarray, affine: np.ndarray, spec: NormSpec, workspace: np.ndarray,
    out: np.ndarray, g: np.ndarray,
) -> None:  # fmt: skip
    """out (2, C) float64: Σ g and Σ g·(x - center), where g is what the ReLU lets through of gy.

    With a residual and a ReLU, y is the forward result and g is written; otherwise both are empty.
    """
    parts, images = _parts(spec)
    partial = _partial_sums(spec, parts, workspace)
    flat = (x.reshape(-1), gy.reshape(-1), y.reshape(-1), affine.reshape(-1), g.reshape(-1))
    _sums(spec.c * parts, spec, parts, images, partial, *flat)
    out[...] = partial.sum(axis=1).T


@parallel
def _input_grad(job, worker, spec, planes, x, gy, affine, gx):
    lanes, whole = lanes_of(gx), _whole(spec.pixels, gx)
    for number in range(job * planes, min((job + 1) * planes, spec.n * spec.c)):
        c, plane = number % spec.c, number * spec.pixels
        center, scale, shift = affine[c], affine[spec.c + c], affine[2 * spec.c + c]
        slope, offset = affine[3 * spec.c + c], affine[4 * spec.c + c]
        wide_center, thin_center = splat_tile(gx, center, WIDE), splat_tile(gx, center, 1)
        wide_scale, thin_scale = splat_tile(gx, scale, WIDE), splat_tile(gx, scale, 1)
        wide_shift, thin_shift = splat_tile(gx, shift, WIDE), splat_tile(gx, shift, 1)
        wide_slope, thin_slope = splat_tile(gx, slope, WIDE), splat_tile(gx, slope, 1)
        wide_offset, thin_offset = splat_tile(gx, offset, WIDE), splat_tile(gx, offset, 1)
        for i in range(0, whole, WIDE * lanes):
            wide = load_tile(gy, plane + i, 0, 1, WIDE)
            moved = sub(load_tile(x, plane + i, 0, 1, WIDE), wide_center)
            if spec.activation:
                wide = passed(wide, fma(moved, wide_scale, wide_shift))
            store_tile(gx, plane + i, 0, fma(moved, wide_slope, fma(wide, wide_scale, wide_offset)))
        for i in range(whole, spec.pixels, lanes):
            rest = spec.pixels - i
            thin = load_part(gy, plane + i, rest, zero_tile(gx, 1, 1))
            shifted = sub(load_part(x, plane + i, rest, thin_center), thin_center)
            if spec.activation:
                thin = passed(thin, fma(shifted, thin_scale, thin_shift))
            store_tile_part(gx, plane + i, 0, fma(shifted, thin_slope, fma(thin, thin_scale, thin_offset)), 1, rest)


def input_grad(
    x: np.ndarray, gy: np.ndarray, affine: np.ndarray, spec: NormSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """gx = g · scale[c] + (x - center[c]) · slope[c] + offset[c], affine (5, C) = center, scale, shift, slope, offset.

    g is what the ReLU lets through of gy, found from x; a gy that is masked already comes without ``spec.activation``.
    """
    jobs, planes = _blocks(spec)
    _input_grad(jobs, spec, planes, x.reshape(-1), gy.reshape(-1), affine.reshape(-1), out.reshape(-1))
