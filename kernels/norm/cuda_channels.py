"""The arithmetic between the passes of batch normalisation on a GPU, a few numbers for each channel: one launch for each.

On the CPU it is NumPy's, in convkern/ops/norm.py, and in float64; here it is float32.
"""

from __future__ import annotations

import math

from ..cuda.kernel import CudaKernel
from ..cuda.language import float32, int32, thread

THREADS = 128


def _affine_body(
    mean, variance, weight, bias, running_mean, running_var, inverse, out, eps, momentum, unbiased, channels,
    weighted, biased, tracked,
):  # fmt: skip
    c = thread()
    if c < channels:
        m, v = mean[c], variance[c]
        if tracked:
            keep = float32(1) - momentum
            running_mean[c] = keep * running_mean[c] + momentum * m
            running_var[c] = keep * running_var[c] + momentum * (v * unbiased)
        scale = float32(1) / math.sqrt(v + eps)
        inverse[c] = scale
        if weighted:
            scale *= weight[c]
        out[c] = m
        out[int32(channels + c)] = scale
        out[int32(2 * channels + c)] = bias[c] if biased else float32(0)


def _slopes_body(sums, inverse, affine, out, gw, gb, count, channels, training):
    c = thread()
    if c < channels:
        total, products = sums[c], sums[int32(channels + c)]
        inv, scale = inverse[c], affine[int32(channels + c)]
        gw[c] = products * inv
        gb[c] = total
        out[c] = affine[c]
        out[int32(channels + c)] = scale
        out[int32(2 * channels + c)] = affine[int32(2 * channels + c)]
        slope, offset = float32(0), float32(0)
        if training:
            slope = -(scale * inv * inv * products) / count
            offset = -(scale * total) / count
        out[int32(3 * channels + c)] = slope
        out[int32(4 * channels + c)] = offset


_F = ("float32",)
_AFFINE = CudaKernel("norm-affine", _affine_body, (*_F * 8, *("float",) * 3, *("int",) * 4), THREADS)
_SLOPES = CudaKernel("norm-slopes", _slopes_body, (*_F * 6, "float", "int", "int"), THREADS)


def affine(mean, variance, weight, bias, running, count: int, momentum: float, eps: float, inverse, out) -> None:
    """inverse (C,) = 1 / sqrt(variance + eps) and out (3, C) = center, scale, shift; running statistics move in place.

    weight and bias may be None. running is (mean, variance), which move by the share ``momentum`` towards this batch's,
    the variance of ``count`` values made unbiased; or empty.
    """
    none = inverse
    moved = running or (none, none)
    _AFFINE(
        -(-inverse.size // THREADS), mean, variance, none if weight is None else weight, none if bias is None else bias,
        *moved, inverse, out, eps, momentum, count / max(count - 1, 1), inverse.size, weight is not None, bias is not None,
        len(running) > 0,
    )  # fmt: skip


def slopes(sums, inverse, affine, count: int, training: bool, out, gw, gb) -> None:
    """out (5, C) = affine and what the mean and the variance owe to x, see `.reference.input_grad`; gw and gb (C,) are the
    gradients of weight and bias. sums (2, C) are Σ g and Σ g·(x - center); out of training the statistics are constants."""
    _SLOPES(-(-inverse.size // THREADS), sums, inverse, affine, out, gw, gb, count, inverse.size, training)
