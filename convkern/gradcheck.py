"""Comparing gradients with numerical ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .tensor import Tensor


@dataclass(frozen=True)
class GradcheckResult:
    """Where the analytic and the numerical gradient differ most; true when they agree everywhere."""

    ok: bool
    error: float  # |analytic - numerical| at the worst place
    input: int  # which input
    index: tuple[int, ...]  # which element of it
    analytic: float
    numerical: float

    def __bool__(self) -> bool:
        return self.ok


def gradcheck(
    fn: Callable[..., Any],
    inputs: Sequence[Any],
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    seed: int = 0,
) -> GradcheckResult:
    """Compare the gradients of ``fn`` with central differences, in float64.

    The outputs are weighted with random numbers and summed, so that one backward pass checks all of them. For second
    derivatives let ``fn`` call ``backward(create_graph=True)`` itself and give the ``grad`` of its inputs.

    Parameters
    ----------
    fn : callable
        Takes Tensors, gives a Tensor (or a tuple, whose first member counts).
    inputs : sequence of float64 arrays or Tensors
        The point at which to compare. Every input is differentiated; keep others in a closure.
    eps : float
        Half the step of the difference.
    atol, rtol : float
        They agree where |analytic - numerical| <= atol + rtol · |numerical|.
    seed : int
        For the weights of the outputs.

    Returns
    -------
    GradcheckResult
        True when they agree; says where they differ most.

    Raises
    ------
    TypeError
        If an input is not float64: differences of float32 prove nothing.
    """
    arrays = [np.array(x.data if isinstance(x, Tensor) else x) for x in inputs]
    for i, array in enumerate(arrays):
        if array.dtype != np.float64:
            raise TypeError(f"gradcheck: inputs[{i}] must be float64, got {array.dtype}")
    tensors = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    y = _evaluate(fn, tensors)
    weights = np.random.default_rng(seed).standard_normal(y.shape)
    y.backward(weights)

    def weighted(values: Sequence[np.ndarray]) -> float:
        return float(np.sum(_evaluate(fn, [Tensor(v.copy(), requires_grad=True) for v in values]).data * weights))

    worst = GradcheckResult(True, 0.0, 0, (), 0.0, 0.0)
    worst_excess = -np.inf
    for i, tensor in enumerate(tensors):
        analytic = np.zeros_like(arrays[i]) if tensor.grad is None else tensor.grad.data
        for index in np.ndindex(arrays[i].shape):
            ends = []
            for step in (eps, -eps):
                moved = [a if j != i else a.copy() for j, a in enumerate(arrays)]
                moved[i][index] += step
                ends.append(weighted(moved))
            numerical = (ends[0] - ends[1]) / (2 * eps)
            error = abs(float(analytic[index]) - numerical)
            excess = error - atol - rtol * abs(numerical)
            if not excess <= worst_excess:  # also when NaN
                worst_excess = excess
                worst = GradcheckResult(excess <= 0, error, i, index, float(analytic[index]), numerical)
                if excess != excess:
                    return worst
    return worst


def _evaluate(fn: Callable[..., Any], tensors: Sequence[Tensor]) -> Tensor:
    y = fn(*tensors)
    for tensor in tensors:
        tensor.grad = None  # where fn went backward itself
    return y[0] if isinstance(y, tuple) else y
