"""The planner: which row solves a problem, why, and how a choice is fixed."""

import doctest
import json
import re
import threading
import time

import numpy as np
import pytest

import convkern as ck
from convkern import explanation, nn, ops, plan
from convkern.kernels import calibration
from convkern.kernels.spec import Conv3dSpec
from convkern.kernels.variant import Variant, cpu_only, no_workspace

X, W = np.ones((1, 2, 6, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)
OPERATIONS = {
    "conv": ("forward", "input_grad", "weight_grad", "bias_grad"),
    "pointwise": ("forward", "input_grad", "weight_grad"),
    "pool": ("max_forward", "max_backward", "avg_forward", "avg_backward"),
}


@pytest.fixture
def table(monkeypatch):
    """Replace the table of rows by a given one."""

    def replace(*rows):
        monkeypatch.setattr(plan, "rows", lambda *which: list(rows))
        plan.plan.cache_clear()

    return replace


def row(name, reason="", accuracy="exact", run=lambda *args: None):
    return Variant(name, "forward", "cpu", lambda problem: reason, run, no_workspace, accuracy)


def a_problem(**options):
    with plan.traced() as steps:
        ck.conv2d(X, W, **options)
    ((problem, _),) = steps
    return problem


def test_every_direction_has_a_row_for_everything():
    for operation, directions in OPERATIONS.items():
        for direction in directions:
            rows = plan.rows(operation, direction)
            assert rows
            assert all(r.direction == direction for r in rows)
            names = [r.name for r in rows]
            assert len(set(names)) == len(names)
            assert any(r.refuses is cpu_only and r.accuracy == "exact" for r in rows)
        if "forward" in directions:  # a row with a residual takes what the one without takes
            plain, added = (plan.rows(operation, direction) for direction in ("forward", "forward_residual"))
            assert [r.name for r in added] == [r.name for r in plain]


def test_the_first_row_that_does_not_refuse_wins(table):
    problem = a_problem()
    table(row("no", "too small"), row("yes"), row("later"))
    assert plan.plan(problem).name == "yes"


def test_refusals_are_told_when_none_is_left(table):
    problem = a_problem()
    table(row("one", "too small"), row("two", "too wide"))
    with pytest.raises(
        NotImplementedError, match=r"no row for conv\.forward cpu float32 .*'one': 'too small', 'two': 'too wide'"
    ):
        plan.plan(problem)
    table()
    with pytest.raises(NotImplementedError, match="the table has none"):
        plan.plan(problem)


def test_strict_refuses_rows_that_trade_accuracy(table):
    default, strict = a_problem(), a_problem(precision="strict")
    assert (default.precision, strict.precision) == ("default", "strict")
    table(row("winograd", accuracy="winograd"), row("direct"))
    assert plan.plan(default).name == "winograd"
    assert plan.plan(strict).name == "direct"
    table(row("winograd", accuracy="winograd"))
    with pytest.raises(NotImplementedError, match=r"trades accuracy \(winograd\), which precision='strict' forbids"):
        plan.plan(strict)


def test_each_device_has_its_own_rows():
    problem = a_problem()._replace(device="cuda")
    assert plan.plan(problem).device == "cuda"
    assert plan.plan(problem._replace(device="cpu")).device == "cpu"
    assert cpu_only(problem) == "runs on the CPU only"
    with pytest.raises(
        NotImplementedError, match=r"no row for conv\.forward cuda float64 .*'direct': 'takes float32, not"
    ):
        plan.plan(problem._replace(dtype="float64"))
    with pytest.raises(NotImplementedError, match="takes float32 and float64, not float16"):
        plan.plan(problem._replace(device="cpu", dtype="float16"))


def test_a_plan_is_made_once(table):
    problem = a_problem()
    asked = []
    table(Variant("counted", "forward", "cpu", lambda p: asked.append(p) or "", lambda *a: None, no_workspace))
    for _ in range(3):
        assert plan.plan(problem).name == "counted"
    assert asked == [problem]


def test_the_planned_row_runs(table):
    calls = []

    def run(x, w, bias, spec, workspace, out):
        calls.append((x.shape, w.shape, bias.size, spec.out, workspace.nbytes))
        out[:] = 7

    table(Variant("fake", "forward", "cpu", lambda p: "", run, lambda p: 1000))
    np.testing.assert_array_equal(ck.conv2d(X, W), np.full((1, 3, 4, 4), 7))
    ((x, w, bias, out, scratch),) = calls
    assert (x, w, bias, out) == (X.shape, W.shape, 0, (4, 4))
    assert scratch >= 1000


# --- choices


def test_choices_are_json_and_can_be_used():
    ck.conv2d(X, W)
    ck.max_pool2d(X, 2)
    choices = plan.choices()
    key = plan.key(a_problem())
    assert choices[key] in [r.name for r in plan.rows("conv", "forward")]
    assert json.loads(json.dumps(choices)) == choices
    choices.clear()
    assert plan.choices()  # a copy was given
    plan.use(plan.choices())
    np.testing.assert_array_equal(ck.conv2d(X, W), np.full((1, 3, 4, 4), 18))


def test_a_fixed_choice_wins(table):
    problem, other = a_problem(), a_problem(padding=1)
    table(row("first"), row("second"))
    plan.use({plan.key(problem): "second"})
    assert plan.plan(problem).name == "second"
    assert plan.plan(other).name == "first"  # not named: planned as ever
    assert plan.choices()[plan.key(problem)] == "second"
    plan.use({plan.key(problem): "first"})
    assert plan.plan(problem).name == "first"


def test_a_fixed_choice_that_cannot_be_is_told(table):
    problem = a_problem()
    table(row("first"), row("second", "too small"))
    for name in ("second", "fft"):
        plan.use({plan.key(problem): name})
        with pytest.raises(
            ValueError, match=rf"the plan asks for row '{name}' for conv\.forward .*'second': 'too small'"
        ):
            plan.plan(problem)


def test_keys_tell_problems_apart():
    problems = [
        a_problem(), a_problem(padding=1), a_problem(padding=((1, 0), (0, 1))), a_problem(stride=2), a_problem(dilation=2),
        a_problem(activation="relu"), a_problem(precision="strict"), a_problem()._replace(dtype="float64"),
        a_problem()._replace(direction="input_grad"), a_problem()._replace(device="cuda"),
    ]  # fmt: skip
    keys = [plan.key(p) for p in problems]
    assert len(set(keys)) == len(keys)
    assert all(" " not in key.split(" ", 4)[4] for key in keys)
    for part in (
        "conv.forward cpu float32 default ",
        "n=1",
        "c=2",
        "k=3",
        "size=(6,6)",
        "padding=((0,0),(0,0))",
        "out=(4,4)",
    ):
        assert part in keys[0]


def test_the_plan_does_not_depend_on_threads(threads):
    threads(1)
    one = a_problem()
    threads(2)
    assert a_problem() == one


# --- traces and explanations


def test_traces_nest():
    with plan.traced() as outer:
        with plan.traced() as inner:  # both are empty, so equal, here …
            ck.conv2d(X, W)
        ck.max_pool2d(X, 2)
        with plan.traced() as empty:
            pass
    ck.avg_pool2d(X, 2)
    assert [p.direction for p, _ in inner] == ["forward"]
    assert [p.direction for p, _ in outer] == ["forward", "max_forward"]
    assert empty == []


def test_a_trace_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), plan.traced() as trace:
        raise ZeroDivisionError
    ck.conv2d(X, W)
    assert trace == []


def test_a_trace_belongs_to_a_thread():
    with plan.traced() as trace:
        thread = threading.Thread(target=lambda: ck.conv2d(X, W))
        thread.start()
        thread.join()
    assert trace == []


def test_explain_an_operation(table):
    steps = ck.explain(ck.conv2d, X, W, padding=1)
    (step,) = steps
    assert step.problem == a_problem(padding=1)
    assert step.row is plan.plan(step.problem)
    assert list(step.reasons) == [r.name for r in plan.rows("conv", "forward")]
    assert step.reasons[step.row.name] == ""
    assert step.why == "expected to be the fastest"
    assert step.operations == 2 * 3 * 6 * 6 * 2 * 9
    assert step.nbytes == X.nbytes + W.nbytes + 4 * 3 * 6 * 6
    assert step.intensity == step.operations / step.nbytes
    assert step.times == {}
    text = str(steps)
    assert re.match(r"this machine, float32, \d+ threads?: peak \d+ GFLOP/s; L2 \d+ GB/s, .*memory \d+ GB/s", text)
    assert text.splitlines()[1] == plan.key(step.problem)
    assert text.splitlines()[3] == "  row             GFLOP        MB FLOP/byte"
    assert re.search(rf"  {step.row.name:<12} +0\.0000 +\d+\.\d+ +\d+\.\d   chosen: ", text)

    table(row("no", "too small"), row("yes"), row("later"), row("rough", accuracy="winograd"))
    (step,) = steps = ck.explain(ck.conv2d, X, W)
    figures = f"{step.operations / 1e9:.4f} {step.nbytes / 1e6:.3f} {step.intensity:.1f}"
    assert [" ".join(line.split()) for line in str(steps).splitlines()[4:]] == [
        "no refused: too small",
        f"yes {figures} chosen: the first row of the table that takes it",
        f"later {figures} possible, not chosen",
        f"rough {figures} possible, not chosen; winograd",
    ]


def test_explain_counts_what_each_row_does():
    """Winograd's products of 6x6 points for blocks of 4x4 results; scratch is among the bytes."""
    x, w = np.zeros((2, 16, 12, 14), np.float32), np.zeros((20, 16, 3, 3), np.float32)
    (step,) = steps = ck.explain(ck.conv2d, x, w, padding=1)
    (row,) = (row for row in step.candidates if row.name == "winograd")
    products = 2 * 36 * 16 * 20 * 2 * 3 * 4
    assert row.operations(step.problem) == products < step.operations / 3
    nbytes = step.nbytes + row.workspace(step.problem)
    (line,) = (line for line in str(steps).splitlines() if line.startswith("  winograd"))
    assert line.split()[1:4] == [f"{products / 1e9:.4f}", f"{nbytes / 1e6:.3f}", f"{products / nbytes:.1f}"]
    volume = plan.rows("conv3d", "forward")
    (fast,) = (row for row in volume if row.name == "winograd")
    problem = step.problem._replace(
        operation="conv3d",
        spec=Conv3dSpec(2, 64, 64, 1, (3, 28, 28), (3, 3, 3), (1,) * 3, ((1, 1),) * 3, (1,) * 3, (3, 28, 28)),
    )
    assert plan.refusal(fast, problem) == ""
    assert fast.operations(problem) == 2 * 36 * 3 * 64 * 64 * 6 * 49  # three frames are channels, six are results


def test_rows_that_are_expected_to_be_slower_are_told_and_left(table):
    """They can run: a fixed plan or a measurement takes them."""
    later = row("later")._replace(slower=lambda problem: "")
    table(
        row("slow")._replace(slower=lambda problem: "expected at 2.00 times the later row's time"), later, row("last")
    )
    (step,) = steps = ck.explain(ck.conv2d, X, W, measure=True)
    assert step.row.name == plan.expected(step.problem).name == "later"
    assert list(step.times) == ["slow", "later", "last"]
    lines = [line.rpartition("%")[2].strip() for line in str(steps).splitlines()[4:]]
    assert lines == [
        "possible, expected at 2.00 times the later row's time", "chosen: expected to be the fastest",
        "possible, not chosen",
    ]  # fmt: skip
    plan.use({plan.key(step.problem): "slow"})
    assert plan.plan(step.problem).name == "slow"
    assert plan.expected(step.problem).name == "later"
    plan._fixed.clear()
    table(row("slow")._replace(slower=lambda problem: "expected at twice the time"), row("plain"))
    assert plan.why(step.problem) == "expected to be the fastest"


def test_explain_says_who_chose(table):
    problem = a_problem()
    table(row("first"), row("second"))
    plan.use({plan.key(problem): "second"})
    (step,) = ck.explain(ck.conv2d, X, W)
    assert (step.row.name, step.why) == ("second", "fixed by the plan in use")


def test_explain_measures_on_request(table):
    ran = []

    def slow(*args):
        ran.append("slow")
        time.sleep(0.004)

    table(row("no", "too small"), row("slow", run=slow), row("quick", run=lambda *args: ran.append("quick")))
    (step,) = steps = ck.explain(ck.conv2d, X, W, measure=True)
    assert list(step.times) == ["slow", "quick"]
    assert step.times["slow"] >= 0.004 > step.times["quick"] > 0
    assert step.row.name == "slow"
    assert ran[-1] == "slow"  # what the caller asked for still ran
    no, first, second = str(steps).splitlines()[4:]
    assert re.fullmatch(r"  no +refused: too small", no)
    assert re.fullmatch(r"  slow +[\d.]+ +[\d.]+ +[\d.]+ +\d+\.\d{4} ms +0\.\d GFLOP/s +\d+%   chosen: .*", first)
    assert re.fullmatch(
        r"  quick +[\d.]+ +[\d.]+ +[\d.]+ +0\.\d{4} ms +\d+\.\d GFLOP/s +\d+%   possible, not chosen", second
    )
    assert first.index("chosen") == second.index("possible") == no.index("refused")


def test_the_roofline_is_the_smaller_limit():
    levels = (calibration.Level("L2", 1000, 30.0, 20.0), calibration.Level("memory", 10_000, 5.0, 6.0))
    found = calibration.Calibration("float32", 2, 100.0, 50.0, levels)
    assert found.roofline(1000, 10) == 100  # arithmetic
    assert found.roofline(20, 10) == 2 * 6  # main memory
    assert found.roofline(20, 10, 1000) == 2 * 30
    assert found.roofline(20, 10, 1001) == 2 * 6
    assert found.roofline(20, 10, 10**9) == 2 * 6
    (step,) = ck.explain(ck.conv2d, X, W)
    step = step._replace(operations=2 * step.nbytes)  # 2 operations a byte
    assert step.share(found, step.operations / 30) == pytest.approx(0.5)  # 2 * 30 are possible
    assert step._replace(operations=None).share(found, step.nbytes / 3.0) == pytest.approx(0.1)


def test_a_calibration_is_plausible(threads):
    """A core makes between 1 and 400 float32 operations a nanosecond, and no level of memory is faster than a smaller one."""
    threads(1)
    one = calibration.calibrate()
    assert one.threads == 1
    assert one.peak == one.peak_one
    assert 1e9 < one.peak < 400e9
    assert [level.name for level in one.levels][::2] in (["L2", "memory"], ["L2"])
    sizes = [level.working_set for level in one.levels]
    assert sizes == sorted(sizes)
    assert sizes[-1] >= 128 << 20
    assert all(1e8 < speed < 1e13 for level in one.levels for speed in (level.read, level.copy))
    assert one.levels[0].bandwidth > one.levels[-1].bandwidth / 2
    assert calibration.measure_peak("float64") < 0.75 * one.peak  # half the lanes


def test_explain_a_model_and_its_backward():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2))
    assert [s.problem.direction for s in ck.explain(model, X)] == ["forward", "max_forward"]
    steps = ck.explain(lambda: model(ck.Tensor(X, requires_grad=True)).sum().backward())
    assert len(steps) == len({plan.key(s.problem) for s in steps})
    assert {s.problem.direction for s in steps} == {
        "forward", "max_forward", "max_backward", "relu_bias_grad", "input_grad", "weight_grad",
    }  # fmt: skip
    (step,) = ck.explain(lambda: [ck.conv2d(X, W) for _ in range(3)])
    assert step.runs == 3
    nested = []
    outer = ck.explain(lambda: nested.append(ck.explain(model, X)))
    assert [s.problem for s in outer] == [s.problem for s in nested[0]]


def test_explain_what_uses_no_kernel():
    steps = ck.explain(ops.add, X, 1)
    assert steps == []
    assert str(steps) == "no kernel ran"


def test_explain_example():
    finder = doctest.DocTestFinder()
    (example,) = (t for t in finder.find(explanation.explain, "explain", globs={}) if t.examples)
    assert doctest.DocTestRunner().run(example) == (0, len(example.examples))


def test_gradients_are_planned_as_problems_of_their_own():
    w = ck.Tensor(W, requires_grad=True)
    y = ck.conv2d(X, w, precision="strict").sum()
    with plan.traced() as steps:
        y.backward()
    ((problem, _),) = steps
    assert (problem.direction, problem.precision) == ("weight_grad", "strict")
