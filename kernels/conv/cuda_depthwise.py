"""Depthwise convolution on a GPU (one input channel a group): forward and both gradients, any kernel, stride, padding and
dilation, of float32, float16 and bfloat16, whose sums are float32.

Such a layer multiplies little: what counts is that every pixel comes from memory once, and how few instructions it costs.
Kernels of 3x3, 5x5 and 7x7 are unrolled (depthwise_kernels.py, and channels-last depthwise_last.py), others loop over their
taps (depthwise_any.py). The input gradient of stride 1 is the forward pass over gy with the kernel turned; with a stride, a
row or column of gx meets every stride-th tap only. The weight gradient has blocks for each filter, or channels-last for as
many as a warp has lanes, and part of their sums.

Layout: NCHW, C-contiguous, or all images channels-last. bfloat16 comes as the uint16 of its bits. out never aliases an input.
Padding is never stored: what lies outside reads as zero.

Accuracy: a sum in float32; of halves the result is rounded once, to nearest.

Source: Zhang, Lo and Lu, "High performance depthwise and pointwise convolutions on mobile devices", 2020, for windows in
registers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..cuda.images import is_last
from ..cuda.kernel import CudaKernel
from ..cuda.language import divider
from ..cuda.stored import STORED, ready, stored_as
from ..cuda.sums import finish_sums, sums_of
from ..spec import ConvSpec, Pair
from . import depthwise_any, depthwise_kernels, depthwise_last
from .depthwise_any import TAPS, TOGETHER
from .depthwise_kernels import Work
from .depthwise_last import Lines
from .window_lines import LANES, ROWS, THREADS
from .windowed import depthwise_parts

Case = tuple[Pair, int]  # (R, S), and the stride of both axes; 0 where there is none, or a dilation

# What networks are made of.
UNROLLED: tuple[Case, ...] = (((3, 3), 1), ((3, 3), 2), ((5, 5), 1), ((5, 5), 2), ((7, 7), 1))

BUSY = 1 << 19  # threads that fill a large GPU about twice: above, each computes several images, or more columns
MOST_IMAGES = 8
LEAST_RUN = 8  # columns of a thread, channels-last: before them it reads some more


class Kernels(NamedTuple):
    """Those for one layout and type: unrolled, and for any kernel."""

    correlation: dict[Case, CudaKernel]
    spread: dict[Case, CudaKernel]
    weight_grad: dict[Case, CudaKernel]
    forward: CudaKernel
    input_grad: CudaKernel
    any_weight_grad: CudaKernel


def _kernels() -> dict[tuple[str, bool], Kernels]:
    """By type, and whether images are channels-last."""
    made: dict[tuple[str, bool], Kernels] = {}
    for stored in STORED:
        both = depthwise_any.forward_kernel(stored), depthwise_any.input_kernel(stored)
        for last, unrolled in ((False, depthwise_kernels), (True, depthwise_last)):
            correlation, spread, weight_grad = (
                {
                    case: make(*case[0], case[1], stored)
                    for case in UNROLLED
                    if make is not unrolled.spread or case[1] > 1
                }
                for make in (unrolled.correlation, unrolled.spread, unrolled.weight_kernel)
            )
            whole = depthwise_any.weight_kernel(stored, last)
            made[stored, last] = Kernels(correlation, spread, weight_grad, *both, whole)
    return made


KERNELS = _kernels()


def _case(spec: ConvSpec) -> Case:
    return spec.kernel, spec.stride[0] if spec.stride[0] == spec.stride[1] and spec.dilation == (1, 1) else 0


def _ends(spec: ConvSpec, backward: bool) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Channels, height and width of source and result: x and y, or backward gy and gx."""
    x, y = (spec.c, *spec.size), (spec.k, *spec.out)
    return (y, x) if backward else (x, y)


def _work(spec: ConvSpec, backward: bool, last: bool, terms: int, chunk: int, strips: int, **changes: int) -> Work:
    (source, height, width), (result, out_height, out_width) = _ends(spec, backward)
    filters = spec.k // spec.c
    places = (1, source, 1, result) if last else (height * width, 1, out_height * out_width, 1)
    work = Work(
        terms, chunk, spec.n, source, height, width, result, out_height, out_width, filters, *divider(filters),
        *divider(result), strips, *divider(strips), *divider(out_width), *spec.kernel, *spec.stride,
        *divider(spec.stride[0]), *divider(spec.stride[1]), *spec.dilation, spec.padding[0][0], spec.padding[1][0],
        first_tap=0, tap_step=1, biased=0, relu=0, added=0, **dict(zip(Work._fields[-5:], (*places, int(last)), strict=True)),
    )  # fmt: skip
    return work._replace(**changes)


def _lines(spec: ConvSpec, backward: bool, tall: int, wide: int, skipped: Pair, **changes: int) -> Lines:
    """The work of threads that slide, ``wide`` columns at a time, along ``tall`` rows of the result, channels-last; the first
    begin so many pixels above and beside it."""
    (source, height, width), (result, out_height, out_width) = _ends(spec, backward)
    strips, columns = -(-(out_height + skipped[0]) // tall), -(-(out_width + skipped[1]) // wide)
    threads = spec.n * strips * result  # that slide along whole rows
    wanted = max(1, min(columns // LEAST_RUN, BUSY // max(threads, 1)))
    run = -(-columns // wanted)
    segments = -(-columns // run)
    lines = Lines(
        threads * segments, 0, run, source, height, width, result, out_height, out_width, *divider(result),
        *divider(spec.k // spec.c), strips, *divider(strips), segments, *divider(segments), spec.padding[0][0],
        spec.padding[1][0], first_tap=0, tap_step=1, biased=0, relu=0, added=0,
    )  # fmt: skip
    return lines._replace(**changes)


def _columns(spec: ConvSpec, backward: bool, tall: int, skipped: int = 0, **changes: int) -> Work:
    """The work of threads that have ``tall`` rows of the result at once, the first from ``skipped`` rows above it on."""
    _, (channels, height, width) = _ends(spec, backward)
    strips = -(-(height + skipped) // tall)
    threads = channels * strips * width
    images = max(1, min(spec.n * threads // BUSY, MOST_IMAGES))
    return _work(spec, backward, False, -(-spec.n // images) * threads, images, strips, **changes)


def _pixels(spec: ConvSpec, backward: bool, last: bool, **changes: int) -> Work:
    """The work of threads that have one pixel of the result in several images."""
    _, (channels, height, width) = _ends(spec, backward)
    threads = channels * height * width
    return _work(spec, backward, last, -(-spec.n // TOGETHER) * threads, TOGETHER, height, **changes)


@lru_cache(maxsize=1024)
def _forward_work(
    spec: ConvSpec, biased: bool, added: bool, stored: str = "float32", last: bool = False
) -> tuple[CudaKernel, Work | Lines]:
    extras = dict(biased=int(biased), relu=spec.activation, added=int(added))
    kernels = KERNELS[stored, last]
    kernel = kernels.correlation.get(_case(spec))
    if kernel is None:
        return kernels.forward, _pixels(spec, False, last, **extras)
    return kernel, _lines(spec, False, ROWS, 1, (0, 0), **extras) if last else _columns(spec, False, ROWS, **extras)


@lru_cache(maxsize=1024)
def _input_work(spec: ConvSpec, stored: str = "float32", last: bool = False) -> tuple[CudaKernel, Work | Lines]:
    kernels, ((rows, columns), step) = KERNELS[stored, last], _case(spec)
    case, (top, left) = _case(spec), (spec.padding[0][0], spec.padding[1][0])
    if spec.k > spec.c or case not in kernels.correlation:
        return kernels.input_grad, _pixels(spec, True, last)
    if step > 1:
        tall = ROWS * step
        work = (
            _lines(spec, True, tall, step, (top % step, left % step))
            if last
            else _columns(spec, True, tall, top % step)
        )
        return kernels.spread[case], work
    changes = dict(first_tap=rows * columns - 1, tap_step=-1, top=rows - 1 - top, left=columns - 1 - left)
    work = _lines(spec, True, ROWS, 1, (0, 0), **changes) if last else _columns(spec, True, ROWS, **changes)
    return kernels.correlation[case], work


@lru_cache(maxsize=1024)
def _weight_work(
    spec: ConvSpec, stored: str = "float32", last: bool = False
) -> tuple[CudaKernel, Work | Lines, int, int]:
    """The kernel, its numbers, the parts of each sum, and the blocks of a part."""
    kernels, (height, width) = KERNELS[stored, last], spec.out
    kernel = kernels.weight_grad.get(_case(spec))
    lines = _lines(spec, False, ROWS, 1, (0, 0)) if last else None
    strips, across = height if kernel is None else -(-height // ROWS), width
    if lines and kernel:
        across = lines.segments
    terms, blocks = spec.n * strips * across, -(-spec.k // LANES) if last else spec.k
    chunk = max(1, -(-terms // depthwise_parts(spec, last)))
    parts = max(1, -(-terms // chunk))
    if lines and kernel:
        return kernel, lines._replace(terms=terms, chunk=chunk), parts, blocks
    groups = 1 if kernel else -(-spec.kernel[0] * spec.kernel[1] // TAPS)
    work = _work(spec, False, last, terms, chunk, strips)
    return kernel or kernels.any_weight_grad, work, parts, blocks * groups


def _blocks(work: Work | Lines) -> int:
    return -(-work.terms // THREADS)


def _forward(x, w, bias, residual, spec: ConvSpec, out) -> None:
    added, last = residual is not None, is_last(x) or is_last(out)  # of one channel or pixel an array is both
    kernel, work = _forward_work(spec, bias.size > 0, added, stored_as(x), last)
    arrays = x, w, bias if bias.size else w, residual if added else out, out
    kernel(_blocks(work), *map(ready, arrays), work)


def forward(x, w, bias, spec: ConvSpec, workspace, out) -> None:
    """y[n, k] = bias[k] + sum over r, s of w[k, r, s] times its channel of x[n] shifted, through the activation."""
    _forward(x, w, bias, None, spec, out)


def forward_residual(x, w, bias, residual, spec: ConvSpec, workspace, out) -> None:
    """As :func:`forward`, with residual (N, K, P, Q) added before the activation."""
    _forward(x, w, bias, residual, spec, out)


def input_grad(gy, w, spec: ConvSpec, workspace, out) -> None:
    """gx[n, c] = sum over the filters k of c and r, s of w[k, r, s] times gy[n, k] shifted the other way."""
    stored, last = stored_as(gy), is_last(gy) or is_last(out)
    kernel, work = _input_work(spec, stored, last)
    gy, w, out = ready(gy), ready(w), ready(out)
    if kernel in KERNELS[stored, last].correlation.values():
        kernel(_blocks(work), gy, w, w, out, out, work)
    else:
        kernel(_blocks(work), gy, w, out, work)


def weight_grad(x, gy, spec: ConvSpec, workspace, out) -> None:
    """gw[k, 0, r, s] = sum over n, p, q of gy[n, k] times its channel of x[n] shifted."""
    stored, last = stored_as(x), is_last(x) or is_last(gy)
    kernel, work, parts, blocks = _weight_work(spec, stored, last)
    sums = sums_of(workspace, out, parts)
    kernel(parts * blocks, ready(x), ready(gy), sums, work)
    finish_sums(sums, out, parts)
