"""One cycle of the learning rate, with momentum against it."""

from __future__ import annotations

from typing import Any

from ..ops import arguments as arg
from .optimizer import Optimizer
from .schedule import LRScheduler, check_optimizer, cosine


class OneCycleLR(LRScheduler):
    """Up from max_lr / div_factor to max_lr, then down to the first rate / final_div_factor; step it after every batch.

    Parameters
    ----------
    optimizer : Optimizer
    max_lr : float, or one for each group
        The highest rate, above 0.
    total_steps : int, optional
        Of the cycle; or ``epochs`` times ``steps_per_epoch``.
    epochs, steps_per_epoch : int, optional
    pct_start : float
        Share of the steps that go up, 0 to 1.
    anneal_strategy : "cos" or "linear"
        The way up and down.
    cycle_momentum : bool
        Momentum (of Adam beta1) goes down from max_momentum to base_momentum and up again.
    base_momentum, max_momentum : float, or one for each group
    div_factor, final_div_factor : float
        Above 0.
    three_phase : bool
        Down to the first rate in as many steps as up, then to the last one.
    last_epoch : int
        See :class:`LRScheduler`.

    References
    ----------
    Smith and Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2018.
    """

    def __init__(
        self, optimizer: Optimizer, max_lr: Any, total_steps: int | None = None, epochs: int | None = None,
        steps_per_epoch: int | None = None, pct_start: float = 0.3, anneal_strategy: str = "cos",
        cycle_momentum: bool = True, base_momentum: Any = 0.85, max_momentum: Any = 0.95, div_factor: float = 25.0,
        final_div_factor: float = 1e4, three_phase: bool = False, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        name, groups = "OneCycleLR", check_optimizer(optimizer, "OneCycleLR").param_groups
        if total_steps is None and (epochs is None or steps_per_epoch is None):
            raise ValueError(f"{name}: total_steps must be given, or epochs and steps_per_epoch")
        if total_steps is None:
            length = arg.integer(epochs, f"{name}: epochs", 1)
            total_steps = length * arg.integer(steps_per_epoch, f"{name}: steps_per_epoch", 1)
        self.total_steps = arg.integer(total_steps, f"{name}: total_steps", 1)
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"{name}: anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}")
        self.linear, self.cycle_momentum = anneal_strategy == "linear", bool(cycle_momentum)
        share = arg.number(pct_start, f"{name}: pct_start", 0.0, 0.5 if three_phase else 1.0)
        up = share * self.total_steps - 1
        self.phases = [(up, "initial_lr", "max_lr")]  # (last step, from, to)
        if three_phase:
            self.phases += [(2 * up, "max_lr", "initial_lr"), (self.total_steps - 1, "initial_lr", "min_lr")]
        else:
            self.phases += [(self.total_steps - 1, "max_lr", "min_lr")]
        first = arg.positive(div_factor, f"{name}: div_factor")
        last = arg.positive(final_div_factor, f"{name}: final_div_factor")
        highest = _each(max_lr, len(groups), f"{name}: max_lr")
        lowest_momentum = _each(base_momentum, len(groups), f"{name}: base_momentum")
        highest_momentum = _each(max_momentum, len(groups), f"{name}: max_momentum")
        if last_epoch == -1:
            for i, group in enumerate(groups):
                group["initial_lr"] = arg.positive(highest[i], f"{name}: max_lr") / first
                group["max_lr"], group["min_lr"] = highest[i], group["initial_lr"] / last
                if self.cycle_momentum:
                    group["base_momentum"], group["max_momentum"] = lowest_momentum[i], highest_momentum[i]
        if self.cycle_momentum and any("momentum" not in group and "betas" not in group for group in groups):
            raise ValueError(
                f"{name}: cycle_momentum needs an optimizer with momentum or betas; pass cycle_momentum=False"
            )
        super().__init__(optimizer, last_epoch)

    def rate(self, group: int, epoch: float) -> float:
        return self._along(self.optimizer.param_groups[group], epoch, None)

    def _along(self, group: dict[str, Any], epoch: float, momenta: dict[str, str] | None) -> float:
        """The value of a step: of the rate, or of the momentum that stands for each of its ends."""
        if epoch > self.total_steps:
            raise ValueError(f"OneCycleLR: step {epoch} of {self.total_steps}, the cycle has ended")
        begin = 0.0
        for i, (end, start, stop) in enumerate(self.phases):
            if epoch <= end or i == len(self.phases) - 1:
                low, high = (group[key if momenta is None else momenta[key]] for key in (start, stop))
                share = min((epoch - begin) / (end - begin), 1.0) if end > begin else 1.0
                return low + (high - low) * share if self.linear else cosine(low, high, share)
            begin = end
        raise AssertionError("the last phase takes every step")

    def _set(self, epoch: float) -> None:
        super()._set(epoch)
        if not self.cycle_momentum:
            return
        opposite = {"initial_lr": "max_momentum", "max_lr": "base_momentum", "min_lr": "max_momentum"}
        for group in self.optimizer.param_groups:
            momentum = self._along(group, epoch, opposite)
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum


def _each(value: Any, groups: int, name: str) -> list[float]:
    """One number for every group."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * groups
    if len(values) != groups:
        raise ValueError(f"{name} must be a number, or one for each of {groups} groups, got {value!r}")
    return [arg.number(v, name, 0.0) for v in values]
