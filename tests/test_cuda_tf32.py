"""Rows that multiply TF32: tile edges, layouts, what is rounded and what is cut off, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

import convkern as ck
from convkern.kernels.cuda import launch
from convkern.kernels.cuda.tiles import TF32_TERMS
from convkern.kernels.spec import ConvSpec, PointwiseSpec
from convkern.kernels.variant import Problem, Variant
from convkern.plan import plan, refusal, traced

from . import fake_cupy
from .bounds import integers
from .cuda_checks import last, on_channels_last
from .gpu import cuda_rows, interpreted, needs_compiler
from .test_cuda_halves import HALF_EDGES, WARPGROUP_EDGES, conflicts, half_products, wide
from .test_cuda_rows import ONE, conv
from .test_kernels import check_conv, check_pointwise, conv_definition, conv_shapes, row_id

ROWS = [row for row in cuda_rows("conv") if row.accuracy == "tf32"]
TARGET = {"tensor": "sm_80", "warpgroup_tf32": "sm_90a"}
OF_WARPGROUPS = {row.direction: row for row in ROWS if row.name == "warpgroup_tf32"}
OF_WARPS = {row.direction: row for row in ROWS if row.name == "tensor"}
BOTH = pytest.mark.parametrize("rows", [OF_WARPS, OF_WARPGROUPS], ids=["warps", "warpgroups"])
# Around the edges of the tiles (128 rows; 32, 64, 128 and 256 columns), of slices of 32 and of chunks of 4; planes of 7 x 7.
TF32_EDGES = [
    conv(1, 32, (8, 16), 64, (1, 1)),  # one tile
    conv(2, 33, (7, 7), 33, (3, 3), padding=ONE),
    *WARPGROUP_EDGES,
]
WARP_EDGES = [
    conv(1, 32, (8, 16), 32, (1, 1)),  # one tile of each
    conv(1, 32, (8, 16), 128, (1, 1)),
    conv(1, 65, (3, 43), 33, (1, 1)),  # one more of each
    conv(2, 129, (7, 7), 3, (2, 2), padding=ONE),
    *(edge for edge in HALF_EDGES if edge.k < 32 or edge.k == 129),
]


# Few results of many terms, whose sums are cut into parts.
WIDE_PARTED = {
    "forward": conv(1, 256, (5, 5), 72, (3, 3), padding=ONE)._replace(activation=1),
    "input_grad": conv(1, 72, (4, 5), 256, (3, 3), padding=ONE),
    "weight_grad": conv(3, 8, (20, 21), 72, (1, 1)),
}
# With channels that fill 16 bytes, which are not copied then, that do not, and in groups with a stride.
WIDE_LAST = [conv(2, 16, (6, 7), 80, (3, 2), (2, 1), ONE, groups=2), conv(1, 3, (4, 5), 41, (3, 3))]


def lying_last(row: Variant, spec: ConvSpec) -> Problem:
    return Problem("conv", row.direction, "cuda", "float32", "tf32", spec, "channels_last")


@needs_compiler
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_tile_edges(row):
    with interpreted(TARGET[row.name]):
        for edge in TF32_EDGES if row.name == "warpgroup_tf32" else WARP_EDGES:
            spec = wide(row.direction, edge)
            if row.direction.startswith("forward"):
                spec = spec._replace(activation=spec.k % 2)
            assert check_conv(row, spec, "float32")
            assert check_conv(row, spec, "float32", make=integers, exact=True)


@needs_compiler
@pytest.mark.full
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_more_shapes(row):
    with interpreted(TARGET[row.name]):
        for edge in (
            *TF32_EDGES,
            conv(1, 300, (12, 12), 72, (1, 1)),
            conv(1, 72, (4, 4), 80, (3, 3), padding=ONE),
            conv(3, 5, (7, 13), 133, (3, 2), (2, 3), ((2, 0), (0, 1)), (1, 2)),
            conv(0, 5, (7, 13), 133, (3, 2)),
        ):
            spec = wide(row.direction, edge)
            assert check_conv(row, spec, "float32")
            assert check_conv(row, spec, "float32", make=integers, exact=True)
            if spec.n:
                np.testing.assert_array_equal(*on_channels_last(row, lying_last(row, spec)))


@needs_compiler
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_sums_cut_into_parts_are_finished_with_bias_residual_and_relu(row):
    spec = WIDE_PARTED[row.direction.removesuffix("_residual")]
    assert half_products.parts(row.direction, spec, "tf32") > 1
    with interpreted(TARGET[row.name]):
        assert check_conv(row, spec, "float32", make=integers, exact=True)


@needs_compiler
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_channels_last_is_read_and_written_as_it_lies(row):
    with interpreted(TARGET[row.name]) as executed:
        for edge in WIDE_LAST:
            np.testing.assert_array_equal(*on_channels_last(row, lying_last(row, wide(row.direction, edge))))
    assert executed


@BOTH
def test_what_is_read_where_it_lies_takes_no_room(rows):
    spec = conv(64, 64, (28, 28), 64, (3, 3), padding=ONE)
    images = 4 * 64 * 64 * 28 * 28

    def room(row: Variant, layout: str, spec: ConvSpec = spec) -> int:
        return row.workspace(Problem("conv", row.direction, "cuda", "float32", "tf32", spec, layout))

    filters, parts = 4 * 64 * 64 * 9, half_products.parts("weight_grad", spec, "tf32")
    for row in (rows["forward"], rows["input_grad"]):
        assert (room(row, "channels_last"), room(row, "nchw")) == (filters, filters + images)
    # Of the two images of the weight gradient one has to be turned, and planes that do not fill 16 bytes are copied.
    assert room(rows["weight_grad"], "channels_last") == room(rows["weight_grad"], "nchw") == images + parts * filters
    small = conv(64, 64, (7, 7), 64, (3, 3), padding=ONE)
    cut = half_products.parts("weight_grad", small, "tf32")
    assert room(rows["weight_grad"], "nchw", small) == 4 * 64 * 64 * (49 + 52) + cut * filters


def one_channel(row: Variant, x: np.ndarray, layout: str) -> np.ndarray:
    """What a forward row makes of each value: 40 filters of 1 for the first of four channels."""
    spec = conv(1, 4, (1, x.size), 40, (1, 1))
    given, w = np.zeros(spec.x_shape, "f4"), np.zeros(spec.w_shape, "f4")
    given[0, 0, 0], w[:, 0] = x, 1
    y = np.full(spec.y_shape, np.nan, "f4")
    if layout == "channels_last":
        given, y = last(given), last(y)
    problem = Problem("conv", "forward", "cuda", "float32", "tf32", spec, layout)
    workspace = np.full(row.workspace(problem), 0xFF, np.uint8)
    with interpreted(TARGET[row.name]):
        row.run(given, w, np.empty(0, "f4"), spec, workspace, y)
    for column in y[0, :, 0]:
        np.testing.assert_array_equal(column, y[0, 0, 0])
    return np.array(y[0, 0, 0])


@needs_compiler
@BOTH
def test_what_is_laid_out_is_rounded_and_what_is_read_where_it_lies_is_cut_off(rows):
    rng = np.random.default_rng(5)
    x = (rng.standard_normal(200) * 10.0 ** rng.uniform(-30, 30, 200)).astype("f4")
    x[:8] = 1 + 2.0**-11, 1 + 3 * 2.0**-11, -1 - 2.0**-11, 2.0**-126, np.inf, -np.inf, np.nan, 1 + 2.0**-10 - 2.0**-23
    bits = x.view(np.uint32)
    nearest = ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view("f4")
    nearest[6] = np.nan
    np.testing.assert_array_equal(one_channel(rows["forward"], x, "nchw"), nearest)
    np.testing.assert_array_equal(
        one_channel(rows["forward"], x, "channels_last"), (bits & np.uint32(0xFFFFE000)).view("f4")
    )


@needs_compiler
@BOTH
def test_the_bound_is_that_of_cutting_off(rows):
    """Both operands of the weight gradient just below a value of TF32: nearly all of the bound, and never more."""
    below = np.float32(1 + 2.0**-10 - 2.0**-23)
    spec = conv(1, 4, (4, 8), 40, (1, 1))
    x, gy, out = last(np.full(spec.x_shape, below)), np.full(spec.y_shape, below), np.empty(spec.w_shape, "f4")
    problem = Problem("conv", "weight_grad", "cuda", "float32", "tf32", spec)
    row = rows["weight_grad"]
    with interpreted(TARGET[row.name]):
        row.run(x, gy, spec, np.empty(row.workspace(problem), np.uint8), out)
    want = 32 * float(below) ** 2
    error = (want - out.astype("f8")) / want
    bound = TF32_TERMS * 2.0**-24
    assert (error > 0.99 * bound).all()
    assert (error < bound).all()


@needs_compiler
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_slices_meet_no_bank_twice(row):
    """Copies of 16 bytes, ldmatrix, and the lanes' loads of single elements."""
    for filters in (140,) if row.name == "warpgroup_tf32" else (140, 9):  # of both tiles
        with interpreted(TARGET[row.name], banks=True) as executed:
            assert check_conv(row, wide(row.direction, conv(1, 40, (9, 10), filters, (2, 2))), "float32")
        wanted = {"cp.async.cg.shared.global"}
        wanted |= {"ldmatrix.sync.aligned.m8n8.x4.shared.b16"} if row.name == "tensor" else set()
        wanted |= {"ld.shared.u32"} if row.direction == "weight_grad" else set()
        counted = conflicts(executed)
        assert {name: counted.get(name) for name in wanted} == dict.fromkeys(wanted, 0), counted


@needs_compiler
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_infinity_and_nan_stay_where_they_are(row):
    """Nothing that is padding, of channels, planes of 7 x 7 or filters, is multiplied by what lies elsewhere."""
    spec = wide(row.direction, conv(2, 5, (7, 7), 41, (3, 3)))
    shapes, result, _ = conv_shapes(row.direction, spec)
    arrays = [np.ones(shape, "f4") for shape in shapes]
    arrays[0][0, 1, 0, 0], arrays[0][1, 2, -1, 1] = np.inf, np.nan  # a pixel behind the plane would meet the latter
    out = np.empty(result, "f4")
    problem = Problem("conv", row.direction, "cuda", "float32", "tf32", spec)
    with interpreted(TARGET[row.name]):
        row.run(*arrays, spec, np.full(row.workspace(problem), 0xFF, np.uint8), out)
    want = conv_definition(row.direction, spec, *(array.astype("f8") for array in arrays))
    np.testing.assert_array_equal(out, want)
    assert not np.isfinite(want).all()
    assert np.isfinite(want).any()


@needs_compiler
@pytest.mark.parametrize("row", [row for row in cuda_rows("pointwise") if row.accuracy == "tf32"], ids=row_id)
def test_pointwise(row):
    shape = (2, 70, 9, 43) if row.direction == "input_grad" else (2, 9, 70, 43)
    with interpreted(TARGET[row.name]):
        spec = PointwiseSpec(*shape, int(row.direction.startswith("forward")))
        assert check_pointwise(row, spec, "float32")
        assert check_pointwise(row, spec, "float32", make=integers, exact=True)


def test_refusals(monkeypatch):
    row, narrower = OF_WARPGROUPS["input_grad"], OF_WARPS["input_grad"]
    problem = Problem("conv", "input_grad", "cuda", "float32", "tf32", conv(1, 33, (5, 9), 3, (3, 3)))
    assert row.refuses(problem) == "needs compute capability 9.0"
    assert row.refuses(problem._replace(precision="default")).startswith("rounds to TF32")
    assert row.refuses(problem._replace(dtype="float16")) == "takes float32, not float16"
    assert row.refuses(problem._replace(device="cpu")) == "runs on CUDA devices only"
    monkeypatch.setattr(launch, "asked", lambda: 90)
    assert row.refuses(problem) == row.refuses(problem._replace(layout="channels_last")) == ""
    narrow = problem._replace(spec=conv(1, 32, (5, 9), 300, (3, 3)))
    assert row.refuses(narrow) == "takes at least 33 channels of results in a group"
    assert narrower.refuses(narrow) == narrower.refuses(narrow._replace(layout="channels_last")) == ""
    huge = problem._replace(spec=conv(2**20, 1, (32, 32), 1, (1, 1)))
    assert (
        row.refuses(huge) == narrower.refuses(huge) == "takes arrays of fewer than 2**31 elements with padded channels"
    )
    for other in (80, 100):
        monkeypatch.setattr(launch, "asked", lambda: other)  # noqa: B023
        assert row.refuses(problem) == f"needs compute capability 9.0, here is {other / 10}"


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize(("operation", "other"), [("conv", "direct"), ("pointwise", "blocked")])
@pytest.mark.usefixtures("any_size_on_tensor_cores")
def test_the_plan_takes_warpgroups_where_they_are_allowed(operation, other, direction, monkeypatch):
    spec = conv(1, 64, (5, 9), 64, (3, 3)) if operation == "conv" else PointwiseSpec(1, 64, 64, 45, 0)
    problem = Problem(operation, direction, "cuda", "float32", "tf32", spec)
    narrow = problem._replace(spec=spec._replace(c=32, k=32))
    try:
        for capability, name in ((80, "tensor"), (90, "warpgroup_tf32"), (100, "tensor")):
            plan.cache_clear()
            monkeypatch.setattr(launch, "asked", lambda: capability)  # noqa: B023
            assert plan(problem).name == name
            assert plan(narrow).name == "tensor"
            assert plan(problem._replace(precision="strict")).name == other
            assert plan(problem._replace(precision="default")).name == other
    finally:
        plan.cache_clear()


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_strict_forbids_it_in_words(row):
    problem = Problem("conv", row.direction, "cuda", "float32", "strict", conv(1, 64, (5, 9), 64, (3, 3)))
    assert refusal(row, problem) == "trades accuracy (tf32), which precision='strict' forbids"


@pytest.fixture
def hopper():
    """The stand-in for CuPy over the interpreter of the target that has warpgroups."""
    plan.cache_clear()
    with fake_cupy.installed("sm_90a") as cupy:
        yield cupy
    plan.cache_clear()


@needs_compiler
@pytest.mark.usefixtures("any_size_on_tensor_cores")
def test_the_public_functions_take_it_in_both_layouts(hopper):
    """Forward and backward; channels-last images are read where they lie and give such."""
    rng = np.random.default_rng(2)
    x, w, gy = (integers(rng, shape, "f4") for shape in ((1, 36, 4, 5), (40, 36, 3, 3), (1, 40, 4, 5)))
    want = ck.conv2d(x, w, padding=1)
    want_gx, want_gw = ck.conv2d_input_grad(gy, w, x.shape, padding=1), ck.conv2d_weight_grad(x, gy, 3, padding=1)

    def there(array: np.ndarray, layout: str):
        if layout == "nchw":
            return hopper.array(array)
        return hopper.array(np.ascontiguousarray(array.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)

    for layout in ("nchw", "channels_last"):
        with traced() as seen:
            y = ck.conv2d(there(x, layout), hopper.array(w), padding=1, precision="tf32")
            gx = ck.conv2d_input_grad(there(gy, layout), hopper.array(w), x.shape, padding=1, precision="tf32")
            gw = ck.conv2d_weight_grad(there(x, layout), there(gy, layout), 3, padding=1, precision="tf32")
        assert {(row.name, problem.layout) for problem, row in seen} == {("warpgroup_tf32", layout)}
        assert y.flags.c_contiguous == gx.flags.c_contiguous == (layout == "nchw")
        for got, wanted in ((y, want), (gx, want_gx), (gw, want_gw)):
            np.testing.assert_array_equal(hopper.asnumpy(got), wanted)
    with traced() as seen:
        ck.conv2d(hopper.array(x), hopper.array(w), padding=1, precision="strict")
    assert [row.name for _, row in seen] == ["direct"]
