"""What the options of a training run may be: checks whose messages name the option, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config

OPTIMIZERS = ("sgd", "adagrad", "rmsprop", "adam", "adamw")
SCHEDULES = ("cosine", "constant", "step", "multi-step", "exponential", "cosine-restarts", "one-cycle", "plateau")

# Options that only some optimizers or schedules take: of any other they would be ignored, so they are refused.
_TAKEN_BY = {
    "momentum": ("optimizer", ("sgd", "rmsprop")),
    "nesterov": ("optimizer", ("sgd",)),
    "alpha": ("optimizer", ("rmsprop",)),
    "beta1": ("optimizer", ("adam", "adamw")),
    "beta2": ("optimizer", ("adam", "adamw")),
    "period": ("schedule", ("step", "cosine-restarts")),
    "period_mult": ("schedule", ("cosine-restarts",)),
    "milestones": ("schedule", ("multi-step",)),
    "gamma": ("schedule", ("step", "multi-step", "exponential", "plateau")),
    "patience": ("schedule", ("plateau",)),
    "min_lr": ("schedule", ("cosine", "cosine-restarts", "plateau")),
    "pct_start": ("schedule", ("one-cycle",)),
}


def check_techniques(config: Config) -> None:
    """Check the options of optimizer, schedule, loss, gradients and averaging.

    Raises
    ------
    ValueError, TypeError
        Naming the option.
    """
    check_name("optimizer", config.optimizer, OPTIMIZERS)
    check_name("schedule", config.schedule, SCHEDULES)
    for name in ("nesterov", "decay_biases", "tensorboard"):
        if not isinstance(getattr(config, name), bool):
            raise TypeError(f"{name} must be True or False, got {getattr(config, name)!r}")
    for name, (kind, takers) in _TAKEN_BY.items():
        value, chosen = getattr(config, name), getattr(config, kind)
        if value is not None and value is not False and chosen not in takers:
            raise ValueError(f"{name} is for the {kind} {' or '.join(takers)}, got {name}={value} with {chosen}")
    check_float("lr", config.lr, "a finite number above 0", lambda value: value > 0)
    check_float("weight_decay", config.weight_decay, "a finite number of at least 0", lambda value: value >= 0)
    _check_optimizer(config)
    _check_schedule(config)
    check_float("label_smoothing", config.label_smoothing, "at least 0 and below 1", lambda value: 0 <= value < 1)
    for name in ("clip_norm", "clip_value"):
        _check_optional(name, getattr(config, name), "a finite number above 0", lambda value: value > 0)
    if config.clip_norm is not None and config.clip_value is not None:
        raise ValueError(
            "clip_norm and clip_value must not both be given, "
            f"got clip_norm={config.clip_norm} and clip_value={config.clip_value}"
        )
    _check_optional("ema", config.ema, "above 0 and below 1", lambda value: 0 < value < 1)


def check_capture(config: Config) -> None:
    """Check that what is to be captured can be.

    Raises
    ------
    ValueError, TypeError
        Naming the option that stands against it.
    """
    if not isinstance(config.capture, bool):
        raise TypeError(f"capture must be True or False, got {config.capture!r}")
    if config.capture and config.device != "cuda":
        raise ValueError(f"capture=True needs device='cuda': CUDA graphs run on a GPU, got device={config.device!r}")
    if config.capture and config.label_smoothing:
        raise ValueError(
            "capture=True needs label_smoothing=0: smoothed losses look at the labels on the host, which cannot be "
            f"captured, got {config.label_smoothing}"
        )


def _check_optimizer(config: Config) -> None:
    for name in ("momentum", "alpha", "beta1", "beta2"):
        _check_optional(name, getattr(config, name), "at least 0 and below 1", lambda value: 0 <= value < 1)
    if config.nesterov and config.momentum == 0:
        raise ValueError("nesterov needs momentum above 0, got momentum=0")


def _check_schedule(config: Config) -> None:
    check_float(
        "warmup_epochs",
        config.warmup_epochs,
        f"at least 0 and below the {config.epochs} epochs",
        lambda value: 0 <= value < config.epochs,
    )
    if config.schedule == "one-cycle" and config.warmup_epochs:
        raise ValueError(
            f"warmup_epochs must be 0 with the schedule one-cycle, which warms up itself, got {config.warmup_epochs}"
        )
    for name in ("momentum", "beta1"):
        if config.schedule == "one-cycle" and getattr(config, name):
            raise ValueError(f"{name} must not be given with the schedule one-cycle, which cycles it itself")
    for name, least in (("period", 1), ("period_mult", 1), ("patience", 0)):
        if getattr(config, name) is not None:
            check_int(name, getattr(config, name), least)
    _check_optional("gamma", config.gamma, "above 0 and below 1", lambda value: 0 < value < 1)
    _check_optional("pct_start", config.pct_start, "above 0 and below 1", lambda value: 0 < value < 1)
    wanted = f"at least 0 and below the learning rate {config.lr}"
    _check_optional("min_lr", config.min_lr, wanted, lambda value: 0 <= value < config.lr)
    if config.milestones is not None:
        _check_milestones(config)


def _check_milestones(config: Config) -> None:
    found = config.milestones
    wanted = f"increasing epochs after the warm-up and before the end, {config.epochs}"
    if not isinstance(found, tuple) or not found:
        raise TypeError(f"milestones must be a tuple of {wanted}, got {found!r}")
    for value in found:
        check_int("milestones", value, 1)
    after_warmup = all(value > config.warmup_epochs for value in found)
    if list(found) != sorted(set(found)) or found[-1] >= config.epochs or not after_warmup:
        raise ValueError(f"milestones must be {wanted}, got {', '.join(map(str, found))}")


def check_name(name: str, value: Any, known: tuple[str, ...]) -> None:
    """One of the known names."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def check_int(name: str, value: Any, least: int, most: int | None = None) -> None:
    """An integer, from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least or (most is not None and value > most):
        wanted = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def check_float(name: str, value: Any, wanted: str, holds: Callable[[float], bool]) -> None:
    """A finite number for which ``holds``; ``wanted`` says so in words."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or not holds(value):
        raise ValueError(f"{name} must be {wanted}, got {value}")


def _check_optional(name: str, value: Any, wanted: str, holds: Callable[[float], bool]) -> None:
    if value is not None:
        check_float(name, value, wanted, holds)
