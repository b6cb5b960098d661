"""The CUDA rows of convolution by few channels: how work is cut, what they take, and what their instructions are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from convkern import plan
from convkern.kernels.conv import cuda_tiled, cuda_tiled_weight, tiled_grid
from convkern.kernels.cuda import launch
from convkern.kernels.spec import ConvSpec
from convkern.kernels.variant import Problem
from convkern.plan import HALVES

from . import golden
from .bounds import integers
from .cuda_checks import check_as_stored, run_as_stored
from .gpu import cuda_rows, interpreted, needs_compiler
from .test_cuda_rows import ONE, TILED_EDGES, TILED_LAST, conv
from .test_kernels import check_conv, conv_shapes, row_id

ROWS = [row for row in cuda_rows("conv") if row.name == "tiled"]
FORMS, LAYOUTS = ("float32", *HALVES), ("nchw", "channels_last")
RESNEXT = conv(64, 128, (56, 56), 128, (3, 3), padding=ONE, groups=32)


def clear() -> None:
    for cache in (cuda_tiled._forward_grid, cuda_tiled._gradient_grid, cuda_tiled_weight._grid):
        cache.cache_clear()


def arrays_of(row, spec: ConvSpec) -> list[np.ndarray]:
    rng = np.random.default_rng(8)
    return [integers(rng, shape, "float32") for shape in conv_shapes(row.direction, spec)[0]]


def grid_of(row, spec: ConvSpec):
    """The numbers of a launch over channels-last images."""
    if row.direction == "weight_grad":
        return cuda_tiled_weight._grid(spec, True)
    if row.direction == "input_grad":
        return cuda_tiled._gradient_grid(spec, True)
    return cuda_tiled._forward_grid(spec, True, row.direction == "forward_residual", True)


@pytest.fixture
def cut(monkeypatch):
    """The parts that the pixels are cut into."""

    def change(parts: int) -> None:
        monkeypatch.setattr(tiled_grid, "window_parts", lambda blocks, pixels: parts)
        clear()

    yield change
    clear()


def problem(row, spec: ConvSpec, dtype: str = "float32", layout: str = "nchw") -> Problem:
    return Problem("conv", row.direction, "cuda", dtype, "default", spec, layout)


@needs_compiler
@pytest.mark.parametrize("row", ROWS, ids=row_id)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FORMS)
def test_tile_edges_in_every_type_and_layout(row, layout, dtype):
    specs = TILED_EDGES if layout == "nchw" else TILED_LAST
    with interpreted("sm_80" if dtype == "float16" else "sm_90a"):
        for spec in (*specs[: 3 if row.direction == "input_grad" else None], specs[1]._replace(n=0)):
            if row.direction.startswith("forward"):
                spec = spec._replace(activation=spec.k % 2)
            assert check_as_stored(row, problem(row, spec, dtype, layout))


@needs_compiler
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_rows_of_pixels_are_cut_anywhere(row, monkeypatch):
    """Channels-last, a thread slides along as many columns as leave the device busy, and a block's threads share strips."""
    specs = [spec._replace(n=3) for spec in TILED_LAST[:2]]
    results, segments = [], []
    try:
        for least, parts in ((100, 1), (3, 2), (1, 5)):
            monkeypatch.setattr(tiled_grid, "LEAST_RUN", least)
            monkeypatch.setattr(tiled_grid, "slot_parts", lambda blocks, terms, parts=parts: parts)
            clear()
            made = [grid_of(row, spec) for spec in specs]
            assert [-(-grid.terms // grid.chunk) for grid in made] == [parts, parts]
            segments.append([grid.segments for grid in made])
            wide = row._replace(workspace=lambda problem, parts=parts: 4 * parts * np.prod(problem.spec.w_shape))
            with interpreted("sm_80"):
                asked = [problem(row, spec, layout="channels_last") for spec in specs]
                results.append([run_as_stored(wide, one, arrays_of(row, one.spec)) for one in asked])
    finally:
        monkeypatch.undo()
        clear()
    assert segments[0] == [1, 1] < segments[1] < segments[2]
    for one, several, most in zip(*results, strict=True):
        np.testing.assert_array_equal(one, several)
        np.testing.assert_array_equal(one, most)


@needs_compiler
@pytest.mark.parametrize("row", [row for row in ROWS if row.direction != "weight_grad"], ids=row_id)
@pytest.mark.parametrize("parts", [2, 3])
def test_pixels_are_cut_anywhere(row, parts, cut):
    """Parts that begin and end inside of rows."""
    cut(parts)
    with interpreted("sm_90a"):
        for spec in TILED_EDGES[:2] if row.direction == "input_grad" else (TILED_EDGES[0], TILED_EDGES[3]):
            grid = tiled_grid.make_grid(spec)
            assert -(-grid.terms // grid.chunk) == parts
            assert check_conv(row, spec, "float32", make=integers, exact=True)


@needs_compiler
@pytest.mark.parametrize("row", ROWS, ids=row_id)
@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_padding_height_and_number_of_channels(row, target, layout):
    groups = 2 if layout == "nchw" else 9
    with interpreted(target):
        for step in (1,) if row.direction == "input_grad" else (1, 2):
            for height in range(1, 10):
                sides = ((height % 4, (height + 2) % 5), ((height + 1) % 5, height % 3))
                size = (max(height, 3 - sum(sides[0])), max(12 - height, 3 - sum(sides[1])))
                channels = groups * (height % 3 + 1), groups * height
                spec = conv(2, channels[0], size, channels[1], (3, 3), (step, step), sides, groups=groups)
                assert check_as_stored(row, problem(row, spec, FORMS[height % 3], layout))
                assert check_as_stored(row, problem(row, spec, "float32", layout))


@needs_compiler
def test_weights_in_shared_memory_meet_no_bank_twice():
    spec = conv(1, 8, (5, 9), 8, (3, 3), padding=ONE)
    last = problem(ROWS[0], TILED_LAST[0], layout="channels_last")
    for row, asked in product(ROWS[:3], (problem(ROWS[0], spec), last)):
        with interpreted("sm_80", banks=True) as executed:
            assert check_as_stored(row, asked._replace(direction=row.direction))
        counted = {name for name in executed if "shared" in name and name.endswith(" conflicts")}
        assert all(executed[name] == 0 for name in counted)
        assert executed["ld.shared.v4.f32 phases"] > 0


@pytest.mark.usefixtures("any_size_on_tensor_cores")
def test_the_plan_takes_it_for_groups_of_few_channels():
    """Of any precision where a group has four channels at most; with more, tensor cores come first where they may."""
    eight, dense = RESNEXT._replace(groups=16), RESNEXT._replace(groups=4)
    plan.plan.cache_clear()
    try:
        for row, layout in product(ROWS, LAYOUTS):
            for precision, name in (
                ("default", "tiled"),
                ("strict", "tiled"),
                ("tf32", "tensor"),
                ("float16", "float16"),
            ):
                asked = problem(row, RESNEXT, layout=layout)._replace(precision=precision)
                assert plan.plan(asked).name == "tiled"
                assert plan.plan(asked._replace(spec=eight)).name == name
            for dtype in HALVES:
                asked = problem(row, RESNEXT, dtype, layout)
                assert (
                    plan.plan(asked).name == plan.plan(asked._replace(spec=eight, precision="strict")).name == "tiled"
                )
                assert plan.plan(asked._replace(spec=eight)).name == plan.plan(asked._replace(spec=dense)).name == dtype
        for row in ROWS:
            assert plan.plan(problem(row, dense)).name == "direct"
    finally:
        plan.plan.cache_clear()


def test_halves_that_no_tensor_core_takes_are_for_it(monkeypatch):
    """On devices before sm_80 the rows of tensor cores refuse."""
    asked = problem(ROWS[0], RESNEXT._replace(groups=16), "float16")
    monkeypatch.setattr(launch, "asked", lambda: 75)
    assert ROWS[0].refuses(asked) == ROWS[0].slower(asked) == ""
    monkeypatch.setattr(launch, "asked", lambda: 80)
    assert ROWS[0].slower(asked) == "float16"


def test_refusals():
    for row in ROWS:
        asked = problem(row, RESNEXT)
        assert row.refuses(asked._replace(spec=RESNEXT._replace(kernel=(5, 5)))).startswith("takes kernels of 3x3")
        assert "takes" in row.refuses(asked._replace(spec=RESNEXT._replace(stride=(2, 1))))
        assert row.refuses(asked._replace(dtype="float64")) == "takes float32, float16 and bfloat16, not float64"
        few = asked._replace(spec=RESNEXT._replace(c=28, k=28, groups=7))
        assert row.refuses(few) == ""
        want = "channels-last takes 8 groups of 4 results or more, of at most 16 channels"
        assert row.refuses(few._replace(layout="channels_last")) == want
    wide = Problem("conv", "weight_grad", "cuda", "float32", "default", RESNEXT._replace(c=32 * 17))
    want = "leaves groups of more than 16 channels or 16 results to products of matrices"
    assert ROWS[3].refuses(wide) == want
    assert ROWS[2].refuses(wide._replace(direction="input_grad")) == want.replace("16 channels", "64 channels")
    forward = wide._replace(direction="forward")
    assert ROWS[0].refuses(forward) == ""
    assert ROWS[0].refuses(forward._replace(layout="channels_last")).endswith("of at most 16 channels")


@pytest.mark.parametrize(
    ("name", "loads", "most"),
    [
        ("3x3-step1", 18, 240), ("weight_grad-3x3-step1", 34, 470), ("last-3x3-step1", 6, 220),
        ("last-3x3-step1-float16", 6, 230), ("last-weight_grad-3x3-step1", 22, 400),
    ],
)  # fmt: skip
def test_main_loops_multiply_more_than_they_load(name, loads, most):
    """A window of 18 pixels for four rows of four results, or with 16 of gy for the sums of 36 taps: 144 products. Sliding
    along, a column of six."""
    for facts in golden.read()["kernels"][f"conv-tiled-{name}"].values():
        mix = facts["main_loop"]
        assert (mix["FFMA"], mix["LDG"]) == (144, loads)
        assert sum(mix.values()) < most
