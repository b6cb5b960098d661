"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..ops import arguments as arg
from .optimizer import Optimizer, Row, check_range, counter, state_array, update_kernels


class SGD(Optimizer):
    """Gradient descent, with momentum: v ← momentum·v + (1 - dampening)·g, w ← w - lr·v, where g has weight_decay·w added.

    Parameters
    ----------
    params : iterable of Tensor, or of dict
        The parameters, or groups of them.
    lr : float
        Learning rate.
    momentum : float
        0 switches it off.
    dampening : float
        Share of the gradient that momentum leaves out, but for the first step, where v is g.
    weight_decay : float
        0 switches it off.
    nesterov : bool
        Step along g + momentum·v instead of v; needs momentum and no dampening.

    References
    ----------
    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning", 2013, in
    the form that PyTorch uses (the learning rate multiplies the velocity).
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0, dampening: float = 0.0,
        weight_decay: float = 0.0, nesterov: bool = False,
    ) -> None:  # fmt: skip
        options = dict(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov)
        super().__init__(params, options)

    def check(self, group: dict[str, Any]) -> None:
        for option in ("lr", "momentum", "weight_decay"):
            check_range(f"SGD: {option}", group[option], 0.0)
        arg.number(group["dampening"], "SGD: dampening")
        if not isinstance(group["nesterov"], bool):
            raise TypeError(f"SGD: nesterov must be a bool, got {group['nesterov']!r}")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "SGD: nesterov needs momentum above 0 and dampening 0, "
                f"got momentum={group['momentum']}, dampening={group['dampening']}"
            )

    def kernel(self, rows: list[Row], numbers: np.ndarray) -> None:
        update_kernels(numbers).sgd(rows, numbers)

    def kernel_unless(self, rows: list[Row], numbers: Any, found: Any) -> None:
        update_kernels(numbers).sgd_unless(rows, numbers, found)

    def row(self, w: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> tuple[Row, tuple[float, ...]]:
        made = _steps_made(state)
        state.pop("step", None)
        fresh = 1 - group["dampening"] if made and group["momentum"] else 1.0
        return (self._velocity(w, state, group),), (*self._options(group, fresh),)

    def counted_row(self, w: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> tuple[Row, tuple[float, ...]]:
        later = 1 - group["dampening"] if group["momentum"] else 1.0
        steps = counter(state, w, _steps_made(state))
        return (self._velocity(w, state, group), steps), (*self._options(group, 1.0), later)

    def _velocity(self, w: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> np.ndarray | None:
        return state_array(state, "momentum_buffer", w) if group["momentum"] else None

    def _options(self, group: dict[str, Any], fresh: float) -> tuple[float, ...]:
        """The kernel's numbers; ``fresh`` is the gradient's factor in the velocity."""
        return group["lr"], group["momentum"], group["weight_decay"], fresh, group["nesterov"]


def _steps_made(state: dict[str, Any]) -> int:
    """Whether a velocity is there: it begins with the first gradient. A GPU may have made it and skipped the first steps."""
    return int(state.get("step", "momentum_buffer" in state))
