"""What a rival is, the data that all of them are given, and the check that they compute the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import convkern as ck

from ..cases import Case, ConvCase, PointwiseCase, PoolCase

# Sums of 50,000 float32 products in any order stay well inside this share of the largest result; Winograd does too.
AGREEMENT = 1e-3


class Inputs(NamedTuple):
    """The arrays of one call, those that a direction does not use included."""

    x: Any
    w: Any  # for a pooling the winners' positions, as max pooling returns them
    gy: Any


Function = Callable[[Any, Any, Any, Any], Any]


def _same(inputs: Inputs) -> Inputs:
    return inputs


@dataclass(frozen=True)
class Rival:
    """One way of computing the operations.

    Attributes
    ----------
    name : str
        As in tables and on the command line.
    about : str
        What it is, in a line.
    functions : mapping
        (operation, direction) to ``function(x, w, gy, case)``. Its result is newly allocated.
    native : callable
        From NumPy arrays to what the functions take. Not timed: a user of the rival has such arrays already.
    array : callable
        From a result to a NumPy array.
    missing : callable
        What to install, in words; "" where everything is there.
    limit : callable
        ``limit(case, direction)``: why the rival does not run this case, in words; "" where it does.
    """

    name: str
    about: str
    functions: Mapping[tuple[str, str], Function]
    native: Callable[[Inputs], Inputs] = _same
    array: Callable[[Any], np.ndarray] = np.asarray
    missing: Callable[[], str] = lambda: ""
    limit: Callable[[Case, str], str] = lambda case, direction: ""

    def refuses(self, case: Case, direction: str) -> str:
        """Why this rival cannot take part, in words; "" when it can."""
        if (case.operation, direction) not in self.functions:
            return f"{self.name} has no {case.operation} {direction}"
        return self.missing() or self.limit(case, direction)

    def call(self, case: Case, direction: str, inputs: Inputs) -> Callable[[], Any]:
        """One call ready to be timed.

        Raises
        ------
        ValueError
            If the rival refuses the case.
        """
        if reason := self.refuses(case, direction):
            raise ValueError(f"{self.name} cannot run {case.name} {direction}: {reason}")
        return partial(self.functions[case.operation, direction], *self.native(inputs), case)


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Normal float32 arrays for a case; weights are scaled so that results stay near 1.

    Parameters
    ----------
    case : ConvCase, PointwiseCase or PoolCase
    seed : int
        The same seed gives the same arrays.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    if isinstance(case, PointwiseCase):
        w = normal(case.k, case.c) / np.float32(np.sqrt(case.c))
        return Inputs(normal(case.n, case.c, *case.size), w, normal(case.n, case.k, *case.size))
    if isinstance(case, ConvCase):
        spec = case.spec()
        w = normal(*spec.w_shape) / np.float32(np.sqrt(np.prod(spec.w_shape[1:])))
        return Inputs(normal(*spec.x_shape), w, normal(*spec.y_shape))
    x = normal(*case.spec().x_shape)
    return Inputs(x, _winners(x, case), normal(*case.spec().y_shape))


def _winners(x: np.ndarray, case: PoolCase) -> np.ndarray:
    window = (case.kernel, case.stride, case.padding, case.dilation, case.ceil_mode)
    indices: np.ndarray = ck.max_pool2d(x, *window, return_indices=True)[1]
    return indices


class Disagreement(ArithmeticError):
    """Two rivals gave different results for the same problem, so that their times cannot be compared."""


def check_agreement(results: Mapping[str, np.ndarray], what: str) -> None:
    """Compare every rival's result with the first one's.

    Raises
    ------
    Disagreement
        If a shape differs, or a value by more than ``AGREEMENT`` of the largest one.
    """
    (first, expected), *others = results.items()
    for name, got in others:
        if got.shape != expected.shape:
            raise Disagreement(f"{what}: {name} gives shape {got.shape}, {first} gives {expected.shape}")
        difference = float(np.abs(got - expected).max(initial=0))
        largest = float(np.abs(expected).max(initial=0))
        if not difference <= AGREEMENT * largest:  # a NaN is a disagreement too
            raise Disagreement(f"{what}: {name} and {first} differ by {difference:.3g}, results reach {largest:.3g}")
