"""The results of ``bench/gpu.sh`` in a screenful: ``python -m convkern.bench.gpu.summary DIR``. Needs no GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STAGES = ("facts", "build", "primitives", "tests", "ceilings", "rows", "ladder", "memory", "steps", "sanitizer")
FAILURES = 5  # of a stage, at most
WIDTH = 150


def ceilings(data: dict[str, Any]) -> Iterator[str]:
    for what, rate in (data.get("bandwidth") or {}).items():
        yield f"{what} {rate / 1e9:,.0f} GB/s"
    for precision, rate in (data.get("matrix_peak") or {}).items():
        yield f"{precision} product {rate / 1e12:,.1f} TFLOP/s" if rate else f"{precision} product failed"
    for what, seconds in (data.get("launch_seconds") or {}).items():
        yield f"launch of {what} {seconds * 1e6:.1f} µs"


def rows(data: dict[str, Any]) -> Iterator[str]:
    from .rows import means

    yield f"{len(data.get('entries', ()))} contests, {len(data.get('left_out', ()))} layers left out"
    for what, ratio in sorted(means(data.get("entries", [])).items()):
        yield f"{what}: PyTorch's time / ours {ratio:.2f} (geometric mean)"


def ladder(data: dict[str, Any]) -> Iterator[str]:
    for entry in data.get("entries", ()):
        yield f"{entry['rung']}: {entry['seconds'] * 1e6:,.0f} µs, {data['flops'] / entry['seconds'] / 1e12:.1f} TFLOP/s"


def memory(data: dict[str, Any]) -> Iterator[str]:
    for entry in data.get("entries", ()):
        shares = " ".join(
            f"{name} {'?' if share is None else format(share, '.2f')}" for name, share in entry["copy_shares"].items()
        )
        yield f"{entry['operation']}: share of the copy bandwidth: {shares}"


def steps(data: dict[str, Any]) -> Iterator[str]:
    for kind in ("eager", "compiled"):
        for entry in data.get(kind, ()):
            times = (f"{name} {seconds * 1e3:.2f} ms" for name, seconds in entry["seconds"].items())
            yield f"{entry['network']} beside {kind}: {', '.join(times)}"


def tests(data: dict[str, Any]) -> Iterator[str]:
    yield f"{len(data.get('passed', ()))} passed, {len(data.get('skipped', ()))} skipped"


def primitives(data: dict[str, Any]) -> Iterator[str]:
    checks = data.get("checks", {})
    wrong = [name for name, found in checks.items() if found == "wrong"]
    yield f"{list(checks.values()).count('right')} right" + (f", wrong: {', '.join(wrong)}" if wrong else "")


def sanitizer(data: dict[str, Any]) -> Iterator[str]:
    if data.get("skipped"):
        yield f"left out: {data['skipped']}"
    for what, found in data.get("results", {}).items():
        yield f"{what}: {'no count' if found['errors'] is None else found['errors']} errors, {found['passed']} tests passed"


TOLD: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "primitives": primitives, "tests": tests, "ceilings": ceilings, "rows": rows, "ladder": ladder, "memory": memory,
    "steps": steps, "sanitizer": sanitizer,
}  # fmt: skip


def lines(folder: Path) -> Iterator[str]:
    """What is worth knowing at once, stage by stage; stages without results are left out."""
    for stage in STAGES:
        path = folder / f"{stage}.json"
        if not path.exists():
            continue
        data = json.loads(path.read_text(encoding="utf-8"))
        failures = data.get("failures", [])
        status = "cut off" if data.get("status") == "running" else data.get("status", "?")
        yield f"{stage}: {status} in {data.get('seconds', 0):.0f} s, {len(failures)} failures, on {data.get('device')}"
        for line in TOLD.get(stage, lambda data: iter(()))(data):
            yield f"  {line}"
        for failure in failures[:FAILURES]:
            yield f"  failure: {' '.join(failure.split())[:WIDTH]}"


if __name__ == "__main__":
    print(*lines(Path(sys.argv[1])), sep="\n")
