"""Rows measured on this host: ``convkern tune`` keeps the fastest for each problem, and the planner takes it from then on.

The choices lie in one JSON file per host in the user's cache folder. Its name holds a hash of the CPU, its cores and caches,
the vector width and the kernels' sources, so that whatever no longer fits is simply not found. It does not hold the number
of threads: results must not depend on that, so the choice of a row must not either. ``CONVKERN_TUNE=0`` leaves it unread.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import plan
from .files import write_atomic

if TYPE_CHECKING:
    import numpy as np

    from .kernels.variant import Problem, Variant

KIND, FORMAT = "convkern tuning", 1
ROUNDS = 9  # turns of each row, at most
TURN_SECONDS = 0.002  # a turn repeats the row until about this much is measured
SECONDS = 0.4  # for all rows of a problem, after at least three rounds
HOPELESS = 4.0  # times as slow as the fastest row in a first call: not measured further
MARGIN = 0.97  # the table's own choice is kept unless another takes less than this share of its time


class Tuned(NamedTuple):
    """What was measured for one problem.

    Attributes
    ----------
    problem : Problem
    times : dict of str to float
        Seconds of every row that takes it.
    row : str
        The row that is kept.
    first : str
        The row that would be chosen without measuring.
    """

    problem: Problem
    times: dict[str, float]
    row: str
    first: str


def measure_rows(
    problem: Problem, arrays: tuple[np.ndarray, ...], outs: tuple[np.ndarray, ...], rounds: int = ROUNDS
) -> dict[str, float]:
    """Median seconds of every row that takes a problem, in turns, on arrays ready for kernels.

    Parameters
    ----------
    problem : Problem
    arrays, outs : tuples of ndarray
        As in :func:`convkern.plan.execute`; the outs are only looked at, the rows write to arrays of their own.
    rounds : int
        Turns of each row, at most.
    """
    copies = tuple(out.copy() for out in outs)
    rows = plan.rows(problem.operation, problem.direction, problem.device)
    taking = [row for row in rows if not plan.refusal(row, problem)]
    runs = {row.name: _run(row, problem, arrays, copies) for row in taking}
    once = {name: _first_calls(run) for name, run in runs.items()}
    samples = {name: [seconds] for name, seconds in once.items()}
    racing = [name for name in runs if once[name] <= HOPELESS * min(once.values())]
    began = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - began > SECONDS:
            break
        for name in racing:
            calls = max(1, round(TURN_SECONDS / once[name]))
            started = time.perf_counter()
            for _ in range(calls):
                runs[name]()
            elapsed = (time.perf_counter() - started) / calls
            samples[name] = [*samples[name], elapsed] if number else [elapsed]
    return {name: statistics.median(found) for name, found in samples.items()}


def _run(
    row: Variant, problem: Problem, arrays: tuple[np.ndarray, ...], outs: tuple[np.ndarray, ...]
) -> Callable[[], None]:
    from .kernels.threads import workspace

    return lambda: row.run(*arrays, problem.spec, workspace(row.workspace(problem)), *outs)


def _first_calls(run: Callable[[], None]) -> float:
    """Seconds of a call, after one that compiles."""
    run()
    started = time.perf_counter()
    run()
    return max(time.perf_counter() - started, 1e-9)


def tune(
    function: Callable[..., Any], *args: Any, report: Callable[[Tuned], None] = lambda found: None, **kwargs: Any
) -> list[Tuned]:
    """Run ``function(*args, **kwargs)``, measure every row for each problem that it meets, and keep the fastest on disk.

    Parameters
    ----------
    function : callable
        A public operation, a model, a training step, or anything that calls them.
    report : callable
        Called after each problem.

    Returns
    -------
    list of Tuned
        One for each different problem.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    found: dict[str, Tuned] = {}

    def watcher(problem: Problem, row: Variant, arrays: tuple[np.ndarray, ...], outs: tuple[np.ndarray, ...]) -> None:
        name = plan.key(problem)
        if name not in found:
            times = measure_rows(problem, arrays, outs)
            first = plan.expected(problem).name
            fastest = min(times, key=lambda row: times[row])
            kept = fastest if times[fastest] < MARGIN * times[first] else first
            found[name] = Tuned(problem, times, kept, first)
            report(found[name])

    with plan.watched(watcher):
        function(*args, **kwargs)
    keep(list(found.values()))
    return list(found.values())


def keep(found: list[Tuned]) -> Path:
    """Add choices to this host's file and have the planner use them from now on; gives the file."""
    file, host = path(), _host()
    merged = _load(file, host)
    for one in found:
        milliseconds = {name: round(seconds * 1e3, 6) for name, seconds in one.times.items()}
        merged[plan.key(one.problem)] = {"row": one.row, "milliseconds": milliseconds}
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"kind": KIND, "format": FORMAT, "host": host, "choices": merged}
    write_atomic(file, (json.dumps(content, indent=1) + "\n").encode())
    forget()
    return file


def forget() -> None:
    """Read the file again when the next problem is planned."""
    choices.cache_clear()
    plan.plan.cache_clear()


def enabled() -> bool:
    """Whether measured choices are used: unless CONVKERN_TUNE is 0."""
    return os.environ.get("CONVKERN_TUNE") != "0"


@cache
def choices() -> Mapping[str, str]:
    """The rows kept for this host, by the problem's key; empty where there are none or CONVKERN_TUNE is 0."""
    if not enabled():
        return {}
    return {name: entry["row"] for name, entry in _load(path(), _host()).items()}


@cache
def _host() -> dict[str, Any]:
    """What decides which row is the fastest."""
    from llvmlite import binding
    from numba.core import config

    from .kernels import compiler, host, simd

    return {
        "cpu": config.CPU_NAME or binding.get_host_cpu_name(),
        "cores": os.cpu_count(),
        "l2_bytes": host.l2_bytes(),
        "l3_bytes": host.l3_bytes(),
        "vector_bits": simd.VECTOR_BITS,
        "kernels": compiler.sources_hash(tuple(sorted(compiler.ROOT.rglob("*.py")))),
    }


def path() -> Path:
    """The file of this host; it need not exist."""
    from .kernels.compiler import user_cache_folder

    tag = hashlib.sha256(json.dumps(_host(), sort_keys=True).encode()).hexdigest()[:16]
    return user_cache_folder() / f"tuning-{tag}.json"


def _load(file: Path, host: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The choices in a file; none, with a warning, where it is damaged, and none where it is missing or another host's."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        return _ignored(file, repr(error))
    if not isinstance(content, dict) or content.get("kind") != KIND or content.get("format") != FORMAT:
        return _ignored(file, f"it is no file of {KIND!r}, format {FORMAT}")
    entries = content.get("choices")
    if not isinstance(entries, dict) or not all(_is_entry(entry) for entry in entries.values()):
        return _ignored(file, "its choices are damaged")
    return entries if content.get("host") == host else {}


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("row"), str) and isinstance(entry.get("milliseconds"), dict)


def _ignored(file: Path, reason: str) -> dict[str, dict[str, Any]]:
    warnings.warn(
        f"rows are chosen without measurements: {file} cannot be used ({reason}); 'convkern tune' writes it anew",
        RuntimeWarning,
        stacklevel=2,
    )
    return {}
