"""What the stages share: a JSON file that is written anew after every finding, so that a time limit loses little of it."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...device import gpu
from ...files import write_json

KIND = "convkern GPU stage"
FORMAT = 1


class Report:
    """What a stage found.

    Parameters
    ----------
    stage : str
        Its name.
    path : Path
        The JSON file, which is written at once and after each finding; "status" is "running" until the stage is over.
    seconds : float
        How long the stage may take; it ends on its own a little earlier where it can.
    """

    def __init__(self, stage: str, path: Path, seconds: float) -> None:
        self.path, self._started, self._seconds = path, time.monotonic(), seconds
        self.data: dict[str, Any] = {
            "kind": KIND, "format": FORMAT, "stage": stage, "device": gpu()[0] or None, "status": "running", "seconds": 0.0,
            "failures": [],
        }  # fmt: skip
        self.save()

    def save(self) -> None:
        self.data["seconds"] = round(time.monotonic() - self._started, 2)
        write_json(self.path, self.data)

    def found(self, **values: Any) -> None:
        """Note results by name."""
        self.data.update(values)
        self.save()

    def add(self, name: str, entry: Any) -> None:
        """Note one more entry of a list."""
        self.data.setdefault(name, []).append(entry)
        self.save()

    def fail(self, what: str) -> None:
        """Note a failure: the stage goes on, and ends as failed."""
        print(what, flush=True)
        self.data["failures"].append(what)
        self.save()

    def skip(self, why: str) -> None:
        """Leave the stage out, with the sentence that says why."""
        print(f"left out: {why}", flush=True)
        self.found(skipped=why)

    @property
    def left(self) -> float:
        """Seconds that are left, a tenth of them kept for what is under way."""
        return 0.9 * self._seconds - (time.monotonic() - self._started)

    def attempt(self, what: str, function: Callable[[], Any]) -> Any:
        """The function's result; None, with the failure noted, where it raises."""
        try:
            return function()
        except Exception as error:
            traceback.print_exc()
            self.fail(f"{what}: {type(error).__name__}: {error}")
            return None


def run(stage: str, work: Callable[[Report], None]) -> None:
    """The main program of a stage, ``python -m convkern.bench.gpu.STAGE DIR SECONDS``; exits 1 if anything failed."""
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    report = Report(stage, folder / f"{stage}.json", seconds)
    report.attempt(stage, lambda: work(report))
    report.found(status="failed" if report.data["failures"] else "done")
    raise SystemExit(1 if report.data["failures"] else 0)
