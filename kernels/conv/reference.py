"""Two-dimensional convolution by definition, the way the books write it.

x (N, C, H, W), w (K, C/groups, R, S), y (N, K, P, Q); every function works in the dtype it is given.
"""

from __future__ import annotations

import numpy as np

from ..spec import ConvSpec, Pair, Sides


def pad(x: np.ndarray, padding: Sides) -> np.ndarray:
    """Zeros around each plane; a negative amount cuts rows or columns off."""
    (top, bottom), (left, right) = padding
    x = x[:, :, max(-top, 0) : x.shape[2] - max(-bottom, 0), max(-left, 0) : x.shape[3] - max(-right, 0)]
    return np.pad(x, ((0, 0), (0, 0), (max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0))))


def rot180(w: np.ndarray) -> np.ndarray:
    """Each kernel plane turned by 180 degrees."""
    return w[:, :, ::-1, ::-1]


def spread(gy: np.ndarray, stride: tuple[int, int]) -> np.ndarray:
    """Put stride-1 zeros between neighbouring pixels: the output gradient at the input's resolution."""
    n, k, p, q = gy.shape
    z = np.zeros((n, k, (p - 1) * stride[0] + 1, (q - 1) * stride[1] + 1), gy.dtype)
    z[:, :, :: stride[0], :: stride[1]] = gy
    return z


def forward(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, spec: ConvSpec) -> np.ndarray:
    """Cross-correlation: slide each kernel over the padded input, multiply, sum."""
    xp = pad(x, spec.padding)
    cg, kg = spec.c // spec.groups, spec.k // spec.groups
    (r, s), (sh, sw), (dh, dw) = spec.kernel, spec.stride, spec.dilation
    y = np.zeros(spec.y_shape, x.dtype)
    for n in range(spec.n):
        for k in range(spec.k):
            channels = slice(k // kg * cg, (k // kg + 1) * cg)
            for p in range(spec.out[0]):
                for q in range(spec.out[1]):
                    h, v = p * sh, q * sw
                    window = xp[n, channels, h : h + dh * (r - 1) + 1 : dh, v : v + dw * (s - 1) + 1 : dw]
                    y[n, k, p, q] = np.sum(window * w[k])
    if bias is not None:
        y += bias[None, :, None, None]
    if spec.activation:
        y = np.maximum(y, 0)
    return y


def forward_residual(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, residual: np.ndarray, spec: ConvSpec
) -> np.ndarray:
    """The same with an array of y's shape added before the activation, as at the end of a residual block."""
    y = forward(x, w, bias, spec._replace(activation=0)) + residual
    return np.maximum(y, 0) if spec.activation else y


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec) -> np.ndarray:
    """Convolution of the padded output gradient with the kernel turned by 180 degrees.

    y[p] takes x[p·stride - padding + r·dilation] times w[r], so x[h] gives to every y that meets it through w[r]; read
    from x's side the kernel runs backwards: gx is the cross-correlation of the spread, padded gy with rot180(w).
    """
    cg, kg = spec.c // spec.groups, spec.k // spec.groups
    # (K, C/groups, R, S) -> (C, K/groups, R, S): what was summed over now is what is produced
    turned = rot180(w).reshape(spec.groups, kg, cg, *spec.kernel).swapaxes(1, 2).reshape(spec.c, kg, *spec.kernel)
    z = spread(gy, spec.stride)
    sides: list[Pair] = []
    for axis in range(2):
        span = spec.dilation[axis] * (spec.kernel[axis] - 1)
        before = span - spec.padding[axis][0]
        sides.append((before, spec.size[axis] + span - before - z.shape[2 + axis]))
    full = spec._replace(
        c=spec.k, k=spec.c, size=z.shape[2:], stride=(1, 1), padding=(sides[0], sides[1]), out=spec.size, activation=0
    )
    return forward(z, turned, None, full)


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: ConvSpec) -> np.ndarray:
    """Cross-correlation of the input with the output gradient: w[r, s] met every x that lies (r, s) from a window."""
    xp = pad(x, spec.padding)
    cg, kg = spec.c // spec.groups, spec.k // spec.groups
    (sh, sw), (dh, dw), (p, q) = spec.stride, spec.dilation, spec.out
    gw = np.zeros(spec.w_shape, x.dtype)
    for k in range(spec.k):
        for c in range(cg):
            for r in range(spec.kernel[0]):
                for s in range(spec.kernel[1]):
                    h, v = r * dh, s * dw
                    met = xp[:, k // kg * cg + c, h : h + (p - 1) * sh + 1 : sh, v : v + (q - 1) * sw + 1 : sw]
                    gw[k, c, r, s] = np.sum(met * gy[:, k])
    return gw


def bias_grad(gy: np.ndarray) -> np.ndarray:
    """The bias met every output pixel once."""
    return gy.sum(axis=(0, 2, 3))
