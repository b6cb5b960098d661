"""Losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph import record
from . import arguments as arg
from .activation import softmax

REDUCTIONS = ("mean", "sum", "none")


def class_labels(labels: Any, count: int, classes: int, function: str) -> np.ndarray:
    """Check integer labels (N,) in range(classes)."""
    array = arg.array_of(labels, "labels")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{function}: labels must be integers, got {array.dtype}")
    if array.shape != (count,):
        raise ValueError(f"{function}: labels must have shape ({count},), got {array.shape}")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < classes:
        raise ValueError(f"{function}: labels must be in 0 … {classes - 1}, got {array.min()} … {array.max()}")
    return array


def cross_entropy(logits: Any, labels: Any, reduction: str = "mean") -> Any:
    """Negative log-likelihood of the labels under softmax(logits).

    Parameters
    ----------
    logits : array or Tensor, (N, classes)
    labels : integer array, (N,)
    reduction : "mean", "sum" or "none"

    Returns
    -------
    array or Tensor
        A scalar, or (N,) with ``reduction="none"``.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"cross_entropy: reduction must be one of {REDUCTIONS}, got {reduction!r}")
    (za,) = arg.float_arrays("cross_entropy", logits=logits)
    if za.ndim != 2:
        raise ValueError(f"cross_entropy: logits must have shape (N, classes), got {za.shape}")
    n, classes = za.shape
    if n == 0 and reduction == "mean":
        raise ValueError("cross_entropy: the mean over an empty batch does not exist")
    picked = class_labels(labels, n, classes, "cross_entropy")
    rows = np.arange(n)
    shifted = za - za.max(axis=1, keepdims=True, initial=-np.inf)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, picked]
    dtype = za.dtype.newbyteorder("=")
    y = losses if reduction == "none" else losses.sum() / (n if reduction == "mean" else 1)

    def vjp(needs: list[bool], gy: Any, logits: Any) -> list[Any]:
        onehot = np.zeros((n, classes), dtype)
        onehot[rows, picked] = 1
        scale = gy.reshape(-1, 1) / dtype.type(n) if reduction == "mean" else gy.reshape(-1, 1)
        return [(softmax(logits, 1) - onehot) * scale]

    return record("cross_entropy", np.asarray(y, dtype), (logits,), vjp, (logits,))
