"""The CUDA rows of depthwise convolution: how work is cut, which kernel takes what, and what their instructions are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from convkern import plan
from convkern.kernels.conv import cuda_depthwise, windowed
from convkern.kernels.conv import reference as conv_reference
from convkern.kernels.conv.window_lines import ROWS as TALL
from convkern.kernels.cuda import launch
from convkern.kernels.spec import ConvSpec
from convkern.kernels.variant import Problem
from convkern.plan import HALVES

from . import golden
from .bounds import floats, integers
from .cuda_checks import check_as_stored, run_as_stored
from .gpu import cuda_rows, interpreted, needs_compiler
from .test_cuda_rows import DEPTHWISE_EDGES, ONE, conv, long
from .test_kernels import check_conv, conv_definition, conv_shapes, row_id

ROWS = [row for row in cuda_rows("conv") if row.name == "depthwise"]
FORMS, LAYOUTS = ("float32", *HALVES), ("nchw", "channels_last")
EMPTY = DEPTHWISE_EDGES[1]._replace(n=0)
CACHES = (cuda_depthwise._forward_work, cuda_depthwise._input_work, cuda_depthwise._weight_work)


def problem(row, spec: ConvSpec, dtype: str = "float32", layout: str = "nchw") -> Problem:
    return Problem("conv", row.direction, "cuda", dtype, "default", spec, layout)


def on_last(row, spec: ConvSpec) -> Problem:
    return problem(row, spec, layout="channels_last")


def arrays_of(row, spec: ConvSpec, make=floats) -> list[np.ndarray]:
    return [make(np.random.default_rng(6), shape, "float32") for shape in conv_shapes(row.direction, spec)[0]]


def work_of(row, spec: ConvSpec, last: bool = False):
    """The numbers of a launch."""
    if row.direction == "input_grad":
        return cuda_depthwise._input_work(spec, "float32", last)[1]
    if row.direction == "weight_grad":
        return cuda_depthwise._weight_work(spec, "float32", last)[1]
    return cuda_depthwise._forward_work(spec, True, row.direction == "forward_residual", "float32", last)[1]


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
@pytest.mark.parametrize("row", ROWS, ids=row_id)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", FORMS)
def test_tile_edges_in_every_type_and_layout(row, layout, dtype):
    """Every unrolled kernel and what loops over its taps; more channels than a warp has lanes, and fewer than two warps."""
    wide = (
        DEPTHWISE_EDGES[1]._replace(n=1, c=37, k=37, groups=37),
        DEPTHWISE_EDGES[6]._replace(n=1, c=20, k=40, groups=20),
    )
    with interpreted("sm_80" if dtype == "float16" else "sm_90a"):
        for spec in (*DEPTHWISE_EDGES, *wide, EMPTY):
            if row.direction.startswith("forward"):
                spec = spec._replace(activation=spec.k % 2)
            assert check_as_stored(row, problem(row, spec, dtype, layout))


@needs_compiler
@pytest.mark.full
@pytest.mark.parametrize("row", ROWS, ids=row_id)
@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_every_padding_and_height(row, target, layout):
    """All remainders of a strip, and paddings of all sizes on all sides, with every unrolled kernel."""
    with interpreted(target):
        for (kernel, step), height in product(cuda_depthwise.UNROLLED, range(1, 10)):
            sides = ((height % 4, (height + 2) % 5), ((height + 1) % 5, height % 3))
            size = (max(height, kernel[0] - sum(sides[0])), max(12 - height, kernel[1] - sum(sides[1])))
            spec = conv(2, 3, size, 3, kernel, (step, step), sides, groups=3)
            dtype = FORMS[height % 3]
            assert check_as_stored(row, problem(row, spec, "float32", layout))
            assert check_as_stored(row, problem(row, spec, dtype, layout))


@needs_compiler
@pytest.mark.parametrize("row", [row for row in ROWS if row.direction != "weight_grad"], ids=row_id)
@pytest.mark.parametrize(("busy", "most"), [(100, 3), (1, 2)])
def test_a_thread_may_have_several_images(row, busy, most, cut):
    """So many that the last thread's are fewer; the results are those of threads with one, to the last bit."""
    specs = [spec._replace(n=7) for spec in DEPTHWISE_EDGES if spec.k == spec.c and spec.dilation == (1, 1)]
    results = []
    for numbers in ({}, dict(BUSY=busy, MOST_IMAGES=most)):
        cut(**numbers)
        with interpreted("sm_80"):
            results += [run_as_stored(row, problem(row, spec), arrays_of(row, spec)) for spec in specs]
            assert all(check_conv(row, spec, "float32", make=integers, exact=True) for spec in specs)
    assert work_of(row, specs[0]).chunk == most
    for one, several in zip(results[: len(specs)], results[len(specs) :], strict=True):
        np.testing.assert_array_equal(one, several)


@needs_compiler
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_rows_of_pixels_are_cut_anywhere(row, cut):
    """Channels-last, a thread slides along as many columns as leave the device busy; the last one's are fewer."""
    specs = [spec for spec in DEPTHWISE_EDGES if spec.k == spec.c and spec.dilation == (1, 1)]
    results, segments = [], []
    for least in (100, 3, 1):
        cut(LEAST_RUN=least)
        with interpreted("sm_80"):
            results.append([run_as_stored(row, on_last(row, spec), arrays_of(row, spec, integers)) for spec in specs])
        segments.append([work_of(row, spec, last=True).segments for spec in specs])
    assert max(segments[0]) == 1 < min(segments[2][:4])
    assert segments[0] < segments[1] < segments[2]
    for one, several, most in zip(*results, strict=True):
        np.testing.assert_array_equal(one, several)
        np.testing.assert_array_equal(one, most)


@needs_compiler
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (3, 2)])
def test_an_infinity_of_gy_reaches_the_pixels_of_its_window_only(kernel, layout):
    """With a stride, the columns between have fewer taps; a weight that is not there is no zero to multiply it by."""
    (row,) = (row for row in ROWS if row.direction == "input_grad")
    spec = conv(1, 2, (9, 12), 2, kernel, (2, 2), ONE, groups=2)
    gy, w = np.ones(spec.y_shape, "f4"), np.ones(spec.w_shape, "f4")
    gy[0, 0, 2, 3] = np.inf
    with interpreted("sm_80"):
        out = run_as_stored(row, problem(row, spec, layout=layout), [gy, w])
    want = conv_definition("input_grad", spec, gy.astype("f8"), w.astype("f8"))
    np.testing.assert_array_equal(out, want)
    assert np.isinf(want).sum() == kernel[0] * kernel[1]


@needs_compiler
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", FORMS)
def test_nan_and_infinity_pass_and_the_bias_may_be_missing(dtype, layout):
    for row in (row for row in ROWS if row.direction.startswith("forward")):
        spec = DEPTHWISE_EDGES[1]._replace(activation=1)
        x, w = np.ones(spec.x_shape, "f4"), np.ones(spec.w_shape, "f4")
        x[0, 0, 0, 0], x[-1, -1, -1, -1] = np.nan, np.inf
        residuals = [np.full(spec.y_shape, -20, "f4")] if row.direction == "forward_residual" else []
        with interpreted("sm_80"):
            y = run_as_stored(row, problem(row, spec, dtype, layout), [x, w, np.empty(0, "f4"), *residuals])
        wide = [array.astype(np.float64) for array in (x, w, *residuals)]
        want = getattr(conv_reference, row.direction)(*wide[:2], None, *wide[2:], spec)
        np.testing.assert_array_equal(y, want)


def test_the_plan_takes_it_for_depthwise_layers():
    """Of any precision: it is exact, and products of matrices waste most of their work there."""
    few, many = (conv(1, 3, (5, 6), k, (2, 3), groups=3) for k in (24, 27))
    plan.plan.cache_clear()
    try:
        for row in ROWS:
            for precision, layout in product(("default", "strict", "tf32", "float16"), LAYOUTS):
                assert plan.plan(problem(row, few, layout=layout)._replace(precision=precision)).name == "depthwise"
            for dtype, precision, layout in product(HALVES, ("default", "strict"), LAYOUTS):
                assert plan.plan(problem(row, few, dtype, layout)._replace(precision=precision)).name == "depthwise"
                if precision == "default":
                    assert plan.plan(problem(row, many, dtype, layout)).name == dtype
            assert plan.plan(problem(row, many)).name == "direct"
            assert plan.plan(problem(row, conv(1, 4, (5, 6), 4, (2, 3), groups=2))).name == "direct"
    finally:
        plan.plan.cache_clear()


def test_refusals(monkeypatch):
    row, spec = ROWS[0], conv(1, 3, (5, 6), 3, (3, 3), groups=3)
    asked = problem(row, spec)
    assert row.refuses(asked) == row.refuses(asked._replace(layout="channels_last")) == ""
    assert row.refuses(asked._replace(device="cpu", dtype="float64")) == "runs on CUDA devices only"
    assert row.refuses(asked._replace(dtype="float64")) == "takes float32, float16 and bfloat16, not float64"
    assert row.refuses(asked._replace(spec=spec._replace(groups=1))) == "takes one input channel a group"
    wide = asked._replace(spec=spec._replace(k=27))
    assert row.refuses(wide) == "leaves more than 8 filters a channel to products of matrices"
    huge = asked._replace(spec=spec._replace(n=2**31))
    assert row.refuses(huge) == "takes arrays of fewer than 2**31 elements"
    monkeypatch.setattr(launch, "asked", lambda: 75)
    assert row.refuses(asked) == row.refuses(asked._replace(dtype="float16")) == ""
    assert row.refuses(asked._replace(dtype="bfloat16")) == "needs compute capability 8.0, here is 7.5"


LARGE = conv(64, 192, (28, 28), 192, (3, 3), (2, 2), ONE, groups=192)


@pytest.mark.parametrize("spec", [*DEPTHWISE_EDGES, long(ROWS[0]), LARGE])
def test_work_covers_every_pixel_by_shape_alone(spec: ConvSpec):
    for row in ROWS[::2]:
        work = work_of(row, spec)
        kernel = (
            cuda_depthwise._input_work(spec)[0]
            if row.direction == "input_grad"
            else cuda_depthwise._forward_work(spec, True, False)[0]
        )
        together = 1 if kernel in cuda_depthwise.KERNELS["float32", False][3:] else TALL
        parts = -(-spec.n // work.chunk)
        assert work.strips * together * spec.stride[0] >= work.out_height
        assert work.terms == parts * work.results * work.strips * work.out_width
    for last in (False, True):
        _, work, parts, _ = cuda_depthwise._weight_work(spec, "float32", last)
        assert (parts - 1) * work.chunk < work.terms <= parts * work.chunk
        assert parts <= windowed.depthwise_parts(spec, last)


@pytest.mark.parametrize(
    ("name", "products", "loads", "most"),
    [
        ("correlation-3x3-step1", 36, 22, 230), ("correlation-5x5-step1", 100, 44, 420), ("spread-3x3-step2", 24, 10, 190),
        ("weight_grad-3x3-step1", 36, 22, 200), ("weight_grad-5x5-step1", 100, 44, 390),
        ("correlation-3x3-step1-float16", 36, 22, 250), ("last-correlation-3x3-step1", 36, 10, 230),
        ("last-correlation-3x3-step1-float16", 36, 10, 250), ("last-correlation-5x5-step1", 100, 12, 400),
        ("last-spread-3x3-step2", 36, 5, 290), ("last-weight_grad-3x3-step1", 36, 10, 150),
    ],
)  # fmt: skip
def test_main_loops_read_a_window_once(name, products, loads, most):
    """Four rows of 3x3 are 36 products of 18 pixels (and a residual, or gy); 8 rows of gx of stride 2 are 24 of 10. Sliding
    along, four rows read six new pixels, and two columns of 8 rows of gx five of gy for 36 products."""
    for facts in golden.read()["kernels"][f"conv-depthwise-{name}"].values():
        mix = facts["main_loop"]
        assert (mix["FFMA"], mix["LDG"]) == (products, loads)
        assert sum(mix.values()) < most
