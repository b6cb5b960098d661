"""The cross-entropy of labels by definition, pixel by pixel; logits x (N, C, L), labels (N, L)."""

from __future__ import annotations

import numpy as np

from .spec import EntropySpec


def forward(x: np.ndarray, labels: np.ndarray, spec: EntropySpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-log softmax(x) at each label (N, L), 0 where it is ignored; log Σ exp(x) (N, L); and the sum of the losses that
    count and their number (2,). A label that is no class gives NaN."""
    losses, logs, counted = (np.zeros(labels.shape, x.dtype) for _ in range(3))
    for n, i in np.ndindex(labels.shape):
        column, label = x[n, :, i], labels[n, i]
        largest = column.max()
        logs[n, i] = largest + np.log(np.exp(column - largest).sum())
        if label != spec.ignored:
            counted[n, i] = 1
            losses[n, i] = logs[n, i] - column[label] if 0 <= label < spec.c else np.nan
    return losses, logs, np.array([losses.sum(), counted.sum()], x.dtype)


def input_grad(x: np.ndarray, labels: np.ndarray, logs: np.ndarray, rates: np.ndarray, spec: EntropySpec) -> np.ndarray:
    """(softmax(x) - 1 at the label) · rate, where rates (N, L) are the gradients of the losses; 0 where ignored."""
    gx = np.zeros_like(x)
    for n, i in np.ndindex(labels.shape):
        label = labels[n, i]
        if label == spec.ignored:
            continue
        gx[n, :, i] = np.exp(x[n, :, i] - logs[n, i])
        if 0 <= label < spec.c:
            gx[n, label, i] -= 1
        else:
            gx[n, :, i] = np.nan
        gx[n, :, i] *= rates[n, i]
    return gx
