"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .optimizer import Optimizer, check_range


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

    def update(self, parameter: np.ndarray, gradient: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> None:
        scalar = parameter.dtype.type
        if group["weight_decay"]:
            gradient = gradient + scalar(group["weight_decay"]) * parameter
        if group["momentum"]:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = gradient.copy()
            else:
                state["momentum_buffer"] *= scalar(group["momentum"])
                state["momentum_buffer"] += gradient
            gradient = state["momentum_buffer"]
        parameter -= scalar(group["lr"]) * gradient
