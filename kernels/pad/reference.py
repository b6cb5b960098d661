"""Padding by definition: what stands at each place of the larger volume.

x (planes, T, H, W), y (planes, …) of the padded sizes.
"""

from __future__ import annotations

import numpy as np

from ..spec import PadSpec, Triple


def source(position: int, size: int, mode: str) -> int | None:
    """The coordinate 0 … size - 1 that is seen at ``position``, which may lie outside; None where there is none.

    "reflect" walks back from the border without repeating it, "replicate" stays on it, "circular" starts anew on the
    other side.
    """
    if 0 <= position < size:
        return position
    if mode == "constant":
        return None
    if mode == "replicate":
        return 0 if position < 0 else size - 1
    if mode == "circular":
        return position % size
    assert mode == "reflect"
    return -position if position < 0 else 2 * (size - 1) - position


def _sources(spec: PadSpec, place: Triple) -> Triple | None:
    t, h, v = (source(place[i] - spec.padding[i][0], spec.size[i], spec.mode) for i in range(3))
    return None if t is None or h is None or v is None else (t, h, v)


def forward(x: np.ndarray, spec: PadSpec) -> np.ndarray:
    """x with the padding around it."""
    y = np.full(spec.y_shape, spec.value, x.dtype)
    for a, b, c in np.ndindex(spec.out):
        seen = _sources(spec, (a, b, c))
        if seen is not None:
            t, h, v = seen
            y[:, a, b, c] = x[:, t, h, v]
    return y


def backward(gy: np.ndarray, spec: PadSpec) -> np.ndarray:
    """Each gradient goes back to the pixel that was seen at its place."""
    gx = np.zeros(spec.x_shape, gy.dtype)
    for a, b, c in np.ndindex(spec.out):
        seen = _sources(spec, (a, b, c))
        if seen is not None:
            t, h, v = seen
            gx[:, t, h, v] += gy[:, a, b, c]
    return gx
