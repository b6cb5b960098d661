"""Optimizer, schedule and averaged weights of a run, as its configuration names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, lr_scheduler, swa_utils

if TYPE_CHECKING:
    from .config import Config

MOMENTUM = 0.9  # of SGD, where none is given
GAMMA, GAMMA_EXPONENTIAL = 0.1, 0.9
PATIENCE = 3
PCT_START = 0.3


def build_optimizer(config: Config, model: Any) -> Optimizer:
    """The optimizer that the configuration names, over all parameters of a model.

    Parameters
    ----------
    config : Config
        Without ``decay_biases``, parameters of at most one axis (biases, and scale and shift of normalisations) are a
        group of their own without weight decay, as in He et al., "Bag of tricks for image classification with
        convolutional neural networks", 2019, section 3.1.
    model : convkern.nn.Module

    Returns
    -------
    Optimizer
    """
    parameters: list[Any] = list(model.parameters())
    if not config.decay_biases:
        others = [p for p in parameters if len(p.shape) > 1]
        biases = [p for p in parameters if len(p.shape) <= 1]
        groups = ({"params": others}, {"params": biases, "weight_decay": 0.0})
        parameters = [group for group in groups if group["params"]]
    rate, decay = config.lr, config.weight_decay
    if config.optimizer == "sgd":
        momentum = MOMENTUM if config.momentum is None else config.momentum
        return SGD(parameters, rate, momentum, weight_decay=decay, nesterov=config.nesterov)
    if config.optimizer == "adagrad":
        return Adagrad(parameters, rate, weight_decay=decay)
    if config.optimizer == "rmsprop":
        alpha = 0.99 if config.alpha is None else config.alpha
        return RMSprop(parameters, rate, alpha, weight_decay=decay, momentum=config.momentum or 0.0)
    betas = (0.9 if config.beta1 is None else config.beta1, 0.999 if config.beta2 is None else config.beta2)
    return (AdamW if config.optimizer == "adamw" else Adam)(parameters, rate, betas, weight_decay=decay)


def build_average(config: Config, model: Any) -> swa_utils.AveragedModel | None:
    """The exponential moving average of a model's weights and running statistics, or None where none is asked for."""
    if config.ema is None:
        return None
    return swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(config.ema), use_buffers=True)


class Schedule:
    """The learning rate of every step: a linear warm-up, where one is asked for, and then the named schedule.

    Parameters
    ----------
    config : Config
    optimizer : Optimizer
    steps_per_epoch : int

    Notes
    -----
    What a schedule counts in epochs is counted in steps here, such that the rate changes at every step; "exponential"
    takes its factor once an epoch, in equal parts at every step. The epochs of "step" and "cosine-restarts" count from the
    end of the warm-up, milestones from the beginning of the run. "plateau" acts on the test loss after an epoch.
    """

    def __init__(self, config: Config, optimizer: Optimizer, steps_per_epoch: int) -> None:
        self._warm = round(config.warmup_epochs * steps_per_epoch)
        steps = config.epochs * steps_per_epoch
        if self._warm >= steps:
            raise ValueError(f"warmup_epochs must be less than the run of {steps} steps, got {config.warmup_epochs}")
        self.plateau = _plateau(config, optimizer) if config.schedule == "plateau" else None
        # Up to the full rate in equal strides, the first step has one of them.
        warmup = lr_scheduler.LinearLR(optimizer, 1 / (self._warm + 1), 1.0, self._warm) if self._warm else None
        after = None if self.plateau else _scheduler(config, optimizer, steps_per_epoch, self._warm)
        self.stepped = warmup or after
        if warmup and after:
            self.stepped = lr_scheduler.SequentialLR(optimizer, [warmup, after], [self._warm])

    def begin_step(self, step: int) -> None:
        """Set the rate of a step; steps are met one after the other, from 0."""
        if step == 0 or self.stepped is None or (self.plateau and step > self._warm):
            return  # the first rate is there from the beginning, a plateau lowers what the warm-up ended with
        self.stepped.step()

    def end_epoch(self, step: int, test_loss: float) -> None:
        """Take the test loss after an epoch, with the number of steps made so far."""
        if self.plateau and step > self._warm:
            self.plateau.step(test_loss)

    def state_dict(self) -> dict[str, Any]:
        """All that changes; JSON can hold it."""
        members = {"stepped": self.stepped, "plateau": self.plateau}
        return {name: member.state_dict() for name, member in members.items() if member is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave; the rates themselves are in the optimizer's state.

        Raises
        ------
        ValueError
            If it is that of another schedule.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(f"the schedule's state has {sorted(state)}, expected {sorted(self.state_dict())}")
        if self.stepped is not None:
            self.stepped.load_state_dict(state["stepped"])
        if self.plateau is not None:
            self.plateau.load_state_dict(state["plateau"])


def depends_on_epochs(config: Config) -> bool:
    """Whether another number of epochs would give other rates to the steps that both have."""
    if config.schedule in ("step", "cosine-restarts"):
        return config.period is None
    if config.schedule == "multi-step":
        return config.milestones is None
    return config.schedule in ("cosine", "one-cycle")


def _scheduler(config: Config, optimizer: Optimizer, epoch: int, warm: int) -> lr_scheduler.LRScheduler | None:
    """The schedule after the warm-up, with an epoch's number of steps; None where the rate stays."""
    rest = config.epochs * epoch - warm
    gamma = GAMMA if config.gamma is None else config.gamma
    lowest = config.min_lr or 0.0
    period = max(rest // 3, 1) if config.period is None else config.period * epoch
    match config.schedule:
        case "step":
            return lr_scheduler.StepLR(optimizer, period, gamma)
        case "multi-step":
            if config.milestones is None:  # as He et al., "Deep residual learning", 2016, section 4.2
                milestones = [max(rest // 2, 1), max(rest * 3 // 4, 1)]
            else:
                milestones = [m * epoch - warm for m in config.milestones]
            return lr_scheduler.MultiStepLR(optimizer, sorted(set(milestones)), gamma)
        case "exponential":
            gamma = GAMMA_EXPONENTIAL if config.gamma is None else config.gamma
            return lr_scheduler.ExponentialLR(optimizer, gamma ** (1 / epoch))
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, rest, lowest)
        case "cosine-restarts":
            return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, period, config.period_mult or 1, lowest)
        case "one-cycle":
            share = PCT_START if config.pct_start is None else config.pct_start
            cycles = all("betas" in group or group.get("momentum") for group in optimizer.param_groups)
            return lr_scheduler.OneCycleLR(
                optimizer, config.lr, total_steps=rest, pct_start=share, cycle_momentum=cycles
            )
    return None


def _plateau(config: Config, optimizer: Optimizer) -> lr_scheduler.ReduceLROnPlateau:
    gamma = GAMMA if config.gamma is None else config.gamma
    patience = PATIENCE if config.patience is None else config.patience
    return lr_scheduler.ReduceLROnPlateau(optimizer, "min", gamma, patience, min_lr=config.min_lr or 0.0)
