"""Stage sanitizer: NVIDIA's compute-sanitizer over small cases of every row: addresses, races in shared memory, barriers.

Its tools make launches up to a hundred times as slow, and most of the time is theirs to start: so all of them run at
once, each over a part of the rows, and a part that is cut off loses nothing but itself.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import import_module
from pathlib import Path
from typing import Any

from ...plan import HALVES
from . import stage
from .tests import ROOT

TOOLS = ("memcheck", "racecheck", "synccheck")
TABLES = ("conv", "pointwise", "pool", "elementwise", "norm", "adaptive", "entropy", "reduce")
FIRST_PORT = 49152  # a tool listens on one of ten from its own first port on
CHARACTERS = 3000  # of what a tool says about errors


def tool() -> str | None:
    """compute-sanitizer on PATH or in a toolkit."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = (Path(home, "bin", "compute-sanitizer") for home in (*homes, "/usr/local/cuda"))
    return shutil.which("compute-sanitizer") or next((str(path) for path in found if path.is_file()), None)


def parts() -> dict[str, list[str]]:
    """The tests of tests/test_gpu_device.py that run small cases of rows: each row is in one part."""
    made: dict[str, list[str]] = {"conv": [], **{f"conv {kind}": [] for kind in HALVES}, "pointwise": [], "others": []}
    for table in TABLES:
        for row in import_module(f"convkern.kernels.{table}").VARIANTS:
            if row.device != "cuda":
                continue
            name = table if table in made else "others"
            name = f"{name} {row.accuracy}" if f"{name} {row.accuracy}" in made else name
            made[name].append(f"test_row[{table}-{row.direction}-{row.name}]")
    made["others"].append("test_optimizers")
    return made


def command(program: str, name: str, tests: list[str], port: int) -> list[str]:
    """One tool over these tests."""
    checked = [program, "--tool", name, "--error-exitcode", "0", "--print-limit", "20"]
    checked += ["--launch-timeout", "120", "--base-port", str(port)]
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-W", "ignore", "-p", "no:cacheprovider", "--tb=short"]
    file = ROOT / "tests" / "test_gpu_device.py"
    return [*checked, *pytest, "--rootdir", str(ROOT), *(f"{file}::{test}" for test in tests)]


def read(text: str, code: int, asked: int) -> dict[str, Any]:
    """What a tool found: the number of errors, None where it gives no count or not all tests passed in it."""
    found = re.findall(r"(?:ERROR SUMMARY: |RACECHECK SUMMARY: )(\d+)", text)
    ran = re.search(r"\b(\d+) passed", text)
    passed = int(ran[1]) if ran else 0
    complete = found and code == 0 and passed >= asked
    result: dict[str, Any] = {"errors": sum(map(int, found)) if complete else None, "passed": passed}
    if result["errors"] != 0:
        told = "\n".join(line for line in text.splitlines() if line.startswith("========="))
        result["output"] = told[:CHARACTERS] + "\n...\n" + text[-CHARACTERS:]
    return result


def check(program: str, name: str, tests: list[str], port: int, seconds: float) -> dict[str, Any]:
    """One tool over a part; cut off after so many seconds."""
    env = {**os.environ, "CONVKERN_TEST_GUARDS": "0", "CONVKERN_TEST_SMALL": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        command(program, name, tests, port), env=env, cwd=ROOT, text=True, errors="replace", start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=max(seconds, 1))
        found = read(text, process.returncode, len(tests))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the tool and the Python that it runs
        text, _ = process.communicate()
        found = {**read(text, 1, len(tests)), "cut_off": True}
    return {**found, "tests": len(tests), "seconds": round(time.monotonic() - started, 1)}


def judge(what: str, found: dict[str, Any]) -> str:
    """Why a result is a failure, in a sentence; "" where all is well."""
    if found["errors"]:
        return f"{what} found {found['errors']} errors"
    if found.get("cut_off"):
        return f"{what} was cut off after {found['seconds']:.0f} s"
    return "" if found["errors"] == 0 else f"{what} gave no count, or tests failed in it"


def work(report: stage.Report) -> None:
    program = tool()
    report.found(tool=program, results={})
    if program is None:
        report.skip("compute-sanitizer is not installed: it comes with the CUDA toolkit")
        return
    jobs = [(name, part, tests) for name in TOOLS for part, tests in parts().items()]

    def run(number: int, name: str, tests: list[str]) -> dict[str, Any]:
        return check(program, name, tests, FIRST_PORT + 10 * number, report.left)

    with ThreadPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
        running = {
            pool.submit(run, number, name, tests): f"{name} over {part}"
            for number, (name, part, tests) in enumerate(jobs)
        }
        for job in as_completed(running):
            what = running[job]
            found = report.attempt(what, job.result)
            if found is not None:
                report.data["results"][what] = found
                if wrong := judge(what, found):
                    report.fail(wrong)
                report.save()


if __name__ == "__main__":
    stage.run("sanitizer", work)
