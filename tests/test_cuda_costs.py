"""The plan's choice on a GPU: NCHW images are laid out for tensor cores, or read as they are, whichever is cheaper."""

from __future__ import annotations

from itertools import product

import pytest

from convkern import explanation, plan
from convkern.kernels import conv as conv_table
from convkern.kernels import pointwise
from convkern.kernels.cuda import costs, launch
from convkern.kernels.spec import PointwiseSpec
from convkern.kernels.variant import Problem, never

from .test_cuda_rows import ONE, conv

DIRECTIONS = ("forward", "forward_residual", "input_grad", "weight_grad")
PRECISIONS = {"tf32": "tensor", "float16": "float16", "bfloat16": "bfloat16"}
WIDE = conv(64, 256, (14, 14), 256, (3, 3), padding=ONE)  # of ResNet-18, at a batch of 64
TINY = conv(2, 4, (8, 8), 6, (3, 3), padding=ONE)
NARROW = conv(64, 4, (56, 56), 4, (3, 3), padding=ONE)  # large, but half of each operand would be zeros
LARGE_KERNEL = conv(1, 2, (9, 9), 3, (5, 5))  # which no row of windows takes


def problem_of(spec, direction: str, precision: str, **changed) -> Problem:
    operation = "pointwise" if isinstance(spec, PointwiseSpec) else "conv"
    return Problem(operation, direction, "cuda", "float32", precision, spec)._replace(**changed)


@pytest.fixture(autouse=True)
def ampere(monkeypatch):
    monkeypatch.setattr(launch, "asked", lambda: 80)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_both_ends(precision, direction):
    """Many channels are worth a copy; a tiny layer is not, nor are few channels."""
    assert plan.plan(problem_of(WIDE, direction, precision)).name == PRECISIONS[precision]
    assert plan.plan(problem_of(TINY, direction, precision)).name == "tiled"
    assert plan.plan(problem_of(NARROW, direction, precision)).name == "tiled"
    assert plan.plan(problem_of(LARGE_KERNEL, direction, precision)).name == "direct"


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_both_ends_of_pointwise_layers(precision, direction):
    wide, tiny = PointwiseSpec(64, 256, 256, 784), PointwiseSpec(2, 4, 6, 16)
    assert plan.plan(problem_of(wide, direction, precision)).name == PRECISIONS[precision]
    assert plan.plan(problem_of(tiny, direction, precision)).name == "blocked"


def test_warpgroups_are_weighed_too(monkeypatch):
    monkeypatch.setattr(launch, "asked", lambda: 90)
    assert plan.plan(problem_of(WIDE, "forward", "float16")).name == "warpgroup_float16"
    small = conv(1, 8, (3, 3), 96, (1, 1))
    assert plan.plan(problem_of(small, "forward", "float16")).name == "direct"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_only_tensor_cores_take_is_not_weighed(direction):
    """Channels-last images, which are not laid out as others are, and halves; nor is a layer without work."""
    for changed in (dict(layout="channels_last"), dict(dtype="float16")):
        assert plan.plan(problem_of(TINY, direction, "float16", **changed)).name == "float16"
    empty = problem_of(TINY._replace(n=0), direction, "float16")
    for row in plan.rows("conv", direction, "cuda"):
        assert plan.refusal(row, empty) or not row.slower(empty)
        assert plan.refusal(row, empty) or not costs.told(row.name, empty)


def test_precisions_that_allow_no_rounding_weigh_nothing():
    for precision in ("default", "strict"):
        row = plan.plan(problem_of(WIDE, "forward", precision))
        assert (row.name, row.accuracy) == ("direct", "exact")


def test_the_terms_of_an_estimate():
    """By hand: a 1x1 layer of 8 channels at 4 images of 16x16, read as it is and on tensor cores."""
    problem = problem_of(conv(4, 8, (16, 16), 8, (1, 1)), "forward", "float16")
    pixels = 4 * 16 * 16
    filters = costs.LAUNCH + 8 * 8 * (4 + 2) / costs.BANDWIDTH
    images = costs.LAUNCH + pixels * 8 * (4 + 2) / costs.BANDWIDTH
    there = costs.cost("float16", problem)
    assert there.laying_out == pytest.approx(filters + images)
    tile = 2 * 128 * 32 * 64 * costs.MULTIPROCESSORS / costs.RATES["float16"]  # eight of them, each on a multiprocessor
    assert there.multiplying == pytest.approx(costs.LAUNCH + tile)
    as_it_is = costs.cost("direct", problem)
    assert as_it_is.laying_out == 0
    tile = 2 * 8 * 256 * 8 * costs.MULTIPROCESSORS / costs.RATES["direct"] * (1 + 16 / 8) / (1 + 16 / 128)
    assert as_it_is.multiplying == pytest.approx(costs.LAUNCH + max(tile, 4 * (2 * pixels * 8 + 64) / costs.BANDWIDTH))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_costs_grow_with_the_batch(direction):
    for row in costs.RATES:
        if row == "blocked":
            continue
        times = [costs.cost(row, problem_of(WIDE._replace(n=n), direction, "tf32")).seconds for n in (1, 16, 64, 256)]
        assert times == sorted(times)
        assert times[0] < times[-1] / 4
        assert times[0] > costs.LAUNCH


def test_every_row_that_is_weighed_has_an_estimate():
    """And its rivals, which are rows of the same table."""
    for table in (conv_table, pointwise):
        rivals = {name for name, _ in table._READ_NCHW}
        weighed = {row.name for row in table.VARIANTS if row.device == "cuda" and row.slower is not never} - rivals
        assert rivals < {row.name for row in table.VARIANTS if row.device == "cuda"}
        assert len(weighed) == 6
        assert weighed | rivals <= set(costs.RATES)


@pytest.mark.parametrize("found", [80, 90])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_few_channels_go_to_tensor_cores_exactly_where_these_win(direction, found, monkeypatch):
    """The row of windows comes first and gives way; what it leaves, tensor cores do not leave to a third row."""
    monkeypatch.setattr(launch, "asked", lambda: found)
    chosen = set()
    for groups, inner, side, precision in product((1, 4, 16), (3, 8, 16), (8, 56), PRECISIONS):
        spec = conv(16, groups * inner, (side, side), groups * inner, (3, 3), padding=ONE, groups=groups)
        problem = problem_of(spec, direction, precision)
        rows = {row.name: row for row in plan.rows("conv", direction, "cuda") if not plan.refusal(row, problem)}
        taken = [row for name, row in rows.items() if row.accuracy == precision and not row.slower(problem)]
        small = groups == 16 and inner == 3  # windows take them whatever the estimate
        assert plan.plan(problem) is (rows["tiled"] if small or not taken else taken[0])
        assert bool(rows["tiled"].slower(problem)) == (bool(taken) and not small)
        chosen.add(plan.plan(problem).accuracy)
    assert chosen == {"exact", *PRECISIONS}


def test_explanations_have_the_term():
    """Of the row that is chosen, and of those that are expected to be slower."""
    rows = tuple(plan.rows("conv", "forward", "cuda"))
    for spec, chosen in ((WIDE, "float16"), (TINY, "tiled")):
        problem = problem_of(spec, "forward", "float16")
        row = plan.plan(problem)
        reasons = {row.name: plan.refusal(row, problem) for row in rows}
        step = explanation.Step(problem, row, reasons, plan.why(problem), problem.operations, 1000, {}, rows)
        steps = explanation.Explanation([step])
        steps.calibrations = explanation._calibrations([step])
        lines = {line.split()[0]: line for line in str(steps).splitlines()[1:] if line.startswith("  ")}
        assert row.name == chosen
        assert "chosen: expected to be the fastest" in lines[chosen]
        assert "us to lay out and" in lines["float16"]
        assert "us to multiply on an H100, as estimated" in lines["direct"]
        assert "lay out" not in lines["direct"]
        if chosen == "tiled":
            assert "times the tiled row's time" in lines["float16"]


def test_a_row_that_reads_nchw_rounds_nothing():
    assert "its operands, not rounded" in plan.why(problem_of(TINY, "forward", "float16"))
