"""Linear layers and the gradient of a ReLU after a bias: kernel rows against the definition, operations beside BLAS."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convkern as ck
from convkern import nn, ops
from convkern.kernels import elementwise, linear
from convkern.kernels.elementwise import cpu_planes
from convkern.kernels.elementwise import reference as elementwise_reference
from convkern.kernels.linear import reference as linear_reference
from convkern.kernels.spec import ChannelSpec, LinearSpec

from .bounds import assert_within, floats, integers
from .test_kernels import DTYPES, cpu_rows, row_id, run

SPECS = [
    LinearSpec(*sizes)
    for sizes in [(1, 1, 1), (4, 16, 4), (7, 83, 9), (33, 120, 84), (8, 48, 8), (9, 100, 17), (0, 5, 3)]
]


def check_linear(row, spec: LinearSpec, dtype: str, make=floats, exact: bool = False) -> None:
    rng = np.random.default_rng(8)
    x_shape, w_shape, y_shape = (spec.n, spec.inputs), (spec.outputs, spec.inputs), (spec.n, spec.outputs)
    shapes, result, terms = {
        "forward": ([x_shape, w_shape, (spec.outputs,)], y_shape, spec.inputs + 1),
        "input_grad": ([y_shape, w_shape], x_shape, spec.outputs),
        "weight_grad": ([x_shape, y_shape], w_shape, max(spec.n, 1)),
    }[row.direction]
    arrays = [make(rng, shape, dtype) for shape in shapes]
    out = np.empty(result, dtype)
    assert run("linear", row, spec, dtype, *arrays, out=(out,))
    definition = getattr(linear_reference, row.direction)
    wide = [a.astype(np.float64) for a in arrays]
    want = definition(*wide, spec)
    if exact:
        np.testing.assert_array_equal(out, want)
    else:
        assert_within(out, want, definition(*map(np.abs, wide), spec._replace(activation=0)), terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", cpu_rows(linear.VARIANTS), ids=row_id)
def test_linear_rows(row, dtype):
    for spec in SPECS:
        for activation in (0, 1) if row.direction == "forward" else (0,):
            check_linear(row, spec._replace(activation=activation), dtype)


@given(
    spec=st.builds(LinearSpec, st.integers(0, 20), st.integers(1, 70), st.integers(1, 70), st.just(0)),
    dtype=st.sampled_from(DTYPES),
)
def test_linear_rows_are_exact_on_integers(spec, dtype):
    for row in cpu_rows(linear.VARIANTS):
        check_linear(row, spec, dtype, make=integers, exact=True)


@pytest.mark.parametrize("row", [r for r in linear.VARIANTS if r.direction == "forward"], ids=row_id)
def test_a_linear_row_without_bias(row):
    rng = np.random.default_rng(0)
    spec = LinearSpec(5, 30, 7)
    x, w = floats(rng, (5, 30), "float32"), floats(rng, (7, 30), "float32")
    outs = [np.empty((5, 7), "float32") for _ in range(2)]
    for out, bias in zip(outs, (np.empty(0, "float32"), np.zeros(7, "float32")), strict=True):
        assert run("linear", row, spec, "float32", x, w, bias, out=(out,))
    np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [r for r in cpu_rows(elementwise.VARIANTS) if r.name == "planes"], ids=row_id)
def test_relu_bias_grad_rows(row, dtype):
    rng = np.random.default_rng(9)
    for spec in (
        ChannelSpec(3, 4, 64), ChannelSpec(2, 3, 81), ChannelSpec(5, 2, 1), ChannelSpec(40, 3, 500), ChannelSpec(0, 2, 9)
    ):  # fmt: skip
        gy, y = floats(rng, tuple(spec), dtype), np.maximum(integers(rng, tuple(spec), dtype), 0)
        y.flat[::17] = np.nan
        g, sums = np.empty(tuple(spec), dtype), np.empty(spec.c, dtype)
        assert run("elementwise", row, spec, dtype, gy, y, out=(g, sums))
        want, want_sums = elementwise_reference.relu_bias_grad(gy.astype(np.float64), y, spec)
        np.testing.assert_array_equal(g, want)
        # Each plane adds up in the array's dtype, all planes together in float64.
        assert_within(sums, want_sums, np.abs(want).sum((0, 2)), max(spec.pixels, 1) + 1)
    assert spec.n == 0
    assert cpu_planes.BLOCK < 40 * 3 * 500  # more than one job


# --- the operation


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6), (6,), (0, 6)])
def test_linear_beside_blas(shape, bias, activation, monkeypatch):
    """Small and large products give the same, and the same gradients, in every shape."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape), rng.standard_normal((4, 6)), rng.standard_normal(4)]
    gy = rng.standard_normal((*shape[:-1], 4))
    results = []
    for small in (1e9, -1.0):
        monkeypatch.setattr(sys.modules["convkern.ops.linear"], "SMALL", small)  # ops.linear is the function
        leaves = [ck.tensor(a, requires_grad=True) for a in arrays]
        y = ops.linear(*leaves[:2], leaves[2] if bias else None, activation=activation)
        y.backward(gy)
        results.append([y.data, *(leaf.grad.data for leaf in leaves[: 3 if bias else 2])])
    y = arrays[0] @ arrays[1].T + (arrays[2] if bias else 0)
    np.testing.assert_allclose(results[0][0], np.maximum(y, 0) if activation else y, rtol=1e-12, atol=1e-14)
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_gradcheck_with_a_relu():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((3, 5)), rng.standard_normal((4, 5)), rng.standard_normal(4)

    def slope(x, w, b):
        (ops.linear(x, w, b, activation="relu") ** 2).sum().backward(create_graph=True)
        return x.grad * w.grad.sum() + b.grad.sum()

    assert ck.gradcheck(lambda x, w, b: ops.linear(x, w, b, activation="relu"), (x, w, b))
    assert ck.gradcheck(slope, (x, w, b))


def test_sequential_fuses_it_with_a_relu():
    x = ck.tensor(np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32), requires_grad=True)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
    fused = model(x)
    assert fused.grad_fn.name == "linear"
    handle = model[0].register_forward_hook(lambda module, args, y: None)
    plain = model(x)
    assert plain.grad_fn.name == "relu"
    handle.remove()
    np.testing.assert_array_equal(fused.data, plain.data)
