"""What the stages share: a JSON file that is written anew after every finding, and a new start where the device was lost.

A kernel that reaches past its memory, or never ends, takes the device away from its whole process: everything after it would
fail too. So a stage works in a child process. Where that dies, loses the device, or stays with one unit of work (what
:meth:`Report.attempt` is told) past its patience, the unit is noted as failed and a new child goes on behind it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...device import gpu
from ...files import write_json

KIND = "convkern GPU stage"
FORMAT = 1
DEVICE_LOST = 75  # exit status of a child that cannot go on but knows why
PATIENCE = 45.0  # seconds for one unit of work
LEAST = 10.0  # seconds that must be left for a new child


def device_is_lost() -> bool:
    """Whether this process's device answers every call with the error of an earlier kernel."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return False
    try:
        cupy.cuda.Device().synchronize()
    except cupy.cuda.runtime.CUDARuntimeError:
        return True
    return False


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
    resumed : bool
        Go on with what the file holds.
    """

    def __init__(self, stage: str, path: Path, seconds: float, resumed: bool = False) -> None:
        self.path, self._started, self._seconds = path, time.monotonic(), seconds
        self._under_way: list[str] = []
        self.data: dict[str, Any] = {
            "kind": KIND, "format": FORMAT, "stage": stage, "device": None, "status": "running", "seconds": 0.0,
            "failures": [], "lost": [], "done": [],
        }  # fmt: skip
        if resumed:
            self.data.update(json.loads(path.read_text(encoding="utf-8")))
        self._before = self.data["seconds"]
        self.data["device"] = gpu()[0] or None
        self.save()

    def save(self) -> None:
        self.data["seconds"] = round(self._before + time.monotonic() - self._started, 2)
        write_json(self.path, self.data)

    def begin(self, **values: Any) -> None:
        """Note where results start from, unless an earlier child has begun already."""
        self.data.update({name: value for name, value in values.items() if name not in self.data})
        self.save()

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

    def enter(self, what: str) -> None:
        """A unit of work is under way, which the process that watches is told in a file."""
        self._under_way.append(what)
        now_path(self.path).write_text(what, encoding="utf-8")

    def leave(self) -> None:
        """The unit is over; the one around it, if any, goes on."""
        self._under_way.pop()
        if self._under_way:
            now_path(self.path).write_text(self._under_way[-1], encoding="utf-8")
        else:
            now_path(self.path).unlink(missing_ok=True)

    def give_up_if_lost(self, what: str) -> None:
        """End this process if the device is lost, so that another goes on without this unit."""
        if device_is_lost():
            self.add("lost", what)
            sys.stdout.flush()
            os._exit(DEVICE_LOST)  # taking down what holds a lost device can hang or abort

    def attempt(self, what: str, function: Callable[[], Any]) -> Any:
        """The function's result; None, with the failure noted, where it raises, or took the device along before."""
        if what in self.data["lost"]:
            return None
        self.enter(what)
        try:
            return function()
        except Exception as error:
            traceback.print_exc()
            self.fail(f"{what}: {type(error).__name__}: {error}"[:1000])
            self.give_up_if_lost(what)
            return None
        finally:
            self.leave()

    def once(self, what: str, function: Callable[[], Any]) -> Any:
        """As :meth:`attempt`; None too for a unit that an earlier child has finished."""
        if what in self.data["done"]:
            return None
        result = self.attempt(what, function)
        self.data["done"].append(what)  # saved with what it found
        return result


def now_path(path: Path) -> Path:
    """The file that names the unit of work under way, beside the report's."""
    return path.with_suffix(".now")


def _end(child: subprocess.Popen[bytes], now: Path, patience: float) -> str:
    """Wait for a child: how it ended, in words, "" where it came to its end."""
    while child.poll() is None:
        time.sleep(0.1)
        try:
            age = time.time() - now.stat().st_mtime
        except OSError:  # no unit is under way
            continue
        if age > patience:
            child.kill()
            with suppress(subprocess.TimeoutExpired):
                child.wait(20)  # the driver takes a while to stop a kernel
            return f"did not end within {patience:.0f} s"
    if child.returncode in (0, 1):
        return ""
    return "lost the device" if child.returncode == DEVICE_LOST else f"ended its process with {child.returncode}"


def watch(command: list[str], path: Path, seconds: float, patience: float) -> int:
    """Run a stage's children, ``command SECONDS child``, until one comes to its end; gives the exit status."""
    now, until = now_path(path), time.monotonic() + seconds
    path.unlink(missing_ok=True)
    while True:
        now.unlink(missing_ok=True)
        left = until - time.monotonic()
        child = subprocess.Popen([*command, f"{left:.1f}", "child"])
        ended = _end(child, now, patience)
        if not ended:
            return child.returncode
        data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"failures": [], "lost": []}
        unit = data["lost"][-1] if child.returncode == DEVICE_LOST else now.read_text() if now.exists() else ""
        data["failures"].append(f"{unit or 'the stage'} {ended}")
        print(data["failures"][-1], flush=True)
        if unit and unit not in data["lost"]:
            data["lost"].append(unit)
        on = bool(unit) and until - time.monotonic() > LEAST
        write_json(path, data if on else {**data, "status": "failed"})
        now.unlink(missing_ok=True)
        if not on:
            return 1


def run(stage: str, work: Callable[[Report], None], patience: float = PATIENCE) -> None:
    """The main program of a stage, ``python -m convkern.bench.gpu.STAGE DIR SECONDS``; exits 1 if anything failed."""
    folder, seconds = sys.argv[1], float(sys.argv[2])
    path = Path(folder) / f"{stage}.json"
    if len(sys.argv) == 3:
        command = [sys.executable, "-m", f"{__package__}.{stage}", folder]
        raise SystemExit(watch(command, path, seconds, patience))
    report = Report(stage, path, seconds, resumed=path.exists())
    try:
        work(report)
    except Exception as error:
        traceback.print_exc()
        report.fail(f"{stage}: {type(error).__name__}: {error}"[:1000])
    report.found(status="failed" if report.data["failures"] else "done")
    raise SystemExit(1 if report.data["failures"] else 0)
