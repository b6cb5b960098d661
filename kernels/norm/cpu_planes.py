"""Batch normalisation on the CPU, plane by plane: every pass reads memory once, in whole vectors.

The sums of a channel are cut into parts of some images, whose results are put together in float64. The variance of a part
is summed around the mean of its first image: the squares then cannot outgrow the variance by more than the number of
images, so float32 sums within an image are safe however large the mean is.

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


@parallel
def _statistics(job, worker, spec, parts, images, partial, x):
    # partial (C, parts, 2): mean and sum of squared differences from it, over some images of a channel
    c, part = job // parts, job % parts
    first, last = part * images, min((part + 1) * images, spec.n)
    lanes, zero = lanes_of(x), zero_tile(x, 1, 1)
    whole = spec.pixels // lanes * lanes
    plane = (first * spec.c + c) * spec.pixels
    total = load_part(x, plane + whole, spec.pixels - whole, zero)
    for i in range(plane, plane + whole, lanes):
        total = add(total, load_tile(x, i, 0, 1, 1))
    guess = x.dtype.type(tile_sum(total) / spec.pixels)

    center = splat_tile(x, guess, 1)
    distance = spread = np.float64(0)
    for n in range(first, last):
        plane = (n * spec.c + c) * spec.pixels
        moved, squares = zero, zero
        for i in range(plane, plane + whole, lanes):
            v = sub(load_tile(x, i, 0, 1, 1), center)
            moved, squares = add(moved, v), fma(v, v, squares)
        if whole < spec.pixels:
            v = sub(load_part(x, plane + whole, spec.pixels - whole, center), center)
            moved, squares = add(moved, v), fma(v, v, squares)
        distance += tile_sum(moved)
        spread += tile_sum(squares)
    count = (last - first) * spec.pixels
    partial[c, part, 0] = np.float64(guess) + distance / count
    spread -= distance * distance / count
    partial[c, part, 1] = spread if not spread < 0 else np.float64(0)  # NaN stays


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


@helper
def _shown(x, residual, center, scale, shift, spec):
    """One vector of the result."""
    y = fma(sub(x, center), scale, shift)
    if spec.residual:
        y = add(y, residual)
    return relu_tile(y) if spec.activation else y


@parallel
def _forward(job, worker, spec, planes, x, residual, affine, y):
    lanes, zero = lanes_of(y), zero_tile(y, 1, 1)
    whole = spec.pixels // lanes * lanes
    for number in range(job * planes, min((job + 1) * planes, spec.n * spec.c)):
        c, plane = number % spec.c, number * spec.pixels
        center, scale = splat_tile(y, affine[c], 1), splat_tile(y, affine[spec.c + c], 1)
        shift = splat_tile(y, affine[2 * spec.c + c], 1)
        for i in range(plane, plane + whole, lanes):
            other = load_tile(residual, i, 0, 1, 1) if spec.residual else zero
            store_tile(y, i, 0, _shown(load_tile(x, i, 0, 1, 1), other, center, scale, shift, spec))
        if whole < spec.pixels:
            i, rest = plane + whole, spec.pixels - whole
            other = load_part(residual, i, rest, zero) if spec.residual else zero
            result = _shown(load_part(x, i, rest, zero), other, center, scale, shift, spec)
            store_tile_part(y, i, 0, result, 1, rest)


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
    lanes, zero = lanes_of(x), zero_tile(x, 1, 1)
    whole = spec.pixels // lanes * lanes
    center, scale = splat_tile(x, affine[c], 1), splat_tile(x, affine[spec.c + c], 1)
    shift = splat_tile(x, affine[2 * spec.c + c], 1)
    total, products = zero, zero
    for n in range(first, last):
        plane = (n * spec.c + c) * spec.pixels
        for i in range(plane, plane + whole, lanes):
            v, moved = load_tile(gy, i, 0, 1, 1), sub(load_tile(x, i, 0, 1, 1), center)
            if spec.activation:
                if spec.residual:
                    v = passed(v, load_tile(y, i, 0, 1, 1))
                    store_tile(g, i, 0, v)
                else:  # the argument of the ReLU again, to the last bit as _forward had it: cheaper than reading y
                    v = passed(v, fma(moved, scale, shift))
            total, products = add(total, v), fma(v, moved, products)
        if whole < spec.pixels:
            i, rest = plane + whole, spec.pixels - whole
            v, moved = load_part(gy, i, rest, zero), sub(load_part(x, i, rest, center), center)
            if spec.activation:
                if spec.residual:
                    v = passed(v, load_part(y, i, rest, zero))
                    store_tile_part(g, i, 0, v, 1, rest)
                else:
                    v = passed(v, fma(moved, scale, shift))
            total, products = add(total, v), fma(v, moved, products)
    partial[c, part, 0] = tile_sum(total)
    partial[c, part, 1] = tile_sum(products)


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
    lanes, zero = lanes_of(gx), zero_tile(gx, 1, 1)
    whole = spec.pixels // lanes * lanes
    for number in range(job * planes, min((job + 1) * planes, spec.n * spec.c)):
        c, plane = number % spec.c, number * spec.pixels
        center, scale = splat_tile(gx, affine[c], 1), splat_tile(gx, affine[spec.c + c], 1)
        shift, slope = splat_tile(gx, affine[2 * spec.c + c], 1), splat_tile(gx, affine[3 * spec.c + c], 1)
        offset = splat_tile(gx, affine[4 * spec.c + c], 1)
        for i in range(plane, plane + whole, lanes):
            v, moved = load_tile(gy, i, 0, 1, 1), sub(load_tile(x, i, 0, 1, 1), center)
            if spec.activation:
                v = passed(v, fma(moved, scale, shift))
            store_tile(gx, i, 0, fma(moved, slope, fma(v, scale, offset)))
        if whole < spec.pixels:
            i, rest = plane + whole, spec.pixels - whole
            v, moved = load_part(gy, i, rest, zero), sub(load_part(x, i, rest, zero), center)
            if spec.activation:
                v = passed(v, fma(moved, scale, shift))
            store_tile_part(gx, i, 0, fma(moved, slope, fma(v, scale, offset)), 1, rest)


def input_grad(
    x: np.ndarray, gy: np.ndarray, affine: np.ndarray, spec: NormSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """gx = g · scale[c] + (x - center[c]) · slope[c] + offset[c], affine (5, C) = center, scale, shift, slope, offset.

    g is what the ReLU lets through of gy, found from x; a gy that is masked already comes without ``spec.activation``.
    """
    jobs, planes = _blocks(spec)
    _input_grad(jobs, spec, planes, x.reshape(-1), gy.reshape(-1), affine.reshape(-1), out.reshape(-1))
