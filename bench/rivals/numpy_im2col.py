"""NumPy: windows are copied to columns (im2col) and multiplied by BLAS; pools go over whole planes tap by tap."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...kernels.spec import ConvSpec, PoolSpec, reach
from ..cases import ConvCase, PointwiseCase, PoolCase
from .rival import Rival

Spec = ConvSpec | PoolSpec


def _padded_shape(spec: Spec) -> tuple[int, int, int, int]:
    """x with its padding, and with room for windows that in ceil mode hang over the padding's end."""
    sizes = []
    for i in range(2):
        met = (spec.out[i] - 1) * spec.stride[i] + reach(spec.kernel[i], spec.dilation[i])
        sizes.append(max(met, spec.padding[i][0] + spec.size[i]))
    return (spec.n, spec.c, sizes[0], sizes[1])


def _inside(xp: np.ndarray, spec: Spec) -> np.ndarray:
    """The view of the pixels that are no padding."""
    (top, _), (left, _) = spec.padding
    return xp[:, :, top : top + spec.size[0], left : left + spec.size[1]]


def _pad(x: np.ndarray, spec: Spec, value: float = 0) -> np.ndarray:
    xp = np.full(_padded_shape(spec), value, x.dtype)
    _inside(xp, spec)[...] = x
    return xp


def _taps(xp: np.ndarray, spec: Spec) -> Iterator[tuple[int, int, np.ndarray]]:
    """For every tap (r, s) the view (N, C, P, Q) of the pixels that it meets."""
    (sh, sw), (dh, dw), (p, q) = spec.stride, spec.dilation, spec.out
    for r in range(spec.kernel[0]):
        for s in range(spec.kernel[1]):
            rows = slice(r * dh, r * dh + (p - 1) * sh + 1, sh)
            columns = slice(s * dw, s * dw + (q - 1) * sw + 1, sw)
            yield r, s, xp[:, :, rows, columns]


def _columns(x: np.ndarray, spec: ConvSpec) -> np.ndarray:
    """im2col: (N, groups, C/groups * R * S, P * Q)."""
    columns = np.empty((spec.n, spec.c, *spec.kernel, *spec.out), x.dtype)
    for r, s, met in _taps(_pad(x, spec), spec):
        columns[:, :, r, s] = met
    return columns.reshape(spec.n, spec.groups, -1, spec.out[0] * spec.out[1])


def _matrices(w: np.ndarray, spec: ConvSpec) -> np.ndarray:
    """(groups, K/groups, C/groups * R * S)."""
    return w.reshape(spec.groups, spec.k // spec.groups, -1)


def forward(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: ConvCase) -> np.ndarray:
    spec = case.spec()
    return (_matrices(w, spec) @ _columns(x, spec)).reshape(spec.y_shape)


def input_grad(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: ConvCase) -> np.ndarray:
    spec = case.spec()
    grouped = gy.reshape(spec.n, spec.groups, spec.k // spec.groups, -1)
    columns = _matrices(w, spec).swapaxes(1, 2) @ grouped
    columns = columns.reshape(spec.n, spec.c, *spec.kernel, *spec.out)
    gxp = np.zeros(_padded_shape(spec), x.dtype)
    for r, s, met in _taps(gxp, spec):  # col2im: each column goes back to where it came from
        met += columns[:, :, r, s]
    return np.ascontiguousarray(_inside(gxp, spec))


def weight_grad(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: ConvCase) -> np.ndarray:
    spec = case.spec()
    grouped = gy.reshape(spec.n, spec.groups, spec.k // spec.groups, -1)
    total: np.ndarray = (grouped @ _columns(x, spec).swapaxes(2, 3)).sum(axis=0)
    return total.reshape(spec.w_shape)


def pointwise_forward(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: PointwiseCase) -> np.ndarray:
    return (w @ x.reshape(case.n, case.c, -1)).reshape(gy.shape)


def pointwise_input_grad(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: PointwiseCase) -> np.ndarray:
    return (w.T @ gy.reshape(case.n, case.k, -1)).reshape(x.shape)


def pointwise_weight_grad(x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: PointwiseCase) -> np.ndarray:
    products: np.ndarray = gy.reshape(case.n, case.k, -1) @ x.reshape(case.n, case.c, -1).swapaxes(1, 2)
    return products.sum(axis=0)


def max_forward(x: np.ndarray, indices: np.ndarray, gy: np.ndarray, case: PoolCase) -> np.ndarray:
    spec = case.spec()
    y = np.full(spec.y_shape, -np.inf, x.dtype)
    for _, _, met in _taps(_pad(x, spec, -np.inf), spec):
        np.maximum(y, met, out=y)
    return y


def max_backward(x: np.ndarray, indices: np.ndarray, gy: np.ndarray, case: PoolCase) -> np.ndarray:
    planes = case.n * case.c
    gx = np.zeros((planes, case.size[0] * case.size[1]), x.dtype)
    np.add.at(gx, (np.arange(planes)[:, None], indices.reshape(planes, -1)), gy.reshape(planes, -1))
    return gx.reshape(x.shape)


def _divisors(spec: PoolSpec) -> np.ndarray:
    """(P, Q): the pixels that each window counts."""
    if spec.divisor:
        return np.full(spec.out, spec.divisor, np.float32)
    counted = np.zeros((1, 1, *_padded_shape(spec)[2:]), np.float32)
    if spec.count_include_pad:
        counted[:, :, : spec.size[0] + sum(spec.padding[0]), : spec.size[1] + sum(spec.padding[1])] = 1
    else:
        _inside(counted, spec)[...] = 1
    total: np.ndarray = sum((met[0, 0] for _, _, met in _taps(counted, spec)), np.zeros(spec.out, np.float32))
    return total


def avg_forward(x: np.ndarray, indices: np.ndarray, gy: np.ndarray, case: PoolCase) -> np.ndarray:
    spec = case.spec()
    y = np.zeros(spec.y_shape, x.dtype)
    for _, _, met in _taps(_pad(x, spec), spec):
        y += met
    y /= _divisors(spec)
    return y


def avg_backward(x: np.ndarray, indices: np.ndarray, gy: np.ndarray, case: PoolCase) -> np.ndarray:
    spec = case.spec()
    share = gy / _divisors(spec)
    gxp = np.zeros(_padded_shape(spec), x.dtype)
    for _, _, met in _taps(gxp, spec):
        met += share
    return np.ascontiguousarray(_inside(gxp, spec))


NUMPY = Rival(
    "numpy",
    "NumPy: im2col and BLAS",
    {
        ("conv", "forward"): forward,
        ("conv", "input_grad"): input_grad,
        ("conv", "weight_grad"): weight_grad,
        ("pointwise", "forward"): pointwise_forward,
        ("pointwise", "input_grad"): pointwise_input_grad,
        ("pointwise", "weight_grad"): pointwise_weight_grad,
        ("pool", "max_forward"): max_forward,
        ("pool", "max_backward"): max_backward,
        ("pool", "avg_forward"): avg_forward,
        ("pool", "avg_backward"): avg_backward,
    },
)
