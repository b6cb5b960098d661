"""Winograd's convolution: the formula itself, the kernels over generated shapes, and how large its errors are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convkern as ck
from convkern import plan
from convkern.kernels import conv
from convkern.kernels.conv import blocks, costs, cpu_winograd, cpu_winograd_weight, reference, winograd_reference
from convkern.kernels.patches import FILTER, INPUT, OUTPUT, SIZE, whole
from convkern.kernels.spec import ConvSpec
from convkern.kernels.threads import num_threads
from convkern.kernels.variant import Problem

from .bounds import floats
from .test_kernels import DTYPES, check_conv, row_id

ROWS = [row for row in conv.VARIANTS if row.name == "winograd"]


def spec_of(n, c, size, k, taps, padding) -> ConvSpec:
    out = tuple(size[i] + sum(padding[i]) - taps + 1 for i in range(2))
    return ConvSpec(n, c, k, 1, size, (taps, taps), (1, 1), padding, (1, 1), out)


@st.composite
def specs(draw) -> ConvSpec:
    taps = draw(st.sampled_from((3, 5)))
    side = st.integers(0, taps)
    padding = ((draw(side), draw(side)), (draw(side), draw(side)))
    size = tuple(max(1, taps - sum(padding[i])) + draw(st.integers(0, (11, 40)[i])) for i in range(2))
    return spec_of(draw(st.integers(1, 4)), draw(st.integers(1, 21)), size, draw(st.integers(1, 70)), taps, padding)


@pytest.fixture
def few_channels(monkeypatch):
    """The rows take few channels too, and work in pieces so small that every loop has several turns."""

    def clear():
        cpu_winograd._work.cache_clear()
        cpu_winograd_weight._work.cache_clear()

    for module in (cpu_winograd, cpu_winograd_weight):
        monkeypatch.setattr(module, "MIN_CHANNELS", 1)
        monkeypatch.setattr(module, "MIN_BLOCKS", 1)
    monkeypatch.setattr(cpu_winograd, "LEAST_SAVING", 0)
    monkeypatch.setattr(cpu_winograd, "BLOCKS", 20)
    monkeypatch.setattr(cpu_winograd, "BLOCKS_WIDE", 40)
    monkeypatch.setattr(cpu_winograd_weight, "TRANSFORMED_BYTES", 200_000)
    monkeypatch.setattr(cpu_winograd_weight, "PRODUCT_BYTES", 1)
    clear()
    yield
    clear()


def matrix(factors) -> np.ndarray:
    return np.array(whole(factors))


def test_the_matrices_are_the_papers():
    """Lavin and Gray, section 4.1 for F(4x4, 3x3), up to the order of the points."""
    np.testing.assert_array_equal(
        matrix(INPUT),
        [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
         [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
    )  # fmt: skip
    np.testing.assert_allclose(
        matrix(FILTER[3]),
        [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
         [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
        rtol=1e-15,
    )  # fmt: skip
    np.testing.assert_array_equal(
        matrix(OUTPUT[4]), [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
    )


@pytest.mark.parametrize("taps", [2, 3, 4, 5])
def test_the_formula_in_one_dimension(taps):
    rng = np.random.default_rng(0)
    d, g = rng.standard_normal(SIZE), rng.standard_normal(taps)
    results = SIZE + 1 - taps
    got = matrix(OUTPUT[results]) @ ((matrix(FILTER[taps]) @ g) * (matrix(INPUT) @ d))
    np.testing.assert_allclose(got, np.correlate(d, g, "valid"), rtol=1e-12, atol=1e-13)


@given(spec=specs())
@settings(max_examples=20)
def test_the_reference_is_the_definition(spec):
    rng = np.random.default_rng(1)
    x, w, gy = (rng.standard_normal(shape) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
    for direction, arrays in (("forward", (x, w)), ("input_grad", (gy, w)), ("weight_grad", (x, gy))):
        extra = (None,) if direction == "forward" else ()
        want = getattr(reference, direction)(*arrays, *extra, spec)
        got = getattr(winograd_reference, direction)(*arrays, spec)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_rows_on_generated_shapes(row, large, few_channels, monkeypatch):
    """As they work on few channels with many blocks, and on many channels with few blocks."""
    monkeypatch.setattr(cpu_winograd, "FILTER_BYTES", 1 if large else 1 << 40)
    monkeypatch.setattr(cpu_winograd, "WIDE_BYTES", 1)
    monkeypatch.setattr(cpu_winograd_weight, "TURN", 1 << 40 if large else 0)

    @given(spec=specs(), dtype=st.sampled_from(DTYPES), activation=st.integers(0, 1))
    @settings(max_examples=25)
    def check(spec, dtype, activation):
        spec = spec._replace(activation=activation if row.direction.startswith("forward") else 0)
        assert check_conv(row, spec, dtype)

    check()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_way_to_fill_a_vector(parts, monkeypatch):
    chosen = blocks.make_blocks(1, (9, 10), 4, 4, 100)
    if chosen.share * chosen.parts // parts < 4:
        pytest.skip("too few lanes on this host")
    lanes = chosen.share * chosen.parts
    width = {1: lanes, 2: lanes // 2, 4: lanes // 4}[parts] * 4 - 1
    assert blocks.make_blocks(1, (9, width), 4, 4, 100).parts == parts
    for row in ROWS:
        assert check_conv(row, spec_of(20, 16, (9, width), 17, 3, ((1, 1), (1, 1))), "float32")


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_channels_that_fill_no_whole_tiles_stay_in_scratch(row):
    threads = num_threads()
    ck.set_num_threads(1)  # a second thread's scratch would hide what is written beyond the first one's
    try:
        assert check_conv(row, spec_of(4, 64, (32, 32), 64, 3, ((1, 1), (1, 1))), "float32")
    finally:
        ck.set_num_threads(threads)


def test_errors_are_of_the_expected_size():
    """F(4x4, 3x3) on unit normal numbers: errors some ten times the direct sum's, far below single precision's use."""
    spec = spec_of(1, 64, (28, 28), 64, 3, ((1, 1), (1, 1)))
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal(spec.x_shape), rng.standard_normal(spec.w_shape)
    exact = winograd_reference.forward(x, w, spec)
    y = ck.conv2d(x.astype("float32"), w.astype("float32"), padding=1)
    strict = ck.conv2d(x.astype("float32"), w.astype("float32"), padding=1, precision="strict")
    error, direct = (np.abs(a - exact).max() / np.abs(exact).max() for a in (y, strict))
    assert direct < error < 1e-5


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_rows_refuse_what_does_not_pay(row):
    problem = Problem(
        "conv", row.direction, "cpu", "float32", "default", spec_of(1, 64, (4, 4), 64, 3, ((1, 1), (1, 1)))
    )
    assert "blocks of 4x4 results, here are 1" in row.refuses(problem)
    tiny = problem._replace(spec=spec_of(99, 64, (2, 2), 64, 3, ((1, 1), (1, 1))))
    assert "reach beyond 2x2 save too little" in row.refuses(tiny)
    few = problem._replace(spec=spec_of(99, 64, (4, 4), 5, 3, ((1, 1), (1, 1))))
    assert "channels on both sides" in row.refuses(few)
    assert "without stride" in row.refuses(problem._replace(spec=few.spec._replace(stride=(2, 1))))


def test_strict_takes_another_row():
    x, w = np.zeros((4, 64, 32, 32), "float32"), np.zeros((64, 64, 3, 3), "float32")
    (fast,), (strict,) = (ck.explain(ck.conv2d, x, w, padding=1, precision=p) for p in ("default", "strict"))
    assert (fast.row.name, strict.row.accuracy) == ("winograd", "exact")


def test_gradients_through_the_graph(few_channels, monkeypatch):
    monkeypatch.setattr(costs, "cycles", lambda row, *case: 1 if row == "winograd" else 2)
    plan.plan.cache_clear()
    rng = np.random.default_rng(3)
    x, w = floats(rng, (1, 2, 6, 7), "float64"), floats(rng, (3, 2, 3, 3), "float64")
    with plan.traced() as trace:
        y = ck.conv2d(ck.tensor(x, requires_grad=True), ck.tensor(w, requires_grad=True), padding=1)
        y.backward(np.ones(y.shape))
    assert [row.name for _, row in trace] == ["winograd"] * 3
    assert ck.gradcheck(lambda x, w: ck.conv2d(x, w, padding=1), [x, w])
    monkeypatch.undo()
    plan.plan.cache_clear()
