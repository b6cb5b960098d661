"""Signs of a training that goes wrong, each told once: units that are dead, gradients that explode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from ..nn import ReLU, ReLU6
from ..nn.module import watch_calls
from ..tensor import Tensor

EVERY = 10  # steps from one look to the next
BATCHES = 10  # looks until a unit that gave nothing but zeros counts as dead
DEAD = 0.4  # share of a layer's units
LOSS_JUMP = 3.0  # times the epoch's mean loss: a reason to look at once
LARGEST_NORM = 1000.0  # of a layer's gradient
GROWTH, LEAST_NORM = 100.0, 10.0  # times the layer's usual norm, and at least so much


class Health:
    """Watches the activations and gradients of a model in training.

    Parameters
    ----------
    model : convkern.nn.Module

    Notes
    -----
    A unit is a channel, or a neuron where there are no pixels. A ReLU's layer is told of when at least 40% of its units gave
    zero at every pixel of every image of 10 batches, every 10th of the run. Only ReLUs that are modules, or that a layer
    computes itself (``activation="relu"``), are seen. A gradient is told of when its norm over the parameters of one layer is
    not finite, above 1000, or above 10 and a hundred times the median of the layer's earlier norms.

    References
    ----------
    Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", 2013, on units that are never
    active; Karpathy, "CS231n: convolutional neural networks for visual recognition", notes on neural networks, on their
    share; Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013, on exploding norms.
    """

    def __init__(self, model: Any) -> None:
        self._names = {id(module): name or "(model)" for name, module in model.named_modules()}
        self._layers = [(name, list(m._parameters.values())) for name, m in model.named_modules() if m._parameters]
        self._alive: dict[int, np.ndarray] = {}  # by the layer's identity: which units have given something
        self._kinds: dict[int, str] = {}
        self._looks = 0
        self._norms: dict[str, list[float]] = {}
        self._told: set[int] = set()
        self._exploded = False
        self._warnings: list[str] = []

    def forward(self, step: int) -> Any:
        """A context for the forward pass of a step, the number of steps made before."""
        return self._watched() if self.looks(step) else nullcontext()

    def looks(self, step: int) -> bool:
        """Whether the activations of a step are looked at."""
        return step % EVERY == 0

    def gradients(self, step: int, loss: float, mean_loss: float) -> None:
        """Look at the gradients of a step, after the backward pass and before they are clipped.

        Parameters
        ----------
        step : int
            Steps made before.
        loss : float
            Of this step.
        mean_loss : float
            Of the epoch so far; NaN at its beginning.
        """
        if self._exploded or (step % EVERY and not loss > LOSS_JUMP * mean_loss):
            return
        worst = ("", 0.0, "")
        for name, parameters in self._layers:
            norm = _norm(parameters)
            known = self._norms.setdefault(name, [])
            if not math.isfinite(norm):
                worst = (name, math.inf, "is not finite")
                break
            usual = float(np.median(known)) if len(known) >= 5 else math.inf
            if norm > worst[1]:
                if norm > LARGEST_NORM:
                    worst = (name, norm, f"is {norm:.3g}")
                elif norm > max(LEAST_NORM, GROWTH * usual):
                    worst = (name, norm, f"grew from {usual:.3g} to {norm:.3g}")
            self._norms[name] = [*known[-19:], norm]
        if worst[2]:
            self._exploded = True
            self._warnings.append(
                f"exploding gradients: at step {step + 1} the norm of layer {worst[0] or '(model)'} {worst[2]}; "
                "try a lower lr, a warm-up, batch normalisation or --clip-norm"
            )

    def warnings(self) -> list[str]:
        """What there is to tell since the last call."""
        found, self._warnings = self._warnings, []
        return found

    @contextmanager
    def _watched(self) -> Iterator[None]:
        with watch_calls(self._look):
            yield
        self._looks += 1
        if self._looks == BATCHES:
            self._count_dead()

    def _look(self, module: Any, kwargs: dict[str, Any], result: Any) -> None:
        if not (isinstance(module, (ReLU, ReLU6)) or kwargs.get("activation") == "relu"):
            return
        key = id(module)
        if key not in self._names or key in self._told:
            return
        known = self._alive.get(key)
        if known is not None and known.all():
            return
        y = result.data if isinstance(result, Tensor) else np.asarray(result)  # (N, C, …)
        largest = y.reshape(*y.shape[:2], -1).max(axis=2) if y.ndim > 2 else y  # (N, C)
        active = ~(largest.max(axis=0) <= 0)  # (C,); NaN is no zero
        self._alive[key] = active if known is None else known | active
        self._kinds[key] = type(module).__name__

    def _count_dead(self) -> None:
        for key, alive in self._alive.items():
            dead = int(np.count_nonzero(~alive))
            if dead >= DEAD * len(alive):
                self._told.add(key)
                kind = self._kinds[key]
                layer = f"{self._names[key]} ({kind if kind.startswith('ReLU') else f'{kind} with ReLU'})"
                self._warnings.append(
                    f"dead ReLU: {dead} of the {len(alive)} units of layer {layer} gave 0 for every image of the last "
                    f"{BATCHES} batches looked at, and do not learn; try a lower lr, another initialisation or LeakyReLU"
                )
        self._alive.clear()
        self._looks = 0


def _norm(parameters: list[Any]) -> float:
    """Of the gradients of all of a layer's parameters together."""
    total = 0.0
    for p in parameters:
        if p.grad is not None:
            flat = p.grad.data.reshape(-1)
            total += float(np.dot(flat, flat))  # in the gradient's own precision: an overflow is an explosion as well
    return math.sqrt(total) if total >= 0 else math.nan
