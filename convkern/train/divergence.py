"""What to say when a loss is no longer finite: where it began, and what is left to go on from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import convkern as ck

from ..device import is_cupy
from . import checkpoint as checkpoints
from .checkpoint import BEST, LAST


def describe(loss: float, place: str, model: Any, batches: Iterable[np.ndarray], folder: Path, lr: float) -> str:
    """Say where a loss stopped being finite, in which layer, which checkpoint is good, and what to do.

    Parameters
    ----------
    loss : float
    place : str
        Epoch and step.
    model : convkern.nn.Module
        As it was when the loss was computed.
    batches : iterable of ndarray, (B, C, H, W)
        Among them those of the loss.
    folder : Path
        Of the run.
    lr : float
        The run's.

    Returns
    -------
    str
        One sentence.
    """
    layer = "the output of every layer was finite"
    for x in batches:
        if not np.isfinite(x).all():
            layer = "the images are not finite"
            break
        found = first_layer_not_finite(model, x)
        if found is not None:
            layer = f"the first layer whose output was not finite is {found}"
            break
    return f"the loss became {loss} in {place}: {layer}; {_last_good(folder)}; try a lower lr than {lr}"


def first_layer_not_finite(model: Any, x: np.ndarray) -> str | None:
    """Name and kind of the first layer, in the order in which they run, whose output is not finite; None if there is none.

    Parameters
    ----------
    model : convkern.nn.Module
        Its buffers are as before afterwards.
    x : ndarray, (B, C, H, W)

    Returns
    -------
    str or None
    """
    bad: list[str] = []

    def watch(name: str) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], result: Any) -> None:
            if bad or _finite(result):
                return
            broken = [n for n, p in layer._parameters.items() if not np.isfinite(p.data).all()]
            because = f", whose {' and '.join(broken)} {'is' if len(broken) == 1 else 'are'} not" if broken else ""
            bad.append(f"{name or '(model)'} ({type(layer).__name__}){because}")

        return hook

    buffers = [(buffer, buffer.copy()) for buffer in model.buffers()]
    handles = [
        layer.register_forward_hook(watch(name))
        for name, layer in model.named_modules()
        if layer._parameters or not layer._modules
    ]
    try:
        with ck.no_grad(), np.errstate(all="ignore"):
            model(x)
    finally:
        for handle in handles:
            handle.remove()
        for buffer, before in buffers:
            buffer[...] = before
    return bad[0] if bad else None


def _finite(result: Any) -> bool:
    parts = result if isinstance(result, tuple) else (result,)
    arrays = (part.data if isinstance(part, ck.Tensor) else part for part in parts)
    return all(np.isfinite(array).all() for array in arrays if isinstance(array, np.ndarray) or is_cupy(array))


def _last_good(folder: Path) -> str:
    """The newest checkpoint of a run whose weights are all finite."""
    for name in (LAST, BEST):
        try:
            saved = checkpoints.load(folder / name)
        except ValueError:
            continue
        if all(np.isfinite(a).all() for a in (*saved.weights.values(), *saved.average.values())):
            at = saved.position
            where = f"epoch {at.epoch}" if not at.step else f"epoch {at.epoch + 1}, step {at.step}"
            return f"the last good checkpoint is {folder / name}, after {where}"
    return "there is no good checkpoint"
