"""Adam and AdamW."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from .optimizer import Optimizer, Row, check_range, counter, state_array, update_kernels


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
            check_range(f"{type(self).__name__}: {option}", group[option], 0.0)
        if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
            raise ValueError(f"{type(self).__name__}: betas must be two numbers, got {group['betas']!r}")
        for i, beta in enumerate(group["betas"]):
            check_range(f"{type(self).__name__}: betas[{i}]", beta, 0.0, 1.0, open_high=True)

    def kernel(self, rows: list[Row], numbers: np.ndarray) -> None:
        update_kernels(numbers).adam(rows, numbers)

    def kernel_unless(self, rows: list[Row], numbers: Any, found: Any) -> None:
        update_kernels(numbers).adam_unless(rows, numbers, found)

    def row(self, w: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> tuple[Row, tuple[float, ...]]:
        step = state["step"] = int(state.get("step", 0)) + 1
        beta1, beta2 = group["betas"]
        # The running means start at zero; dividing by 1 - beta**step takes that out again.
        numbers = (group["lr"] / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step))
        return self._means(w, state), (*numbers, *self._options(group))

    def counted_row(self, w: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> tuple[Row, tuple[float, ...]]:
        logarithms = (math.log(beta) if beta else -math.inf for beta in group["betas"])
        numbers = (0.0, 0.0, *self._options(group), group["lr"], *logarithms)
        return (*self._means(w, state), counter(state, w)), numbers

    def _means(self, w: np.ndarray, state: dict[str, Any]) -> Row:
        return state_array(state, "exp_avg", w), state_array(state, "exp_avg_sq", w)

    def _options(self, group: dict[str, Any]) -> tuple[float, ...]:
        """The kernel's numbers that do not depend on the step."""
        beta1, beta2 = group["betas"]
        decay, shrink = self.decay(group)
        return group["eps"], decay, 1 - beta1, beta2, 1 - beta2, shrink

    def decay(self, group: dict[str, Any]) -> tuple[float, float]:
        """What is added to the gradient for every w, and the factor that w takes before the step."""
        return group["weight_decay"], 1.0


class AdamW(Adam):
    """Adam with decoupled weight decay: every step begins with w ← w - lr·weight_decay·w.

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

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    def decay(self, group: dict[str, Any]) -> tuple[float, float]:
        return 0.0, 1 - group["lr"] * group["weight_decay"]
