"""The CUDA rows of depthwise convolution: how work is cut, which kernel takes what, and what their instructions are."""

from __future__ import annotations

import numpy as np
import pytest

from convkern import plan
from convkern.kernels.conv import cuda_depthwise, depthwise_kernels
from convkern.kernels.cuda.tiles import window_parts
from convkern.kernels.spec import ConvSpec
from convkern.kernels.variant import Problem

from . import golden
from .bounds import integers
from .gpu import cuda_rows, interpreted, needs_compiler
from .test_cuda_rows import DEPTHWISE_EDGES, ONE, conv, long
from .test_kernels import check_conv, conv_definition, conv_shapes, row_id, run

ROWS = [row for row in cuda_rows("conv") if row.name == "depthwise"]
CACHES = (cuda_depthwise._forward_work, cuda_depthwise._input_work, cuda_depthwise._weight_work)


@pytest.fixture
def cut(monkeypatch):
    """Numbers by which work is cut, other than those for a large GPU."""

    def change(**numbers: int) -> None:
        for name, number in numbers.items():
            monkeypatch.setattr(cuda_depthwise, name, number)
        for cache in CACHES:
            cache.cache_clear()

    yield change
    monkeypatch.undo()
    for cache in CACHES:
        cache.cache_clear()


@needs_compiler
@pytest.mark.parametrize("row", [row for row in ROWS if row.direction != "weight_grad"], ids=row_id)
@pytest.mark.parametrize(("busy", "most"), [(100, 3), (1, 2)])
def test_a_thread_may_have_several_images(row, busy, most, cut):
    """So many that the last thread's are fewer; the results are those of threads with one, to the last bit."""
    specs = [spec for spec in DEPTHWISE_EDGES if spec.k == spec.c and spec.dilation == (1, 1)]
    results = []
    for numbers in ({}, dict(BUSY=busy, MOST_IMAGES=most)):
        cut(**numbers)
        with interpreted("sm_80"):
            for spec in (spec._replace(n=7) for spec in specs):
                shapes, result, _ = conv_shapes(row.direction, spec)
                rng = np.random.default_rng(6)
                results.append(np.empty(result, "f4"))
                arrays = [rng.standard_normal(shape, "f4") for shape in shapes]
                assert run("conv", row, spec, "float32", *arrays, out=(results[-1],))
                assert check_conv(row, spec, "float32", make=integers, exact=True)
    work = (cuda_depthwise._input_work if row.direction == "input_grad" else cuda_depthwise._forward_work).__wrapped__
    assert work(specs[0]._replace(n=7), *(() if row.direction == "input_grad" else (True, False)))[1].chunk == most
    for one, several in zip(results[: len(specs)], results[len(specs) :], strict=True):
        np.testing.assert_array_equal(one, several)


@needs_compiler
@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize("spec", [*DEPTHWISE_EDGES[:4], DEPTHWISE_EDGES[6]])
def test_the_weight_gradients_sums_are_cut_anywhere(spec, parts, cut, monkeypatch):
    """Parts that begin and end inside of rows."""
    (row,) = (row for row in ROWS if row.direction == "weight_grad")
    cut(window_parts=lambda filters, pixels: parts)
    rng = np.random.default_rng(7)
    x, gy = integers(rng, spec.x_shape, "f4"), integers(rng, spec.y_shape, "f4")
    out, workspace = np.empty(spec.w_shape, "f4"), np.full(4 * parts * np.prod(spec.w_shape), 0xFF, "u1")
    with interpreted("sm_90a"):
        row.run(x, gy, spec, workspace, out)
    assert cuda_depthwise._weight_work(spec)[2] == parts
    np.testing.assert_array_equal(out, conv_definition("weight_grad", spec, x, gy))


@needs_compiler
@pytest.mark.parametrize("row", ROWS, ids=row_id)
@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.full
def test_every_padding_and_height(row, target):
    """All remainders of a strip, and paddings of all sizes on all sides, with every unrolled kernel."""
    with interpreted(target):
        for (kernel, step), height in ((case, h) for case in cuda_depthwise._UNROLLED for h in range(1, 10)):
            sides = ((height % 4, (height + 2) % 5), ((height + 1) % 5, height % 3))
            size = (max(height, kernel[0] - sum(sides[0])), max(12 - height, kernel[1] - sum(sides[1])))
            spec = conv(2, 3, size, 3, kernel, (step, step), sides, groups=3)
            assert check_conv(row, spec, "float32")
            assert check_conv(row, spec, "float32", make=integers, exact=True)


@needs_compiler
@pytest.mark.parametrize("step", [1, 2])
def test_what_is_no_pixel_of_gy_meets_no_infinity(step):
    """The rows of a strip below the last one would meet the last row of x by other taps than those above do."""
    (row,) = (row for row in ROWS if row.direction == "weight_grad")
    spec = conv(1, 1, (7, 3), 1, (3, 3), (step, step), ((0, 1 if step == 1 else 0), (0, 0)))
    x, gy = np.ones(spec.x_shape, "f4"), np.ones(spec.y_shape, "f4")
    x[0, 0, -1, 1] = np.inf
    out, want = np.empty(spec.w_shape, "f4"), conv_definition("weight_grad", spec, x.astype("f8"), gy.astype("f8"))
    with interpreted("sm_80"):
        row.run(x, gy, spec, np.empty(0, "u1"), out)
    np.testing.assert_array_equal(out, want)
    assert 0 < np.isinf(want).sum() < 3


@needs_compiler
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (3, 2)])
def test_an_infinity_of_gy_reaches_the_pixels_of_its_window_only(kernel):
    """With a stride, the columns between have fewer taps; a weight that is not there is no zero to multiply it by."""
    (row,) = (row for row in ROWS if row.direction == "input_grad")
    spec = conv(1, 1, (9, 12), 1, kernel, (2, 2), ONE)
    gy, w = np.ones(spec.y_shape, "f4"), np.ones(spec.w_shape, "f4")
    gy[0, 0, 2, 3] = np.inf
    out, want = np.empty(spec.x_shape, "f4"), conv_definition("input_grad", spec, gy.astype("f8"), w.astype("f8"))
    with interpreted("sm_80"):
        row.run(gy, w, spec, np.empty(0, "u1"), out)
    np.testing.assert_array_equal(out, want)
    assert np.isinf(want).sum() == kernel[0] * kernel[1]


def test_the_plan_takes_it_for_depthwise_layers():
    """Of any precision: it is exact, and products of matrices waste most of their work there."""
    few, many = (conv(1, 3, (5, 6), k, (2, 3), groups=3) for k in (24, 27))
    plan.plan.cache_clear()
    try:
        for direction in ("forward", "forward_residual", "input_grad", "weight_grad"):
            for precision in ("default", "strict", "tf32", "float16"):
                problem = Problem("conv", direction, "cuda", "float32", precision, few)
                assert plan.plan(problem).name == "depthwise"
            problem = Problem("conv", direction, "cuda", "float32", "default", many)
            assert plan.plan(problem).name == "direct"
            assert plan.plan(problem._replace(spec=conv(1, 4, (5, 6), 4, (2, 3), groups=2))).name == "direct"
    finally:
        plan.plan.cache_clear()


def test_refusals():
    row, spec = ROWS[0], conv(1, 3, (5, 6), 3, (3, 3), groups=3)
    problem = Problem("conv", "forward", "cuda", "float32", "default", spec)
    assert row.refuses(problem) == ""
    assert row.refuses(problem._replace(layout="channels_last")) == "takes NCHW, not channels_last"
    assert row.refuses(problem._replace(dtype="float16")) == "takes float32, not float16"
    assert row.refuses(problem._replace(spec=spec._replace(groups=1))) == "takes one input channel a group"
    wide = problem._replace(spec=spec._replace(k=27))
    assert row.refuses(wide) == "leaves more than 8 filters a channel to products of matrices"


LARGE = conv(64, 192, (28, 28), 192, (3, 3), (2, 2), ONE, groups=192)


@pytest.mark.parametrize("spec", [*DEPTHWISE_EDGES, long(ROWS[0]), LARGE])
def test_work_covers_every_pixel_by_shape_alone(spec: ConvSpec):
    for kernel, work in (cuda_depthwise._forward_work(spec, False, False), cuda_depthwise._input_work(spec)):
        together = 1 if kernel in (depthwise_kernels.FORWARD, depthwise_kernels.INPUT_GRAD) else depthwise_kernels.ROWS
        parts = -(-spec.n // work.chunk)
        assert work.strips * together * spec.stride[0] >= work.out_height
        assert work.terms == parts * work.results * work.strips * work.out_width
    kernel, work, parts = cuda_depthwise._weight_work(spec)
    assert (parts - 1) * work.chunk < work.terms <= parts * work.chunk
    assert parts <= window_parts(spec.k, spec.n * spec.out[0] * spec.out[1])


@pytest.mark.parametrize(
    ("name", "products", "loads", "most"),
    [
        ("correlation-3x3-step1", 36, 22, 230), ("correlation-5x5-step1", 100, 44, 420), ("spread-3x3-step2", 24, 10, 190),
        ("weight_grad-3x3-step1", 36, 22, 200), ("weight_grad-5x5-step1", 100, 44, 390),
    ],
)  # fmt: skip
def test_main_loops_read_a_window_once(name, products, loads, most):
    """Four rows of 3x3 are 36 products of 18 pixels (and a residual, or gy); 8 rows of gx of stride 2 are 24 of 10."""
    for facts in golden.read()["kernels"][f"conv-depthwise-{name}"].values():
        mix = facts["main_loop"]
        assert (mix["FFMA"], mix["LDG"]) == (products, loads)
        assert sum(mix.values()) < most
