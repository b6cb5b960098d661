"""Lowering the learning rate where a metric stands still."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..ops import arguments as arg
from .optimizer import Optimizer
from .schedule import check_optimizer


class ReduceLROnPlateau:
    """The rates times a factor when a metric has not become better for more than ``patience`` steps.

    Parameters
    ----------
    optimizer : Optimizer
    mode : "min" or "max"
        Which way the metric becomes better.
    factor : float
        At least 0, below 1.
    patience : int
        Steps without a better metric that are waited for.
    threshold : float
        What is better by less does not count.
    threshold_mode : "rel" or "abs"
        A share of the best metric, or a difference to it.
    cooldown : int
        Steps after a change that are not counted.
    min_lr : float, or one for each group
        The lowest rates.
    eps : float
        Smaller changes of a rate are not made.

    Attributes
    ----------
    best : float
        The best metric so far.
    num_bad_epochs : int
        Steps since it was reached.
    last_epoch : int
        Steps made.
    """

    def __init__(
        self, optimizer: Optimizer, mode: str = "min", factor: float = 0.1, patience: int = 10, threshold: float = 1e-4,
        threshold_mode: str = "rel", cooldown: int = 0, min_lr: Any = 0.0, eps: float = 1e-8,
    ) -> None:  # fmt: skip
        name = type(self).__name__
        self.optimizer = check_optimizer(optimizer, name)
        for what, value, known in (("mode", mode, ("min", "max")), ("threshold_mode", threshold_mode, ("rel", "abs"))):
            if value not in known:
                raise ValueError(f"{name}: {what} must be {known[0]!r} or {known[1]!r}, got {value!r}")
        self.mode, self.threshold_mode = mode, threshold_mode
        self.factor = arg.number(factor, f"{name}: factor", 0.0)
        if self.factor >= 1:
            raise ValueError(f"{name}: factor must be below 1, got {factor!r}")
        self.patience = arg.integer(patience, f"{name}: patience", 0)
        self.cooldown = arg.integer(cooldown, f"{name}: cooldown", 0)
        self.threshold, self.eps = (
            arg.number(threshold, f"{name}: threshold", 0.0),
            arg.number(eps, f"{name}: eps", 0.0),
        )
        groups = len(optimizer.param_groups)
        lowest = list(min_lr) if isinstance(min_lr, (list, tuple)) else [min_lr] * groups
        if len(lowest) != groups:
            raise ValueError(f"{name}: min_lr must be a number, or one for each of {groups} groups, got {min_lr!r}")
        self.min_lrs = [arg.number(value, f"{name}: min_lr", 0.0) for value in lowest]
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0

    def step(self, metrics: Any) -> None:
        """Take the metric of one more epoch.

        Parameters
        ----------
        metrics : float or scalar Tensor
        """
        current = float(metrics)
        self.last_epoch += 1
        if self._better(current):
            self.best, self.num_bad_epochs = current, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for group, lowest in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
                lower = max(group["lr"] * self.factor, lowest)
                if group["lr"] - lower > self.eps:
                    group["lr"] = lower
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def _better(self, current: float) -> bool:
        margin = self.threshold if self.threshold_mode == "abs" else self.threshold * self.best
        if math.isinf(self.best):
            margin = 0.0
        return current < self.best - margin if self.mode == "min" else current > self.best + margin

    def get_last_lr(self) -> list[float]:
        """The rates of all groups."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """All that changes and all options."""
        return {k: v for k, v in self.__dict__.items() if k != "optimizer"}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; the rates are in the optimizer's state.

        Raises
        ------
        ValueError
            If it is that of another schedule; nothing is changed then.
        """
        if set(state_dict) != set(self.state_dict()):
            raise ValueError(
                f"ReduceLROnPlateau: the state has {sorted(state_dict)}, expected {sorted(self.state_dict())}"
            )
        self.__dict__.update(state_dict)
