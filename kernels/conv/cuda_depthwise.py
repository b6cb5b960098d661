"""Depthwise convolution on a GPU (one input channel a group) in float32: forward and both gradients, any kernel, stride,
padding and dilation.

Such a layer multiplies little: what counts is that every pixel comes from memory once, and how few instructions it costs.
Kernels of 3x3, 5x5 and 7x7 are unrolled (see depthwise_kernels.py), others loop over their taps. The input gradient of
stride 1 is the forward pass over gy with the kernel turned; with a stride, a row or column of gx meets every stride-th tap
only. The weight gradient has a block for each filter and part of its sum.

Layout: NCHW, C-contiguous. out never aliases an input. Padding is never stored: what lies outside reads as zero.

Source: Zhang, Lo and Lu, "High performance depthwise and pointwise convolutions on mobile devices", 2020, for windows in
registers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..cuda.kernel import CudaKernel
from ..cuda.language import divider
from ..cuda.sums import add_parts
from ..cuda.tiles import window_parts
from ..spec import ConvSpec, Pair
from .depthwise_kernels import (
    FORWARD,
    INPUT_GRAD,
    ROWS,
    TAPS,
    THREADS,
    TOGETHER,
    WEIGHT_GRAD,
    Work,
    correlation,
    spread,
    weight_kernel,
)

# (R, S), stride: what networks are made of, with dilation 1.
_UNROLLED = (((3, 3), 1), ((3, 3), 2), ((5, 5), 1), ((5, 5), 2), ((7, 7), 1))
_CORRELATION = {case: correlation(*case[0], case[1]) for case in _UNROLLED}
_SPREAD = {case: spread(*case[0], case[1]) for case in _UNROLLED if case[1] > 1}
_WEIGHT_GRAD = {case: weight_kernel(*case[0], case[1]) for case in _UNROLLED}

BUSY = 1 << 19  # threads that fill a large GPU about twice: above, each computes several images
MOST_IMAGES = 8


def _case(spec: ConvSpec) -> tuple[Pair, int]:
    """The unrolled kernels' name for a problem; no kernel has a stride of 0."""
    return spec.kernel, spec.stride[0] if spec.stride[0] == spec.stride[1] and spec.dilation == (1, 1) else 0


def _work(spec: ConvSpec, backward: bool, terms: int, chunk: int, strips: int, **changes: int) -> Work:
    """The numbers of x and y, or backward of gy and gx."""
    source, result = ((spec.k, *spec.out), (spec.c, *spec.size))
    if not backward:
        source, result = (spec.c, *spec.size), (spec.k, *spec.out)
    filters = spec.k // spec.c
    work = Work(
        terms, chunk, spec.n, *source, *result, filters, *divider(filters), *divider(result[0]), strips, *divider(strips),
        *divider(result[2]), *spec.kernel, *spec.stride, *divider(spec.stride[0]), *divider(spec.stride[1]),
        *spec.dilation, spec.padding[0][0], spec.padding[1][0], first_tap=0, tap_step=1, biased=0, relu=0, added=0,
    )  # fmt: skip
    return work._replace(**changes)


def _columns(spec: ConvSpec, backward: bool, tall: int, skipped: int = 0, **changes: int) -> Work:
    """The work of threads that have ``tall`` rows of the result at once, the first from ``skipped`` rows above it on."""
    height, width = spec.size if backward else spec.out
    strips = -(-(height + skipped) // tall)
    threads = (spec.c if backward else spec.k) * strips * width
    images = max(1, min(spec.n * threads // BUSY, MOST_IMAGES))
    return _work(spec, backward, -(-spec.n // images) * threads, images, strips, **changes)


def _pixels(spec: ConvSpec, backward: bool, **changes: int) -> Work:
    """The work of threads that have one pixel of the result in several images."""
    height, width = spec.size if backward else spec.out
    threads = (spec.c if backward else spec.k) * height * width
    return _work(spec, backward, -(-spec.n // TOGETHER) * threads, TOGETHER, height, **changes)


@lru_cache(maxsize=1024)
def _forward_work(spec: ConvSpec, biased: bool, added: bool) -> tuple[CudaKernel, Work]:
    extras = dict(biased=int(biased), relu=spec.activation, added=int(added))
    kernel = _CORRELATION.get(_case(spec))
    return (kernel, _columns(spec, False, ROWS, **extras)) if kernel else (FORWARD, _pixels(spec, False, **extras))


@lru_cache(maxsize=1024)
def _input_work(spec: ConvSpec) -> tuple[CudaKernel, Work]:
    (rows, columns), step = case = _case(spec)
    if spec.k > spec.c or case not in _CORRELATION:
        return INPUT_GRAD, _pixels(spec, True)
    if step > 1:
        return _SPREAD[case], _columns(spec, True, ROWS * step, spec.padding[0][0] % step)
    sides = dict(top=rows - 1 - spec.padding[0][0], left=columns - 1 - spec.padding[1][0])
    return _CORRELATION[case], _columns(spec, True, ROWS, first_tap=rows * columns - 1, tap_step=-1, **sides)


@lru_cache(maxsize=1024)
def _weight_work(spec: ConvSpec) -> tuple[CudaKernel, Work, int]:
    """The kernel, its numbers, and the parts of each sum."""
    kernel, (height, width) = _WEIGHT_GRAD.get(_case(spec), WEIGHT_GRAD), spec.out
    strips = height if kernel is WEIGHT_GRAD else -(-height // ROWS)
    terms = spec.n * strips * width
    chunk = max(1, -(-terms // window_parts(spec.k, spec.n * height * width)))
    return kernel, _work(spec, False, terms, chunk, strips), max(1, -(-terms // chunk))


def _blocks(work: Work) -> int:
    return -(-work.terms // THREADS)


def forward(x, w, bias, spec: ConvSpec, workspace, out) -> None:
    """y[n, k] = bias[k] + sum over r, s of w[k, r, s] times its channel of x[n] shifted, through the activation."""
    kernel, work = _forward_work(spec, bias.size > 0, False)
    kernel(_blocks(work), x, w, bias if work.biased else w, out, out, work)


def forward_residual(x, w, bias, residual, spec: ConvSpec, workspace, out) -> None:
    """As :func:`forward`, with residual (N, K, P, Q) added before the activation."""
    kernel, work = _forward_work(spec, bias.size > 0, True)
    kernel(_blocks(work), x, w, bias if work.biased else w, residual, out, work)


def input_grad(gy, w, spec: ConvSpec, workspace, out) -> None:
    """gx[n, c] = sum over the filters k of c and r, s of w[k, r, s] times gy[n, k] shifted the other way."""
    kernel, work = _input_work(spec)
    if kernel in _CORRELATION.values():
        kernel(_blocks(work), gy, w, w, out, out, work)
    else:
        kernel(_blocks(work), gy, w, out, work)


def weight_grad(x, gy, spec: ConvSpec, workspace, out) -> None:
    """gw[k, 0, r, s] = sum over n, p, q of gy[n, k] times its channel of x[n] shifted."""
    kernel, work, parts = _weight_work(spec)
    sums = out if parts == 1 else workspace[: 4 * parts * out.size].view(np.float32)
    groups = 1 if kernel is not WEIGHT_GRAD else -(-spec.kernel[0] * spec.kernel[1] // TAPS)
    kernel(parts * spec.k * groups, x, gy, sums, work)
    if parts > 1:
        add_parts(sums, out, parts)
