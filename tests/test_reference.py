"""The definitions against outside ones: SciPy's correlate, PyTorch, and each other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal

from convkern.bench.cases import CONVS, POINTWISE, POOLS
from convkern.kernels.conv import reference as conv
from convkern.kernels.pointwise import reference as pointwise
from convkern.kernels.pool import reference as pool
from convkern.kernels.spec import ConvSpec, output_size

from .bounds import integers

RNG = np.random.default_rng(0)


def data(spec: ConvSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return tuple(integers(RNG, s, np.float64) for s in (spec.x_shape, spec.w_shape, (spec.k,), spec.y_shape))


@pytest.mark.parametrize("case", CONVS, ids=lambda c: c.name)
def test_forward_is_scipys_correlate(case):
    spec = case.spec()
    x, w, bias, _ = data(spec)
    cg, kg = spec.c // spec.groups, spec.k // spec.groups
    spread = conv.spread(w, spec.dilation)
    xp = np.pad(x, ((0, 0), (0, 0), *spec.padding))
    y = np.empty(spec.y_shape)
    for n in range(spec.n):
        for k in range(spec.k):
            planes = (signal.correlate(xp[n, k // kg * cg + c], spread[k, c], "valid", "direct") for c in range(cg))
            y[n, k] = sum(planes)[:: spec.stride[0], :: spec.stride[1]] + bias[k]
    np.testing.assert_array_equal(conv.forward(x, w, bias, spec), y)


@pytest.mark.parametrize("case", CONVS, ids=lambda c: c.name)
def test_convolution_and_gradients_are_pytorchs(case):
    torch = pytest.importorskip("torch")
    spec = case.spec()
    x, w, bias, gy = data(spec)
    (top, bottom), (left, right) = spec.padding
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, w, bias))
    padded = torch.nn.functional.pad(tx, (left, right, top, bottom))
    ty = torch.nn.functional.conv2d(padded, tw, tb, spec.stride, 0, spec.dilation, spec.groups)
    ty.backward(torch.tensor(gy))
    np.testing.assert_array_equal(conv.forward(x, w, bias, spec), ty.detach().numpy())
    np.testing.assert_array_equal(conv.input_grad(gy, w, spec), tx.grad.numpy())
    np.testing.assert_array_equal(conv.weight_grad(x, gy, spec), tw.grad.numpy())
    np.testing.assert_array_equal(conv.bias_grad(gy), tb.grad.numpy())


@pytest.mark.parametrize("case", CONVS, ids=lambda c: c.name)
def test_rot180_is_the_direct_sum(case):
    """gx from the turned kernel equals gx gathered product by product from the forward sum."""
    spec = case.spec()
    _, w, _, gy = data(spec)
    cg, kg = spec.c // spec.groups, spec.k // spec.groups
    gx = np.zeros(spec.x_shape)
    for n, k, p, q in np.ndindex(spec.y_shape):
        for c, r, s in np.ndindex(cg, *spec.kernel):
            h = p * spec.stride[0] - spec.padding[0][0] + r * spec.dilation[0]
            v = q * spec.stride[1] - spec.padding[1][0] + s * spec.dilation[1]
            if 0 <= h < spec.size[0] and 0 <= v < spec.size[1]:
                gx[n, k // kg * cg + c, h, v] += gy[n, k, p, q] * w[k, c, r, s]
    np.testing.assert_array_equal(conv.input_grad(gy, w, spec), gx)


def test_rot180_turns_by_180_degrees():
    w = np.arange(6.0).reshape(1, 1, 2, 3)
    np.testing.assert_array_equal(conv.rot180(w)[0, 0], [[5, 4, 3], [2, 1, 0]])
    np.testing.assert_array_equal(conv.rot180(w), np.rot90(w, 2, axes=(2, 3)))


@pytest.mark.parametrize("case", POOLS, ids=lambda c: c.name)
def test_pooling_is_pytorchs(case):
    torch = pytest.importorskip("torch")
    spec = case.spec()
    if any(before != after for before, after in spec.padding):
        pytest.skip("PyTorch's pools know symmetric padding only")
    x = integers(RNG, spec.x_shape, np.float64)  # few values, so ties are everywhere
    gy = integers(RNG, spec.y_shape, np.float64)
    padding = tuple(before for before, _ in spec.padding)
    functional = torch.nn.functional
    tx = torch.tensor(x, requires_grad=True)
    y, indices = pool.max_forward(x, spec)
    ty, ti = functional.max_pool2d(
        tx, spec.kernel, spec.stride, padding, spec.dilation, case.ceil_mode, return_indices=True
    )
    ty.backward(torch.tensor(gy))
    np.testing.assert_array_equal(y, ty.detach().numpy())
    np.testing.assert_array_equal(indices, ti.numpy())
    np.testing.assert_array_equal(pool.max_backward(gy, indices, spec), tx.grad.numpy())
    if spec.dilation != (1, 1):
        return
    tx.grad = None
    ty = functional.avg_pool2d(
        tx, spec.kernel, spec.stride, padding, case.ceil_mode, bool(spec.count_include_pad), spec.divisor or None
    )
    ty.backward(torch.tensor(gy))
    np.testing.assert_allclose(pool.avg_forward(x, spec), ty.detach().numpy(), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(pool.avg_backward(gy, spec), tx.grad.numpy(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("case", POINTWISE, ids=lambda c: c.name)
def test_pointwise_is_a_matrix_product(case):
    spec = case.spec()
    x = integers(RNG, (spec.n, spec.c, spec.pixels), np.float64)
    w, gy = integers(RNG, (spec.k, spec.c), np.float64), integers(RNG, (spec.n, spec.k, spec.pixels), np.float64)
    bias = integers(RNG, (spec.k,), np.float64)
    np.testing.assert_array_equal(pointwise.forward(x, w, bias, spec), w @ x + bias[:, None])
    np.testing.assert_array_equal(pointwise.input_grad(gy, w, spec), w.T @ gy)
    np.testing.assert_array_equal(pointwise.weight_grad(x, gy, spec), np.einsum("nkl,ncl->kc", gy, x))


@pytest.mark.parametrize("case", POINTWISE, ids=lambda c: c.name)
def test_pointwise_is_the_1x1_convolution(case):
    flat = case.spec()
    spec = ConvSpec(
        flat.n, flat.c, flat.k, 1, (1, flat.pixels), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, flat.pixels)
    )
    x, w, bias, _ = data(spec)
    y = conv.forward(x, w, bias, spec)
    np.testing.assert_array_equal(pointwise.forward(x[:, :, 0], w[:, :, 0, 0], bias, flat), y[:, :, 0])


def test_output_size_counts_window_positions():
    """The rule against counting, for every small setting."""
    for size in range(1, 9):
        for kernel in range(1, 5):
            for stride in range(1, 4):
                for before in range(3):
                    for after in range(3):
                        for dilation in range(1, 3):
                            span = dilation * (kernel - 1) + 1
                            count = sum(
                                start % stride == 0 and start + span <= size + before + after
                                for start in range(size + before + after)
                            )
                            got = output_size(size, kernel, stride, (before, after), dilation)
                            assert max(got, 0) == count
