"""The clock: rivals take turns in one process, so that what disturbs the machine disturbs them all.

Everything compiles outside the clock; inputs rotate over several copies, so that no rival finds them in a cache; a
rival's figure is the median over its turns, allocation of its result included.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from .. import plan
from ..kernels.calibration import Calibration, calibrate
from . import host
from .cases import Case, table_of
from .report import FORMAT, KIND
from .rivals import OURS, STRICT, Inputs, Rival, check_agreement, make_inputs, rows

TURN_SECONDS = 0.02  # a turn repeats the call until about this much is measured
# Seconds: OpenMP's threads wait up to 10 ms for more work before they sleep, and some kernels count the time of a thread that
# runs on another core only every 10 ms.
SETTLE_STEP, SETTLE_STEPS = 0.012, 5
MIN_TURNS = 3
WARM_CALLS = 3  # before the first turn
ROTATED_BYTES = 64 << 20  # more than the caches of common desktop and server CPUs
MIN_COPIES, MAX_COPIES = 2, 8
SECONDS_EACH = 2.0  # for one case in one direction, all rivals together

Call = Callable[[], Any]


class Timing(NamedTuple):
    """What was measured of one rival: seconds a call, one sample a turn of ``calls`` calls."""

    samples: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def settle() -> None:
    """Wait until this process computes nothing: the last rival's threads look for more work for a while, on our cores."""
    for _ in range(SETTLE_STEPS):
        before = time.process_time()
        time.sleep(SETTLE_STEP)
        if time.process_time() - before < SETTLE_STEP / 4:
            return


def interleave(
    contenders: Mapping[str, Sequence[Call]],
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[], object] = settle,
) -> dict[str, Timing]:
    """Time contenders in turns.

    Parameters
    ----------
    contenders : mapping of str to sequence of callables
        For each name the same call on different copies of the inputs; a turn goes through them. The first copy's has
        been called before, so that nothing is left to compile.
    rounds : int
        Most turns that a contender gets, at least 1. Each round begins with another contender.
    seconds : float
        Time for all turns together. Who has used up its equal share is left out of further rounds, after ``MIN_TURNS``
        turns. Who takes longer than that for a call keeps the faster of the two that warm up, and has no turns.
    clock, rest : callable
        Seconds now, and what to do before every turn.

    Returns
    -------
    dict of str to Timing

    Raises
    ------
    ValueError
        If ``rounds`` or ``seconds`` is too small, or there is no contender.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be positive and finite, got {seconds}")
    if not contenders:
        raise ValueError("contenders must not be empty")
    share = seconds / len(contenders)
    calls: dict[str, int] = {}
    short: dict[str, bool] = {}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for name, copies in contenders.items():
        once = _one_call(copies, share, clock)
        calls[name] = max(1, math.ceil(TURN_SECONDS / max(once, 1e-9)))
        short[name] = once < 10 * TURN_SECONDS
        if once > share:
            samples[name].append(once)
    names = [name for name in contenders if not samples[name]]
    spent = dict.fromkeys(names, 0.0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            first = number % max(len(names), 1)
            for name in names[first:] + names[:first]:
                if number >= MIN_TURNS and spent[name] >= share:
                    continue
                rest()
                if short[name]:
                    contenders[name][0]()  # wakes the rival's threads, as the layer before this one would
                elapsed = _timed(contenders[name], calls[name], clock)
                spent[name] += elapsed
                samples[name].append(elapsed / calls[name])
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(samples[name]), calls[name]) for name in contenders}


def _one_call(copies: Sequence[Call], most: float, clock: Callable[[], float]) -> float:
    """Seconds of a call: the fastest of a few, so that one disturbed call does not set the length of the turns."""
    fastest, spent = math.inf, 0.0
    for number in range(WARM_CALLS):
        if number >= 2 and spent > most:
            break
        once = _timed(copies, 1, clock)
        fastest, spent = min(fastest, once), spent + once
    return fastest


def _timed(copies: Sequence[Call], calls: int, clock: Callable[[], float]) -> float:
    """Seconds of so many calls, which go through the copies from the second one on."""
    count = len(copies)
    started = clock()
    for i in range(1, calls + 1):
        copies[i % count]()
    return clock() - started


def copies_of_inputs(case: Case, seed: int) -> list[Inputs]:
    """So many copies of a case's inputs that no rival finds its own in a cache where layers of a network would not be."""
    first = make_inputs(case, seed)
    size = sum(array.nbytes for array in first)
    copies = min(max(MIN_COPIES, -(-ROTATED_BYTES // max(size, 1))), MAX_COPIES)
    return [first, *(make_inputs(case, seed + i) for i in range(1, copies))]


def contest(
    case: Case,
    direction: str,
    rivals: Sequence[Rival],
    *,
    inputs: Sequence[Inputs],
    rounds: int,
    seconds: float,
    calibration: Calibration,
) -> dict[str, Any]:
    """Measure one case in one direction.

    Parameters
    ----------
    case : ConvCase, PointwiseCase or PoolCase
    direction : str
        One of ``case.directions``.
    rivals : sequence of Rival
        convkern must be one of them; who refuses the case is named in the record with its reason.
    inputs : sequence of Inputs
        As :func:`copies_of_inputs` makes them.
    rounds, seconds
        As in :func:`interleave`.
    calibration : Calibration
        What the machine can do at most, for the roofline.

    Returns
    -------
    dict
        The record that a result file keeps, ready for JSON.

    Raises
    ------
    Disagreement
        If the rivals do not compute the same.
    """
    refused = {rival.name: rival.refuses(case, direction) for rival in rivals}
    taking_part = [rival for rival in rivals if not refused[rival.name]]
    results, contenders = {}, {}
    moved: list[int] = []
    with plan.traced() as trace, plan.watched(lambda problem, row, arrays, outs: moved.append(_nbytes(arrays, outs))):
        for rival in taking_part:
            contenders[rival.name] = [rival.call(case, direction, one) for one in inputs]
            results[rival.name] = rival.array(contenders[rival.name][0]())
    check_agreement(results, f"{case.name} {direction}")
    results.clear()
    timings = interleave(contenders, rounds, seconds)
    ours = timings[OURS.name].median
    roofline = _roofline(case.flops, sum(moved), sum(_nbytes(one) for one in inputs), calibration)
    shape = {name: value for name, value in asdict(case).items() if name not in ("name", "tags")}
    return {
        "case": case.name,
        "table": table_of(case),
        "operation": case.operation,
        "direction": direction,
        "shape": shape,
        "flops": case.flops,
        "row": "+".join(dict.fromkeys(row.name for _, row in trace)),
        "inexact": [row.name for row in plan.rows(case.operation, direction) if row.accuracy != "exact"],
        "roofline": roofline,
        "times": {name: _entry(timing, case.flops, ours, roofline["gflops"]) for name, timing in timings.items()},
        "refused": {name: reason for name, reason in refused.items() if reason},
    }


def _nbytes(*groups: Sequence[Any]) -> int:
    return sum(array.nbytes for group in groups for array in group)


def _roofline(flops: int, moved: int, working_set: int, calibration: Calibration) -> dict[str, Any]:
    """What limits a case: bytes that have to move at least, over the memory that holds the copies of the inputs."""
    limit = calibration.roofline(flops, moved, working_set)
    by = "arithmetic" if limit == calibration.peak else calibration.level(working_set).name
    return {"bytes": moved, "intensity": flops / moved, "gflops": limit / 1e9, "limited_by": by}


def _facts(calibration: Calibration) -> dict[str, Any]:
    """A calibration in the units of the tables."""
    levels = [
        {"name": level.name, "bytes": level.working_set, "read_gbs": level.read / 1e9, "copy_gbs": level.copy / 1e9}
        for level in calibration.levels
    ]
    peaks = {"peak_gflops": calibration.peak / 1e9, "peak_gflops_one_thread": calibration.peak_one / 1e9}
    return {"threads": calibration.threads, **peaks, "levels": levels}


def _entry(timing: Timing, flops: int, ours: float, roofline: float) -> dict[str, Any]:
    gflops = flops / timing.median / 1e9
    return {
        "median": timing.median,
        "gflops": gflops,
        "share": gflops / roofline,  # of the roofline
        "ratio": timing.median / ours,  # above 1: convkern is faster
        "calls": timing.calls,
        "samples": list(timing.samples),
    }


def select_directions(case: Case, wanted: Sequence[str]) -> list[str]:
    """The directions of a case that names or patterns stand for; "forward" means "max_forward" and "avg_forward" too."""

    def matches(direction: str, text: str) -> bool:
        return fnmatchcase(direction, text) or direction.endswith(f"_{text}")

    return [direction for direction in case.directions if any(matches(direction, text) for text in wanted)]


def run(
    cases: Sequence[Case],
    rivals: Sequence[Rival],
    *,
    directions: Sequence[str] = ("*",),
    with_rows: bool = False,
    rounds: int = 15,
    seconds: float | None = None,
    seed: int = 0,
    precision: str = "default",
    report: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> dict[str, Any]:
    """Measure cases against rivals.

    Parameters
    ----------
    cases : sequence of cases
    rivals : sequence of Rival
        See :func:`convkern.bench.rivals.select`.
    directions : sequence of str
        Names or patterns of directions.
    with_rows : bool
        Also time every row of the kernel tables that takes a case, not only the one that is planned.
    rounds : int
        Most turns of a rival on a case.
    seconds : float, optional
        Time for everything, warming up and compiling left out; by default ``SECONDS_EACH`` for each case and direction.
    seed : int
        Of the inputs.
    precision : str
        "strict": convkern takes only rows that sum in the arrays' dtype, as with ``precision="strict"`` in a call.
    report : callable
        ``report(what, done, of)`` is called before each case and direction.

    Returns
    -------
    dict
        The result, ready for :func:`convkern.bench.report.save`. After Ctrl-C it holds what was done so far, and its
        "complete" is False.

    Raises
    ------
    ValueError
        If no case has one of the directions, or rounds or seconds is not positive.
    """
    pairs = [(case, direction) for case in cases for direction in select_directions(case, directions)]
    if not pairs:
        known = sorted({direction for case in cases for direction in case.directions})
        raise ValueError(f"directions must match some of {', '.join(known)}, got {', '.join(directions)}")
    if precision not in plan.PRECISIONS:
        raise ValueError(f"precision must be {' or '.join(plan.PRECISIONS)}, got {precision!r}")
    rivals = [STRICT if precision == "strict" and rival is OURS else rival for rival in rivals]
    each = SECONDS_EACH if seconds is None else seconds / len(pairs)
    records: list[dict[str, Any]] = []
    machine = calibrate()
    result = {
        "kind": KIND,
        "format": FORMAT,
        "host": host.facts(),
        "settings": {
            "rounds": rounds,
            "seconds_each": each,
            "seed": seed,
            "dtype": "float32",
            "precision": precision,
        },
        "calibration": _facts(machine),
        "rivals": {rival.name: rival.about for rival in rivals},
        "records": records,
        "complete": False,
    }
    try:
        inputs: list[Inputs] = []
        for done, (case, direction) in enumerate(pairs):
            report(f"{case.name} {direction}", done, len(pairs))
            everyone = [*rivals, *rows(case, direction, precision)] if with_rows else rivals
            if done == 0 or case is not pairs[done - 1][0]:
                inputs = copies_of_inputs(case, seed)
            limits: dict[str, Any] = {"rounds": rounds, "seconds": each, "calibration": machine}
            records.append(contest(case, direction, everyone, inputs=inputs, **limits))
        result["complete"] = True
    except KeyboardInterrupt:
        if not records:
            raise
    return result
