"""Rows for volumes, uneven windows, unpooling and resizing against their definitions, and these against PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from convkern import plan
from convkern.kernels import adaptive, pool3d, resize, unpool
from convkern.kernels.adaptive import reference as adaptive_reference
from convkern.kernels.pool3d import reference
from convkern.kernels.resize import reference as resize_reference
from convkern.kernels.spec import AdaptiveSpec, Pool3dSpec, ResizeSpec, UnpoolSpec, empty_window, output_size
from convkern.kernels.unpool import reference as unpool_reference
from convkern.kernels.variant import Problem, Variant

from .bounds import assert_within, floats, integers
from .test_kernels import DTYPES, cpu_rows, row_id, run


def pool_spec(n, c, size, kernel, stride, padding=((0, 0),) * 3, dilation=(1, 1, 1), ceil=False, include=1, divisor=0):
    out = tuple(output_size(size[i], kernel[i], stride[i], padding[i], dilation[i], ceil) for i in range(3))
    return Pool3dSpec(n, c, size, kernel, stride, padding, dilation, out, include, divisor)


CASES = {
    "plain": pool_spec(2, 3, (4, 6, 8), (2, 2, 2), (2, 2, 2)),
    "overlapping": pool_spec(1, 2, (5, 6, 7), (3, 3, 3), (1, 2, 1), ((1, 1),) * 3),
    "counted out": pool_spec(1, 2, (5, 6, 7), (3, 3, 3), (2, 2, 2), ((1, 1),) * 3, include=0),
    "ceil": pool_spec(2, 2, (5, 6, 8), (2, 3, 3), (3, 2, 2), ((1, 1), (1, 1), (0, 0)), ceil=True),
    "divisor": pool_spec(1, 2, (4, 5, 6), (2, 3, 2), (2, 1, 2), divisor=5),
    "dilation": pool_spec(2, 2, (6, 7, 8), (2, 3, 2), (1, 1, 2), ((1, 1), (1, 2), (0, 1)), (2, 2, 3)),
    "asymmetric": pool_spec(1, 3, (4, 5, 6), (2, 3, 2), (2, 2, 2), ((1, 0), (0, 1), (1, 1))),
    "whole": pool_spec(2, 5, (3, 4, 5), (3, 4, 5), (1, 1, 1)),
    "picture": pool_spec(2, 3, (1, 9, 33), (1, 3, 3), (1, 2, 2), ((0, 0), (1, 1), (1, 1))),
    "large": pool_spec(3, 2, (8, 30, 41), (2, 2, 2), (2, 2, 2)),
    "empty": pool_spec(0, 2, (4, 4, 4), (2, 2, 2), (2, 2, 2)),
}
ADAPTIVE = {
    "even": AdaptiveSpec(2, 3, (4, 6, 8), (2, 3, 4)),
    "uneven": AdaptiveSpec(1, 2, (5, 7, 9), (3, 4, 2)),
    "more than there are": AdaptiveSpec(1, 2, (2, 3, 4), (3, 7, 9)),
    "global": AdaptiveSpec(2, 3, (3, 4, 5), (1, 1, 1)),
    "picture": AdaptiveSpec(3, 2, (1, 10, 33), (1, 7, 6)),
}


def check(operation: str, definition, row: Variant, spec, dtype: str, window: int, layout: str = "nchw") -> bool:
    """One row of the pooling tables against the definition of its direction."""
    rng = np.random.default_rng(5)
    x, gy = integers(rng, spec.x_shape, dtype), floats(rng, spec.y_shape, dtype)
    y, gx = np.empty(spec.y_shape, dtype), np.empty(spec.x_shape, dtype)
    if row.direction == "max_forward":
        x.flat[:: max(7, x.size // 5)] = np.nan
        indices = np.empty(spec.y_shape, np.int64)
        if not run(operation, row, spec, dtype, x, out=(indices, y), layout=layout):
            return False
        want, winners = definition.max_forward(x, spec)
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(indices, winners)
    elif row.direction == "max_backward":
        _, winners = definition.max_forward(x, spec)
        if not run(operation, row, spec, dtype, gy, winners, out=(gx,), layout=layout):
            return False
        wide = gy.astype(np.float64)
        want = definition.max_backward(wide, winners, spec)
        assert_within(gx, want, definition.max_backward(np.abs(wide), winners, spec), window)
    else:
        forward = row.direction == "avg_forward"
        array, out = (x, y) if forward else (gy, gx)
        if not run(operation, row, spec, dtype, array, out=(out,), layout=layout):
            return False
        wide, function = array.astype(np.float64), getattr(definition, row.direction)
        assert_within(out, function(wide, spec), function(np.abs(wide), spec), window + 1)
    return True


def check_lp(row: Variant, spec: Pool3dSpec, dtype: str, power: float) -> None:
    """Sums of positive numbers, so the bound is relative; a power and a root are good to a few units each."""
    spec = spec._replace(power=power, dilation=(1, 1, 1), padding=((0, 0),) * 3, count_include_pad=1, divisor=0)
    out = tuple(output_size(spec.size[i], spec.kernel[i], spec.stride[i]) for i in range(3))
    spec = spec._replace(out=out)
    rng = np.random.default_rng(6)
    x = np.abs(floats(rng, spec.x_shape, dtype)) if power % 2 else floats(rng, spec.x_shape, dtype)
    terms = math.prod(spec.kernel) + 8 + int(4 * power)
    wide = x.astype(np.float64)
    y = reference.lp_forward(wide, spec)
    if row.direction == "lp_forward":
        out = np.empty(spec.y_shape, dtype)
        assert run("pool3d", row, spec, dtype, x, out=(out,))
        assert_within(out, y, y, terms)
        return
    gy, root = floats(rng, spec.y_shape, dtype), y.astype(dtype)
    gx, exact = np.empty(spec.x_shape, dtype), root.astype(np.float64)
    assert run("pool3d", row, spec, dtype, gy, x, root, out=(gx,))
    want = reference.lp_backward(gy.astype(np.float64), wide, exact, spec)
    magnitude = reference.lp_backward(np.abs(gy).astype(np.float64), np.abs(wide), exact, spec)
    assert_within(gx, want, magnitude, terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", cpu_rows(pool3d.VARIANTS), ids=row_id)
def test_pool_rows(row, dtype):
    for spec in CASES.values():
        if row.direction.startswith("lp"):
            for power in (1.0, 2.0, 3.0, 2.5 if "forward" in row.direction else 4.0):
                check_lp(row, spec, dtype, power)
        elif row.direction.startswith("max") or spec.dilation == (1, 1, 1):
            assert check("pool3d", reference, row, spec, dtype, math.prod(spec.kernel))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", cpu_rows(adaptive.VARIANTS), ids=row_id)
def test_adaptive_rows(row, dtype):
    for spec in ADAPTIVE.values():
        widest = math.prod(-(-a // b) + 1 + -(-b // a) for a, b in zip(spec.size, spec.out, strict=True))
        assert check("adaptive", adaptive_reference, row, spec, dtype, widest)


@st.composite
def pool_specs(draw) -> Pool3dSpec:
    axes = []
    for _ in range(3):
        kernel, dilation, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
        span = dilation * (kernel - 1) + 1
        padding = (draw(st.integers(0, span // 2)), draw(st.integers(0, span // 2)))
        size = max(1, span - sum(padding)) + draw(st.integers(0, 5))
        out = output_size(size, kernel, stride, padding, dilation, draw(st.booleans()))
        assume(empty_window(size, kernel, stride, padding[0], dilation, out) is None)
        axes.append((size, kernel, stride, padding, dilation, out))
    return Pool3dSpec(
        1, draw(st.integers(1, 3)), *zip(*axes, strict=True), draw(st.integers(0, 1)), draw(st.sampled_from([0, 3]))
    )


@given(spec=pool_specs(), dtype=st.sampled_from(DTYPES))
def test_pool_rows_on_generated_shapes(spec, dtype):
    for row in cpu_rows(pool3d.VARIANTS):
        if row.direction.startswith("max") or (row.direction.startswith("avg") and spec.dilation == (1, 1, 1)):
            check("pool3d", reference, row, spec, dtype, math.prod(spec.kernel))


@pytest.mark.parametrize("dtype", DTYPES)
def test_max_rows_order_equals_nan_and_infinities(dtype):
    rng = np.random.default_rng(7)
    values = np.array([-np.inf, -np.inf, np.nan, np.inf, 0.0, -0.0, -1.0])
    rows = [(pool3d, "pool3d", reference, CASES), (adaptive, "adaptive", adaptive_reference, ADAPTIVE)]
    for module, name, definition, cases in rows:
        for spec in cases.values():
            for choice in (values[:1], values[:3], values, values[3:]):
                x = rng.choice(choice, spec.x_shape).astype(dtype)
                y, indices = np.empty(spec.y_shape, dtype), np.empty(spec.y_shape, np.int64)
                for row in (r for r in cpu_rows(module.VARIANTS) if r.direction == "max_forward"):
                    assert run(name, row, spec, dtype, x, out=(indices, y))
                    want, winners = definition.max_forward(x, spec)
                    np.testing.assert_array_equal(indices, winners)
                    np.testing.assert_array_equal(y, want)


def test_lp_of_zeros_has_no_gradient():
    spec = CASES["plain"]._replace(power=2.0)
    (row,) = (r for r in pool3d.VARIANTS if r.direction == "lp_backward")
    gx, gy = np.empty(spec.x_shape), np.ones(spec.y_shape)
    assert run("pool3d", row, spec, "float64", gy, np.zeros(spec.x_shape), np.zeros(spec.y_shape), out=(gx,))
    assert not gx.any()


# --- unpooling


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", cpu_rows(unpool.VARIANTS), ids=row_id)
def test_unpool_rows(row, dtype):
    rng = np.random.default_rng(8)
    for spec in (UnpoolSpec(3, 7, 30), UnpoolSpec(1, 20, 5), UnpoolSpec(40, 600, 2400), UnpoolSpec(0, 3, 4)):
        indices = rng.integers(0, spec.outputs, (spec.planes, spec.inputs))  # some places more than once
        forward = row.direction == "forward"
        shapes = [(spec.planes, spec.inputs), (spec.planes, spec.outputs)]
        array, out = floats(rng, shapes[not forward], dtype), np.empty(shapes[forward], dtype)
        assert run("unpool", row, spec, dtype, array, indices, out=(out,))
        np.testing.assert_array_equal(out, getattr(unpool_reference, row.direction)(array, indices, spec))


# --- resizing


def resize_spec(planes, size, out, mode="linear", align=0, factors=None) -> ResizeSpec:
    scales = tuple(
        ((n - 1) / (m - 1) if m > 1 else 0.0) if align else (n / m if factors is None else 1 / factors[i])
        for i, (n, m) in enumerate(zip(size, out, strict=True))
    )
    return ResizeSpec(planes, size, out, mode, align, scales)


def check_resize(row: Variant, spec: ResizeSpec, dtype: str) -> None:
    rng = np.random.default_rng(9)
    forward = row.direction == "forward"
    array = floats(rng, spec.x_shape if forward else spec.y_shape, dtype)
    out = np.empty(spec.y_shape if forward else spec.x_shape, dtype)
    assert run("resize", row, spec, dtype, array, out=(out,))
    function = getattr(resize_reference, row.direction)
    wide = array.astype(np.float64)
    if spec.mode == "nearest" and forward:
        np.testing.assert_array_equal(out, function(array, spec))
        return
    # A pixel meets 2 in a direction going up; coming back, as many as see it. Two roundings of shares, three products.
    met = 2 if forward else max(2 * math.ceil(m / n) + 2 for n, m in zip(spec.size, spec.out, strict=True))
    assert_within(out, function(wide, spec), function(np.abs(wide), spec), met**3 + 6)


RESIZES = [
    resize_spec(3, (1, 5, 7), (1, 10, 14)),
    resize_spec(3, (1, 5, 7), (1, 10, 14), align=1),
    resize_spec(2, (1, 8, 9), (1, 3, 4)),
    resize_spec(2, (3, 4, 5), (5, 7, 3)),
    resize_spec(2, (3, 4, 5), (5, 7, 1), align=1),
    resize_spec(2, (1, 1, 6), (1, 1, 16), factors=(1.0, 1.0, 2.7)),
    resize_spec(2, (1, 1, 1), (1, 4, 4)),
    resize_spec(40, (1, 33, 35), (1, 66, 70)),
    resize_spec(3, (1, 5, 7), (1, 10, 14), "nearest"),
    resize_spec(2, (3, 4, 5), (5, 7, 3), "nearest"),
    resize_spec(0, (1, 4, 4), (1, 8, 8)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", cpu_rows(resize.VARIANTS), ids=row_id)
def test_resize_rows(row, dtype):
    for spec in RESIZES:
        check_resize(row, spec, dtype)


@given(
    size=st.tuples(*[st.integers(1, 6)] * 3),
    out=st.tuples(*[st.integers(1, 9)] * 3),
    mode=st.sampled_from(["nearest", "linear"]),
    align=st.integers(0, 1),
    dtype=st.sampled_from(DTYPES),
)
def test_resize_rows_on_generated_shapes(size, out, mode, align, dtype):
    for row in cpu_rows(resize.VARIANTS):
        check_resize(row, resize_spec(2, size, out, mode, align if mode == "linear" else 0), dtype)


def test_resizing_by_the_nearest_pixel_passes_infinities_on():
    spec = resize_spec(1, (1, 2, 2), (1, 4, 4), "nearest")
    x = np.array([np.inf, 1.0, -np.inf, np.nan]).reshape(spec.x_shape)
    y = np.empty(spec.y_shape)
    assert run("resize", resize.VARIANTS[0], spec, "float64", x, out=(y,))
    np.testing.assert_array_equal(y[0, 0], x[0, 0].repeat(2, 0).repeat(2, 1))


# --- all of them


def test_definitions_are_pytorchs():
    """What test_ops_pools.py shows of the operations, for the definitions themselves."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    rng = np.random.default_rng(10)
    for name, spec in CASES.items():
        if name in ("divisor", "asymmetric", "empty") or spec.dilation != (1, 1, 1):
            continue
        x = torch.tensor(integers(rng, spec.x_shape, np.float64))
        pads, ceil = tuple(before for before, _ in spec.padding), name == "ceil"
        y, indices = reference.max_forward(x.numpy(), spec)
        ty, ti = F.max_pool3d(x, spec.kernel, spec.stride, pads, ceil_mode=ceil, return_indices=True)
        np.testing.assert_array_equal(y, ty.numpy())
        np.testing.assert_array_equal(indices, ti.numpy())
        mean = F.avg_pool3d(x, spec.kernel, spec.stride, pads, ceil, bool(spec.count_include_pad)).numpy()
        np.testing.assert_allclose(reference.avg_forward(x.numpy(), spec), mean, rtol=1e-14, atol=1e-14)
    for spec in ADAPTIVE.values():
        x = torch.tensor(integers(rng, spec.x_shape, np.float64))
        y, indices = adaptive_reference.max_forward(x.numpy(), spec)
        ty, ti = F.adaptive_max_pool3d(x, spec.out, return_indices=True)
        np.testing.assert_array_equal(y, ty.numpy())
        np.testing.assert_array_equal(indices, ti.numpy())
        mean = F.adaptive_avg_pool3d(x, spec.out).numpy()
        np.testing.assert_allclose(adaptive_reference.avg_forward(x.numpy(), spec), mean, rtol=1e-13, atol=1e-13)


TABLES = {
    "pool3d": (pool3d, CASES["plain"]),
    "adaptive": (adaptive, ADAPTIVE["even"]),
    "unpool": (unpool, UnpoolSpec(1, 2, 3)),
    "resize": (resize, RESIZES[0]),
}


@pytest.mark.parametrize("operation", [name for name in TABLES if name != "adaptive"])
def test_a_missing_cuda_row_is_named(operation):
    module, spec = TABLES[operation]
    for row in module.VARIANTS:
        problem = Problem(operation, row.direction, "cuda", "float32", "default", spec)
        message = rf"no row for {operation}\.{row.direction} cuda .*'{row.name}': 'runs on the CPU only'"
        with pytest.raises(NotImplementedError, match=message):
            plan.plan(problem)


def test_rows_are_the_same_for_any_number_of_threads(threads):
    spec = CASES["large"]._replace(power=3.0)
    rng = np.random.default_rng(11)
    x, gy = np.abs(floats(rng, spec.x_shape, "float32")), floats(rng, spec.y_shape, "float32")
    rows = {r.direction: r for r in pool3d.VARIANTS}
    seen = []
    for number in (1, 2, 3):
        threads(number)
        y, gx = np.empty(spec.y_shape, "float32"), np.empty(spec.x_shape, "float32")
        run("pool3d", rows["lp_forward"], spec, "float32", x, out=(y,))
        run("pool3d", rows["lp_backward"], spec, "float32", gy, x, y, out=(gx,))
        seen.append((y.tobytes(), gx.tobytes()))
    assert seen[0] == seen[1] == seen[2]
