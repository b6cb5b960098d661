"""Direct convolution on the CPU: the definition's sums with the loops reordered for the cache.

Any stride, padding, dilation and groups. One job computes some output channels of one image (forward), one input channel
of one image (input gradient), or one kernel plane (weight gradient). The innermost loop runs along a row, where pixels lie
side by side, over the positions whose tap falls inside the input; so nothing is padded or copied, and no zero is multiplied.

Layout: NCHW, C-contiguous. out never aliases an input.

Source: the definition, reference.py.
"""

from __future__ import annotations

import numpy as np

from ..compiler import helper
from ..parts import add_parts
from ..spec import ConvSpec
from ..threads import parallel

K_BLOCK = 4  # output channels that share one pass over an input row
PARTS = 32  # weight gradient: jobs wanted before the batch is cut into partial sums


@helper
def inside(tap, stride, size, out):
    """First and one-past-last output position p with 0 <= p * stride + tap < size."""
    first = 0 if tap >= 0 else (-tap + stride - 1) // stride
    room = size - 1 - tap
    last = 0 if room < 0 else min(out, room // stride + 1)
    return first, max(first, last)


@parallel
def _forward(job, worker, x, w, bias, spec, y):
    cg, kg = spec.c // spec.groups, spec.k // spec.groups
    r_taps, s_taps = spec.kernel
    sh, sw = spec.stride
    dh, dw = spec.dilation
    pad_top, pad_left = spec.padding[0][0], spec.padding[1][0]
    blocks = (kg + K_BLOCK - 1) // K_BLOCK
    n, group, block = job // (spec.groups * blocks), job // blocks % spec.groups, job % blocks
    k0 = group * kg + block * K_BLOCK
    k1 = min(k0 + K_BLOCK, (group + 1) * kg)
    for k in range(k0, k1):
        y[n, k, :, :] = bias[k] if bias.size else y.dtype.type(0)
    for p in range(spec.out[0]):
        for c in range(cg):
            for r in range(r_taps):
                h = p * sh - pad_top + r * dh
                if h < 0 or h >= spec.size[0]:
                    continue
                row = x[n, group * cg + c, h]
                for s in range(s_taps):
                    tap = s * dw - pad_left
                    first, last = inside(tap, sw, spec.size[1], spec.out[1])
                    if k1 - k0 == 4:
                        w0, w1, w2, w3 = w[k0, c, r, s], w[k0 + 1, c, r, s], w[k0 + 2, c, r, s], w[k0 + 3, c, r, s]
                        y0, y1, y2, y3 = y[n, k0, p], y[n, k0 + 1, p], y[n, k0 + 2, p], y[n, k0 + 3, p]
                        if sw == 1:
                            for q in range(first, last):
                                v = row[q + tap]
                                y0[q] += w0 * v
                                y1[q] += w1 * v
                                y2[q] += w2 * v
                                y3[q] += w3 * v
                        else:
                            for q in range(first, last):
                                v = row[q * sw + tap]
                                y0[q] += w0 * v
                                y1[q] += w1 * v
                                y2[q] += w2 * v
                                y3[q] += w3 * v
                    else:
                        for k in range(k0, k1):
                            wk, yk = w[k, c, r, s], y[n, k, p]
                            for q in range(first, last):
                                yk[q] += wk * row[q * sw + tap]
        if spec.activation:
            for k in range(k0, k1):
                for q in range(spec.out[1]):
                    v = y[n, k, p, q]
                    y[n, k, p, q] = v if v > 0 or v != v else y.dtype.type(0)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k, p, q] = bias[k] + sum over c, r, s of x[n, c, p·stride - padding + r·dilation, …] · w[k, c, r, s]."""
    kg = spec.k // spec.groups
    _forward(spec.n * spec.groups * -(-kg // K_BLOCK), x, w, bias, spec, out)


@parallel
def _input_grad(job, worker, gy, w, spec, gx):
    cg, kg = spec.c // spec.groups, spec.k // spec.groups
    r_taps, s_taps = spec.kernel
    sh, sw = spec.stride
    dh, dw = spec.dilation
    pad_top, pad_left = spec.padding[0][0], spec.padding[1][0]
    n, c = job // spec.c, job % spec.c
    group = c // cg
    for h in range(spec.size[0]):
        row = gx[n, c, h]
        row[:] = 0
        for r in range(r_taps):
            # Read from gx, the taps run backwards: row p of gy met row h of x through tap r = (h + pad - p·stride) / dilation
            p = h + pad_top - r * dh
            if p < 0 or p % sh or p // sh >= spec.out[0]:
                continue
            p //= sh
            for k in range(group * kg, (group + 1) * kg):
                from_row = gy[n, k, p]
                for s in range(s_taps):
                    tap = s * dw - pad_left
                    first, last = inside(tap, sw, spec.size[1], spec.out[1])
                    v = w[k, c - group * cg, r, s]
                    if sw == 1:
                        for q in range(first, last):
                            row[q + tap] += v * from_row[q]
                    else:
                        for q in range(first, last):
                            row[q * sw + tap] += v * from_row[q]


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c, h, v] = sum over k, r, s of gy[n, k, (h + padding - r·dilation) / stride, …] · w[k, c, r, s]."""
    _input_grad(spec.n * spec.c, gy, w, spec, out)


@parallel
def _weight_grad(job, worker, x, gy, spec, parts, gw):
    # gw (parts, K, C/groups, R, S): the sum over some images each
    cg, kg = spec.c // spec.groups, spec.k // spec.groups
    sh, sw = spec.stride
    dh, dw = spec.dilation
    pad_top, pad_left = spec.padding[0][0], spec.padding[1][0]
    part, k, c = job // (spec.k * cg), job // cg % spec.k, job % cg
    source = k // kg * cg + c
    for r in range(spec.kernel[0]):
        p_first, p_last = inside(r * dh - pad_top, sh, spec.size[0], spec.out[0])
        for s in range(spec.kernel[1]):
            tap = s * dw - pad_left
            first, last = inside(tap, sw, spec.size[1], spec.out[1])
            total = gw.dtype.type(0)
            for n in range(part * spec.n // parts, (part + 1) * spec.n // parts):
                for p in range(p_first, p_last):
                    row = x[n, source, p * sh + r * dh - pad_top]
                    grad = gy[n, k, p]
                    row_sum = gw.dtype.type(0)
                    if sw == 1:
                        for q in range(first, last):
                            row_sum += grad[q] * row[q + tap]
                    else:
                        for q in range(first, last):
                            row_sum += grad[q] * row[q * sw + tap]
                    total += row_sum
            gw[part, k, c, r, s] = total


def weight_grad_parts(spec: ConvSpec) -> int:
    """Number of partial sums over the batch, from the shape alone."""
    planes = spec.k * spec.c // spec.groups
    return max(1, min(spec.n, -(-PARTS // max(planes, 1))))


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, c, r, s] = sum over n, p, q of x[n, c, p·stride - padding + r·dilation, …] · gy[n, k, p, q]."""
    parts = weight_grad_parts(spec)
    jobs = parts * spec.k * (spec.c // spec.groups)
    if parts == 1:
        _weight_grad(jobs, x, gy, spec, 1, out[None])
        return
    partial = workspace[: parts * out.nbytes].view(out.dtype).reshape(parts, *out.shape)
    _weight_grad(jobs, x, gy, spec, parts, partial)
    add_parts(partial.reshape(parts, -1), out.reshape(-1))


@parallel
def _bias_grad(job, worker, gy, gb):
    total = gb.dtype.type(0)
    for n in range(gy.shape[0]):
        image = gb.dtype.type(0)
        for i in range(gy.shape[2]):
            image += gy[n, job, i]
        total += image
    gb[job] = total


def bias_grad(gy: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gb[k] = sum over n, p, q of gy[n, k, p, q]."""
    _bias_grad(spec.k, gy.reshape(spec.n, spec.k, spec.out[0] * spec.out[1]), out)
