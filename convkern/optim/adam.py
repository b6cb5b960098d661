"""Adam."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from .optimizer import Optimizer, check_range


class Adam(Optimizer):
    """Steps of about lr in every direction: the mean of the gradient over the root of its mean square.

    Parameters
    ----------
    params : iterable of Tensor, or of dict
        The parameters, or groups of them.
    lr : float
        Learning rate.
    betas : (float, float)
        Decay of the running means of the gradient and of its square.
    eps : float
        Added to the root.
    weight_decay : float
        Adds weight_decay·w to the gradient.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    def check(self, group: dict[str, Any]) -> None:
        for option in ("lr", "eps", "weight_decay"):
            check_range(f"Adam: {option}", group[option], 0.0)
        if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
            raise ValueError(f"Adam: betas must be two numbers, got {group['betas']!r}")
        for i, beta in enumerate(group["betas"]):
            check_range(f"Adam: betas[{i}]", beta, 0.0, 1.0, open_high=True)

    def update(self, parameter: np.ndarray, gradient: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> None:
        scalar = parameter.dtype.type
        if not state:
            state.update(step=0, exp_avg=np.zeros_like(parameter), exp_avg_sq=np.zeros_like(parameter))
        state["step"] += 1
        beta1, beta2 = group["betas"]
        if group["weight_decay"]:
            gradient = gradient + scalar(group["weight_decay"]) * parameter
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean += scalar(1 - beta1) * (gradient - mean)
        square *= scalar(beta2)
        square += scalar(1 - beta2) * gradient * gradient
        # The running means start at zero; dividing by 1 - beta**step takes that out again.
        root = np.sqrt(square) / scalar(math.sqrt(1 - beta2 ** state["step"])) + scalar(group["eps"])
        parameter -= scalar(group["lr"] / (1 - beta1 ** state["step"])) * mean / root
