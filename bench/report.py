"""A result on disk, and the figures that tables and plots draw from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..files import write_atomic

KIND = "convkern benchmark"
FORMAT = 2

OURS = "convkern"
TORCH = ("torch", "torch-channels-last")
BETTER = "torch-better"  # in whichever of its two layouts PyTorch was faster on the case
ROW = "row:"  # before the name of a kernel row that was timed by itself
CLIFF = 0.6  # a shape on which PyTorch takes less than this share of our time

_RECORD = {
    "case": str,
    "table": str,
    "operation": str,
    "direction": str,
    "flops": int,
    "row": str,
    "inexact": list,
    "roofline": dict,
    "times": dict,
    "refused": dict,
}
_TIMING = ("median", "gflops", "share", "ratio", "calls", "samples")
_ROOFLINE = ("bytes", "intensity", "gflops", "limited_by")


def save(result: dict[str, Any], path: Path) -> None:
    """Write a result as JSON, atomically; missing folders are made.

    Raises
    ------
    OSError
        If the file cannot be written; what was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())


def load(path: Path) -> dict[str, Any]:
    """Read a result back.

    Raises
    ------
    ValueError
        If the file is missing or no result that this version reads; the message names it.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(result, dict) or result.get("kind") != KIND:
        raise ValueError(f"{path} is no result of 'convkern bench'")
    if result.get("format") != FORMAT:
        raise ValueError(f"{path} has format {result.get('format')!r}, this version reads {FORMAT}")
    parts = {"records": list, "host": dict, "calibration": dict}
    if missing := [name for name, kind in parts.items() if not isinstance(result.get(name), kind)]:
        raise ValueError(f"{path} is damaged: it has no {' and no '.join(missing)}")
    for number, record in enumerate(result["records"]):
        if not _is_record(record):
            raise ValueError(f"{path} is damaged: record {number} is not complete")
    return result


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and all(isinstance(record.get(key), kind) for key, kind in _RECORD.items())
        and OURS in record["times"]
        and all(key in record["roofline"] for key in _ROOFLINE)
        and all(
            isinstance(timing, dict) and all(key in timing for key in _TIMING) for timing in record["times"].values()
        )
    )


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """Each rival's time over convkern's; above 1 convkern is faster. ``BETTER`` is PyTorch's better layout."""
    found = {name: timing["ratio"] for name, timing in record["times"].items() if name != OURS}
    if all(name in found for name in TORCH):
        found[BETTER] = min(found[name] for name in TORCH)
    return found


def better_ratio(record: dict[str, Any]) -> float | None:
    """PyTorch's time over ours, in the better of the layouts that were measured."""
    found = ratios(record)
    layouts = [found[name] for name in TORCH if name in found]
    return min(layouts) if layouts else None


def cliffs(records: Iterable[dict[str, Any]]) -> list[tuple[float, dict[str, Any]]]:
    """The records on which PyTorch takes less than ``CLIFF`` of our time, with that ratio, the worst first."""
    found = [(better_ratio(record), record) for record in records]
    return sorted(
        ((ratio, record) for ratio, record in found if ratio is not None and ratio < CLIFF), key=lambda f: f[0]
    )


def is_inexact(record: dict[str, Any], row: str) -> bool:
    """Whether one of the rows in "a+b" trades accuracy for fewer multiplications than are counted."""
    return any(name in record["inexact"] for name in row.split("+"))


def columns(records: Iterable[dict[str, Any]]) -> list[str]:
    """Every rival that some record has, PyTorch's better layout first, then in the order of the records; single rows of
    our own are none."""
    names: dict[str, None] = {}
    for record in records:
        found = ratios(record)
        if BETTER in found:
            names = {BETTER: None, **names}
        names.update(dict.fromkeys(found))
    return [name for name in names if not name.startswith(ROW)]


def sections(records: Iterable[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The records by (table of cases, direction): those that a mean may be taken over."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault((record["table"], record["direction"]), []).append(record)
    return dict(sorted(found.items(), key=lambda item: item[0][0]))


class Summary(NamedTuple):
    """The ratios of one rival over all cases that it ran."""

    mean: float  # geometric
    worst: float
    cases: int


def summarise(records: Iterable[dict[str, Any]]) -> dict[str, Summary]:
    """Geometric mean, smallest ratio and number of cases of each rival."""
    collected: dict[str, list[float]] = {}
    for record in records:
        for name, ratio in ratios(record).items():
            collected.setdefault(name, []).append(ratio)
    return {
        name: Summary(math.exp(sum(map(math.log, values)) / len(values)), min(values), len(values))
        for name, values in collected.items()
    }
