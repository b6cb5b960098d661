"""Unpooling by definition: the way back of max pooling, which puts each value where it was found.

x and indices (planes, inputs), y (planes, outputs); indices are flat positions in a plane of y.
"""

from __future__ import annotations

import numpy as np

from ..spec import UnpoolSpec


def forward(x: np.ndarray, indices: np.ndarray, spec: UnpoolSpec) -> np.ndarray:
    """Zeros but where an index points to; the last of several that point to one place stays."""
    y = np.zeros((spec.planes, spec.outputs), x.dtype)
    for plane, i in np.ndindex(spec.planes, spec.inputs):
        y[plane, indices[plane, i]] = x[plane, i]
    return y


def backward(gy: np.ndarray, indices: np.ndarray, spec: UnpoolSpec) -> np.ndarray:
    """Each value's gradient is read where it was put (PyTorch's: all that point to one place read it)."""
    gx = np.empty((spec.planes, spec.inputs), gy.dtype)
    for plane, i in np.ndindex(spec.planes, spec.inputs):
        gx[plane, i] = gy[plane, indices[plane, i]]
    return gx
