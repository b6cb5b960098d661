"""Clipping of gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..ops import arguments as arg
from ..tensor import Tensor


def _gradients(parameters: Any, function: str) -> list[Tensor]:
    """The gradients that there are."""
    members = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for p in members:
        if not isinstance(p, Tensor):
            raise TypeError(f"{function}: parameters must be Tensors, got {type(p).__name__}")
    return [p.grad for p in members if p.grad is not None]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale all gradients by one factor such that their common norm is at most ``max_norm``.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Their gradients are changed in place; those without one are left out.
    max_norm : float
        At least 0.
    norm_type : float
        p of the p-norm, above 0; ``inf`` is the largest magnitude.
    error_if_nonfinite : bool
        Raise if the norm is not finite, before anything is changed.

    Returns
    -------
    Tensor
        The norm before, a scalar.

    Raises
    ------
    RuntimeError
        As ``error_if_nonfinite`` says.

    References
    ----------
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013.
    """
    most = arg.number(max_norm, "clip_grad_norm_: max_norm", 0.0)
    p = math.inf if norm_type == math.inf else arg.positive(norm_type, "clip_grad_norm_: norm_type")
    gradients = _gradients(parameters, "clip_grad_norm_")
    if not gradients:
        return Tensor(np.zeros((), np.float32))
    sizes = [np.abs(g.data).astype(np.float64, copy=False) for g in gradients if g.size]
    if p == math.inf:
        norm = max((float(s.max()) for s in sizes), default=0.0)
        norm = math.nan if any(np.isnan(s).any() for s in sizes) else norm
    else:
        norm = sum(float((s**p).sum()) for s in sizes) ** (1 / p)
    if error_if_nonfinite and not math.isfinite(norm):
        raise RuntimeError(f"clip_grad_norm_: the norm of the gradients is {norm}")
    factor = most / (norm + 1e-6)
    if not factor >= 1:  # also when NaN
        for g in gradients:
            g.data[...] *= g.dtype.type(factor)
            g.mark_changed()
    return Tensor(np.asarray(norm, gradients[0].dtype))


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Put every element of all gradients between -clip_value and clip_value.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Their gradients are changed in place.
    clip_value : float
        At least 0.
    """
    most = arg.number(clip_value, "clip_grad_value_: clip_value", 0.0)
    for g in _gradients(parameters, "clip_grad_value_"):
        np.clip(g.data, -most, most, out=g.data)
        g.mark_changed()
