"""How bench/gpu.sh runs its stages, and what it makes of stages that fail, die, or never end; without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from convkern.bench.cases import LAYERS
from convkern.bench.gpu import rows, stage
from convkern.device import gpu

ROOT = Path(__file__).parents[1]
needs_timeout = pytest.mark.skipif(not shutil.which("timeout"), reason="bench/gpu.sh needs the program timeout")


@needs_timeout
def test_the_script_says_in_a_sentence_that_there_is_no_gpu(tmp_path):
    if not gpu()[1]:
        pytest.skip("there is a GPU")
    env = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100)
    assert done.returncode == 2
    assert done.stderr == f"bench/gpu.sh: no GPU to measure on: {gpu()[1]}\n"
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["status"], facts["device"]) == ("failed", None)
    assert facts["packages"]["numpy"] == np.__version__


@needs_timeout
def test_the_script_goes_on_after_a_stage_that_fails_or_takes_too_long(tmp_path):
    """A stand-in for Python: facts are well, build fails, tests never ends, rows is well, memory has nothing to do."""
    stages = """case "$2" in
        *.build) echo boom; exit 3 ;; *.tests) sleep 60 ;; *.memory) echo "left out: no" ;; esac
    case "$2" in *.summary) exit ;; esac
    echo "$2" >>"$3/ran"; echo {} >"$3/${2##*.}.json\""""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{stages}\n")
    python.chmod(0o755)
    env = {**os.environ, "PYTHON": str(python), "STAGES": "build tests rows", "TOTAL": "9"}
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("build: failed, see ")
    assert lines[1] == "    boom"
    assert lines[2].startswith("tests: cut off after ")
    assert lines[3] == "rows: left out, no time is left"
    env.update(STAGES="build rows memory", ARCHIVE=str(tmp_path / "all.tar.gz"))
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100)
    assert (done.returncode, done.stdout.splitlines()[2:4]) == (1, ["rows: done", "memory: left out, no"])
    with tarfile.open(tmp_path / "all.tar.gz") as archive:
        packed = set(archive.getnames())
    ran = ("facts", "build", "tests", "rows", "memory")
    assert packed == {f"{name}.log" for name in ran} | {f"{name}.json" for name in ("facts", "rows", "memory")}
    ran = (tmp_path / "results" / "ran").read_text().split()
    assert ran == [f"convkern.bench.gpu.{stage}" for stage in ("facts", "facts", "rows", "memory")]


def test_a_report_keeps_what_was_found_before_a_failure(tmp_path, monkeypatch):
    from convkern.bench.gpu import stage

    def work(report: stage.Report) -> None:
        report.found(first=1)
        report.add("many", 2)
        assert json.loads((tmp_path / "made-up.json").read_text())["status"] == "running"
        report.attempt("a part", lambda: 1 // 0)
        report.found(last=3)
        raise RuntimeError("the end")

    monkeypatch.setattr(sys, "argv", ["stage", str(tmp_path), "10", "child"])
    with pytest.raises(SystemExit) as ended:
        stage.run("made-up", work)
    assert ended.value.code == 1
    data = json.loads((tmp_path / "made-up.json").read_text())
    assert (data["status"], data["first"], data["many"], data["last"]) == ("failed", 1, [2], 3)
    assert [text.split(":")[0] for text in data["failures"]] == ["a part", "made-up"]


STAGE = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace

from convkern.bench.gpu import stage

folder = Path(sys.argv[1])


class Driver:
    lost = False

    def synchronize(self):
        if Driver.lost:
            raise OSError("an illegal memory access was encountered")


def loses():
    Driver.lost = True
    Driver().synchronize()


UNITS = {
    "first": lambda: 1, "mistaken": lambda: 1 // 0, "loses": loses, "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "never ends": lambda: time.sleep(100), "last": lambda: 2,
}


def work(report):
    cuda = SimpleNamespace(Device=Driver, runtime=SimpleNamespace(CUDARuntimeError=OSError))
    sys.modules["cupy"] = SimpleNamespace(cuda=cuda)
    report.begin(found={})
    for name, unit in UNITS.items():
        found = report.once(name, unit)
        if found is not None:
            report.data["found"][name] = found


if len(sys.argv) == 2:
    raise SystemExit(stage.watch([sys.executable, __file__, str(folder)], folder / "made-up.json", 60, 2))
stage.run("made-up", work)
"""


def test_a_stage_goes_on_behind_what_takes_the_device_along(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(STAGE)
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stderr
    data = json.loads((tmp_path / "made-up.json").read_text())
    assert data["found"] == {"first": 1, "last": 2}
    assert data["lost"] == ["loses", "dies", "never ends"]
    assert data["status"] == "failed"
    assert [text.partition(":")[0] for text in data["failures"]] == [
        "mistaken", "loses", "loses lost the device", "dies ended its process with -9", "never ends did not end within 2 s",
    ]  # fmt: skip
    assert not (tmp_path / "made-up.now").exists()


def test_a_stage_that_cannot_start_is_not_tried_again(tmp_path):
    path = tmp_path / "made-up.json"
    dies = [sys.executable, "-c", "import os; os._exit(9)"]
    assert stage.watch(dies, path, 60, 2) == 1
    data = json.loads(path.read_text())
    assert (data["status"], data["failures"]) == ("failed", ["the stage ended its process with 9"])


TESTS = """
import sys
from pathlib import Path

from convkern.bench.gpu import stage, tests

folder = Path(sys.argv[1])
tests.FILES = (str(folder / "test_made_up.py"),)
if len(sys.argv) == 2:
    raise SystemExit(stage.watch([sys.executable, __file__, str(folder)], folder / "tests.json", 60, 20))
stage.run("tests", tests.work)
"""


def test_tests_go_on_behind_one_that_takes_the_process_along(tmp_path):
    (tmp_path / "script.py").write_text(TESTS)
    (tmp_path / "test_made_up.py").write_text(
        "import os\ndef test_a(): pass\ndef test_b(): assert 0, 'wrong'\ndef test_c(): os._exit(9)\ndef test_d(): pass\n"
    )
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=100).returncode == 1
    data = json.loads((tmp_path / "tests.json").read_text())
    assert (data["passed"], data["lost"]) == (["test_a", "test_d"], ["test_c"])
    assert data["failures"] == ["test_b (call): AssertionError: wrong\nassert 0", "test_c ended its process with 9"]


def test_the_sanitizers_count_is_read():
    from convkern.bench.gpu import sanitizer

    none = "3 passed in 2 s\n========= ERROR SUMMARY: 0 errors\n"
    assert sanitizer.read(none, 0, 3) == {"errors": 0, "passed": 3}
    assert sanitizer.read(none, 0, 4)["errors"] is None  # one was skipped
    two = "3 passed\n========= Race reported\n========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n"
    assert sanitizer.read(two, 0, 3)["errors"] == 2
    assert "Race reported" in sanitizer.read(two, 0, 3)["output"]
    assert sanitizer.read("1 failed, 2 passed in 2 s\n========= ERROR SUMMARY: 0 errors\n", 1, 3)["errors"] is None
    assert sanitizer.read("3 passed in 2 s\n", 0, 3)["errors"] is None
    wrong = [sanitizer.judge("it", found) for found in ({"errors": 0}, {"errors": 2}, {"errors": None})]
    assert wrong == ["", "it found 2 errors", "it gave no count, or tests failed in it"]


def test_the_sanitizer_gets_every_row():
    from convkern.bench.gpu import sanitizer

    from . import test_gpu_device

    parts = sanitizer.parts()
    asked = [test for part in parts.values() for test in part]
    assert sorted(asked) == sorted([*(f"test_row[{row.id}]" for row in test_gpu_device.ROWS), "test_optimizers"])
    assert all(parts.values())
    command = sanitizer.command("tool", "racecheck", parts["conv float16"], 50000)
    assert command[:3] == ["tool", "--tool", "racecheck"]
    assert f"{ROOT / 'tests' / 'test_gpu_device.py'}::test_row[conv-forward-float16]" in command


STAND_IN = """#!/bin/sh
# compute-sanitizer: racecheck finds something, synccheck and what it runs never end
case "$2" in
    racecheck) echo "9 passed in 1 s"; echo "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)" ;;
    synccheck) sleep 300 & wait ;;
    *) echo "9 passed in 1 s"; echo "========= ERROR SUMMARY: 0 errors" ;;
esac
"""


def test_what_a_sanitizer_finds_and_what_is_cut_off_is_told(tmp_path, monkeypatch):
    from convkern.bench.gpu import sanitizer

    program = tmp_path / "compute-sanitizer"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setattr(sanitizer, "tool", lambda: str(program))
    monkeypatch.setattr(sanitizer, "parts", lambda: {"conv": ["test_row[a]"] * 9, "others": ["test_row[b]"]})
    report = stage.Report("sanitizer", tmp_path / "sanitizer.json", 4)
    sanitizer.work(report)
    results = json.loads((tmp_path / "sanitizer.json").read_text())["results"]
    errors = {what: found["errors"] for what, found in results.items()}
    tools = {"memcheck": 0, "racecheck": 1, "synccheck": None}
    assert errors == {f"{tool} over {part}": count for tool, count in tools.items() for part in ("conv", "others")}
    assert sum("was cut off after" in text for text in report.data["failures"]) == 2
    assert len(report.data["failures"]) == 4


def test_without_a_sanitizer_the_stage_is_left_out(tmp_path, monkeypatch, capsys):
    from convkern.bench.gpu import sanitizer

    monkeypatch.setattr(sanitizer, "tool", lambda: None)
    report = stage.Report("sanitizer", tmp_path / "sanitizer.json", 60)
    sanitizer.work(report)
    assert report.data["failures"] == []
    assert "compute-sanitizer is not installed" in json.loads((tmp_path / "sanitizer.json").read_text())["skipped"]
    assert capsys.readouterr().out.startswith("left out: compute-sanitizer is not installed")


def test_the_summary_tells_what_was_found(tmp_path):
    """Of stages that ended, failed and were cut off; those that did not run are left out."""
    from convkern.bench.gpu import summary

    case = next(layer for layer in LAYERS if layer.name == "resnet18-28")
    seconds = {"torch float32 nchw": 1e-3, "direct float32 nchw": 2e-3}
    found = {
        "primitives": {"checks": {"copy": "right", "ldmatrix": "wrong"}, "failures": ["ldmatrix: 3 values\nare wrong"]},
        "tests": {"passed": ["a", "b"], "skipped": []},
        "ceilings": {
            "bandwidth": {"copy": 3e12},
            "matrix_peak": {"tf32": 4e14, "float16": None},
            "launch_seconds": None,
        },
        "rows": {
            "entries": [
                rows.judge({"case": case.name, "direction": "forward", "seconds": seconds, "apart": {}}, case, {})
            ],
            "left_out": ["x"],
        },
        "ladder": {"flops": 2e12, "entries": [{"rung": "naive", "seconds": 0.5}]},
        "memory": {"entries": [{"operation": "relu", "copy_shares": {"ours": 0.9, "torch": None}}]},
        "steps": {"eager": [{"network": "lenet5", "seconds": {"ours float32": 1e-3}}]},
        "sanitizer": {"results": {"memcheck over conv": {"errors": None, "passed": 3}}},
    }
    for name, data in found.items():
        path = tmp_path / f"{name}.json"
        stage.Report(name, path, 60).found(status="done" if name != "rows" else "running", **data)
    told = "\n".join(summary.lines(tmp_path))
    for part in (
        "rows: cut off in ", "1 right, wrong: ldmatrix", "failure: ldmatrix: 3 values are wrong", "2 passed, 0 skipped",
        "copy 3,000 GB/s", "tf32 product 400.0 TFLOP/s", "forward float32: PyTorch's time / ours 0.50",
        "naive: 500,000 µs, 4.0 TFLOP/s", "relu: share of the copy bandwidth: ours 0.90 torch ?",
        "lenet5 beside eager: ours float32 1.00 ms", "memcheck over conv: no count errors, 3 tests passed",
    ):  # fmt: skip
        assert part in told, part
    assert "facts" not in told
