"""Winograd's convolution in NumPy, the way the paper writes it; and the same over magnitudes, which bounds its rounding.

The formula's terms cancel, so its error is not bounded by the magnitudes of the direct sum but by those of its own:
every coefficient and every number taken without its sign. With n terms in a row of sums the error is at most gamma_n
times that (see ``TERMS``).

Sources: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016; Barabasz et al., "Error analysis and
improving the accuracy of Winograd convolution for deep neural networks", 2020.
"""

from __future__ import annotations

import numpy as np

from ..patches import FILTER, INPUT, OUTPUT, SIZE, whole
from ..spec import ConvSpec, Pair
from .reference import pad, rot180

TERMS = (
    32  # roundings of the transforms, both ways and there and back: 2 * (5 + 5 + 6), to add to the channels or blocks
)


def _patches(x: np.ndarray, size: int, step: int, before: Pair, blocks: Pair) -> np.ndarray:
    """Patches (N, C, down, across, size, size) of the planes padded by ``before`` and to whole blocks."""
    after = [(blocks[i] - 1) * step + size - before[i] - x.shape[2 + i] for i in range(2)]
    padded = pad(x, ((before[0], after[0]), (before[1], after[1])))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
    return windows[:, :, ::step, ::step]


def _both_sides(matrix: np.ndarray, patches: np.ndarray) -> np.ndarray:
    return np.einsum("ai,...ij,bj->...ab", matrix, patches, matrix, optimize=True)


def forward(x: np.ndarray, w: np.ndarray, spec: ConvSpec, magnitude: bool = False) -> np.ndarray:
    """The cross-correlation without bias, for stride 1, dilation 1, groups 1 and square kernels of 3 or 5."""
    step = SIZE + 1 - spec.kernel[0]
    to_input, to_filter, back = (
        np.array(whole(factors)) for factors in (INPUT, FILTER[spec.kernel[0]], OUTPUT[step])
    )  # fmt: skip
    if magnitude:
        x, w, to_input, to_filter, back = map(np.abs, (x, w, to_input, to_filter, back))
    blocks = (-(-spec.out[0] // step), -(-spec.out[1] // step))
    before = (spec.padding[0][0], spec.padding[1][0])
    v = _both_sides(to_input, _patches(x, SIZE, step, before, blocks))
    u = _both_sides(to_filter, w)
    y = _both_sides(back, np.einsum("kcab,ncxyab->nkxyab", u, v, optimize=True))
    whole_image = y.transpose(0, 1, 2, 4, 3, 5).reshape(spec.n, spec.k, blocks[0] * step, blocks[1] * step)
    return whole_image[:, :, : spec.out[0], : spec.out[1]]


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, magnitude: bool = False) -> np.ndarray:
    """The same over the output gradient, with the kernel turned by 180 degrees."""
    span = spec.kernel[0] - 1
    (top, bottom), (left, right) = spec.padding
    sides = ((span - top, span - bottom), (span - left, span - right))
    turned = rot180(w).swapaxes(0, 1)
    back = spec._replace(c=spec.k, k=spec.c, size=spec.out, out=spec.size, padding=sides)
    return forward(gy, turned, back, magnitude)


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: ConvSpec, magnitude: bool = False) -> np.ndarray:
    """The same with blocks of gradients for kernels, summed over the blocks."""
    taps = spec.kernel[0]
    step = SIZE + 1 - taps
    to_input, to_filter, back = (np.array(whole(factors)) for factors in (INPUT, FILTER[step], OUTPUT[taps]))
    if magnitude:
        x, gy, to_input, to_filter, back = map(np.abs, (x, gy, to_input, to_filter, back))
    blocks = (-(-spec.out[0] // step), -(-spec.out[1] // step))
    before = (spec.padding[0][0], spec.padding[1][0])
    v = _both_sides(to_input, _patches(x, SIZE, step, before, blocks))
    u = _both_sides(to_filter, _patches(gy, step, step, (0, 0), blocks))
    return _both_sides(back, np.einsum("nkxyab,ncxyab->kcab", u, v, optimize=True))
