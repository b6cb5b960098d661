"""Averages of a model's weights over its training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import device as _device
from ..nn.module import Module
from ..ops import arguments as arg

Average = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
MultiAverage = Callable[[Sequence[np.ndarray], Sequence[np.ndarray], int], None]


def get_ema_avg_fn(decay: float = 0.999) -> Average:
    """The exponential moving average: decay · average + (1 - decay) · weight.

    Parameters
    ----------
    decay : float
        0 to 1.

    Returns
    -------
    callable
        For ``avg_fn`` of :class:`AveragedModel`.
    """
    keep = arg.number(decay, "get_ema_avg_fn: decay", 0.0, 1.0)
    return lambda average, weight, count: keep * average + (1 - keep) * weight


def get_ema_multi_avg_fn(decay: float = 0.999) -> MultiAverage:
    """As :func:`get_ema_avg_fn`, for all arrays at once and in place.

    Parameters
    ----------
    decay : float
        0 to 1.

    Returns
    -------
    callable
        For ``multi_avg_fn`` of :class:`AveragedModel`.
    """
    keep = arg.number(decay, "get_ema_multi_avg_fn: decay", 0.0, 1.0)

    def update(averages: Sequence[np.ndarray], weights: Sequence[np.ndarray], count: int) -> None:
        for average, weight in zip(averages, weights, strict=True):
            average += (1 - keep) * (weight - average)

    return update


class AveragedModel(Module):
    """A copy of a model, whose weights are an average over those that the model had.

    Parameters
    ----------
    model : Module
    device : None, "auto", "cpu" or "cuda"
        Where the copy lives; where the model is by default.
    avg_fn : callable, optional
        ``avg_fn(average, weight, count)`` gives the new average of arrays, count being how many it holds already; by default
        the plain mean. :func:`get_ema_avg_fn` makes one for the exponential moving average.
    multi_avg_fn : callable, optional
        The same for lists of arrays, in place; instead of ``avg_fn``.
    use_buffers : bool
        Average floating buffers as well, such as running statistics; else all buffers are the model's last ones.

    Attributes
    ----------
    module : Module
        The copy.
    n_averaged : array of int64, ()
        How many models it is the average of.

    References
    ----------
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; Izmailov et al., "Averaging weights
    leads to wider optima and better generalization", 2018.
    """

    def __init__(
        self, model: Module, device: str | None = None, avg_fn: Average | None = None,
        multi_avg_fn: MultiAverage | None = None, use_buffers: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if not isinstance(model, Module):
            raise TypeError(f"AveragedModel: model must be a Module, got {type(model).__name__}")
        if avg_fn is not None and multi_avg_fn is not None:
            raise ValueError("AveragedModel: avg_fn and multi_avg_fn must not both be given")
        _device.check(device or "auto")
        list(model.parameters())  # refuses lazy layers that saw no batch
        self.module = copy.deepcopy(model)
        if device not in (None, "auto"):
            self.module.to(device)
        self.avg_fn, self.multi_avg_fn, self.use_buffers = avg_fn, multi_avg_fn, bool(use_buffers)
        self.register_buffer("n_averaged", np.array(0, np.int64))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def update_parameters(self, model: Module) -> None:
        """Take the model's present weights into the average.

        Parameters
        ----------
        model : Module
            With the parameters and buffers of the first one.
        """
        _device.refuse_capture(
            "AveragedModel.update_parameters", "its count changes from step to step; call it after the step"
        )
        pairs = _pairs(self.module.named_parameters(), model.named_parameters(), "parameters")
        buffers = _pairs(self.module.named_buffers(), model.named_buffers(), "buffers")
        if self.use_buffers:
            pairs += [pair for pair in buffers if pair[0].dtype.kind == "f"]
            buffers = [pair for pair in buffers if pair[0].dtype.kind != "f"]
        count = int(self.n_averaged)
        if count == 0:
            buffers += pairs
        elif self.multi_avg_fn is not None:
            self.multi_avg_fn([mine for mine, _ in pairs], [theirs for _, theirs in pairs], count)
        else:
            for mine, theirs in pairs:
                if self.avg_fn is not None:
                    mine[...] = self.avg_fn(mine, theirs, count)
                else:
                    mine += (theirs - mine) / (count + 1)
        for mine, theirs in buffers:
            mine[...] = theirs
        for parameter in self.module.parameters():
            parameter.mark_changed()
        self.n_averaged[...] += 1


def _pairs(mine: Any, theirs: Any, what: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The arrays of both models, which must have the same names and shapes."""
    ours, other = ({name: arg.array_of(value, name) for name, value in named} for named in (mine, theirs))
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in other.items()}:
        raise ValueError(f"update_parameters: the model has other {what} than the one that is averaged")
    return [(ours[name], other[name]) for name in ours]
