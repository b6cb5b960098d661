"""Rows that multiply halves on tensor cores: arrays of halves, rounding of float32, sums cut into parts, and refusals."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from convkern.kernels.conv import reference
from convkern.kernels.spec import ConvSpec, PointwiseSpec
from convkern.kernels.variant import Problem, Variant
from convkern.plan import HALVES

from .bounds import from_halves, halves, integers
from .cuda_checks import on_channels_last
from .gpu import any_target, cuda_rows, interpreted, needs_compiler, skip_without_compiler
from .test_cuda_rows import EDGES, ONE, conv
from .test_kernels import check_conv, check_pointwise, conv_definition, conv_shapes, row_id

skip_without_compiler()

from convkern.kernels.conv import half_products  # noqa: E402

HALF_ROWS = [row for row in any_target("conv") if row.accuracy in HALVES]
WARPGROUP_ROWS = [row for row in cuda_rows("conv") if row.name.startswith("warpgroup") and row.accuracy in HALVES]
# Around the edges of the tiles (128 x 128, 128 x 32, slices of 64) and of a chunk of 8 channels.
HALF_EDGES = [
    conv(1, 8, (8, 16), 128, (1, 1)),  # one tile
    conv(1, 65, (3, 43), 33, (1, 1)),  # one more of each
    conv(2, 7, (6, 11), 129, (2, 2), padding=ONE),
    conv(1, 16, (9, 9), 8, (3, 3), (2, 2), ONE),
    conv(1, 3, (5, 6), 4, (2, 1), (3, 4), ((2, 1), (0, 3)), (2, 3)),  # pixels that no tap meets
    conv(2, 20, (5, 4), 18, (3, 3), (1, 2), ONE, (1, 2), groups=2),
]

# Few results of many terms, whose sums are cut into parts.
PARTED = {
    "forward": conv(1, 256, (5, 5), 9, (3, 3), padding=ONE)._replace(activation=1),
    "input_grad": conv(1, 5, (4, 5), 256, (3, 3), padding=ONE),
    "weight_grad": conv(3, 8, (20, 20), 9, (1, 1)),
}
# With channels that fill 16 bytes, that do not, in groups, with a stride and in parts.
CHANNELS_LAST = [
    conv(2, 16, (6, 7), 24, (3, 2), (2, 1), ONE, groups=2),
    conv(1, 3, (4, 5), 9, (3, 3)),
    conv(1, 136, (5, 5), 16, (3, 3), padding=ONE),
]


def on_halves(row: Variant, spec: ConvSpec) -> bool:
    """Arrays of halves: the exact sum of integers, rounded once."""
    rng, kind = np.random.default_rng(3), row.accuracy
    problem = Problem("conv", row.direction, "cuda", kind, "default", spec)
    if row.refuses(problem):
        return False
    shapes, result, _ = conv_shapes(row.direction, spec)
    arrays = [integers(rng, shape, "float32") for shape in shapes]
    out = halves(np.full(result, np.nan, "float32"), kind)
    workspace = np.full(row.workspace(problem), 0xFF, np.uint8)
    row.run(*(halves(array, kind) for array in arrays), spec, workspace, out)
    want = conv_definition(row.direction, spec, *(array.astype(np.float64) for array in arrays)).astype("float32")
    np.testing.assert_array_equal(from_halves(out, kind), from_halves(halves(want, kind), kind))
    return True


@needs_compiler
@pytest.mark.parametrize("row", HALF_ROWS, ids=row_id)
def test_arrays_of_halves(row):
    with interpreted("sm_90a" if row.accuracy == "bfloat16" else "sm_80"):
        for spec in (HALF_EDGES[4], HALF_EDGES[5]._replace(activation=int(row.direction.startswith("forward")))):
            assert on_halves(row, spec)


@needs_compiler
@pytest.mark.full
@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("row", HALF_ROWS, ids=row_id)
def test_tile_edges_of_halves(row, target):
    with interpreted(target):
        for spec in HALF_EDGES:
            assert on_halves(row, spec)
            assert check_conv(row, spec, "float32")
            assert check_conv(row, spec, "float32", make=integers, exact=True)


@needs_compiler
@pytest.mark.parametrize("row", [row for row in HALF_ROWS if row.accuracy == "float16"], ids=row_id)
def test_tile_edges_of_float16(row):
    with interpreted("sm_80"):
        assert all(check_conv(row, spec, "float32") for spec in HALF_EDGES)


@needs_compiler
@pytest.mark.parametrize("row", HALF_ROWS, ids=row_id)
def test_sums_cut_into_parts_are_finished_with_bias_residual_and_relu(row):
    spec = PARTED[row.direction.removesuffix("_residual")]
    assert half_products.parts(row.direction, spec) > 1
    with interpreted("sm_80"):
        assert on_halves(row, spec)
        assert check_conv(row, spec, "float32", make=integers, exact=True)


@needs_compiler
@pytest.mark.parametrize("kind", HALVES)
def test_float32_is_rounded_to_nearest_on_its_way_to_the_tensor_cores(kind):
    """A 1x1 kernel of one channel and weight 1 gives back what was rounded; ties, denormals, infinities and NaN too."""
    rng = np.random.default_rng(5)
    (row,) = (row for row in HALF_ROWS if (row.accuracy, row.direction) == (kind, "forward"))
    spec = conv(1, 1, (8, 25), 1, (1, 1))
    x = (rng.standard_normal(200) * 10.0 ** rng.uniform(-9, 4, 200)).astype("f4")
    x[:12] = (
        1 + 2.0**-11,
        1 + 3 * 2.0**-11,
        1 + 2.0**-8,
        1 + 3 * 2.0**-8,
        65519,
        65520,
        2.0**-24,
        1e5,
        np.inf,
        -np.inf,
        np.nan,
        0,
    )
    y = np.empty(spec.y_shape, "f4")
    problem = Problem("conv", "forward", "cuda", "float32", kind, spec)
    workspace = np.empty(row.workspace(problem), np.uint8)
    with interpreted("sm_80"), np.errstate(over="ignore"):
        row.run(x.reshape(spec.x_shape), np.ones(spec.w_shape, "f4"), np.empty(0, "f4"), spec, workspace, y)
        np.testing.assert_array_equal(y.reshape(-1), from_halves(halves(x, kind), kind))


def test_refusals_of_halves(monkeypatch):
    from convkern.kernels.cuda import launch

    spec = EDGES[1]
    problem = Problem("conv", "forward", "cuda", "float32", "default", spec)
    (row,) = (row for row in HALF_ROWS if (row.accuracy, row.direction) == ("float16", "forward"))
    assert row.refuses(problem) == "rounds to float16, which only precision='float16' allows"
    assert row.refuses(problem._replace(precision="bfloat16")) == row.refuses(problem)
    asked = problem._replace(precision="float16")
    assert row.refuses(asked) == row.refuses(problem._replace(dtype="float16")) == ""
    assert row.refuses(asked._replace(device="cpu")) == "runs on CUDA devices only"
    assert row.refuses(asked._replace(dtype="float64")) == "takes float32 and float16, not float64"
    wide = spec._replace(n=2**20, c=1, size=(32, 32), out=(32, 32), k=1)
    assert row.refuses(asked._replace(spec=wide)) == "takes arrays of fewer than 2**31 elements with padded channels"
    flat = PointwiseSpec(2**20, 1, 1, 2**10)
    assert "padded channels" in row.refuses(asked._replace(operation="pointwise", spec=flat))
    (tf32,) = (row for row in cuda_rows("conv") if (row.name, row.direction) == ("tensor", "forward"))
    monkeypatch.setattr(launch, "asked", lambda: 75)
    assert row.refuses(asked) == "needs compute capability 8.0, here is 7.5"
    assert tf32.refuses(problem._replace(precision="tf32")) == "needs compute capability 8.0, here is 7.5"
    monkeypatch.setattr(launch, "asked", lambda: 90)
    assert row.refuses(asked) == ""


@needs_compiler
@pytest.mark.parametrize("kind", HALVES)
def test_infinity_and_nan_pass_the_padding_of_channels(kind):
    """Zeros beside them stay zeros: padding is never multiplied by what lies elsewhere."""
    spec = conv(1, 3, (4, 4), 2, (3, 3), padding=ONE)
    x, w = np.ones(spec.x_shape, "f4"), np.ones(spec.w_shape, "f4")
    x[0, 1, 0, 0], x[0, 2, 3, 3] = np.inf, np.nan
    (row,) = (row for row in HALF_ROWS if (row.accuracy, row.direction) == (kind, "forward"))
    y = np.empty(spec.y_shape, "f4")
    workspace = np.full(row.workspace(Problem("conv", "forward", "cuda", "float32", kind, spec)), 0xFF, np.uint8)
    with interpreted("sm_80"):
        row.run(x, w, np.empty(0, "f4"), spec, workspace, y)
    np.testing.assert_array_equal(y, reference.forward(x.astype("f8"), w.astype("f8"), None, spec))


# --- channels-last


@needs_compiler
@pytest.mark.parametrize("halves_in", [True, False])
@pytest.mark.parametrize("row", HALF_ROWS, ids=row_id)
def test_channels_last_is_read_and_written_as_it_lies(row, halves_in):
    """Halves whose channels fill 16 bytes are not copied then."""
    dtype = row.accuracy if halves_in else "float32"
    for spec in CHANNELS_LAST:
        problem = Problem("conv", row.direction, "cuda", dtype, row.accuracy, spec, "channels_last")
        with interpreted("sm_80"):
            np.testing.assert_array_equal(*on_channels_last(row, problem))


def test_channels_last_halves_take_no_room_for_copies():
    """What is read where it lies needs no workspace but that of the filters."""
    rows: dict[str, Variant] = {row.direction: row for row in HALF_ROWS if row.accuracy == "float16"}
    spec = conv(64, 64, (28, 28), 64, (3, 3), padding=ONE)
    asked = [
        Problem("conv", "forward", "cuda", "float16", "default", spec, layout) for layout in ("nchw", "channels_last")
    ]
    with_copy, without = (rows["forward"].workspace(problem) for problem in asked)
    assert without == 2 * 64 * 64 * 9
    assert with_copy == without + 2 * 64 * 64 * 28 * 28
    (direct,) = (row for row in cuda_rows("conv") if (row.name, row.direction) == ("direct", "forward"))
    assert (
        direct.refuses(asked[1]._replace(dtype="float32")) == direct.refuses(asked[0]._replace(dtype="float32")) == ""
    )


# --- bank conflicts


def conflicts(executed: Counter) -> dict[str, int]:
    """The bank conflicts of each instruction on shared memory that was executed."""
    names = [name.removesuffix(" phases") for name in executed if name.endswith(" phases")]
    assert all(executed[f"{name} phases"] > 0 for name in names)
    return {name: executed[f"{name} conflicts"] for name in names}


@needs_compiler
@pytest.mark.parametrize("row", [row for row in HALF_ROWS if row.accuracy == "float16"], ids=row_id)
@pytest.mark.parametrize("filters", [40, 9])
def test_slices_meet_no_bank_twice(row, filters):
    """Copies of 16 bytes, and ldmatrix, of both tiles."""
    spec = conv(1, filters, (9, 10), filters, (2, 2))
    with interpreted("sm_80", banks=True) as executed:
        assert check_conv(row, spec, "float32")
    counted = conflicts(executed)
    for what in ("cp.async", "ldmatrix"):
        assert [count for name, count in counted.items() if name.startswith(what)] == [0], counted


@needs_compiler
@pytest.mark.parametrize("row", [r for r in any_target("conv") if r.name == "direct"], ids=row_id)
@pytest.mark.parametrize("filters", [40, 9])
def test_slices_of_single_elements_meet_no_bank_twice(row, filters):
    """All tiles' copies and loads, of four terms by a lane."""
    spec = conv(1, filters, (9, 10), filters, (2, 2))
    with interpreted("sm_80", banks=True) as executed:
        assert check_conv(row, spec, "float32")
    assert conflicts(executed) == {"st.shared.f32": 0, "ld.shared.v4.f32": 0}


# --- warpgroups


def wide(direction: str, spec: ConvSpec) -> ConvSpec:
    """The channels exchanged for the input gradient, whose results are channels of x."""
    return spec._replace(c=spec.k, k=spec.c) if direction == "input_grad" else spec


WARPGROUP_EDGES = [
    conv(1, 3, (5, 9), 65, (3, 3), padding=ONE),
    conv(1, 24, (6, 6), 260, (2, 2), groups=2),
    conv(2, 9, (9, 9), 128, (3, 3), (2, 2), ONE),
    conv(1, 8, (13, 10), 257, (3, 2), (2, 1), ((2, 0), (0, 1)), (1, 2)),
]


@needs_compiler
@pytest.mark.parametrize("row", WARPGROUP_ROWS, ids=row_id)
def test_warpgroups_at_tile_edges(row):
    edges = WARPGROUP_EDGES[:2] if row.accuracy == "bfloat16" else WARPGROUP_EDGES
    with interpreted("sm_90a"):
        for spec in (wide(row.direction, edge) for edge in edges):
            if row.direction.startswith("forward"):
                spec = spec._replace(activation=spec.k % 2)
            assert check_conv(row, spec, "float32")
        assert on_halves(row, wide(row.direction, edges[0]))
        if row.direction == "weight_grad":
            cut = conv(3, 8, (20, 20), 72, (1, 1))
            assert half_products.parts("weight_grad", cut) > 1
            assert on_halves(row, cut)


@needs_compiler
@pytest.mark.full
@pytest.mark.parametrize("row", WARPGROUP_ROWS, ids=row_id)
def test_warpgroups_on_more_shapes(row):
    with interpreted("sm_90a"):
        for spec in (
            *WARPGROUP_EDGES,
            conv(1, 300, (12, 12), 72, (1, 1)),
            conv(1, 72, (4, 4), 80, (3, 3), padding=ONE),
        ):
            spec = wide(row.direction, spec)
            assert on_halves(row, spec)
            assert check_conv(row, spec, "float32", make=integers, exact=True)


@needs_compiler
@pytest.mark.parametrize("row", [row for row in cuda_rows("pointwise") if row.name == "warpgroup_float16"], ids=row_id)
def test_pointwise_by_warpgroups(row):
    shape = (2, 70, 9, 43) if row.direction == "input_grad" else (2, 9, 70, 43)
    with interpreted("sm_90a"):
        assert check_pointwise(row, PointwiseSpec(*shape, int(row.direction.startswith("forward"))), "float32")


def test_refusals_of_warpgroups(monkeypatch):
    from convkern.kernels.cuda import launch

    (row,) = (r for r in WARPGROUP_ROWS if (r.accuracy, r.direction) == ("float16", "input_grad"))
    problem = Problem("conv", "input_grad", "cuda", "float32", "float16", conv(1, 65, (5, 9), 3, (3, 3)))
    assert row.refuses(problem) == "needs compute capability 9.0"
    assert row.refuses(problem._replace(precision="default")).startswith("rounds to float16")
    monkeypatch.setattr(launch, "asked", lambda: 90)
    assert row.refuses(problem) == ""
    narrow = problem._replace(spec=conv(1, 64, (5, 9), 300, (3, 3)))
    assert row.refuses(narrow) == "takes at least 65 channels of results in a group"
    for other in (80, 100):  # wgmma belongs to sm_90a alone
        monkeypatch.setattr(launch, "asked", lambda: other)  # noqa: B023
        assert row.refuses(problem) == f"needs compute capability 9.0, here is {other / 10}"
