"""The cross-entropy of labels on a GPU: a thread for each pixel goes over its classes twice, for the largest and the sum.

The losses of a block are added in a tree, the blocks' sums in order. A label that is no class gives NaN, there and in the
gradient: looking at labels on the host would wait for the device.

Layout: x, gx (N, C, L); labels, losses, logs, rates (N, L).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..cuda.kernel import CudaKernel
from ..cuda.language import cuda, divider, float32, int32, int64, quotient, thread
from ..cuda.sums import add_parts
from .spec import THREADS, EntropySpec, parts_of


class Columns(NamedTuple):
    """The numbers of an EntropySpec, and how to divide by some of them."""

    total: int  # pixels of all images
    classes: int
    pixels: int
    by_pixels: int
    by_pixels_shift: int
    ignored: int
    elements: int  # of x
    by_image: int  # of classes · pixels
    by_image_shift: int


def _columns(spec: EntropySpec) -> Columns:
    total, image = spec.n * spec.pixels, spec.c * spec.pixels
    return Columns(
        total, spec.c, spec.pixels, *divider(max(spec.pixels, 1)), spec.ignored, total * spec.c, *divider(max(image, 1))
    )


def _forward_body(x, labels, losses, logs, sums, g):
    # sums (parts, 2): of the losses, and how many count
    added = cuda.shared.array(THREADS, float32)
    counted = cuda.shared.array(THREADS, float32)
    me, i = int32(cuda.threadIdx.x), thread()
    loss, counts = float32(0), float32(0)
    if i < g.total:
        n = quotient(i, g.by_pixels, g.by_pixels_shift)
        first = int32(n * g.classes * g.pixels + i - n * g.pixels)
        largest = x[first]
        for c in range(1, g.classes):
            v = x[int32(first + c * g.pixels)]
            largest = v if v > largest or v != v else largest
        total = float32(0)
        for c in range(g.classes):
            total += math.exp(x[int32(first + c * g.pixels)] - largest)
        rest = math.log(total)
        label = labels[i]
        if label != int64(g.ignored):
            counts = float32(1)
            loss = float32(math.nan)
            if label >= int64(0) and label < int64(g.classes):
                loss = (largest - x[int32(first + int32(label) * g.pixels)]) + rest
        losses[i] = loss
        logs[i] = largest + rest
    added[me] = loss
    counted[me] = counts
    cuda.syncthreads()
    half = int32(THREADS // 2)
    while half > 0:  # a tree
        if me < half:
            added[me] += added[me + half]
            counted[me] += counted[me + half]
        cuda.syncthreads()
        half = half >> 1
    if me == 0:
        sums[int32(2 * int32(cuda.blockIdx.x))] = added[0]
        sums[int32(2 * int32(cuda.blockIdx.x) + 1)] = counted[0]


def _input_grad_body(x, labels, logs, rates, gx, g):
    e = thread()
    if e < g.elements:
        n = quotient(e, g.by_image, g.by_image_shift)
        rest = int32(e - n * g.classes * g.pixels)
        c = quotient(rest, g.by_pixels, g.by_pixels_shift)
        i = int32(n * g.pixels + rest - c * g.pixels)
        label = labels[i]
        v = float32(0)
        if label != int64(g.ignored):
            v = math.exp(x[e] - logs[i])
            if label == int64(c):
                v -= float32(1)
            if label < int64(0) or label >= int64(g.classes):
                v = float32(math.nan)
            v *= rates[i]
        gx[e] = v


_F = "float32"
_FORWARD = CudaKernel("entropy-forward", _forward_body, (_F, "int64", _F, _F, _F, Columns), THREADS)
_INPUT_GRAD = CudaKernel("entropy-input_grad", _input_grad_body, (_F, "int64", _F, _F, _F, Columns), THREADS)


def forward(x, labels, spec: EntropySpec, workspace, losses, logs, out) -> None:
    """losses and logs = log Σ exp(x), both (N, L), and out (2,): the sum of the losses that count, and their number."""
    parts = parts_of(spec)
    sums = out if parts <= 1 else workspace[: 8 * parts].view(np.float32)
    _FORWARD(max(1, parts), x, labels, losses, logs, sums, _columns(spec))
    if parts > 1:
        add_parts(sums, out, parts)


def input_grad(x, labels, logs, rates, spec: EntropySpec, workspace, out) -> None:
    """out = (softmax(x) - 1 at the label) · rate, with the forward's logs and the losses' gradients, rates (N, L)."""
    columns = _columns(spec)
    _INPUT_GRAD(-(-columns.elements // THREADS), x, labels, logs, rates, out, columns)
