"""The benchmarks' clock, result files, table, plot and command."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convkern import plan
from convkern.bench import cases, measure, report, rivals

ROOT = Path(__file__).parents[1]


def named(name: str) -> cases.Case:
    (case,) = cases.select([name])
    return case


# --- the clock


class Clock:
    """A clock that only calls move on; it writes down who was called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, *seconds: float):
        """A call that takes these times in turn, then the last one for ever."""
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            self.log.append(name)

        return run


def interleave(clock: Clock, contenders: dict, rounds: int = 5, seconds: float = 1e6) -> dict:
    return measure.interleave(contenders, rounds, seconds, clock=clock, rest=lambda: clock.log.append("rest"))


def test_turns_interleave_and_each_round_begins_with_another():
    clock = Clock()
    interleave(clock, {name: [clock.call(name, 1.0)] for name in "abc"}, rounds=4)
    warm, turns = clock.log[:9], clock.log[9:]
    assert "".join(warm) == "aaa" + "bbb" + "ccc"
    assert turns[::2] == ["rest"] * 12
    assert "".join(turns[1::2]) == "abc" + "bca" + "cab" + "abc"


def test_the_median_leaves_out_warming_up_and_what_disturbs():
    clock = Clock()
    # three calls that warm up, then five turns of which one is disturbed
    timings = interleave(clock, {"a": [clock.call("a", 100, 90, 80, 2, 3, 50, 1, 2)], "b": [clock.call("b", 4)]})
    assert timings["a"].samples == (2, 3, 50, 1, 2)
    assert timings["a"].median == 2
    assert timings["b"] == measure.Timing((4,) * 5, 1)


def test_short_calls_are_repeated_over_the_copies_of_the_inputs():
    clock = Clock()
    call = 2**-10  # exact in binary, so that sums of it are
    copies = [
        clock.call("0", call),
        clock.call("1", 1.0, call),
        clock.call("2", call),
    ]  # the first warm call is disturbed
    timings = interleave(clock, {"a": copies}, rounds=2)
    calls = math.ceil(measure.TURN_SECONDS / call)
    assert calls > 3
    assert timings["a"] == measure.Timing((call, call), calls)
    turn = clock.log[measure.WARM_CALLS : measure.WARM_CALLS + 2 + calls]
    assert turn[:2] == ["rest", "0"]  # outside the clock
    assert turn[2:] == [str(i % 3) for i in range(1, calls + 1)]


def test_slow_rivals_get_fewer_turns_and_the_slowest_none():
    clock = Clock()
    contenders = {
        "fast": [clock.call("fast", 1)],
        "slow": [clock.call("slow", 9)],
        "slowest": [clock.call("s", 21, 20)],
    }
    timings = interleave(clock, contenders, rounds=15, seconds=30)  # a share of 10 each
    assert {name: len(timing.samples) for name, timing in timings.items()} == {"fast": 10, "slow": 3, "slowest": 1}
    assert timings["slowest"].median == 20
    assert clock.log.count("s") == 2
    alone = interleave(clock, {"slow": [clock.call("slow", 9)]}, seconds=1)
    assert alone == {"slow": measure.Timing((9,), 1)}


def test_settle_waits_until_nothing_computes(monkeypatch):
    """Threads of the last rival that look for work burn processor time; then they sleep."""
    burnt = iter(measure.SETTLE_STEP * used for used in (0, 1, 1, 1.7, 1.7, 1.75))
    waits = []
    monkeypatch.setattr(measure.time, "process_time", lambda: next(burnt))
    monkeypatch.setattr(measure.time, "sleep", waits.append)
    measure.settle()
    assert waits == [measure.SETTLE_STEP] * 3
    assert next(burnt, None) is None


def test_interleave_refuses_what_measures_nothing():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        measure.interleave({"a": [lambda: None]}, 0, 1.0)
    for seconds in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="seconds must be positive and finite, got"):
            measure.interleave({"a": [lambda: None]}, 1, seconds)
    with pytest.raises(ValueError, match="contenders must not be empty"):
        measure.interleave({}, 1, 1.0)


# --- results


def record(case: str, direction: str = "forward", **medians: float) -> dict:
    """A record as contest() makes it, of given times."""
    ours = medians["convkern"]
    timings = {name.replace("_", "-"): measure.Timing((seconds,), 1) for name, seconds in medians.items()}
    return {
        "case": case,
        "table": "layers",
        "operation": "conv",
        "direction": direction,
        "shape": {"n": 1},
        "flops": 4_000_000,
        "row": "direct",
        "inexact": ["winograd"],
        "roofline": {"bytes": 1000, "intensity": 4000.0, "gflops": 8.0, "limited_by": "arithmetic"},
        "times": {name: measure._entry(timing, 4_000_000, ours, 8.0) for name, timing in timings.items()},
        "refused": {"python": "too many"},
    }


def result(*records: dict, complete: bool = True, load: float = 0.1) -> dict:
    versions = {"python": "3.11", "convkern": "0.1.0", "torch": None}
    return {
        "kind": report.KIND,
        "format": report.FORMAT,
        "host": {"cpu": "Abacus 3000", "cores": 2, "threads": 2, "load": load, "versions": versions, "date": "today"},
        "settings": {"rounds": 1, "seconds_each": 1.0, "seed": 0, "dtype": "float32", "precision": "default"},
        "calibration": {
            "threads": 2,
            "peak_gflops": 10.0,
            "peak_gflops_one_thread": 5.0,
            "levels": [{"name": "memory", "bytes": 10**8, "read_gbs": 50.0, "copy_gbs": 40.0}],
        },
        "rivals": {"convkern": "ours", "torch": "PyTorch, tensors in NCHW", "numpy": "NumPy: im2col and BLAS"},
        "records": list(records),
        "complete": complete,
    }


TWO = (
    record("lenet-1", convkern=0.002, torch=0.004, torch_channels_last=0.001, numpy=0.008),
    record("lenet-2", convkern=0.001, torch=0.008, torch_channels_last=0.008),
)


def test_ratios_and_means():
    timing = TWO[0]["times"]["numpy"]
    assert timing["ratio"] == 4
    assert timing["gflops"] == pytest.approx(0.5)
    assert report.ratios(TWO[0]) == {"torch": 2, "torch-channels-last": 0.5, "torch-better": 0.5, "numpy": 4}
    summary = report.summarise(TWO)
    assert summary["torch"] == pytest.approx((4.0, 2.0, 2))  # the root of 2 · 8
    assert summary["torch-better"] == pytest.approx((2.0, 0.5, 2))
    assert summary["numpy"] == pytest.approx((4.0, 4.0, 1))
    assert "torch-better" not in report.ratios(record("x", convkern=1, torch=2))


def test_means_are_over_one_table_and_one_direction():
    loops = {**TWO[0], "table": "loops"}
    backward = {**TWO[0], "direction": "input_grad"}
    assert list(report.sections([loops, *TWO, backward])) == [
        ("layers", "forward"),
        ("layers", "input_grad"),
        ("loops", "forward"),
    ]


def test_a_measured_result_goes_through_json(tmp_path):
    chosen = rivals.select(["numpy", "python"])
    told = []
    found = measure.run(
        [named("plain"), named("pool-plain")],
        chosen,
        directions=["forward"],
        with_rows=True,
        rounds=2,
        seconds=0.1,
        report=lambda *args: told.append(args),
    )
    assert told == [("plain forward", 0, 3), ("pool-plain max_forward", 1, 3), ("pool-plain avg_forward", 2, 3)]
    assert found["complete"]
    path = tmp_path / "new" / "result.json"
    report.save(found, path)
    assert report.load(path) == json.loads(json.dumps(found))  # tuples have become lists
    plain, pool, _ = found["records"]
    assert {"convkern", "numpy", "python"} < set(plain["times"])
    assert any(name.startswith("row:") for name in plain["times"])
    roofline, calibration = plain["roofline"], found["calibration"]
    (spec,) = {named("plain").spec()}
    sizes = [math.prod(shape) for shape in (spec.x_shape, spec.w_shape, spec.y_shape)]
    assert roofline["bytes"] == 4 * sum(sizes)
    assert roofline["intensity"] == plain["flops"] / roofline["bytes"]
    assert 0 < roofline["gflops"] <= calibration["peak_gflops"]
    assert roofline["limited_by"] in ("arithmetic", *(level["name"] for level in calibration["levels"]))
    for timing in plain["times"].values():
        assert timing["share"] == pytest.approx(timing["gflops"] / roofline["gflops"])
    assert found["settings"]["precision"] == "default"
    assert plain["row"] in [name.removeprefix("row:") for name in plain["times"]]
    assert pool["refused"] == {"python": "python has no pool max_forward"}
    assert plain["times"]["convkern"]["ratio"] == 1
    assert all(0 < t["median"] < 1 and len(t["samples"]) <= 2 for t in plain["times"].values())
    host = found["host"]
    assert host["cpu"]
    assert host["threads"] >= 1
    assert host["versions"]["numpy"] == np.__version__
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_strict_admits_exact_rows_only(monkeypatch):
    """Under precision="strict" neither the planner nor the single rows may trade accuracy."""
    rows = plan.rows
    rough = {"tiled": "a bound of its own", "direct": "exact"}
    monkeypatch.setattr(
        plan, "rows", lambda *which: [r._replace(accuracy=rough[r.name]) for r in rows(*which) if r.name in rough]
    )
    plan.plan.cache_clear()
    found = {}
    try:
        for precision in plan.PRECISIONS:
            options = dict(directions=["forward"], with_rows=True, rounds=1, seconds=0.05, precision=precision)
            found[precision] = measure.run([named("plain")], rivals.select(["numpy"]), **options)
    finally:
        plan.plan.cache_clear()
    default, strict = (found[precision]["records"][0] for precision in plan.PRECISIONS)
    assert default["row"] == "tiled"
    assert default["inexact"] == ["tiled"]
    assert "row:tiled" in default["times"]
    assert strict["row"] == "direct"
    assert "row:tiled" not in strict["times"]
    assert found["strict"]["settings"]["precision"] == "strict"
    assert "precision='strict'" in found["strict"]["rivals"]["convkern"]
    with pytest.raises(ValueError, match="precision must be default or strict, got 'fast'"):
        measure.run([named("plain")], rivals.select(["numpy"]), precision="fast")


def test_directions_that_no_case_has_are_refused():
    with pytest.raises(
        ValueError, match=r"directions must match some of forward, input_grad, weight_grad, got sideways"
    ):
        measure.run([named("plain")], rivals.select(["numpy"]), directions=["sideways"])
    assert measure.select_directions(named("pool-plain"), ["backward"]) == ["max_backward", "avg_backward"]
    assert measure.select_directions(named("plain"), ["*_grad"]) == ["input_grad", "weight_grad"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "is no result of 'convkern bench'"),
        ('{"kind": "convkern benchmark", "format": 1}', "has format 1, this version reads 2"),
        ('{"kind": "convkern benchmark", "format": 2}', "it has no records and no host and no calibration"),
        (json.dumps(result({**TWO[0], "times": {}})), "record 0 is not complete"),
        (json.dumps(result(TWO[0], {"case": "x"})), "record 1 is not complete"),
    ],
)
def test_load_names_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"result.json .*{message}"):
        report.load(path)
    with pytest.raises(ValueError, match=r"missing.json cannot be read: .*No such file"):
        report.load(tmp_path / "missing.json")


def test_save_refuses_what_json_cannot_say(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        report.save(result(record("x", convkern=math.inf)), tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []


# --- table, plot and command


def rendered(shown: dict) -> str:
    console_module = pytest.importorskip("rich.console")
    from convkern.bench import table

    text = io.StringIO()
    table.show(shown, console_module.Console(width=200, file=text))
    return text.getvalue()


def test_the_table_shows_times_ratios_and_means():
    text = rendered(result(*TWO))
    lines = [line.split() for line in text.splitlines()]
    assert ["lenet-1", "forward", "direct", "2.000", "2.0", "20%", "25%", "0.50", "2.00", "0.50", "4.00"] in lines
    assert ["lenet-2", "forward", "direct", "1.000", "4.0", "40%", "50%", "8.00", "8.00", "8.00", "-"] in lines
    assert ["layers:", "geometric", "mean", "forward", "2.00", "4.00", "2.00", "4.00"] in lines
    assert ["layers:", "worst", "case", "forward", "0.50", "2.00", "0.50", "4.00"] in lines
    assert "Abacus 3000, 2 threads, float32, today" in text
    assert "peak 10 GFLOP/s (5 on one thread); memory 50 GB/s" in text
    assert "rows by themselves" not in text
    assert "*:" not in text
    assert "torch: PyTorch, tensors in NCHW" in text
    assert "stopped early" not in text
    assert "busy" not in text


def test_rows_have_a_table_of_their_own_and_inexact_ones_a_star():
    one = record("vgg-2", convkern=0.0002, torch=0.001)
    one["row"] = "winograd"
    for name, seconds in (("winograd", 0.0002), ("tiled", 0.0005)):
        one["times"][f"row:{name}"] = measure._entry(measure.Timing((seconds,), 1), 4_000_000, 0.0002, 8.0)
    text = rendered(result(one))
    first, second = text.split("rows by themselves")
    assert "row:" not in text
    lines = [line.split() for line in first.splitlines()]
    assert ["vgg-2", "forward", "winograd", "0.200", "20.0", "200%*", "250%*", "5.00"] in lines
    assert "*: the row multiplies less than the definition does" in first
    lines = [line.split() for line in second.splitlines()]
    assert ["vgg-2", "forward", "winograd", "0.200", "20.0", "200%*", "250%*"] in lines
    assert ["vgg-2", "forward", "tiled", "0.500", "8.0", "80%", "100%"] in lines


def test_the_factor_over_python_and_the_cliffs_are_said():
    slow = record("random-001", convkern=0.002, torch=0.001, torch_channels_last=0.004)
    worse = record("random-002", convkern=0.002, torch=0.0005)
    fine = record("random-003", convkern=0.002, torch=0.0012)
    for drawn in (slow, worse, fine):
        drawn["table"] = "random"
    text = rendered(result(slow, worse, fine, record("loops", convkern=1e-4, python=1.5)))
    assert "plain Python loops take up to 15,000 times as long (loops forward)" in text
    assert "random shapes below 0.6 of PyTorch's better layout: 2 of 3 measurements" in text
    lines = text.splitlines()
    at = lines.index("  0.25  random-002 forward (direct): n=1")
    assert lines[at + 1] == "  0.50  random-001 forward (direct): n=1"
    assert "random-003" not in "".join(lines[at:])


def test_the_table_says_when_figures_are_not_to_be_trusted():
    text = rendered(result(TWO[0], complete=False, load=1.9))
    assert "stopped early: not every case was measured" in text
    assert "the machine was busy (load 1.9 on 2 cores)" in text


def test_the_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from convkern.bench import plot

    path = tmp_path / "new" / "plot.png"
    plot.bars(result(*TWO), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plot._speed(TWO[0], "torch-better") == pytest.approx(4.0)
    assert plot._speed(TWO[1], "numpy") is None
    with pytest.raises(ValueError, match="the result has no record to draw"):
        plot.bars(result(), path)


def test_the_roofline_stands_above_every_bar():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from convkern.bench import plot

    axes = Figure().add_subplot()
    plot._panel(axes, list(TWO), ("convkern",))
    lines = [line for line in axes.lines if line.get_label() != "_nolegend_"]
    assert [list(line.get_ydata()) for line in axes.lines] == [[8.0, 8.0], [8.0, 8.0]]
    assert [sum(line.get_xdata()) / 2 for line in lines] == pytest.approx([0, 1])
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([2.0, 4.0])
    assert list(axes.get_legend_handles_labels()[1]).count("roofline") == 1


def test_the_markdown_table():
    from convkern.bench import markdown

    two = [dict(one, direction=direction) for direction in ("forward", "input_grad") for one in TWO]
    two[1]["inexact"] = ["direct"]
    lines = markdown.render(result(*two[:3])).splitlines()
    assert (
        "Abacus 3000, 2 threads, float32, PyTorch None: peak 10 GFLOP/s (5 on one thread); memory 50 GB/s" in lines[0]
    )
    assert lines[2:] == [
        "| layer | forward | of roofline | torch | torch NCHW | input grad | of roofline | torch | torch NCHW |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| lenet-1 | 2.000 | 25% | 0.50 | 2.00 | 2.000 | 25% | 0.50 | 2.00 |",
        "| lenet-2 | 1.000 | 50%\\* | 8.00 | 8.00 | - | - | - | - |",
        "| **geometric mean** | | | 2.00 | 4.00 | | | 0.50 | 2.00 |",
        "| **worst** | | | 0.50 | 2.00 | | | 0.50 | 2.00 |",
    ]
    loops = {**TWO[0], "table": "loops"}
    assert "| **loops: worst** | | | 0.50 | 2.00 |" in markdown.render(result(*TWO, loops)).splitlines()
    with pytest.raises(ValueError, match="the result has no record beside PyTorch's"):
        markdown.render(result(record("x", convkern=1.0)))


def test_tables_are_found_in_a_text():
    from convkern.bench import markdown

    text = "a\n<!-- table of bench/results/one.json -->\n| x |\n<!-- end of table -->\n<!-- table of two.json -->\n"
    assert markdown.embedded(text + "<!-- end of table -->") == {"bench/results/one.json": "| x |\n", "two.json": ""}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command as the command line does; files go to a temporary folder."""
    typer = pytest.importorskip("typer")
    from typer.testing import CliRunner

    from convkern.bench.cli import bench_command

    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(bench_command)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_the_command_measures_shows_and_draws(command, tmp_path):
    options = ("--cases", "one-pixel", "--rivals", "numpy", "--rounds", "1", "--seconds", "0.1")
    ran = command(*options, "--out", "one.json", "--plot", "one.png")
    assert ran.exit_code == 0, ran.output
    assert "small: geometric mean" in ran.output
    assert "result one.json" in ran.output
    found = report.load(tmp_path / "one.json")
    assert [(r["case"], r["direction"]) for r in found["records"]] == [("one-pixel", d) for d in cases.GRADIENTS]
    assert (tmp_path / "one.png").exists()
    again = command("--show", "one.json")
    assert again.exit_code == 0
    assert "one-pixel" in again.output
    assert "result" not in again.output


def test_the_command_prints_markdown(command, tmp_path):
    from convkern.bench import markdown

    report.save(result(*TWO), tmp_path / "two.json")
    ran = command("--show", "two.json", "--markdown")
    assert ran.exit_code == 0
    assert ran.output == markdown.render(result(*TWO))


def test_the_command_writes_to_runs_by_default(command, tmp_path):
    ran = command("--cases", "one-pixel", "--rivals", "numpy", "--directions", "forward", "--rounds", "1")
    assert ran.exit_code == 0, ran.output
    (path,) = (tmp_path / "runs").iterdir()
    assert report.load(path)["complete"]


def test_a_stopped_command_keeps_what_it_measured(command, monkeypatch, tmp_path):
    answers = iter([TWO[0]])

    def stopped(*args, **kwargs):
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(measure, "contest", stopped)
    ran = command("--cases", "one-pixel", "--rivals", "numpy", "--out", "part.json")
    assert ran.exit_code == 130
    found = report.load(tmp_path / "part.json")
    assert not found["complete"]
    assert found["records"] == [TWO[0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cases", "nonsense"), "cases must be quick, loops"),
        (("--cases", "one-pixel", "--rivals", "nonsense"), "rivals must be among convkern"),
        (("--cases", "one-pixel", "--directions", "up"), "directions must match some of forward"),
        (("--cases", "one-pixel", "--seconds", "0"), "seconds must be positive"),
        (("--show", "nothing.json"), "nothing.json cannot be read"),
    ],
)
def test_the_command_names_wrong_options(command, options, message):
    ran = command(*options)
    assert isinstance(ran.exception, ValueError)
    assert message in str(ran.exception)


def test_pytest_benchmark_enumerates_rivals_and_rows():
    pytest.importorskip("pytest_benchmark")
    arguments = ["-v", "-p", "no:cacheprovider", "--benchmark-disable", "-k", "lenet-1-image-forward and not numba"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "bench", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for rival in ("convkern", "numpy", "python", "row:direct"):
        assert f"test_conv[lenet-1-image-forward-{rival}] PASSED" in run.stdout
