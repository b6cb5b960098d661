"""Measured choices: kept on disk for this host, used by the planner, and harmless when they are stale or damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import convkern as ck
from convkern import plan, tuning
from convkern.kernels.variant import Variant, no_workspace

X, W = np.ones((1, 2, 6, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache folder of its own with tuning turned on; nothing of it is left afterwards."""
    monkeypatch.setenv("CONVKERN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CONVKERN_TUNE", "1")
    tuning.forget()
    yield tmp_path
    monkeypatch.undo()
    tuning.forget()


def row(name, seconds, reason="", accuracy="exact"):
    def run(x, w, bias, spec, workspace, out):
        time.sleep(seconds)
        out[:] = len(name)

    return Variant(name, "forward", "cpu", lambda problem: reason, run, no_workspace, accuracy)


@pytest.fixture
def table(monkeypatch):
    def replace(*rows):
        monkeypatch.setattr(plan, "rows", lambda *which: list(rows))
        plan.plan.cache_clear()

    return replace


def a_problem(**options):
    with plan.traced() as steps:
        ck.conv2d(X, W, **options)
    ((problem, _),) = steps
    return problem


def test_the_fastest_row_is_kept_and_used(home, table):
    table(row("slow", 0.003), row("no", 0, "too small"), row("fast", 0.0005), row("slower", 0.01))
    problem = a_problem()
    assert plan.plan(problem).name == "slow"
    told = []
    (found,) = tuning.tune(lambda: [ck.conv2d(X, W), ck.conv2d(X, W)], report=told.append)
    assert told == [found]
    assert (found.problem, found.row, found.first) == (problem, "fast", "slow")
    assert list(found.times) == ["slow", "fast", "slower"]
    assert plan.plan(problem).name == "fast"
    assert plan.why(problem) == "the fastest that 'convkern tune' measured on this host"
    np.testing.assert_array_equal(ck.conv2d(X, W), np.full((1, 3, 4, 4), 4))
    tuning.forget()  # as a new process: from the file
    assert plan.plan(problem).name == "fast"
    other = a_problem(padding=1)
    assert plan.plan(other).name == "slow"  # not measured: planned as ever
    assert plan.why(other) == "the first row of the table that takes it"
    tuning.tune(ck.conv2d, X, W, padding=1)
    assert plan.plan(other).name == plan.plan(problem).name == "fast"  # choices add up
    assert [file.name for file in home.glob("tuning-*")] == [tuning.path().name]


def test_a_row_that_was_expected_to_be_slower_may_be_the_fastest(home, table):
    table(row("underrated", 0)._replace(slower=lambda problem: "expected at twice the time"), row("first", 0.003))
    problem = a_problem()
    assert plan.plan(problem).name == "first"
    (found,) = tuning.tune(ck.conv2d, X, W)
    assert (found.row, found.first) == ("underrated", "first")
    assert plan.plan(problem).name == "underrated"


def test_every_row_that_counts_its_cost_is_measured():
    """On the tables themselves: what is expected to be slower can run, and tuning would time it."""
    with plan.traced() as steps:
        ck.conv2d(np.ones((1, 20, 9, 9), np.float32), np.ones((20, 20, 3, 3), np.float32))
    ((problem, chosen),) = steps
    rows = {row.name: row for row in plan.rows("conv", "forward")}
    left = [name for name, row in rows.items() if not plan.refusal(row, problem) and row.slower(problem)]
    assert left
    assert chosen.name not in left
    assert all(f"times the {chosen.name} row's time" in rows[name].slower(problem) for name in left)


def test_a_tie_keeps_the_tables_choice(home, table):
    table(row("first", 0.004), row("second", 0.004))
    (found,) = tuning.tune(ck.conv2d, X, W)
    assert found.row == "first"


def test_a_plan_in_use_goes_first(home, table):
    """A training run that is resumed takes the rows that it began with, whatever was measured since."""
    table(row("first", 0.003), row("second", 0))
    problem = a_problem()
    plan.use({plan.key(problem): "first"})
    tuning.tune(ck.conv2d, X, W)
    assert plan.plan(problem).name == "first"
    plan._fixed.clear()
    plan.plan.cache_clear()
    assert plan.plan(problem).name == "second"


def test_strict_never_takes_an_inexact_row(home, table):
    table(row("exact", 0.003), row("winograd", 0, accuracy="winograd"))
    (strict,) = tuning.tune(ck.conv2d, X, W, precision="strict")
    assert list(strict.times) == ["exact"]
    (default,) = tuning.tune(ck.conv2d, X, W)
    assert default.row == "winograd"
    assert plan.plan(strict.problem).name == "exact"
    # Not even where the file says so.
    content = json.loads(tuning.path().read_text())
    content["choices"][plan.key(strict.problem)]["row"] = "winograd"
    tuning.path().write_text(json.dumps(content))
    tuning.forget()
    assert plan.plan(strict.problem).name == "exact"
    assert plan.plan(default.problem).name == "winograd"


def test_a_row_that_is_gone_or_refuses_is_not_taken(home, table):
    table(row("old", 0), row("new", 0.003))
    problem = a_problem()
    tuning.tune(ck.conv2d, X, W)
    table(row("new", 0.003))
    assert plan.plan(problem).name == "new"
    table(row("old", 0, "too small"), row("new", 0.003))
    assert plan.plan(problem).name == "new"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "it is no file of 'convkern tuning', format 1"),
        ('{"kind": "convkern tuning", "format": 2}', "it is no file of 'convkern tuning', format 1"),
        ('{"kind": "convkern tuning", "format": 1}', "its choices are damaged"),
        ('{"kind": "convkern tuning", "format": 1, "choices": {"x": {"row": 3}}}', "its choices are damaged"),
    ],
)
def test_a_damaged_file_is_said_and_ignored(home, table, content, reason):
    table(row("first", 0.002), row("second", 0))
    problem = a_problem()
    tuning.path().write_text(content)
    tuning.forget()
    with pytest.warns(
        RuntimeWarning, match=rf"{tuning.path().name} cannot be used \({reason}.*'convkern tune' writes it"
    ):
        assert plan.plan(problem).name == "first"
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        tuning.tune(ck.conv2d, X, W)
    assert plan.plan(problem).name == "second"  # written anew


def test_another_hosts_file_is_ignored(home, table, monkeypatch):
    table(row("first", 0.002), row("second", 0))
    problem = a_problem()
    tuning.tune(ck.conv2d, X, W)
    here, host = tuning.path(), tuning._host()
    for changed in ("cpu", "cores", "vector_bits", "kernels"):
        monkeypatch.setattr(tuning, "_host", lambda name=changed: {**host, name: "another"})
        assert tuning.path() != here
        tuning.forget()
        assert plan.plan(problem).name == "first"
        tuning.path().write_bytes(here.read_bytes())  # copied over: it still says where it was measured
        tuning.forget()
        assert plan.plan(problem).name == "first"


def test_tuning_can_be_turned_off(home, table, monkeypatch):
    table(row("first", 0.002), row("second", 0))
    problem = a_problem()
    tuning.tune(ck.conv2d, X, W)
    monkeypatch.setenv("CONVKERN_TUNE", "0")
    tuning.forget()
    assert plan.plan(problem).name == "first"


def test_the_choice_does_not_depend_on_the_number_of_threads(home, table, threads):
    table(row("first", 0.002), row("second", 0))
    problem = a_problem()
    threads(1)
    tuning.tune(ck.conv2d, X, W)
    for count in (1, 2, 3):
        threads(count)
        tuning.forget()
        assert plan.plan(problem).name == "second"


def test_a_failed_write_leaves_the_file_and_the_planner_alone(home, table, monkeypatch):
    table(row("first", 0.002), row("second", 0))
    tuning.tune(ck.conv2d, X, W)
    before = tuning.path().read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="no space left"):
            tuning.tune(ck.conv2d, X, W, padding=1)
    assert tuning.path().read_bytes() == before
    assert [file.name for file in home.glob("*tuning*")] == [tuning.path().name]


def test_real_rows_are_measured_and_a_new_process_uses_them(tmp_path):
    """Every row gives the same result, so only the plan tells: the new process takes what the first one kept."""
    code = """
        import json, sys, numpy as np, convkern as ck
        from convkern import plan, tuning
        x, w = np.ones((2, 4, 9, 9), np.float32), np.ones((8, 4, 3, 3), np.float32)
        if sys.argv[1] == "tune":
            (found,) = tuning.tune(ck.conv2d, x, w)
            path = tuning.path()
            content = json.loads(path.read_text())
            (entry,) = content["choices"].values()
            assert entry["row"] in entry["milliseconds"] and len(entry["milliseconds"]) >= 2
            entry["row"] = "direct"  # whichever is the fastest, this one is not the table's first
            path.write_text(json.dumps(content))
        else:
            assert (ck.conv2d(x, w) == 36).all()
            print(*plan.choices().values())
    """
    env = {**os.environ, "CONVKERN_CACHE_DIR": str(tmp_path), "CONVKERN_TUNE": "1"}

    def run(mode: str, **more: str) -> str:
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), mode]
        done = subprocess.run(command, capture_output=True, text=True, env={**env, **more}, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    run("tune")
    assert run("use") == "direct"
    assert run("use", NUMBA_NUM_THREADS="1") == "direct"
    assert run("use", CONVKERN_TUNE="0") == "tiled"
