"""Choosing a kernel: which row of an operation's table solves a problem, and why.

The first row that does not refuse a problem wins, unless a choice was fixed with :func:`use`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from .kernels.variant import Problem, Variant

PRECISIONS = ("default", "strict")

_fixed: dict[str, str] = {}
_chosen: dict[str, str] = {}
_tracing = threading.local()


def rows(operation: str, direction: str) -> list[Variant]:
    """All rows of an operation's table for one direction, in order."""
    table = import_module(f"convkern.kernels.{operation}").VARIANTS
    return [row for row in table if row.direction == direction]


def key(problem: Problem) -> str:
    """The name of a problem in a run folder and in the tuning file."""
    fields = ",".join(f"{name}={value}" for name, value in problem.spec._asdict().items()).replace(" ", "")
    return f"{problem.operation}.{problem.direction} {problem.device} {problem.dtype} {problem.precision} {fields}"


def _reason(row: Variant, problem: Problem) -> str:
    if problem.precision == "strict" and row.accuracy != "exact":
        return f"trades accuracy ({row.accuracy}), which precision='strict' forbids"
    return row.refuses(problem)


@lru_cache(maxsize=4096)
def plan(problem: Problem) -> Variant:
    """The row that solves ``problem``.

    Raises
    ------
    NotImplementedError
        If every row refuses; the message has each row's reason.
    """
    candidates = rows(problem.operation, problem.direction)
    reasons = {row.name: _reason(row, problem) for row in candidates}
    name = _fixed.get(key(problem))
    for row in candidates:
        if not reasons[row.name] and (name is None or row.name == name):
            _chosen[key(problem)] = row.name
            return row
    if name is not None:
        raise ValueError(f"the plan asks for row {name!r} for {key(problem)}, which has: {reasons or 'no rows'}")
    raise NotImplementedError(f"no row for {key(problem)}: {reasons or 'the table has none'}")


def execute(problem: Problem, *arrays: np.ndarray, out: np.ndarray | tuple[np.ndarray, ...]) -> None:
    """Run the planned row on kernel-ready arrays; ``out`` is what it writes, in the order of the row's signature."""
    from .kernels.threads import workspace

    row = plan(problem)
    for trace in getattr(_tracing, "traces", ()):
        trace.append((problem, row))
    row.run(*arrays, problem.spec, workspace(row.workspace(problem)), *(out if isinstance(out, tuple) else (out,)))


def choices() -> dict[str, str]:
    """The row chosen for every problem met so far in this process, by the problem's key."""
    return dict(_chosen)


def use(fixed: Mapping[str, str]) -> None:
    """From now on take these rows, in the form that :func:`choices` gives; problems not named are planned as ever."""
    _fixed.update(fixed)
    plan.cache_clear()


@contextmanager
def traced() -> Iterator[list[tuple[Problem, Variant]]]:
    """Collect the (problem, row) pairs that run on this thread inside the block."""
    traces = _tracing.__dict__.setdefault("traces", [])
    trace: list[tuple[Problem, Variant]] = []
    traces.append(trace)
    try:
        yield trace
    finally:
        traces.pop()  # by place: remove() would take the first that is equal


class Step(NamedTuple):
    """One planned problem: the row taken, and what every row said to it."""

    problem: Problem
    row: Variant
    reasons: dict[str, str]


class Explanation(list[Step]):
    """What :func:`explain` found; prints as a table."""

    def __str__(self) -> str:
        lines = []
        for step in self:
            lines.append(key(step.problem))
            for name, reason in step.reasons.items():
                if name == step.row.name:
                    verdict = "chosen"
                else:
                    verdict = f"refused: {reason}" if reason else "possible, stands after the chosen row"
                lines.append(f"  {name:<12} {verdict}")
        return "\n".join(lines) if lines else "no kernel ran"


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Run ``function(*args, **kwargs)`` and tell which kernels it used and why.

    Parameters
    ----------
    function : callable
        A public operation, a model, or anything that calls them.

    Returns
    -------
    Explanation
        A list of steps (problem, row, reasons) that prints as a table.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> print(ck.explain(ck.conv2d, np.zeros((1, 1, 4, 4), "f4"), np.zeros((1, 1, 3, 3), "f4")))  # doctest: +ELLIPSIS
    conv.forward cpu float32 default n=1,c=1,k=1,groups=1,...
      ...chosen...
    """
    with traced() as trace:
        function(*args, **kwargs)
    steps = Explanation()
    for problem, row in trace:
        candidates = rows(problem.operation, problem.direction)
        steps.append(Step(problem, row, {r.name: _reason(r, problem) for r in candidates}))
    return steps
