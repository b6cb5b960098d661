"""Every row of every table against the definition: over the case table, over generated shapes, and on exact data."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import convkern as ck
from convkern.bench.cases import CONVS, POINTWISE, POOLS
from convkern.kernels import conv, elementwise, pointwise, pool, simd
from convkern.kernels.conv import reference as conv_reference
from convkern.kernels.conv import winograd_reference
from convkern.kernels.cuda.tiles import TF32_TERMS
from convkern.kernels.elementwise import reference as elementwise_reference
from convkern.kernels.pointwise import reference as pointwise_reference
from convkern.kernels.pool import reference as pool_reference
from convkern.kernels.spec import ConvSpec, ElementwiseSpec, PointwiseSpec, PoolSpec, empty_window, output_size
from convkern.kernels.variant import Problem, Variant
from convkern.plan import HALVES, REDUCED

from .bounds import assert_within, floats, from_halves, halves, integers

DTYPES = ("float32", "float64")
Arrays = list[np.ndarray]


def cpu_rows(table: tuple[Variant, ...]) -> list[Variant]:
    return [row for row in table if row.device == "cpu"]


def row_id(row: Variant) -> str:
    return f"{row.direction}-{row.name}"


GUARD, MARK = 4096, 0xA5  # bytes behind what a row may write


def lying_last(array: np.ndarray) -> np.ndarray:
    """The same values with channels side by side, where there are pixels; what has no such axes as it is."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1) if array.ndim > 3 else array


def run(
    operation: str, row: Variant, spec: object, dtype: str, *arrays: np.ndarray, out: tuple[np.ndarray, ...],
    layout: str = "nchw",
) -> bool:  # fmt: skip
    """Run a row unless it cannot; out is poisoned first, so that what is not written shows, and ends before a guard, as
    scratch does, so that what is written beyond shows too. Images are given in ``layout``."""
    precision = row.accuracy if row.accuracy in REDUCED else "default"
    problem = Problem(operation, row.direction, row.device, dtype, precision, spec, layout)
    if row.refuses(problem):
        return False
    size = row.workspace(problem)
    rooms = [np.full(nbytes + GUARD, 0xFF, np.uint8) for nbytes in (size, *(a.nbytes for a in out))]  # NaN, or -1
    for room in rooms:
        room[-GUARD:] = MARK  # no NaN: a sum of NaN beyond the end would leave one as it was
    lying = [lying_last(a) if layout == "channels_last" else a for a in (*arrays, *out)]
    arrays, shapes = tuple(lying[: len(arrays)]), lying[len(arrays) :]
    results = [np.ndarray(a.shape, a.dtype, room, strides=a.strides) for room, a in zip(rooms[1:], shapes, strict=True)]
    copies = [a.copy() for a in arrays]
    row.run(*arrays, spec, rooms[0][:size], *results)
    for room in rooms:
        assert (room[-GUARD:] == MARK).all(), "the row wrote beyond its scratch or its result"
    for array, result in zip(out, results, strict=True):
        array[...] = result
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)  # inputs are not written to
    return True


# --- convolution


def conv_shapes(direction: str, spec: ConvSpec) -> tuple[list[tuple[int, ...]], tuple[int, ...], int]:
    """Shapes of the inputs and of the result, and the number of terms of its sums."""
    taps = spec.kernel[0] * spec.kernel[1]
    if direction == "forward":
        terms = spec.c // spec.groups * taps + 1
        return [spec.x_shape, spec.w_shape, (spec.k,)], spec.y_shape, terms
    if direction == "forward_residual":
        shapes, result, terms = conv_shapes("forward", spec)
        return [*shapes, result], result, terms + 1
    if direction == "input_grad":
        return [spec.y_shape, spec.w_shape], spec.x_shape, spec.k // spec.groups * taps
    pixels = max(spec.n * spec.out[0] * spec.out[1], 1)
    if direction == "weight_grad":
        return [spec.x_shape, spec.y_shape], spec.w_shape, pixels
    return [spec.y_shape], (spec.k,), pixels


def conv_definition(direction: str, spec: ConvSpec, *arrays: np.ndarray) -> np.ndarray:
    if direction == "bias_grad":
        return conv_reference.bias_grad(*arrays)
    return getattr(conv_reference, direction)(*arrays, spec)


def check_conv(row: Variant, spec: ConvSpec, dtype: str, make=floats, exact: bool = False) -> bool:
    halved = row.accuracy if row.accuracy in HALVES else ""
    arrays, wide = conv_inputs(row.direction, spec, dtype, make, halved)
    _, result, terms = conv_shapes(row.direction, spec)
    out = np.empty(result, dtype)
    if not run("conv", row, spec, dtype, *(array.copy() for array in arrays), out=(out,)):
        return False
    want = conv_wanted(row.direction, spec, dtype, make, halved)
    if exact:
        np.testing.assert_array_equal(out, want)
    elif row.accuracy == "winograd":
        assert_within(out, want, winograd_magnitude(row.direction, spec, *wide), terms + winograd_reference.TERMS)
    else:  # tensor cores may cut off halves where they add
        magnitude = conv_magnitude(row.direction, spec._replace(activation=0), dtype, make, halved)
        assert_within(out, want, magnitude, 2 * terms if halved else tf32_terms(row, terms))
    return True


# The inputs, the result and its size are those of all rows of a direction; a test goes through the same cases for each row,
# and the rows of all directions and dtypes come before another row of the same direction.
CASES = 20 * len(CONVS)


@lru_cache(maxsize=CASES)
def conv_inputs(direction: str, spec: ConvSpec, dtype: str, make: Any, halved: str) -> tuple[Arrays, Arrays]:
    """What a row is given, rounded where it may round to halves, and the same in float64."""
    rng = np.random.default_rng(1)
    arrays = [rounded(make(rng, shape, dtype), halved) for shape in conv_shapes(direction, spec)[0]]
    return arrays, [array.astype(np.float64) for array in arrays]


@lru_cache(maxsize=CASES)
def conv_wanted(direction: str, spec: ConvSpec, dtype: str, make: Any, halved: str) -> np.ndarray:
    return conv_definition(direction, spec, *conv_inputs(direction, spec, dtype, make, halved)[1])


@lru_cache(maxsize=CASES)
def conv_magnitude(direction: str, spec: ConvSpec, dtype: str, make: Any, halved: str) -> np.ndarray:
    """The sums of magnitudes, of a convolution without activation."""
    return conv_definition(direction, spec, *map(np.abs, conv_inputs(direction, spec, dtype, make, halved)[1]))


def rounded(array: np.ndarray, halved: str) -> np.ndarray:
    """What is left of an array when a row has rounded it to halves, which it may."""
    return from_halves(halves(array, halved), halved) if halved else array


def winograd_magnitude(direction: str, spec: ConvSpec, *wide: np.ndarray) -> np.ndarray:
    """The magnitudes of Winograd's stated bound."""
    definition = getattr(winograd_reference, direction.removesuffix("_residual"))
    magnitude = definition(*wide[:2], spec._replace(activation=0), magnitude=True)
    if direction.startswith("forward"):
        magnitude = sum((np.abs(a) for a in wide[3:]), magnitude + np.abs(wide[2])[None, :, None, None])
    return magnitude


def tf32_terms(row: Variant, terms: int) -> int:
    """Terms of the stated bound of a row that rounds or cuts off to TF32, or does neither."""
    assert row.accuracy in ("exact", "tf32")
    return terms if row.accuracy == "exact" else 2 * terms + TF32_TERMS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", cpu_rows(conv.VARIANTS), ids=row_id)
def test_conv_rows_on_the_case_table(row, dtype):
    ran = [check_conv(row, case.spec(), dtype) for case in CONVS]
    assert any(ran) or dtype not in DTYPES, f"{row.name} refused every case"


@pytest.mark.parametrize("row", [r for r in cpu_rows(conv.VARIANTS) if r.direction.startswith("forward")], ids=row_id)
def test_conv_rows_fuse_relu_and_leave_out_the_bias(row):
    ran = False
    for case in CONVS:
        spec = case.spec()._replace(activation=1)
        ran |= check_conv(row, spec, "float32")
        rng = np.random.default_rng(2)
        (x_shape, w_shape, _, *others), _, _ = conv_shapes(row.direction, spec)
        x, w, *others = (floats(rng, shape, "float32") for shape in (x_shape, w_shape, *others))
        none, zero = np.empty(0, "float32"), np.zeros(spec.k, "float32")
        without, with_zero = (np.empty(spec.y_shape, "float32") for _ in range(2))
        if run("conv", row, spec, "float32", x, w, none, *others, out=(without,)):
            run("conv", row, spec, "float32", x, w, zero, *others, out=(with_zero,))
            np.testing.assert_array_equal(without, with_zero)
    assert ran


@st.composite
def conv_specs(draw) -> ConvSpec:
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    groups = draw(st.integers(1, 3))
    kernel, stride, dilation = pair(1, 4), pair(1, 3), pair(1, 2)
    padding = (pair(0, 3), pair(0, 3))
    size = tuple(
        max(1, dilation[i] * (kernel[i] - 1) + 1 - sum(padding[i])) + draw(st.integers(0, 9 if i == 0 else 20))
        for i in range(2)
    )
    out = tuple(output_size(size[i], kernel[i], stride[i], padding[i], dilation[i]) for i in range(2))
    c, k = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 7))
    return ConvSpec(draw(st.integers(1, 3)), c, k, groups, size, kernel, stride, padding, dilation, out)


@given(spec=conv_specs(), dtype=st.sampled_from(DTYPES))
def test_conv_rows_on_generated_shapes(spec, dtype):
    for row in cpu_rows(conv.VARIANTS):
        check_conv(row, spec, dtype)


@given(spec=conv_specs(), dtype=st.sampled_from(DTYPES))
def test_conv_rows_are_exact_on_integers(spec, dtype):
    """Integer-valued floats leave nothing to round, so exact rows agree to the last bit, whatever their order."""
    for row in cpu_rows(conv.VARIANTS):
        if row.accuracy == "exact":
            check_conv(row, spec, dtype, make=integers, exact=True)


@given(spec=conv_specs(), dtype=st.sampled_from(DTYPES))
def test_adjoint_identity(spec, dtype):
    """⟨conv(x, w), g⟩ = ⟨x, input_grad(g, w)⟩ = ⟨w, weight_grad(x, g)⟩, exactly, without any reference."""
    rng = np.random.default_rng(3)
    x, w, g = (integers(rng, shape, dtype) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
    none = np.empty(0, dtype)
    for forward in (r for r in cpu_rows(conv.VARIANTS) if r.direction == "forward" and r.accuracy == "exact"):
        y = np.empty(spec.y_shape, dtype)
        if not run("conv", forward, spec, dtype, x, w, none, out=(y,)):
            continue
        product = np.vdot(y.astype(np.float64), g)
        for row in cpu_rows(conv.VARIANTS):
            if row.accuracy != "exact":
                continue
            gx, gw = np.empty_like(x), np.empty_like(w)
            if row.direction == "input_grad" and run("conv", row, spec, dtype, g, w, out=(gx,)):
                assert np.vdot(x.astype(np.float64), gx) == product
            if row.direction == "weight_grad" and run("conv", row, spec, dtype, x, g, out=(gw,)):
                assert np.vdot(w.astype(np.float64), gw) == product


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("row", cpu_rows(conv.VARIANTS), ids=row_id)
def test_conv_rows_take_an_empty_batch(row, size):
    large = ConvSpec(0, 64, 64, 1, (20, 20), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (20, 20))
    spec = CONVS[0].spec()._replace(n=0) if size == "small" else large
    shapes, result, _ = conv_shapes(row.direction, spec)
    out = np.empty(result, "float32")
    if run("conv", row, spec, "float32", *(np.empty(shape, "float32") for shape in shapes), out=(out,)):
        np.testing.assert_array_equal(out, np.zeros(result))


@pytest.mark.parametrize("row", [r for r in cpu_rows(conv.VARIANTS) if r.direction.startswith("forward")], ids=row_id)
def test_conv_rows_pass_nan_and_infinity_on(row):
    for case in CONVS:
        spec = case.spec()._replace(activation=1)
        x, w = np.ones(spec.x_shape, "float32"), np.ones(spec.w_shape, "float32")
        x[0, 0, 0, 0] = np.nan
        x[-1, -1, -1, -1] = np.inf
        y, residual = np.empty(spec.y_shape, "float32"), np.ones(spec.y_shape, "float32")
        residual[0, 0, 0, 0], residual[-1, -1, -1, 0] = np.inf, np.nan
        residuals = [residual] if row.direction == "forward_residual" else []
        if run("conv", row, spec, "float32", x, w, np.empty(0, "float32"), *residuals, out=(y,)):
            wide = [array.astype(np.float64) for array in (x, w, *residuals)]
            want = getattr(conv_reference, row.direction)(*wide[:2], None, *wide[2:], spec)
            if row.accuracy == "winograd":  # a block has common sums: what is not finite reaches all of it
                assert not np.isfinite(y[~np.isfinite(want)]).any()
                continue
            np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
            np.testing.assert_array_equal(np.isinf(y), np.isinf(want))


# --- pointwise


def check_pointwise(row: Variant, spec: PointwiseSpec, dtype: str, make=floats, exact: bool = False) -> bool:
    rng = np.random.default_rng(4)
    x_shape, w_shape, y_shape = (spec.n, spec.c, spec.pixels), (spec.k, spec.c), (spec.n, spec.k, spec.pixels)
    shapes, result, terms = {
        "forward": ([x_shape, w_shape, (spec.k,)], y_shape, spec.c + 1),
        "forward_residual": ([x_shape, w_shape, (spec.k,), y_shape], y_shape, spec.c + 2),
        "input_grad": ([y_shape, w_shape], x_shape, spec.k),
        "weight_grad": ([x_shape, y_shape], w_shape, max(spec.n * spec.pixels, 1)),
    }[row.direction]
    halved = row.accuracy if row.accuracy in HALVES else ""
    arrays = [rounded(make(rng, shape, dtype), halved) for shape in shapes]
    out = np.empty(result, dtype)
    if not run("pointwise", row, spec, dtype, *arrays, out=(out,)):
        return False
    definition = getattr(pointwise_reference, row.direction)
    wide = [a.astype(np.float64) for a in arrays]
    want = definition(*wide, spec)
    if exact:
        np.testing.assert_array_equal(out, want)
    else:
        terms = 2 * terms if halved else tf32_terms(row, terms)
        assert_within(out, want, definition(*map(np.abs, wide), spec._replace(activation=0)), terms)
    return True


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", cpu_rows(pointwise.VARIANTS), ids=row_id)
def test_pointwise_rows_on_the_case_table(row, dtype):
    activations = (0, 1) if row.direction.startswith("forward") else (0,)
    assert any(check_pointwise(row, c.spec()._replace(activation=a), dtype) for c in POINTWISE for a in activations)


@given(
    spec=st.builds(
        PointwiseSpec, st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 600), st.just(0)
    ),
    dtype=st.sampled_from(DTYPES),
)
def test_pointwise_rows_on_generated_shapes(spec, dtype):
    for row in cpu_rows(pointwise.VARIANTS):
        check_pointwise(row, spec, dtype)
        check_pointwise(row, spec, dtype, make=integers, exact=row.accuracy == "exact")


def one_by_one(n: int, c: int, k: int, size: tuple[int, int], stride: tuple[int, int]) -> ConvSpec:
    out = ((size[0] - 1) // stride[0] + 1, (size[1] - 1) // stride[1] + 1)
    return ConvSpec(n, c, k, 1, size, (1, 1), stride, ((0, 0), (0, 0)), (1, 1), out)


ONE_BY_ONE = [
    one_by_one(1, 3, 5, (1, 1), (1, 1)),
    one_by_one(70, 3, 17, (1, 1), (1, 1)),  # a panel meets many images
    one_by_one(9, 18, 19, (7, 7), (1, 1)),
    one_by_one(2, 5, 66, (33, 40), (1, 1)),
    one_by_one(3, 33, 8, (40, 41), (1, 1)),  # few output channels: a job's pixels are copied first
    one_by_one(3, 17, 25, (14, 13), (2, 2)),
    one_by_one(2, 9, 18, (9, 70), (2, 2)),
    one_by_one(2, 16, 16, (10, 11), (3, 3)),
    one_by_one(2, 9, 7, (9, 8), (2, 1)),
    one_by_one(2, 9, 7, (8, 9), (1, 2)),
    one_by_one(2, 20, 40, (2, 2), (2, 2)),
    one_by_one(2, 4, 3, (3, 3), (5, 5)),
    one_by_one(2, 7, 9, (1, 120), (2, 2)),  # one line, and yet no plane without gaps
    one_by_one(2, 7, 9, (120, 1), (2, 2)),
]


def check_one_by_one(dtype: str) -> None:
    """The exact answer in all directions, of both operations."""
    for spec in ONE_BY_ONE:
        for row in cpu_rows(conv.VARIANTS):
            if row.name == "pointwise":
                assert check_conv(row, spec, dtype, make=integers, exact=True)
        if spec.stride == (1, 1):
            flat = PointwiseSpec(spec.n, spec.c, spec.k, spec.size[0] * spec.size[1], 1)
            for row in cpu_rows(pointwise.VARIANTS):
                flat = flat._replace(activation=int(row.direction.startswith("forward")))
                assert check_pointwise(row, flat, dtype, make=integers, exact=True)


@pytest.fixture
def pointwise_modules():
    """The modules of the 1x1 rows, their layouts forgotten before and after the test."""
    from convkern.kernels.pointwise import cpu_panels, cpu_weight

    for module in (cpu_panels, cpu_weight):
        module.layout.cache_clear()
    yield cpu_panels, cpu_weight
    for module in (cpu_panels, cpu_weight):
        module.layout.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_by_one_rows(dtype):
    check_one_by_one(dtype)


@pytest.mark.parametrize("early", [0, 1000])
def test_one_by_one_rows_with_tiny_blocks(early, pointwise_modules, monkeypatch):
    """Several panels, parts and blocks in every job, and odd last ones; pixels copied panel by panel or all first."""
    panels, weight = pointwise_modules
    for name, value in dict(JOBS=3, PANELS=3, EARLY_PANELS=2, EARLY_BLOCKS=early, BLOCKS=1, RESULT_BYTES=20000).items():
        monkeypatch.setattr(panels, name, value)
    for name, value in dict(JOBS=40, CHUNK=10, ROW_BLOCK=9, COLUMN_BLOCK=33).items():
        monkeypatch.setattr(weight, name, value)
    check_one_by_one("float32")


@pytest.mark.parametrize("tile", range(7))
def test_one_by_one_rows_with_every_tile(tile, pointwise_modules, monkeypatch):
    panels, weight = pointwise_modules
    monkeypatch.setattr(panels, "TILES", (panels.TILES[tile % len(panels.TILES)],))
    monkeypatch.setattr(weight, "TILES", (weight.TILES[tile % len(weight.TILES)], (1, weight.TILES[-1][1])))
    monkeypatch.setattr(weight, "_cost", lambda rows, columns, tile, lanes: -tile[0])
    check_one_by_one("float32")


# --- elementwise


@pytest.mark.parametrize("size", [0, 1, 17, 16384, 16385, 40000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [r for r in cpu_rows(elementwise.VARIANTS) if r.name == "chunks"], ids=row_id)
def test_elementwise_rows(row, dtype, size):
    rng = np.random.default_rng(6)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45])
    arrays = [floats(rng, (size,), dtype) for _ in range(1 if row.direction in ("relu", "erf") else 2)]
    for array in arrays:
        array[rng.integers(0, max(size, 1), 30 if size else 0)] = rng.choice(special, 30 if size else 0)
    out = np.empty(size, dtype)
    definition = getattr(elementwise_reference, row.direction)
    rounding = 4 * np.finfo(dtype).eps if row.direction == "erf" else 0  # the libraries' error functions differ by that
    assert run("elementwise", row, ElementwiseSpec(size), dtype, *arrays, out=(out,))
    np.testing.assert_allclose(flushed(out), flushed(definition(*map(flushed, arrays))), rtol=rounding, atol=0)
    ck.set_flush_denormals(False)
    try:
        assert run("elementwise", row, ElementwiseSpec(size), dtype, *arrays, out=(out,))
    finally:
        ck.set_flush_denormals(True)
    tiny = np.finfo(dtype).smallest_subnormal if rounding else 0
    np.testing.assert_allclose(out, definition(*arrays), rtol=rounding, atol=tiny)


def flushed(array: np.ndarray) -> np.ndarray:
    """Zeros in place of denormal numbers, as kernels take them unless told otherwise."""
    return np.where(np.abs(array) < np.finfo(array.dtype).tiny, array.dtype.type(0), array)


# --- pooling


SIDE_BY_SIDE = PoolSpec(2, 3, (7, 9), (3, 2), (3, 2), ((0, 0), (0, 0)), (1, 1), (2, 4), 1)  # with pixels left over


def check_pool(row: Variant, spec: PoolSpec, dtype: str, layout: str = "nchw") -> bool:
    rng = np.random.default_rng(5)
    x, gy = integers(rng, spec.x_shape, dtype), floats(rng, spec.y_shape, dtype)
    x.flat[:: max(7, x.size // 5)] = np.nan if row.direction.startswith("max") else 1
    y, indices = np.empty(spec.y_shape, dtype), np.empty(spec.y_shape, np.int64)
    gx = np.empty(spec.x_shape, dtype)
    wide, wide_gy = x.astype(np.float64), gy.astype(np.float64)
    window = spec.kernel[0] * spec.kernel[1]
    if row.direction == "max_forward":
        if not run("pool", row, spec, dtype, x, out=(indices, y), layout=layout):
            return False
        want, want_indices = pool_reference.max_forward(wide, spec)
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(indices, want_indices)
    elif row.direction == "max_backward":
        _, winners = pool_reference.max_forward(wide, spec)
        if not run("pool", row, spec, dtype, gy, winners, out=(gx,), layout=layout):
            return False
        want = pool_reference.max_backward(wide_gy, winners, spec)
        assert_within(gx, want, pool_reference.max_backward(np.abs(wide_gy), winners, spec), window)
    elif spec.dilation != (1, 1):
        return False
    elif row.direction == "avg_forward":
        if not run("pool", row, spec, dtype, x, out=(y,), layout=layout):
            return False
        want = pool_reference.avg_forward(wide, spec)
        assert_within(y, want, pool_reference.avg_forward(np.abs(wide), spec), window + 1)
    elif row.direction == "avg_relu_bias_backward":
        y = np.maximum(integers(rng, spec.x_shape, dtype), 0)
        y.flat[::17] = np.nan
        sums = np.empty(spec.c, dtype)
        if not run("pool", row, spec, dtype, gy, y, out=(gx, sums), layout=layout):
            return False
        want, want_sums = pool_reference.avg_relu_bias_backward(wide_gy, y, spec)
        size, size_sums = pool_reference.avg_relu_bias_backward(np.abs(wide_gy), y, spec)
        assert_within(gx, want, size, 2)
        assert_within(sums, want_sums, size_sums, spec.size[0] * spec.size[1] + 3)
    else:
        assert row.direction == "avg_backward"
        if not run("pool", row, spec, dtype, gy, out=(gx,), layout=layout):
            return False
        want = pool_reference.avg_backward(wide_gy, spec)
        assert_within(gx, want, pool_reference.avg_backward(np.abs(wide_gy), spec), window + 1)
    return True


def cuda_pool_specs(row: Variant) -> list[PoolSpec]:
    """What a general row for pooling takes of the case table: averages have no dilation, and windows that go back through a
    ReLU stand side by side."""
    if row.direction == "avg_relu_bias_backward":
        wide = SIDE_BY_SIDE._replace(size=(9, 70), kernel=(2, 3), stride=(2, 3), out=(4, 23))
        return [SIDE_BY_SIDE, SIDE_BY_SIDE._replace(n=0), wide]
    return [
        spec for spec in (case.spec() for case in POOLS) if spec.dilation == (1, 1) or row.direction.startswith("max")
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", cpu_rows(pool.VARIANTS), ids=row_id)
def test_pool_rows_on_the_case_table(row, dtype):
    ran = [check_pool(row, case.spec(), dtype) for case in POOLS]
    assert any(ran)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [r for r in cpu_rows(pool.VARIANTS) if r.direction == "max_forward"], ids=row_id)
def test_max_pool_rows_order_equals_nan_and_infinities(row, dtype):
    """Rare values everywhere: a window's first pixel when all are minus infinity, its last NaN, its first maximum."""
    rng = np.random.default_rng(7)
    values = np.array([-np.inf, -np.inf, np.nan, np.inf, 0.0, -0.0, -1.0])
    for case in POOLS:
        spec = case.spec()._replace(n=3)
        for choice in (values[:1], values[:2], values[:3], values, values[3:]):
            x = rng.choice(choice, spec.x_shape).astype(dtype)
            y, indices = np.empty(spec.y_shape, dtype), np.empty(spec.y_shape, np.int64)
            if run("pool", row, spec, dtype, x, out=(indices, y)):
                want, want_indices = pool_reference.max_forward(x, spec)
                np.testing.assert_array_equal(indices, want_indices)
                np.testing.assert_array_equal(y, want)
                np.testing.assert_array_equal(np.signbit(y[y == 0]), np.signbit(want[y == 0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(28, 28), (10, 10), (7, 67), (3, 2), (1, 33), (9, 16)])
def test_pass_back_through_pool_and_relu_at_every_edge_of_vectors(size, dtype):
    (row,) = (r for r in cpu_rows(pool.VARIANTS) if r.direction == "avg_relu_bias_backward")
    for kernel in ((2, 2), (1, 1), (3, 2), (2, 4), (1, 2)):
        if kernel[0] <= size[0] and kernel[1] <= size[1]:
            out = tuple(s // k for s, k in zip(size, kernel, strict=True))
            for n, c in ((3, 2), (0, 2), (40, 5)):
                spec = PoolSpec(n, c, size, kernel, kernel, ((0, 0), (0, 0)), (1, 1), out, 1, 5 * (n == 3))
                assert check_pool(row, spec, dtype)
    assert row.refuses(Problem("pool", row.direction, "cpu", dtype, "default", spec)) == ""
    for change in (
        dict(stride=(1, 1)),
        dict(padding=((0, 0), (0, 1))),
        dict(out=(size[0], size[1] + 1)),
        dict(kernel=(1, 3)),
    ):
        assert row.refuses(Problem("pool", row.direction, "cpu", dtype, "default", spec._replace(**change)))


@st.composite
def pool_specs(draw) -> PoolSpec:
    axes = []
    for _ in range(2):
        kernel, dilation, stride = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
        span = dilation * (kernel - 1) + 1
        padding = (draw(st.integers(0, span // 2)), draw(st.integers(0, span // 2)))
        size = max(1, span - sum(padding)) + draw(st.integers(0, 9))
        out = output_size(size, kernel, stride, padding, dilation, draw(st.booleans()))
        assume(empty_window(size, kernel, stride, padding[0], dilation, out) is None)
        axes.append((size, kernel, stride, padding, dilation, out))
    n, c = draw(st.integers(0, 2)), draw(st.integers(1, 4))
    return PoolSpec(n, c, *zip(*axes, strict=True), draw(st.integers(0, 1)), draw(st.sampled_from([0, 0, 3])))


@given(spec=pool_specs(), dtype=st.sampled_from(DTYPES))
def test_pool_rows_on_generated_shapes(spec, dtype):
    for row in cpu_rows(pool.VARIANTS):
        check_pool(row, spec, dtype)


@pytest.fixture
def tiny_blocks(monkeypatch):
    """Blocks so small that every loop over blocks, strips, images and parts has several turns and an odd last one."""
    from convkern.kernels.conv import cpu_tiled, cpu_tiled_weight

    monkeypatch.setattr(cpu_tiled, "STRIP_BYTES", 900)
    monkeypatch.setattr(cpu_tiled, "GATHERING", 1)
    monkeypatch.setattr(cpu_tiled_weight, "STRIP_BYTES", 1500)
    monkeypatch.setattr(cpu_tiled_weight, "CHANNELS", 2)
    monkeypatch.setattr(cpu_tiled_weight, "JOBS", 50)
    caches = (cpu_tiled.forward_work, cpu_tiled.gradient_work, cpu_tiled_weight.weight_work)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("row", [r for r in cpu_rows(conv.VARIANTS) if r.name == "tiled"], ids=row_id)
def test_tiled_rows_with_tiny_blocks(row, tiny_blocks):
    for case in CONVS:
        spec = case.spec()
        assert check_conv(row, spec._replace(n=spec.n + 4), "float32", make=integers, exact=True)


@pytest.mark.parametrize("row", [r for r in cpu_rows(conv.VARIANTS) if r.name == "tiled"], ids=row_id)
@pytest.mark.parametrize("straight", [False, True], ids=["flat", "straight"])
@pytest.mark.parametrize("tile", range(10))
def test_every_tile_size(row, tile, straight, monkeypatch):
    from convkern.kernels.conv import cpu_tiled, cpu_tiled_weight

    def choose(outer, ways, terms, lanes):
        wanted = cpu_tiled.TILES[tile % len(cpu_tiled.TILES)]
        assert wanted[0] <= outer
        return wanted, ways[-1 if straight else 0]

    def choose_weight(rows, columns):
        return cpu_tiled_weight.TILES[tile % len(cpu_tiled_weight.TILES)]

    caches = (cpu_tiled.forward_work, cpu_tiled.gradient_work, cpu_tiled_weight.weight_work)
    monkeypatch.setattr(cpu_tiled, "_choose_tile", choose)
    monkeypatch.setattr(cpu_tiled_weight, "_choose_tile", choose_weight)
    for cache in caches:
        cache.cache_clear()
    for case in CONVS[tile % 3 :: 3]:
        groups = case.spec().groups
        spec = case.spec()._replace(c=13 * groups, k=14 * groups)  # no tile is higher, and none fits evenly into both
        assert check_conv(row, spec, "float32", make=integers, exact=True)
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("row", [r for r in cpu_rows(conv.VARIANTS) if r.name == "depthwise"], ids=row_id)
def test_depthwise_rows_at_every_edge_of_their_tiles(row, stride, dtype, monkeypatch):
    """Rows shorter and longer than one and two vectors, several jobs, a batch cut into parts, and several filters."""
    from convkern.kernels.conv import cpu_depthwise

    monkeypatch.setattr(cpu_depthwise, "PIXELS", 60)
    cpu_depthwise._layout.cache_clear()
    paddings = (((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 0), (1, 3)))
    for width in (3, 8, 15, 16, 17, 18, 31, 32, 33, 34, 47, 65):
        for kernel, padding in zip(((3, 3), (2, 2), (3, 3)), paddings, strict=True):
            size = (5, width)
            out = tuple(output_size(size[i], kernel[i], stride, padding[i], 1) for i in range(2))
            spec = ConvSpec(4, 2, 2 + width % 2 * 4, 2, size, kernel, (stride, stride), padding, (1, 1), out)
            assert check_conv(row, spec, dtype, make=integers, exact=True)
    cpu_depthwise._layout.cache_clear()


def lane_specs() -> list[ConvSpec]:
    """Tiles of one row and of several, short strips, unused rows, blocks over several images, and several filters."""
    specs = []
    shapes = (  # batch, channels, filters of each, size, kernel, stride, padding, dilation
        (3, 7, 1, (9, 40), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        (2, 19, 2, (7, 33), (2, 3), (1, 1), ((0, 1), (2, 0)), (2, 1)),
        (5, 3, 1, (12, 5), (4, 4), (3, 2), ((2, 2), (2, 2)), (1, 1)),
        (1, 33, 1, (11, 17), (1, 2), (3, 3), ((0, 0), (0, 0)), (1, 1)),  # rows and columns that no tap meets
        (2, 16, 3, (6, 6), (1, 1), (2, 3), ((1, 0), (0, 1)), (1, 1)),
        (1, 5, 1, (3, 50), (3, 9), (1, 2), ((1, 1), (4, 4)), (1, 3)),
        (40, 1, 1, (5, 4), (5, 6), (1, 1), ((2, 2), (3, 3)), (1, 1)),  # one channel: a block of images
        (1, 2, 1, (1, 1), (3, 3), (3, 3), ((1, 1), (1, 1)), (1, 1)),  # a stride beyond the image
        (1, 9, 1, (20, 3), (2, 2), (4, 5), ((0, 0), (2, 1)), (3, 2)),
    )
    for n, c, filters, size, kernel, stride, padding, dilation in shapes:
        out = tuple(output_size(size[i], kernel[i], stride[i], padding[i], dilation[i]) for i in range(2))
        specs.append(ConvSpec(n, c, c * filters, c, size, kernel, stride, padding, dilation, out))
    return specs


@pytest.fixture(params=[False, True], ids=["usual", "tiny"])
def lane_strips(request, monkeypatch):
    """The module of strips, with its usual sizes or such that each strip and chunk has a row or two."""
    from convkern.kernels.conv import cpu_depthwise_lanes, cpu_depthwise_lanes_weight, lane_strips

    caches = (cpu_depthwise_lanes._forward_work, cpu_depthwise_lanes._gradient_work, cpu_depthwise_lanes_weight._work)
    if request.param:
        monkeypatch.setattr(lane_strips, "STRIP_BYTES", 6000)
        monkeypatch.setattr(lane_strips, "CHUNK_BYTES", 4000)
        monkeypatch.setattr(cpu_depthwise_lanes_weight, "PART_PIXELS", 1)
    for cache in caches:
        cache.cache_clear()
    yield lane_strips
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [r for r in cpu_rows(conv.VARIANTS) if r.name == "lanes"], ids=row_id)
def test_lane_rows_at_every_edge_of_strips_and_tiles(row, dtype, lane_strips):
    for spec in lane_specs():
        assert check_conv(row, spec, dtype, make=integers, exact=True)
        assert check_conv(row, spec._replace(activation=int(row.direction.startswith("forward"))), dtype)


@pytest.mark.parametrize("row", [r for r in cpu_rows(conv.VARIANTS) if r.name == "lanes"], ids=row_id)
def test_lane_rows_refuse_what_does_not_fit(row):
    spec = lane_specs()[0]
    problem = Problem("conv", row.direction, "cpu", "float32", "default", spec)
    assert row.refuses(problem) == ""
    assert "a group" in row.refuses(problem._replace(spec=spec._replace(groups=1)))
    wide = spec._replace(size=(9, 90000), out=(9, 90000))
    assert "short enough" in row.refuses(problem._replace(spec=wide))


@pytest.mark.skipif(simd.VECTOR_BITS != 512, reason="where the rows meet is known for vectors of 512 bits")
def test_depthwise_rows_leave_to_lanes_what_they_are_slower_at():
    """28 pixels fill most of a row's vectors, which read in place; of 4x4 planes nothing is left but padding."""
    from convkern.kernels.conv import costs

    for n, c, size, kernel, lanes in ((38, 28, (4, 4), (7, 5), True), (16, 192, (28, 28), (3, 3), False)):
        padding = tuple((k // 2, k // 2) for k in kernel)
        spec = ConvSpec(n, c, c, c, size, kernel, (1, 1), padding, (1, 1), size)
        for direction in ("forward", "input_grad", "weight_grad"):
            assert (costs.cycles("lanes", direction, spec, 4) < costs.cycles("depthwise", direction, spec, 4)) == lanes
            problem = Problem("conv", direction, "cpu", "float32", "default", spec)
            assert costs.refuses("lanes", problem) == costs.refuses("depthwise", problem) == ""
            assert ("times the" in costs.slower("lanes", problem)) != lanes or "images" in costs.slower(
                "lanes", problem
            )


def test_blocks_follow_the_hosts_cache(monkeypatch):
    from convkern.kernels import host

    for text, size in (("1024K\n", 1 << 20), ("2M\n", 2 << 20), ("?", host.USUAL_L2_BYTES)):
        host.l2_bytes.cache_clear()
        monkeypatch.setattr(host.Path, "read_text", lambda self, text=text: text)
        assert host.l2_bytes() == size
    host.l2_bytes.cache_clear()
    monkeypatch.setattr(host, "Path", lambda path: Path("/nowhere") / path.lstrip("/"))
    assert host.l2_bytes() == host.USUAL_L2_BYTES
    host.l2_bytes.cache_clear()
