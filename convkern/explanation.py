"""Telling which kernels ran, what they had to do, how near they came to what the machine can do, and why they were chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from . import plan

if TYPE_CHECKING:
    import numpy as np

    from .kernels.calibration import Calibration
    from .kernels.variant import Problem, Variant


class Step(NamedTuple):
    """One planned problem: the row taken, and what every row said to it.

    Attributes
    ----------
    problem : Problem
    row : Variant
        The one that ran.
    reasons : dict of str to str
        For each row of the table why it refuses, "" where it does not.
    why : str
        What decided for the row.
    operations : int or None
        Arithmetic of the definition, a multiply-add counted as two; None where the operation does not say.
    nbytes : int
        Of the inputs and results: what has to be read or written at least.
    times : dict of str to float
        Seconds of every row that takes the problem; empty unless they were measured.
    candidates : tuple of Variant
        All rows of the table, in its order.
    runs : int
        How many times the problem was met.
    """

    problem: Problem
    row: Variant
    reasons: dict[str, str]
    why: str
    operations: int | None
    nbytes: int
    times: dict[str, float]
    candidates: tuple[Variant, ...]
    runs: int = 1

    @property
    def intensity(self) -> float | None:
        """Operations a byte."""
        return None if self.operations is None else self.operations / self.nbytes

    def share(self, calibration: Calibration, seconds: float) -> float | None:
        """Speed as a share of the roofline; for operations that are not counted, bandwidth as a share of the best."""
        level = calibration.level(self.nbytes)
        if self.operations is None:
            return self.nbytes / seconds / level.bandwidth
        return self.operations / seconds / calibration.roofline(self.operations, self.nbytes, self.nbytes)


class Explanation(list[Step]):
    """What :func:`explain` found; prints as a table."""

    calibrations: dict[str, Calibration]  # by dtype

    def __str__(self) -> str:
        if not self:
            return "no kernel ran"
        return "\n".join([*_machine(self.calibrations), *(line for step in self for line in self._lines(step))])

    def _lines(self, step: Step) -> list[str]:
        calibration = self.calibrations[step.problem.dtype]
        times = f", met {step.runs} times" if step.runs > 1 else ""
        lines = [plan.key(step.problem) + times, "  " + _limits(step, calibration), _head(step)]
        for row in step.candidates:
            reason = step.reasons[row.name]
            if row.name == step.row.name:
                verdict = f"chosen: {step.why}"
            else:
                possible = f"possible, {row.slower(step.problem) or 'not chosen'}"
                verdict = f"refused: {reason}" if reason else possible
            if row.accuracy != "exact" and not reason:
                verdict += f"; {row.accuracy}" + (
                    ", its speed counts the definition's arithmetic" if step.times else ""
                )
            if not reason and (told := _estimate(step.problem, row)):
                verdict += f"; {told}"
            lines.append(f"  {row.name:<12}{_work(step, row)}{_speed(step, row.name, calibration)}{verdict}")
        return lines


def _machine(calibrations: dict[str, Calibration]) -> list[str]:
    lines = []
    for dtype, found in calibrations.items():
        levels = ", ".join(f"{level.name} {level.bandwidth / 1e9:.0f} GB/s" for level in found.levels)
        threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
        lines.append(f"this machine, {dtype}, {threads}: peak {found.peak / 1e9:.0f} GFLOP/s; {levels}")
    return lines


def _limits(step: Step, calibration: Calibration) -> str:
    level = calibration.level(step.nbytes)
    size = f"{step.nbytes / 1e6:.3f} MB at least"
    if step.operations is None:
        return f"{size}; at most {level.bandwidth / 1e9:.0f} GB/s ({level.name})"
    roofline = calibration.roofline(step.operations, step.nbytes, step.nbytes)
    limit = "arithmetic" if roofline == calibration.peak else f"bandwidth of {level.name}"
    return (
        f"{step.operations / 1e9:.4f} GFLOP, {size}, {step.intensity:.1f} FLOP/byte; "
        f"roofline {roofline / 1e9:.0f} GFLOP/s, by {limit}"
    )


def _head(step: Step) -> str:
    """Names of the columns, for a step with measured times or without."""
    times = f"{'time':>13}{'speed':>17}{'share':>7}   " if step.times else ""
    return f"  {'row':<12}{'GFLOP':>9}{'MB':>10}{'FLOP/byte':>10}   {times}".rstrip()


def _estimate(problem: Problem, row: Variant) -> str:
    """What a row that takes the problem is expected to cost on a GPU, in words; "" where it is not weighed."""
    if problem.device != "cuda":
        return ""
    from .kernels.cuda import costs

    return costs.told(row.name, problem)


def _work(step: Step, row: Variant) -> str:
    """A row's own arithmetic, its bytes, scratch included, and their ratio, in columns; nothing where it refuses."""
    if step.reasons[row.name]:
        return " " * 32
    operations, nbytes = row.operations(step.problem), step.nbytes + row.workspace(step.problem)
    if operations is None:
        return f"{'-':>9} {nbytes / 1e6:9.3f} {'-':>9}   "
    return f"{operations / 1e9:9.4f} {nbytes / 1e6:9.3f} {operations / nbytes:9.1f}   "


def _speed(step: Step, name: str, calibration: Calibration) -> str:
    """Time, speed and share of the roofline in columns; nothing where nothing was measured."""
    if not step.times:
        return ""
    if name not in step.times:
        return " " * 40
    seconds = step.times[name]
    share = step.share(calibration, seconds) or 0.0
    if step.operations is None:
        speed = f"{step.nbytes / seconds / 1e9:8.1f} GB/s   "
    else:
        speed = f"{step.operations / seconds / 1e9:8.1f} GFLOP/s"
    return f"{seconds * 1e3:10.4f} ms {speed} {share:6.0%}   "


def explain(function: Callable[..., Any], *args: Any, measure: bool = False, **kwargs: Any) -> Explanation:
    """Run ``function(*args, **kwargs)`` and tell which kernels it used, what limits them, and why they were chosen.

    Parameters
    ----------
    function : callable
        A public operation, a model, a training step, or anything that calls them.
    measure : bool
        Also time every row that takes a problem.

    Returns
    -------
    Explanation
        A list of steps, one for each different problem, that prints as a table. For the problem: its operations (of the
        definition), the bytes that have to move at least, its arithmetic intensity, and the speed that this machine allows
        at most (its roofline). For every row of the operation: whether it takes the problem, its own operations, its bytes
        (arrays and scratch) and their ratio, its time, speed and share of the roofline where they are measured, and why it
        was chosen.

    References
    ----------
    Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures", 2009.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> print(ck.explain(ck.conv2d, np.zeros((1, 1, 4, 4), "f4"), np.zeros((1, 1, 3, 3), "f4")))  # doctest: +ELLIPSIS
    this machine, float32, ... peak ... GFLOP/s; ...
    conv.forward cpu float32 default n=1,c=1,k=1,groups=1,...
      0.0000 GFLOP, 0.000 MB at least, 0.6 FLOP/byte; roofline ... GFLOP/s, by ...
      row             GFLOP        MB FLOP/byte
      ...chosen: ...
    """
    from . import tuning

    found: dict[str, Step] = {}

    def watcher(problem: Problem, row: Variant, arrays: tuple[np.ndarray, ...], outs: tuple[np.ndarray, ...]) -> None:
        name = plan.key(problem)
        if name in found:
            found[name] = found[name]._replace(runs=found[name].runs + 1)
            return
        rows = tuple(plan.rows(problem.operation, problem.direction, problem.device))
        reasons = {row.name: plan.refusal(row, problem) for row in rows}
        times = tuning.measure_rows(problem, arrays, outs) if measure else {}
        nbytes = sum(array.nbytes for array in (*arrays, *outs))
        found[name] = Step(problem, row, reasons, plan.why(problem), problem.operations, nbytes, times, rows)

    with plan.watched(watcher):
        function(*args, **kwargs)
    steps = Explanation(found.values())
    steps.calibrations = _calibrations(steps)
    return steps


def _calibrations(steps: list[Step]) -> dict[str, Calibration]:
    """What the machine can do, for each dtype met."""
    dtypes = sorted({step.problem.dtype for step in steps})
    if not dtypes:
        return {}
    from .kernels.calibration import calibration

    return {dtype: calibration(dtype) for dtype in dtypes}
