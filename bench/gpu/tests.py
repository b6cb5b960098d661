"""Stage tests: tests/test_gpu_device.py, which runs every row of every table on the device against its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import stage

ROOT = Path(__file__).resolve().parents[2]
FILES = ("tests/test_gpu_device.py",)


class Collector:
    """The part of a pytest plugin that notes each test as it ends."""

    def __init__(self, report: stage.Report) -> None:
        self.report = report
        report.found(passed=[], skipped=[], slow=[])

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.rsplit("::", 1)[-1]
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.report.fail(f"{name} ({report.when}): {crash.message if crash else report.longrepr}"[:1000])
        elif report.skipped:
            self.report.add("skipped", f"{name}: {report.longrepr[2] if report.longrepr else ''}")
        elif report.when == "call":
            self.report.data["passed"].append(name)
            if report.duration > 5:
                self.report.data["slow"].append([name, round(report.duration, 1)])
            self.report.save()


def work(report: stage.Report) -> None:
    import pytest

    # Other versions than the project's own may warn; that is no failure here.
    options = [
        "-q",
        "-W",
        "ignore",
        "--rootdir",
        str(ROOT),
        "-p",
        "no:cacheprovider",
        "-m",
        "full or not full",
        "--tb=short",
    ]
    code = pytest.main([*options, *(str(ROOT / file) for file in FILES)], plugins=[Collector(report)])
    if code not in (0, 1):
        report.fail(f"pytest did not run: it gave {code}")
    elif not report.data["passed"]:
        report.fail("no test ran: " + "; ".join(sorted(set(report.data["skipped"]))[:3]))


if __name__ == "__main__":
    stage.run("tests", work)
