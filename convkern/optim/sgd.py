"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .optimizer import Optimizer, Row, check_range, state_array


class SGD(Optimizer):
    """Gradient descent, with momentum: v ← momentum·v + g, w ← w - lr·v, where g has weight_decay·w added.

    Parameters
    ----------
    params : iterable of Tensor, or of dict
        The parameters, or groups of them.
    lr : float
        Learning rate.
    momentum, weight_decay : float
        0 switches them off.

    References
    ----------
    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning", 2013, in
    the form that PyTorch uses (the learning rate multiplies the velocity).
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    def check(self, group: dict[str, Any]) -> None:
        for option in ("lr", "momentum", "weight_decay"):
            check_range(f"SGD: {option}", group[option], 0.0)

    def kernel(self, rows: list[Row], numbers: np.ndarray) -> None:
        from ..kernels.update import cpu_chunks

        cpu_chunks.sgd(rows, numbers)

    def row(self, w: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> tuple[Row, tuple[float, ...]]:
        velocity = state_array(state, "momentum_buffer", w) if group["momentum"] else None
        return (velocity,), (group["lr"], group["momentum"], group["weight_decay"])
