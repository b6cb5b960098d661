"""Losses of class labels: cross-entropy and negative log-likelihood."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .. import device
from ..device import whole
from ..graph import record
from ..kernels.entropy.spec import EntropySpec
from ..kernels.variant import Problem
from ..plan import execute
from ..tensor import Tensor
from . import arguments as arg
from .activation import log_softmax, softmax
from .arithmetic import mul, neg
from .loss import check_reduction, reduced
from .reduce import largest
from .reduce import sum as sum_
from .shape import reshape


class _Targets(NamedTuple):
    """Checked labels; the shape of a loss is that of input without its class axis."""

    axis: int  # of the classes
    labels: np.ndarray  # 0 where ignored
    kept: np.ndarray | None  # False where ignored; None if all count
    share: np.ndarray | None  # weight of each label, 0 where ignored; None: all 1
    places: tuple[np.ndarray, ...]  # the index of each label's class in an array of input's shape

    def weighted(self, values: np.ndarray) -> np.ndarray:
        """Values times the share; exactly 0 where ignored, whatever the value."""
        if self.share is None:
            return values
        return np.where(self.share == 0, 0, values * self.share)

    def total(self, dtype: np.dtype, function: str) -> Any:
        """What the mean divides by."""
        total = self.labels.size if self.share is None else float(self.share.sum())
        if total == 0:
            empty = "over an empty batch" if self.labels.size == 0 else "of targets that are all ignored or weigh 0"
            raise ValueError(f"{function}: the mean {empty} does not exist")
        return dtype.type(total)

    def pick(self, values: np.ndarray) -> np.ndarray:
        """The value of each label's class."""
        return whole(values[self.places])

    def spread(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The share at each label's class, 0 elsewhere."""
        out = device.library(self.labels).zeros(shape, dtype)
        out[self.places] = 1 if self.share is None else self.share
        return out


def _class_axis(xa: np.ndarray, function: str) -> int:
    if xa.ndim == 0:
        raise ValueError(f"{function}: input must have shape (C,) or (N, C, …), got ()")
    return 0 if xa.ndim == 1 else 1


def _class_weight(weight: Any, xa: np.ndarray, axis: int, function: str) -> np.ndarray | None:
    """(C,) in input's dtype."""
    if weight is None:
        return None
    _, wa = arg.kernel_inputs(function, input=xa, weight=weight)
    if wa.shape != (xa.shape[axis],):
        raise ValueError(f"{function}: weight must have shape ({xa.shape[axis]},), one per class, got {wa.shape}")
    if wa.dtype.newbyteorder("=") != xa.dtype:
        raise TypeError(f"{function}: weight must have input's dtype {xa.dtype}, got {wa.dtype}")
    if not (wa >= 0).all():
        raise ValueError(f"{function}: weight must be at least 0, got {wa.min()}")
    return wa


def _labels(target: Any, xa: np.ndarray, function: str) -> np.ndarray:
    """Integers of input's shape without its class axis."""
    axis = _class_axis(xa, function)
    _, labels = arg.kernel_inputs(function, input=xa, target=target)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{function}: target must hold integer labels, got {labels.dtype}")
    expected = (*xa.shape[:axis], *xa.shape[axis + 1 :])
    if labels.shape != expected:
        raise ValueError(f"{function}: target must have shape {expected} for input {xa.shape}, got {labels.shape}")
    return labels


def _targets(target: Any, xa: np.ndarray, weight: np.ndarray | None, ignore_index: Any, function: str) -> _Targets:
    axis = _class_axis(xa, function)
    labels, classes = _labels(target, xa, function), xa.shape[axis]
    kept = labels != arg.integer(ignore_index, f"{function}: ignore_index", -(2**63))
    kept = None if kept.all() else kept
    if kept is not None:
        labels = np.where(kept, labels, 0)
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"{function}: target must be in 0 … {classes - 1}, or {ignore_index} to be ignored, "
            f"got {labels.min()} … {labels.max()}"
        )
    labels = labels.astype(np.int64, copy=False)
    share = None if weight is None else weight[labels]
    if kept is not None:
        share = kept.astype(xa.dtype) if share is None else share * kept
    grid = np.ix_(*map(device.library(labels).arange, labels.shape)) if labels.ndim else ()
    return _Targets(axis, labels, kept, share, (*grid[:axis], labels, *grid[axis:]))


def _column(values: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    """(C,) along the class axis of an array with ``ndim`` axes."""
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _rated(gy: Any, axis: int, shape: tuple[int, ...], reduction: str, total: Any) -> Any:
    """The gradient of each loss, with an axis for the classes."""
    if reduction == "none":
        return reshape(gy, (*shape[:axis], 1, *shape[axis + 1 :]))
    rate = reshape(gy, (1,) * len(shape))
    return rate / total if reduction == "mean" else rate


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """-Σ q_c · w_c · log softmax(input)_c over the classes c, where q is 1 at the label.

    Parameters
    ----------
    input : array or Tensor, (N, C, …) or (C,)
        Logits, float32 or float64.
    target : integer array, (N, …) or (); or floating array or Tensor of input's shape
        Labels from 0 to C - 1, or the probability of every class. Others raise; on a GPU, where looking at them would wait
        for the device, they give NaN, and so does a mean over none, unless there are weights or smoothing.
    weight : array, (C,), optional
        w; a mean over labels divides by the sum of their weights.
    ignore_index : int
        A label that does not count.
    reduction : "mean", "sum" or "none"
    label_smoothing : float
        Share of the target that is spread evenly over the classes, 0 to 1.

    Returns
    -------
    array or Tensor
        A scalar, or (N, …) with ``reduction="none"``.

    References
    ----------
    Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception architecture for computer vision", 2016, for the
    smoothing.
    """
    function = "cross_entropy"
    check_reduction(reduction, function)
    smooth = arg.number(label_smoothing, f"{function}: label_smoothing", 0.0, 1.0)
    (xa,) = arg.float_arrays(function, input=input)
    xa = xa.astype(xa.dtype.newbyteorder("="), copy=False)
    axis = _class_axis(xa, function)
    wa = _class_weight(weight, xa, axis, function)
    if arg.array_of(target, "target").dtype.kind == "f":
        return _of_probabilities(input, target, wa, axis, reduction, smooth)
    ignored = arg.integer(ignore_index, f"{function}: ignore_index", -(2**63))
    if device.is_cupy(xa) and xa.dtype == np.float32 and wa is None and not smooth and abs(ignored) < 2**31:
        return _on_device(input, xa, target, ignored, reduction)
    goal = _targets(target, xa, wa, ignore_index, function)
    return _of_labels(input, xa, goal, wa, reduction, smooth)


def _on_device(input: Any, xa: np.ndarray, target: Any, ignore_index: int, reduction: str) -> Any:
    """The cross-entropy of plain labels by rows of the GPU: one pass forward, one backward."""
    function = "cross_entropy"
    labels, shape, axis = _labels(target, xa, function), xa.shape, _class_axis(xa, function)
    if labels.size == 0 and reduction == "mean":
        raise ValueError(f"{function}: the mean over an empty batch does not exist")
    spec = EntropySpec(shape[0] if axis else 1, shape[axis], math.prod(shape[axis + 1 :]), ignore_index)
    columns, places = (spec.n, spec.c, spec.pixels), (spec.n, spec.pixels)
    labels = device.kernel_array(labels.astype(np.int64, copy=False)).reshape(places)
    losses, logs, sums = (arg.new_array(s, xa.dtype, xa) for s in (places, places, (2,)))
    rows = device.kernel_array(xa).reshape(columns)
    execute(_problem("forward", spec), rows, labels, out=(losses, logs, sums))
    if reduction == "none":
        y = losses.reshape(shape[:axis] + shape[axis + 1 :])
    else:
        y = sums[0] / sums[1] if reduction == "mean" else sums[0]

    def vjp(needs: list[bool], gy: Any, x: Any) -> list[Any]:
        if isinstance(gy, Tensor):  # its own derivatives are wanted: written out in public operations
            goal = _targets(
                labels.reshape(shape[:axis] + shape[axis + 1 :]), arg.array_of(x, "x"), None, ignore_index, function
            )
            total = goal.total(xa.dtype, function) if reduction == "mean" else None
            return [_label_gradient(gy, x, goal, None, 0.0, reduction, total)]
        rate = gy / sums[1] if reduction == "mean" else gy
        rates = device.kernel_array(np.broadcast_to(rate.reshape(places if reduction == "none" else (1, 1)), places))
        gx = arg.new_array(shape, xa.dtype, xa)
        inputs = device.kernel_array(x).reshape(columns), labels, logs, rates
        execute(_problem("input_grad", spec), *inputs, out=gx.reshape(columns))
        return [gx]

    return record(function, y, (input,), vjp, (input,))


def _problem(direction: str, spec: EntropySpec) -> Problem:
    return Problem("entropy", direction, "cuda", "float32", "default", spec)


def _label_gradient(
    gy: Any, x: Any, goal: _Targets, even: np.ndarray | None, smooth: float, reduction: str, total: Any
) -> Any:
    """(p - q) times each loss's gradient."""
    axis, xa = goal.axis, arg.array_of(x, "x")
    q = goal.spread(xa.shape, xa.dtype)
    if even is not None:
        q = q * xa.dtype.type(1 - smooth) + (even if goal.kept is None else even * np.expand_dims(goal.kept, axis))
    p = softmax(x, axis)
    if even is not None or goal.share is not None:
        p = p * q.sum(axis=axis, keepdims=True)
    return (p - q) * _rated(gy, axis, xa.shape, reduction, total)


def _of_labels(input: Any, xa: np.ndarray, goal: _Targets, wa: np.ndarray | None, reduction: str, smooth: float) -> Any:
    """The cross-entropy of labels: q, the target of each class, is (1 - smooth) at the label and smooth/C everywhere."""
    axis, dtype = goal.axis, xa.dtype
    shifted = xa - largest(xa, (axis,))
    sums = np.log(np.exp(shifted).sum(axis=axis))
    losses = goal.weighted(sums - goal.pick(shifted))
    even = None
    if smooth:
        even = _column(
            (np.ones_like(xa, shape=xa.shape[axis]) if wa is None else wa) * (smooth / xa.shape[axis]), xa.ndim, axis
        )
        spread = ((np.expand_dims(sums, axis) - shifted) * even).sum(axis=axis)
        losses = losses * dtype.type(1 - smooth) + (spread if goal.kept is None else np.where(goal.kept, spread, 0))
    total = goal.total(dtype, "cross_entropy") if reduction == "mean" else dtype.type(1)
    y = losses if reduction == "none" else losses.sum() / total

    def vjp(needs: list[bool], gy: Any, x: Any, goal: _Targets, even: np.ndarray | None) -> list[Any]:
        return [_label_gradient(gy, x, goal, even, smooth, reduction, total)]

    return record("cross_entropy", whole(y).astype(dtype, copy=False), (input,), vjp, (input, goal, even))


def _of_probabilities(
    input: Any, target: Any, weight: np.ndarray | None, axis: int, reduction: str, smooth: float
) -> Any:
    """The cross-entropy where the target gives a probability for every class; a mean divides by the number of losses."""
    xa, ta = arg.float_arrays("cross_entropy", input=input, target=target)
    if ta.shape != xa.shape:
        raise ValueError(f"cross_entropy: target of probabilities must have input's shape {xa.shape}, got {ta.shape}")
    if xa.size == 0 and reduction == "mean":
        raise ValueError("cross_entropy: the mean over an empty batch does not exist")
    if smooth:
        target = mul(target, 1 - smooth) + smooth / xa.shape[axis]
    if weight is not None:
        target = mul(target, _column(weight, xa.ndim, axis))
    return reduced(neg(sum_(mul(log_softmax(input, axis), target), axis)), reduction)


def nll_loss(input: Any, target: Any, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean") -> Any:
    """Minus the log-probability of each label.

    Parameters
    ----------
    input : array or Tensor, (N, C, …) or (C,)
        Logarithms of probabilities, as :func:`log_softmax` gives them, float32 or float64.
    target : integer array, (N, …) or ()
        Labels from 0 to C - 1.
    weight : array, (C,), optional
        Of each class; a mean divides by the sum of the labels' weights.
    ignore_index : int
        A label that does not count.
    reduction : "mean", "sum" or "none"

    Returns
    -------
    array or Tensor
        A scalar, or (N, …) with ``reduction="none"``.
    """
    function = "nll_loss"
    check_reduction(reduction, function)
    (xa,) = arg.float_arrays(function, input=input)
    xa = xa.astype(xa.dtype.newbyteorder("="), copy=False)
    axis, dtype = _class_axis(xa, function), xa.dtype
    goal = _targets(target, xa, _class_weight(weight, xa, axis, function), ignore_index, function)
    losses = goal.weighted(-goal.pick(xa))
    total = goal.total(dtype, function) if reduction == "mean" else dtype.type(1)
    y = losses if reduction == "none" else losses.sum() / total
    shape = xa.shape

    def vjp(needs: list[bool], gy: Any, goal: _Targets) -> list[Any]:
        return [mul(_rated(gy, axis, shape, reduction, total), -goal.spread(shape, dtype))]

    return record(function, whole(y).astype(dtype, copy=False), (input,), vjp, (goal,))
