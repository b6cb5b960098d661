"""Stage tests: tests/test_gpu_device.py, which runs every row of every table on the device against its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import stage

ROOT = Path(__file__).resolve().parents[2]
FILES = ("tests/test_gpu_device.py",)


class Collector:
    """The part of a pytest plugin that notes each test as it ends, and leaves out those that ended in an earlier process."""

    def __init__(self, report: stage.Report) -> None:
        self.report = report
        report.begin(passed=[], skipped=[], slow=[])

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        over = {*self.report.data["done"], *self.report.data["lost"]}
        items[:] = [item for item in items if name_of(item.nodeid) not in over]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.report.enter(name_of(nodeid))

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = name_of(report.nodeid)
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.report.fail(f"{name} ({report.when}): {crash.message if crash else report.longrepr}"[:1000])
            self.report.give_up_if_lost(name)
        elif report.skipped:
            self.report.add("skipped", f"{name}: {report.longrepr[2] if report.longrepr else ''}")
        elif report.when == "call":
            self.report.data["passed"].append(name)
            if report.duration > 5:
                self.report.data["slow"].append([name, round(report.duration, 1)])

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.report.leave()
        self.report.add("done", name_of(nodeid))


def name_of(nodeid: str) -> str:
    return nodeid.partition("::")[2]


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
    if code not in (0, 1, 5):  # 5: none was left
        report.fail(f"pytest did not run: it gave {code}")
    elif not report.data["passed"]:
        report.fail("no test ran: " + "; ".join(sorted(set(report.data["skipped"]))[:3]))


if __name__ == "__main__":
    stage.run("tests", work)
