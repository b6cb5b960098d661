"""Schedules of the learning rate: each is a formula of the number of steps made, `last_epoch`, and the first rates.

Call ``scheduler.step()`` after the optimizer's steps of an epoch (or after every step, as one counts).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..ops import arguments as arg
from .one_cycle import OneCycleLR
from .optimizer import Optimizer
from .plateau import ReduceLROnPlateau
from .schedule import LRScheduler, check_optimizer, cosine


class LambdaLR(LRScheduler):
    """The first rate times a function of the number of steps.

    Parameters
    ----------
    optimizer : Optimizer
    lr_lambda : callable, or one for each group
        Takes the number of steps, gives the factor.
    last_epoch : int
        See :class:`LRScheduler`.
    """

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, last_epoch: int = -1) -> None:
        groups = len(check_optimizer(optimizer, "LambdaLR").param_groups)
        given = list(lr_lambda) if isinstance(lr_lambda, (list, tuple)) else [lr_lambda] * groups
        if len(given) != groups or not all(callable(f) for f in given):
            raise ValueError(
                f"LambdaLR: lr_lambda must be a function, or one for each of {groups} groups, got {lr_lambda!r}"
            )
        self.lr_lambdas: list[Callable[[float], float]] = given
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, epoch: float) -> float:
        return self.base_lrs[group] * self.lr_lambdas[group](epoch)


class StepLR(LRScheduler):
    """The rate times gamma every ``step_size`` steps.

    Parameters
    ----------
    optimizer : Optimizer
    step_size : int
        At least 1.
    gamma : float
        At least 0.
    last_epoch : int
        See :class:`LRScheduler`.
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        self.step_size = arg.integer(step_size, "StepLR: step_size", 1)
        self.gamma = arg.number(gamma, "StepLR: gamma", 0.0)
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, epoch: float) -> float:
        return self.base_lrs[group] * self.gamma ** (epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """The rate times gamma at every milestone.

    Parameters
    ----------
    optimizer : Optimizer
    milestones : iterable of int
        Numbers of steps, increasing.
    gamma : float
        At least 0.
    last_epoch : int
        See :class:`LRScheduler`.
    """

    def __init__(
        self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.milestones = _milestones(milestones, "MultiStepLR")
        self.gamma = arg.number(gamma, "MultiStepLR: gamma", 0.0)
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, epoch: float) -> float:
        return self.base_lrs[group] * self.gamma ** sum(m <= epoch for m in self.milestones)


def _milestones(values: Any, name: str) -> list[int]:
    if not isinstance(values, Iterable):
        raise TypeError(f"{name}: milestones must be a list of ints, got {values!r}")
    found = [arg.integer(m, f"{name}: milestones", 0) for m in values]
    if found != sorted(set(found)):
        raise ValueError(f"{name}: milestones must increase, got {found}")
    return found


class ExponentialLR(LRScheduler):
    """The rate times gamma at every step.

    Parameters
    ----------
    optimizer : Optimizer
    gamma : float
        At least 0.
    last_epoch : int
        See :class:`LRScheduler`.
    """

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = arg.number(gamma, "ExponentialLR: gamma", 0.0)
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, epoch: float) -> float:
        return self.base_lrs[group] * self.gamma**epoch


class LinearLR(LRScheduler):
    """A warm-up: the first rate times a factor that runs along a line, and then stays.

    Parameters
    ----------
    optimizer : Optimizer
    start_factor : float
        Above 0, at most 1.
    end_factor : float
        0 to 1.
    total_iters : int
        Steps until the end factor is reached, at least 1.
    last_epoch : int
        See :class:`LRScheduler`.

    References
    ----------
    Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017.
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        arg.positive(start_factor, "LinearLR: start_factor")
        self.start_factor = arg.number(start_factor, "LinearLR: start_factor", 0.0, 1.0)
        self.end_factor = arg.number(end_factor, "LinearLR: end_factor", 0.0, 1.0)
        self.total_iters = arg.integer(total_iters, "LinearLR: total_iters", 1)
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, epoch: float) -> float:
        done = min(epoch / self.total_iters, 1.0)
        return self.base_lrs[group] * (self.start_factor + (self.end_factor - self.start_factor) * done)


class ConstantLR(LRScheduler):
    """The first rate times a factor for some steps.

    Parameters
    ----------
    optimizer : Optimizer
    factor : float
        0 to 1.
    total_iters : int
        Steps after which the factor is 1, at least 0.
    last_epoch : int
        See :class:`LRScheduler`.
    """

    def __init__(self, optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5, last_epoch: int = -1) -> None:
        self.factor = arg.number(factor, "ConstantLR: factor", 0.0, 1.0)
        self.total_iters = arg.integer(total_iters, "ConstantLR: total_iters", 0)
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, epoch: float) -> float:
        return self.base_lrs[group] * (self.factor if epoch < self.total_iters else 1.0)


class CosineAnnealingLR(LRScheduler):
    """Along half a cosine from the first rate to eta_min, and back, and so on.

    Parameters
    ----------
    optimizer : Optimizer
    T_max : int
        Steps of half a period, at least 1.
    eta_min : float
        The lowest rate, at least 0.
    last_epoch : int
        See :class:`LRScheduler`.

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, without the restarts.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        self.T_max = arg.integer(T_max, "CosineAnnealingLR: T_max", 1)
        self.eta_min = arg.number(eta_min, "CosineAnnealingLR: eta_min", 0.0)
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, epoch: float) -> float:
        return cosine(self.base_lrs[group], self.eta_min, epoch / self.T_max)


class CosineAnnealingWarmRestarts(LRScheduler):
    """Along half a cosine from the first rate to eta_min, again and again from the first rate.

    Parameters
    ----------
    optimizer : Optimizer
    T_0 : int
        Steps until the first restart, at least 1.
    T_mult : int
        Each period has so many times the steps of the one before, at least 1.
    eta_min : float
        The lowest rate, at least 0.
    last_epoch : int
        See :class:`LRScheduler`.

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017.
    """

    def __init__(
        self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self.T_0 = arg.integer(T_0, "CosineAnnealingWarmRestarts: T_0", 1)
        self.T_mult = arg.integer(T_mult, "CosineAnnealingWarmRestarts: T_mult", 1)
        self.eta_min = arg.number(eta_min, "CosineAnnealingWarmRestarts: eta_min", 0.0)
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: float | None = None) -> None:
        """Go on by one step, or to a number of steps, which may be a fraction within an epoch."""
        if epoch is None:
            return super().step()
        at = arg.number(epoch, "CosineAnnealingWarmRestarts: epoch", 0.0)
        self.last_epoch = math.floor(at)
        return self._set(at)

    def rate(self, group: int, epoch: float) -> float:
        steps = self.T_0
        while epoch >= steps:
            epoch -= steps
            steps *= self.T_mult
        return cosine(self.base_lrs[group], self.eta_min, epoch / steps)


class SequentialLR(LRScheduler):
    """One schedule after the other, each counting its own steps: a warm-up and what follows.

    Parameters
    ----------
    optimizer : Optimizer
    schedulers : list of LRScheduler
        Of this optimizer.
    milestones : list of int
        Steps at which the next one takes over, one fewer than schedulers.
    last_epoch : int
        See :class:`LRScheduler`.
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int], last_epoch: int = -1
    ) -> None:
        self.schedulers = list(schedulers)
        for i, scheduler in enumerate(self.schedulers):
            if not isinstance(scheduler, LRScheduler):
                raise TypeError(f"SequentialLR: schedulers[{i}] must be an LRScheduler, got {type(scheduler).__name__}")
            if scheduler.optimizer is not optimizer:
                raise ValueError(f"SequentialLR: schedulers[{i}] belongs to another optimizer")
        self.milestones = _milestones(milestones, "SequentialLR")
        if len(self.milestones) != len(self.schedulers) - 1:
            raise ValueError(
                f"SequentialLR: milestones must be one fewer than the {len(self.schedulers)} schedulers, "
                f"got {len(self.milestones)}"
            )
        super().__init__(optimizer, last_epoch)

    def _set(self, epoch: float) -> None:
        member = sum(m <= epoch for m in self.milestones)
        self.schedulers[member]._set(epoch - [0, *self.milestones][member])


__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]
