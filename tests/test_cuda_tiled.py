"""The CUDA rows of convolution by few channels: how work is cut, what they take, and what their instructions are."""

from __future__ import annotations

import pytest

from convkern import plan
from convkern.kernels.conv import cuda_tiled, cuda_tiled_weight, tiled_grid
from convkern.kernels.variant import Problem

from . import golden
from .bounds import integers
from .gpu import cuda_rows, interpreted, needs_compiler
from .test_cuda_rows import ONE, TILED_EDGES, conv
from .test_kernels import check_conv, row_id

ROWS = [row for row in cuda_rows("conv") if row.name == "tiled"]
RESNEXT = conv(64, 128, (56, 56), 128, (3, 3), padding=ONE, groups=32)


@pytest.fixture
def cut(monkeypatch):
    """The parts that the pixels are cut into."""
    caches = (cuda_tiled._forward_grid, cuda_tiled._gradient_grid, cuda_tiled_weight._grid)

    def change(parts: int) -> None:
        monkeypatch.setattr(tiled_grid, "window_parts", lambda blocks, pixels: parts)
        for cache in caches:
            cache.cache_clear()

    yield change
    for cache in caches:
        cache.cache_clear()


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
def test_every_padding_height_and_number_of_channels(row, target):
    with interpreted(target):
        for step in (1,) if row.direction == "input_grad" else (1, 2):
            for height in range(1, 10):
                sides = ((height % 4, (height + 2) % 5), ((height + 1) % 5, height % 3))
                size = (max(height, 3 - sum(sides[0])), max(12 - height, 3 - sum(sides[1])))
                spec = conv(2, 2 * (height % 3 + 1), size, 2 * height, (3, 3), (step, step), sides, groups=2)
                assert check_conv(row, spec, "float32")
                assert check_conv(row, spec, "float32", make=integers, exact=True)


@needs_compiler
def test_weights_in_shared_memory_meet_no_bank_twice():
    spec = conv(1, 8, (5, 9), 8, (3, 3), padding=ONE)
    for row in ROWS[:3]:
        with interpreted("sm_80", banks=True) as executed:
            assert check_conv(row, spec, "float32")
        counted = {name for name in executed if "shared" in name and name.endswith(" conflicts")}
        assert all(executed[name] == 0 for name in counted)
        assert executed["ld.shared.v4.f32 phases"] > 0


def test_the_plan_takes_it_for_groups_of_few_channels():
    plan.plan.cache_clear()
    try:
        for row in ROWS:
            problem = Problem("conv", row.direction, "cuda", "float32", "default", RESNEXT)
            assert plan.plan(problem).name == "tiled"
            assert plan.plan(problem._replace(precision="tf32")).name != "tiled"
            assert plan.plan(problem._replace(spec=RESNEXT._replace(groups=4))).name == "direct"
            assert row.refuses(problem._replace(spec=RESNEXT._replace(kernel=(5, 5)))).startswith(
                "takes kernels of 3x3"
            )
            assert "takes" in row.refuses(problem._replace(spec=RESNEXT._replace(stride=(2, 1))))
    finally:
        plan.plan.cache_clear()
    wide = Problem("conv", "weight_grad", "cuda", "float32", "default", RESNEXT._replace(c=32 * 17))
    want = "leaves groups of more than 16 channels or 16 results to products of matrices"
    assert ROWS[3].refuses(wide) == want
    assert ROWS[2].refuses(wide._replace(direction="input_grad")) == want.replace("16 channels", "64 channels")
    assert ROWS[0].refuses(wide._replace(direction="forward")) == ""


@pytest.mark.parametrize(("name", "loads", "most"), [("3x3-step1", 18, 240), ("weight_grad-3x3-step1", 34, 470)])
def test_main_loops_multiply_more_than_they_load(name, loads, most):
    """A window of 18 pixels for four rows of four results, or with 16 of gy for the sums of 36 taps: 144 products."""
    for facts in golden.read()["kernels"][f"conv-tiled-{name}"].values():
        mix = facts["main_loop"]
        assert (mix["FFMA"], mix["LDG"]) == (144, loads)
        assert sum(mix.values()) < most
