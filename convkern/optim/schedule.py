"""What all schedules of the learning rate share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..ops import arguments as arg
from .optimizer import Optimizer


def check_optimizer(optimizer: Any, name: str) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{name}: optimizer must be an Optimizer, got {type(optimizer).__name__}")
    return optimizer


class LRScheduler:
    """Base of all schedules: a subclass says what the rate of a group is.

    Parameters
    ----------
    optimizer : Optimizer
        Its groups keep their first rate as ``initial_lr``.
    last_epoch : int
        Steps made before; -1 begins anew.

    Attributes
    ----------
    base_lrs : list of float
        The first rate of every group.
    last_epoch : int
        Steps made.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        name = type(self).__name__
        self.optimizer = check_optimizer(optimizer, name)
        self.last_epoch = arg.integer(last_epoch, f"{name}: last_epoch", -1)
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise ValueError(f"{name}: last_epoch={last_epoch} needs 'initial_lr' in parameter group {i}")
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.step()

    def rate(self, group: int, epoch: float) -> float:
        """The learning rate of a group after so many steps."""
        raise NotImplementedError

    def step(self) -> None:
        """Go on by one step and set the rates."""
        self.last_epoch += 1
        self._set(self.last_epoch)

    def _set(self, epoch: float) -> None:
        for i, group in enumerate(self.optimizer.param_groups):
            group["lr"] = self.rate(i, epoch)

    def get_last_lr(self) -> list[float]:
        """The rates of all groups."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """All that changes and all options, but for functions."""
        return {k: v for k, v in self.__dict__.items() if k != "optimizer" and not _holds_functions(v)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; the rates themselves are in the optimizer's state.

        Raises
        ------
        ValueError
            If it is that of another schedule, or of another number of groups; nothing is changed then.
        """
        name, mine = type(self).__name__, self.state_dict()
        if set(state_dict) != set(mine):
            raise ValueError(f"{name}: the state has {sorted(state_dict)}, expected {sorted(mine)}")
        if len(state_dict["base_lrs"]) != len(self.base_lrs):
            raise ValueError(
                f"{name}: the state has {len(state_dict['base_lrs'])} groups, expected {len(self.base_lrs)}"
            )
        self.__dict__.update(state_dict)


def _holds_functions(value: Any) -> bool:
    members = value if isinstance(value, list) else [value]
    return any(callable(v) or isinstance(v, LRScheduler) for v in members)


def cosine(start: float, end: float, share: float) -> float:
    """From start at share 0 along half a cosine to end at share 1."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
