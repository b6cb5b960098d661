"""Depthwise convolution (one input channel a group) with channels as the lanes of vectors: forward and input gradient, for
any kernel, stride, padding and dilation.

In a strip of pixels (see lane_strips.py) a tile holds the sums of some results that follow each other in memory, of any
rows: for each tap a vector of weights times the pixels that they meet. No lane is lost to narrow planes, and no stride or
dilation costs anything. Tiles are transposed again and written, or with the input gradient of a stride kept in scratch
until all classes of results are there. One job is a strip of one block of planes.

Packed weights have a vector more than channels, the first ones again: a block may start at any channel.

Scratch: the packed weights and biases, shared; then a strip and its results for each thread.

Vectors of channels for depthwise layers: Zhang, Lo and Lu, "High performance depthwise and pointwise convolutions on
mobile devices", 2020; there the images come that way, here they stay NCHW.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from .. import host
from ..lanes import add_lane_products, inlined, store_tile_at, store_turned
from ..simd import lanes_of, load_tile, relu_tile
from ..spec import ConvSpec
from ..threads import num_threads, parallel, thread_rows
from ..tiles import store_transposed
from ..variant import Problem, cpu_only
from .lane_strips import PIXELS, Work, lane_work, load_pixels, pad_strip
from .lattice import FIRST_TAP, RESULTS_H, RESULTS_W, TAPS, forward_axis, gradient_axis

MOST_BYTES = host.l2_bytes()  # of a strip, where it can have one row of results only


@lru_cache(maxsize=256)
def _forward_work(spec: ConvSpec, itemsize: int) -> Work:
    axes = (forward_axis(spec, 0), forward_axis(spec, 1))
    return lane_work(spec, axes, 1, spec.k // spec.c, spec.out, 0, itemsize)


@lru_cache(maxsize=256)
def _gradient_work(spec: ConvSpec, itemsize: int) -> Work:
    axes = (gradient_axis(spec, 0), gradient_axis(spec, 1))
    return lane_work(spec._replace(activation=0), axes, spec.k // spec.c, 1, spec.size, 0, itemsize)


def _weights(work: Work) -> int:
    """Elements of the packed weights."""
    return work.layout.inner * work.layout.outer * len(work.taps) * work.layout.pitch


def _packed(work: Work) -> int:
    """Elements of the packed weights and biases."""
    return _weights(work) + work.layout.outer * work.layout.pitch


@parallel
def _pack(job, worker, w, bias, taps, layout, biases, packed):
    # packed (filter of a channel, tap, channel), biases (filter, channel); w (C, filters, R, S), flat
    # A job packs a tap of every filter's first, second, …, or their biases.
    filters, c = layout.inner * layout.outer, 0
    if job < filters * taps.size:
        row, size = packed[job * layout.pitch : (job + 1) * layout.pitch], w.size // layout.channels
        at = job // taps.size * (size // filters) + taps[job % taps.size]
        for j in range(layout.pitch):
            row[j] = w[c * size + at]
            c = c + 1 if c + 1 < layout.channels else 0
    else:
        i = job - filters * taps.size
        for j in range(layout.pitch):
            biases[i * layout.pitch + j] = bias[c * layout.outer + i] if bias.size else 0
            c = c + 1 if c + 1 < layout.channels else 0


@inlined
def store_results(y, at, apart, tile, wanted, count, ahead):
    """Write the first ``count`` pixels of a tile to the first ``wanted`` planes, ``apart`` elements apart."""
    if wanted >= lanes_of(y) and count >= PIXELS:
        store_turned(y, at, apart, ahead, tile)
    else:
        store_transposed(y, at, 1, apart, 0, 1, tile, wanted, count)


def _tap_loop(together: int) -> Callable[..., Any]:
    """The function that adds the products of some taps to a tile whose pixels lie side by side ``together`` at a time."""

    @inlined
    def add_taps(tile, packed, weight, pitch, mine, start, bases, at, shifts, spans, t, end):
        while t < end:
            here = start + shifts[t]
            if spans[t] == 3:
                tile = add_lane_products(tile, packed, weight, pitch, mine, here, bases, at, together, 3)
            elif spans[t] == 2:
                tile = add_lane_products(tile, packed, weight, pitch, mine, here, bases, at, together, 2)
            else:
                tile = add_lane_products(tile, packed, weight, pitch, mine, here, bases, at, together, 1)
            weight += spans[t] * pitch
            t += spans[t]
        return tile

    return add_taps


_add_taps, _add_taps_in_pairs = _tap_loop(PIXELS), _tap_loop(2)


@inlined
def _add_taps_anywhere(tile, packed, weight, pitch, mine, start, bases, at, shifts, t, end):
    while t < end:
        tile = add_lane_products(tile, packed, weight, pitch, mine, start + shifts[t], bases, at, 1, 1)
        weight += pitch
        t += 1
    return tile


@inlined
def _sum_tile(tile, at, first_tap, end, weight, layout, packed, mine, bases, shifts, spans):
    """Add the products of a class's taps, over the inner planes, to the tile of results whose first base is bases[at]."""
    lanes, pitch = lanes_of(mine), layout.pitch
    in_pairs = True
    for j in range(0, PIXELS, 2):
        in_pairs &= bases[at + j + 1] - bases[at + j] == lanes
    for i in range(layout.inner):
        start = i * layout.image
        if bases[at + PIXELS - 1] - bases[at] == (PIXELS - 1) * lanes:
            tile = _add_taps(tile, packed, weight, pitch, mine, start, bases, at, shifts, spans, first_tap, end)
        elif in_pairs:
            tile = _add_taps_in_pairs(
                tile, packed, weight, pitch, mine, start, bases, at, shifts, spans, first_tap, end
            )
        else:
            tile = _add_taps_anywhere(tile, packed, weight, pitch, mine, start, bases, at, shifts, first_tap, end)
        weight += shifts.size * pitch
    if layout.activation:
        tile = relu_tile(tile)
    return tile


@parallel
def _sums(
    job, worker, source, packed, biases, layout, strip, phases, kept, places, classes, cuts, bases, targets, shifts,
    spans, scratch, result,
):  # fmt: skip
    # source (N*C, inner, H, W), packed see _pack, scratch (threads, …), result (N*C, outer, …), all flat
    lanes, mine = lanes_of(result), scratch[worker]
    strips = (layout.results + strip.results - 1) // strip.results
    plane, p0 = job // strips * lanes, job % strips * strip.results
    channel, wanted = plane % layout.channels, layout.planes - plane
    height, width = strip.source
    result_w, size = layout.result[1], layout.result[0] * layout.result[1]
    apart, sums = layout.outer * size, layout.inner * layout.image
    top = (p0 + strip.first[0]) * strip.phases[0]
    limit, loaded = min(strip.rows * strip.phases[0], height - top) * width, max(0, -top) * width
    for i in range(layout.inner):
        pad_strip(p0, strip, phases, mine, i * layout.image)
    for p in range(0, min(strip.results, layout.results - p0), layout.chunk):
        end = min(limit, (p + layout.chunk + strip.rows - strip.results) * strip.phases[0] * width)
        now = loaded
        for i in range(layout.inner):
            begin = ((plane * layout.inner + i) * height + top) * width
            now = load_pixels(
                source, begin, layout.inner * height * width, wanted, loaded, end, limit, width, layout.ahead,
                layout.all_rows, kept, places, mine, i * layout.image,
            )  # fmt: skip
        loaded = now
        for o in range(layout.outer):
            to = (plane * layout.outer + o) * size + p0 * layout.step[0] * result_w
            for index in range(classes.shape[0]):
                first_tap, row = classes[index, FIRST_TAP], classes[index, RESULTS_W]
                rows = min(p + layout.chunk, strip.results, classes[index, RESULTS_H] - p0) - p
                weight = (o * shifts.size + first_tap) * layout.pitch + channel
                first, in_rows = cuts[index, 0], cuts[index, 1]
                across = (row + PIXELS - 1) // PIXELS
                for number in range(rows * across if in_rows else (rows * row + PIXELS - 1) // PIXELS):
                    f = p * row + number * PIXELS
                    if in_rows:  # the last tile of a row overlaps the one before
                        f = (p + number // across) * row + min(number % across * PIXELS, row - PIXELS)
                    tile = load_tile(biases, o * layout.pitch + channel, 0, PIXELS, 1)
                    end_tap = first_tap + classes[index, TAPS]
                    tile = _sum_tile(
                        tile, first + f, first_tap, end_tap, weight, layout, packed, mine, bases, shifts, spans
                    )
                    if layout.direct:
                        store_results(result, to + f, apart, tile, wanted, (p + rows) * row - f, layout.ahead_result)
                    else:
                        store_tile_at(mine, sums, targets, first + f, tile)
            if not layout.direct:
                last = min(p + layout.chunk, strip.results) * layout.step[0]
                last = min(last, layout.result[0] - p0 * layout.step[0]) * result_w
                for f in range(p * layout.step[0] * result_w, last, PIXELS):
                    tile = load_tile(mine, sums + f * lanes, lanes, PIXELS, 1)
                    store_results(result, to + f, apart, tile, wanted, last - f, layout.ahead_result)


def _run(
    work: Work, source: np.ndarray, w: np.ndarray, bias: np.ndarray, workspace: np.ndarray, out: np.ndarray
) -> None:
    layout, room = work.layout, workspace.view(out.dtype)
    weights, packed = _weights(work), _packed(work)
    scratch = thread_rows(room[packed:], work.scratch)
    jobs = layout.inner * layout.outer * len(work.taps) + layout.outer
    _pack(jobs, w.reshape(-1), bias, work.taps, layout, room[weights:packed], room[:weights])
    _sums(
        work.blocks * work.strips, source.reshape(-1), room[:weights], room[weights:packed], layout, work.strip,
        work.phases, work.kept, work.places, work.classes, work.cuts, work.bases, work.targets, work.shifts,
        work.spans, scratch, out.reshape(-1), limit=scratch.shape[0],
    )  # fmt: skip


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k] = bias[k] + sum over r, s of w[k, r, s] times its channel of x[n] shifted."""
    _run(_forward_work(spec, x.itemsize), x, w, bias, workspace, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over the filters k of c and r, s of w[k, r, s] times gy[n, k] shifted the other way."""
    _run(_gradient_work(spec, gy.itemsize), gy, w, np.empty(0, out.dtype), workspace, out)


def _problem_work(problem: Problem) -> tuple[Work, int]:
    itemsize = problem.itemsize
    make = _forward_work if problem.direction == "forward" else _gradient_work
    return make(problem.spec, itemsize), itemsize


def refusal(problem: Problem, make: Callable[[ConvSpec, int], Work]) -> str:
    """Takes what channels as lanes need, where a strip fits the cache."""
    if reason := cpu_only(problem):
        return reason
    if problem.spec.c != problem.spec.groups:
        return "takes one input channel a group"
    itemsize = problem.itemsize
    work = make(problem.spec, itemsize)
    if work.scratch * itemsize > MOST_BYTES:
        return f"takes rows short enough for a strip of {MOST_BYTES >> 10} KiB"
    return ""


def refuses(problem: Problem) -> str:
    """See :func:`refusal`."""
    return refusal(problem, _forward_work if problem.direction == "forward" else _gradient_work)


def workspace_bytes(problem: Problem) -> int:
    """The packed weights and biases, and a strip with its results for each thread."""
    work, itemsize = _problem_work(problem)
    return -(-(_packed(work) + num_threads() * work.scratch) * itemsize // 8) * 8
