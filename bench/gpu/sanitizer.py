"""Stage sanitizer: NVIDIA's compute-sanitizer over small cases: addresses, races in shared memory, barriers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from . import stage
from .tests import ROOT

# What each tool is given of the primitives and rows: a launch takes it up to a hundred times as long.
CASES = "conv-forward or conv-weight_grad or (pool and max) or reduce"
SHARED = "conv-forward or conv-weight_grad-depthwise or conv-weight_grad-tiled"
TOOLS = {"memcheck": CASES, "racecheck": SHARED, "synccheck": SHARED}


def tool() -> str | None:
    """compute-sanitizer on PATH or in a toolkit."""
    usual = Path("/usr/local/cuda/bin/compute-sanitizer")
    return shutil.which("compute-sanitizer") or (str(usual) if usual.is_file() else None)


def check(program: str, name: str, cases: str, seconds: float) -> tuple[int, str]:
    """Errors that one tool finds, -1 where it gives no count, and the end of what it prints."""
    command = [program, "--tool", name, "--error-exitcode", "0", "--print-limit", "20", sys.executable]
    command += [
        "-m",
        "pytest",
        "-q",
        "-x",
        "-W",
        "ignore",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(ROOT),
        "-k",
        cases,
    ]
    command += [str(ROOT / "tests" / "test_gpu_device.py")]
    env = {**os.environ, "CONVKERN_TEST_GUARDS": "0"}
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, cwd=ROOT
    )
    found = re.findall(r"(?:ERROR SUMMARY: |RACECHECK SUMMARY: )(\d+)", done.stdout)
    ran = re.search(r"\b\d+ passed", done.stdout)
    return (sum(map(int, found)) if found and ran and done.returncode == 0 else -1), done.stdout[-4000:]


def work(report: stage.Report) -> None:
    program = tool()
    report.found(tool=program, results={})
    if program is None:
        report.fail("compute-sanitizer is not on PATH")
        return
    for number, (name, cases) in enumerate(TOOLS.items()):
        try:
            errors, text = check(program, name, cases, max(report.left / (len(TOOLS) - number), 1))
        except subprocess.TimeoutExpired as expired:
            printed: bytes | str = expired.stdout or b""
            text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
            report.data["results"][name] = {"errors": None, "output": text[-4000:]}
            report.fail(f"{name} took longer than its share of {expired.timeout:.0f} s")
            continue
        report.data["results"][name] = {"errors": errors, "output": text}
        if errors:
            report.fail(
                f"{name} found {errors} errors" if errors > 0 else f"{name} gave no count, or tests failed in it"
            )
        report.save()


if __name__ == "__main__":
    stage.run("sanitizer", work)
