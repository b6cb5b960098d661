"""Pointwise convolution on the CPU, blocked over pixels.

One job computes all output channels of a block of pixels of one image, so that the block's inputs are read from memory
once and stay in the L2 cache while the output channels, four at a time, pass over them.

Layout: x (N, C, L), w (K, C), C-contiguous. out never aliases an input.

Source: the definition, reference.py, cut into blocks.
"""

from __future__ import annotations

import numpy as np

from ..parts import add_parts
from ..spec import PointwiseSpec
from ..threads import parallel

PIXELS = 512  # pixels in a block: 128 input channels of it are 256 KiB in float32
K_BLOCK = 4  # output channels that share one pass over the block
PARTS = 32  # weight gradient: jobs wanted before the batch is cut into partial sums


@parallel
def _forward(job, worker, x, w, bias, spec, y):
    blocks = (spec.pixels + PIXELS - 1) // PIXELS
    n, first = job // blocks, job % blocks * PIXELS
    last = min(first + PIXELS, spec.pixels)
    for k0 in range(0, spec.k, K_BLOCK):
        k1 = min(k0 + K_BLOCK, spec.k)
        for k in range(k0, k1):
            y[n, k, first:last] = bias[k] if bias.size else y.dtype.type(0)
        for c in range(spec.c):
            source = x[n, c, first:last]
            if k1 - k0 == 4:
                w0, w1, w2, w3 = w[k0, c], w[k0 + 1, c], w[k0 + 2, c], w[k0 + 3, c]
                y0, y1 = y[n, k0, first:last], y[n, k0 + 1, first:last]
                y2, y3 = y[n, k0 + 2, first:last], y[n, k0 + 3, first:last]
                for i in range(last - first):
                    v = source[i]
                    y0[i] += w0 * v
                    y1[i] += w1 * v
                    y2[i] += w2 * v
                    y3[i] += w3 * v
            else:
                for k in range(k0, k1):
                    wk, yk = w[k, c], y[n, k, first:last]
                    for i in range(last - first):
                        yk[i] += wk * source[i]
        if spec.activation:
            for k in range(k0, k1):
                for i in range(first, last):
                    v = y[n, k, i]
                    y[n, k, i] = v if v > 0 or v != v else y.dtype.type(0)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: PointwiseSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k, l] = bias[k] + sum over c of w[k, c] · x[n, c, l]."""
    _forward(spec.n * -(-spec.pixels // PIXELS), x, w, bias, spec, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: PointwiseSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c, l] = sum over k of w[k, c] · gy[n, k, l]: the forward sum with the transposed matrix."""
    turned = workspace[: w.nbytes].view(w.dtype).reshape(spec.c, spec.k)
    turned[:] = w.T
    none = turned[:0, 0].copy()
    forward(gy, turned, none, spec._replace(c=spec.k, k=spec.c, activation=0), workspace, out)


@parallel
def _weight_grad(job, worker, x, gy, spec, parts, gw):
    # gw (parts, K, C): the sum over some images each
    part, k = job // spec.k, job % spec.k
    for c in range(spec.c):
        total = gw.dtype.type(0)
        for n in range(part * spec.n // parts, (part + 1) * spec.n // parts):
            image = gw.dtype.type(0)
            grad, source = gy[n, k], x[n, c]
            for i in range(spec.pixels):
                image += grad[i] * source[i]
            total += image
        gw[part, k, c] = total


def weight_grad_parts(spec: PointwiseSpec) -> int:
    """Number of partial sums over the batch, from the shape alone."""
    return max(1, min(spec.n, -(-PARTS // max(spec.k, 1))))


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: PointwiseSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, c] = sum over n, l of gy[n, k, l] · x[n, c, l]."""
    parts = weight_grad_parts(spec)
    if parts == 1:
        _weight_grad(spec.k, x, gy, spec, 1, out[None])
        return
    partial = workspace[: parts * out.nbytes].view(out.dtype).reshape(parts, spec.k, spec.c)
    _weight_grad(parts * spec.k, x, gy, spec, parts, partial)
    add_parts(partial.reshape(parts, -1), out.reshape(-1))
