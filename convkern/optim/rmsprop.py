"""RMSProp."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .optimizer import Optimizer, Row, check_range, state_array, update_kernels


class RMSprop(Optimizer):
    """Steps of lr · g over the root of the running mean of squared gradients.

    Parameters
    ----------
    params : iterable of Tensor, or of dict
        The parameters, or groups of them.
    lr : float
        Learning rate.
    alpha : float
        Decay of the running means.
    eps : float
        Added to the root.
    weight_decay : float
        Adds weight_decay·w to the gradient.
    momentum : float
        0 switches it off.
    centered : bool
        Take the root of the variance in place of the mean square.

    References
    ----------
    Tieleman and Hinton, "Lecture 6.5: RMSProp", Neural networks for machine learning, 2012; centered: Graves, "Generating
    sequences with recurrent neural networks", 2013.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0,
        momentum: float = 0.0, centered: bool = False,
    ) -> None:  # fmt: skip
        options = dict(lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered)
        super().__init__(params, options)

    def check(self, group: dict[str, Any]) -> None:
        for option in ("lr", "alpha", "eps", "weight_decay", "momentum"):
            check_range(f"RMSprop: {option}", group[option], 0.0, 1.0 if option == "alpha" else np.inf)
        if not isinstance(group["centered"], bool):
            raise TypeError(f"RMSprop: centered must be a bool, got {group['centered']!r}")

    def kernel(self, rows: list[Row], numbers: np.ndarray) -> None:
        update_kernels(numbers).rmsprop(rows, numbers)

    def kernel_unless(self, rows: list[Row], numbers: Any, found: Any) -> None:
        update_kernels(numbers).rmsprop_unless(rows, numbers, found)

    def row(self, w: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> tuple[Row, tuple[float, ...]]:
        square = state_array(state, "square_avg", w)
        velocity = state_array(state, "momentum_buffer", w) if group["momentum"] else None
        mean = state_array(state, "grad_avg", w) if group["centered"] else None
        alpha = group["alpha"]
        numbers = (group["lr"], alpha, 1 - alpha, group["eps"], group["weight_decay"], group["momentum"])
        return (square, velocity, mean), numbers

    counted_row = row  # there is nothing to count
