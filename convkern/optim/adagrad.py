"""Adagrad."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .optimizer import Optimizer, Row, check_range, counter, state_array, update_kernels


class Adagrad(Optimizer):
    """Steps of lr · g over the root of the sum of all squared gradients so far.

    Parameters
    ----------
    params : iterable of Tensor, or of dict
        The parameters, or groups of them.
    lr : float
        Learning rate.
    lr_decay : float
        At step t, from 0, lr is divided by 1 + t·lr_decay.
    weight_decay : float
        Adds weight_decay·w to the gradient.
    initial_accumulator_value : float
        What the sums of squares begin with.
    eps : float
        Added to the root.

    References
    ----------
    Duchi, Hazan and Singer, "Adaptive subgradient methods for online learning and stochastic optimization", 2011.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, lr_decay: float = 0.0, weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0, eps: float = 1e-10,
    ) -> None:  # fmt: skip
        options = dict(lr=lr, lr_decay=lr_decay, weight_decay=weight_decay, eps=eps)
        super().__init__(params, {**options, "initial_accumulator_value": initial_accumulator_value})

    def check(self, group: dict[str, Any]) -> None:
        for option in self.defaults:
            check_range(f"Adagrad: {option}", group[option], 0.0)

    def kernel(self, rows: list[Row], numbers: np.ndarray) -> None:
        update_kernels(numbers).adagrad(rows, numbers)

    def kernel_unless(self, rows: list[Row], numbers: Any, found: Any) -> None:
        update_kernels(numbers).adagrad_unless(rows, numbers, found)

    def row(self, w: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> tuple[Row, tuple[float, ...]]:
        step = state["step"] = int(state.get("step", 0)) + 1
        rate = group["lr"] / (1 + (step - 1) * group["lr_decay"])
        return self._total(w, state, group), (rate, group["weight_decay"], group["eps"])

    def counted_row(self, w: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> tuple[Row, tuple[float, ...]]:
        numbers = (0.0, group["weight_decay"], group["eps"], group["lr"], group["lr_decay"])
        return (*self._total(w, state, group), counter(state, w)), numbers

    def _total(self, w: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> Row:
        return (state_array(state, "sum", w, group["initial_accumulator_value"]),)
