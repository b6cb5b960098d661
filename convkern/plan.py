"""Choosing a kernel: which row of an operation's table solves a problem, and why.

A choice that was fixed with :func:`use` wins; then the row that ``convkern tune`` found to be the fastest on this host; then
the first row of the table that does not refuse the problem and knows no faster one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

from .device import empty, wide_array

if TYPE_CHECKING:
    import numpy as np

    from .kernels.variant import Problem, Variant

PRECISIONS = ("default", "strict")
HALVES = ("float16", "bfloat16")
REDUCED = ("tf32", *HALVES)  # precisions that admit rows which round operands so; these have to be asked for

Watcher = Callable[["Problem", "Variant", tuple["np.ndarray", ...], tuple["np.ndarray", ...]], None]

_fixed: dict[str, str] = {}
_chosen: dict[str, str] = {}


class _Watching(threading.local):
    def __init__(self) -> None:
        self.watchers: list[Watcher] = []


_watching = _Watching()


def rows(operation: str, direction: str, device: str = "cpu") -> list[Variant]:
    """All rows of an operation's table for one direction on one device, in order."""
    table = import_module(f"convkern.kernels.{operation}").VARIANTS
    return [row for row in table if row.direction == direction and row.device == device]


def key(problem: Problem) -> str:
    """The name of a problem in a run folder and in the tuning file."""
    fields = ",".join(f"{name}={value}" for name, value in problem.spec._asdict().items()).replace(" ", "")
    layout = "" if problem.layout == "nchw" else f" {problem.layout}"
    return (
        f"{problem.operation}.{problem.direction} {problem.device} {problem.dtype} {problem.precision} {fields}{layout}"
    )


def refusal(row: Variant, problem: Problem) -> str:
    """Why a row may not solve a problem, in words; "" where it may."""
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
    candidates = rows(problem.operation, problem.direction, problem.device)
    reasons = {row.name: refusal(row, problem) for row in candidates}
    taking = [row for row in candidates if not reasons[row.name]]
    name = _fixed.get(key(problem))
    wanted = name or _tuned_row(problem, reasons)
    for row in taking:
        if row.name == wanted or (wanted is None and not row.slower(problem)):
            _chosen[key(problem)] = row.name
            return row
    if name is not None:
        raise ValueError(f"the plan asks for row {name!r} for {key(problem)}, which has: {reasons or 'no rows'}")
    other = {"cpu": "cuda", "cuda": "cpu"}[problem.device]
    others = {
        row.name: f"runs on the {other.upper()} only" for row in rows(problem.operation, problem.direction, other)
    }
    raise NotImplementedError(f"no row for {key(problem)}: {reasons or others or 'the table has none'}")


def _tuned_row(problem: Problem, reasons: Mapping[str, str]) -> str | None:
    """The row that was measured to be the fastest here, where there is one and it may still be taken."""
    from . import tuning

    name = tuning.choices().get(key(problem))
    return name if name is not None and reasons.get(name) == "" else None


def why(problem: Problem) -> str:
    """What decided for the row that :func:`plan` gives, in words; and what became of a precision that it does not keep."""
    reason = _why(problem)
    products = problem.operation in ("conv", "conv3d", "pointwise")
    if products and problem.precision in HALVES and plan(problem).accuracy != problem.precision:
        how = f"operands rounded to {problem.precision}" if problem.device == "cpu" else "its operands, not rounded"
        reason += f"; computed in {problem.dtype} of {how}"
    return reason


def _why(problem: Problem) -> str:
    if key(problem) in _fixed:
        return "fixed by the plan in use"
    from .kernels.variant import never

    candidates = rows(problem.operation, problem.direction, problem.device)
    reasons = {row.name: refusal(row, problem) for row in candidates}
    if _tuned_row(problem, reasons) is not None:
        return "the fastest that 'convkern tune' measured on this host"
    row = plan(problem)
    first = next(candidate for candidate in candidates if not reasons[candidate.name])
    if row.slower is never and row is first:
        return "the first row of the table that takes it"
    return "expected to be the fastest"


def expected(problem: Problem) -> Variant:
    """The row that would solve ``problem``, which some row takes, had nothing been measured or fixed."""
    candidates = rows(problem.operation, problem.direction, problem.device)
    return next(row for row in candidates if not refusal(row, problem) and not row.slower(problem))


def execute(problem: Problem, *arrays: np.ndarray, out: np.ndarray | tuple[np.ndarray, ...]) -> None:
    """Run the planned row on kernel-ready arrays; ``out`` is what it writes, in the order of the row's signature."""
    row = plan(problem)
    outs = out if isinstance(out, tuple) else (out,)
    if problem.device == "cuda" and row.accuracy in REDUCED:  # these read 16 bytes at a time
        arrays = tuple(map(wide_array, arrays))
    for watcher in _watching.watchers:
        watcher(problem, row, arrays, outs)
    nbytes = row.workspace(problem)
    scratch = _workspace()(nbytes) if problem.device == "cpu" else empty(nbytes, "uint8")
    row.run(*arrays, problem.spec, scratch, *outs)


@cache
def _workspace() -> Callable[[int], np.ndarray]:
    """The CPU kernels' scratch; whoever has chosen a row has imported it."""
    from .kernels.threads import workspace

    return workspace


def choices() -> dict[str, str]:
    """The row chosen for every problem met so far in this process, by the problem's key."""
    return dict(_chosen)


def use(fixed: Mapping[str, str]) -> None:
    """From now on take these rows, in the form that :func:`choices` gives; problems not named are planned as ever."""
    _fixed.update(fixed)
    plan.cache_clear()


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Call ``watcher(problem, row, arrays, outs)`` before every row that runs on this thread inside the block."""
    watchers = _watching.watchers
    watchers.append(watcher)
    try:
        yield
    finally:
        watchers.pop()  # by place: remove() would take the first that is equal


@contextmanager
def traced() -> Iterator[list[tuple[Problem, Variant]]]:
    """Collect the (problem, row) pairs that run on this thread inside the block."""
    trace: list[tuple[Problem, Variant]] = []
    with watched(lambda problem, row, arrays, outs: trace.append((problem, row))):
        yield trace
