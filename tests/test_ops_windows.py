"""Convolution and pooling against PyTorch, where it is installed, values and gradients, and their edge cases."""

import numpy as np
import pytest

import convkern as ck
from convkern import ops

from .test_ops import compare, functional, normal

# --- convolution


CONVOLUTIONS = {
    "plain": ((2, 3, 7, 6), (4, 3, 3, 2), {}),
    "stride": ((2, 3, 8, 9), (4, 3, 3, 3), dict(stride=(2, 3))),
    "padding": ((1, 2, 5, 5), (3, 2, 3, 3), dict(padding=(2, 1))),
    "dilation": ((1, 2, 9, 9), (3, 2, 3, 2), dict(dilation=(2, 3))),
    "groups": ((2, 6, 5, 5), (4, 3, 3, 3), dict(groups=2)),
    "depthwise": ((2, 4, 5, 5), (8, 1, 3, 3), dict(groups=4, padding=1)),
    "all": ((2, 4, 11, 10), (6, 2, 3, 4), dict(stride=(3, 2), padding=(1, 4), dilation=(2, 1), groups=2)),
    "same": ((1, 2, 6, 7), (3, 2, 3, 5), dict(padding="same")),
    "same, even": ((1, 2, 6, 7), (3, 2, 4, 2), dict(padding="same")),
    "same, even, dilated": ((1, 2, 9, 8), (3, 2, 2, 4), dict(padding="same", dilation=(3, 1))),
    "valid": ((1, 2, 5, 5), (3, 2, 3, 3), dict(padding="valid")),
    "whole input": ((2, 3, 4, 5), (2, 3, 4, 5), {}),
    "unbatched": ((3, 6, 5), (2, 3, 3, 3), dict(padding=1)),
    "one pixel": ((2, 3, 1, 1), (4, 3, 3, 3), dict(padding=1)),
    "empty batch": ((0, 3, 5, 5), (4, 3, 3, 3), {}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv2d(name, bias):
    F = functional()
    x, w, options = CONVOLUTIONS[name]
    inputs = [normal(*x), normal(*w, seed=1)] + ([normal(w[0], seed=2)] if bias else [])
    compare(lambda *a: ck.conv2d(*a, **options), lambda *a: F.conv2d(*a, **options), *inputs, atol=1e-12)


def test_conv2d_with_asymmetric_padding():
    F = functional()
    x, w = normal(2, 2, 5, 6), normal(3, 2, 3, 3, seed=1)
    compare(
        lambda x, w: ck.conv2d(x, w, padding=((2, 0), (1, 3)), stride=2),
        lambda x, w: F.conv2d(F.pad(x, (1, 3, 2, 0)), w, stride=2),
        x, w, atol=1e-12,
    )  # fmt: skip


def test_conv2d_activation():
    torch = pytest.importorskip("torch")
    inputs = normal(2, 2, 5, 6), normal(3, 2, 3, 3, seed=1), normal(3, seed=2)
    F = functional()
    compare(lambda *a: ck.conv2d(*a, activation="relu"), lambda *a: torch.relu(F.conv2d(*a)), *inputs, atol=1e-12)
    plain = ck.conv2d(*inputs)
    np.testing.assert_array_equal(ck.conv2d(*inputs, activation="relu"), np.maximum(plain, 0))
    assert (plain < 0).any()


@pytest.mark.parametrize(
    "name", [n for n, (x, _, o) in CONVOLUTIONS.items() if len(x) == 4 and o.get("padding") != "same"]
)
def test_conv2d_gradients_as_operations(name):
    torch = pytest.importorskip("torch")
    x, w, options = CONVOLUTIONS[name]
    options = {k: v for k, v in options.items() if v != "valid"}
    gy = normal(*ck.conv2d(normal(*x), normal(*w), **options).shape, seed=2)
    grad = torch.nn.grad
    if x[0]:
        compare(
            lambda gy, w: ck.conv2d_input_grad(gy, w, x, **options),
            lambda gy, w: grad.conv2d_input(x, w, gy, **options),
            gy, normal(*w, seed=1), atol=1e-12,
        )  # fmt: skip
        compare(
            lambda a, gy: ck.conv2d_weight_grad(a, gy, w[2:], **options),
            lambda a, gy: grad.conv2d_weight(a, w, gy, **options),
            normal(*x), gy, atol=1e-11,
        )  # fmt: skip
    else:
        assert ck.conv2d_input_grad(gy, normal(*w), x, **options).shape == x
        np.testing.assert_array_equal(ck.conv2d_weight_grad(normal(*x), gy, w[2:], **options), np.zeros(w))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5), (2, 3, 1, 1), (0, 3, 4, 4)])
@pytest.mark.parametrize("four", [False, True])
def test_pointwise(shape, four):
    F = functional()
    w = normal(4, 3, 1, 1, seed=1) if four else normal(4, 3, seed=1)
    compare(
        ck.pointwise,
        lambda x, w, b: F.conv2d(x, w.reshape(4, 3, 1, 1), b),
        normal(*shape),
        w,
        normal(4, seed=2),
        atol=1e-12,
    )
    gy = normal(*shape[:-3], 4, *shape[-2:], seed=3)
    np.testing.assert_allclose(
        ck.pointwise_input_grad(gy, w), ck.conv2d_input_grad(gy, w.reshape(4, 3, 1, 1), shape), rtol=1e-12
    )
    x = normal(*shape)
    np.testing.assert_allclose(
        ck.pointwise_weight_grad(x, gy), ck.conv2d_weight_grad(x, gy, 1)[:, :, 0, 0], rtol=1e-12, atol=1e-13
    )


def test_strict_precision():
    x, w = normal(1, 2, 6, 6), normal(2, 2, 3, 3, seed=1)
    compare(lambda x, w: ck.conv2d(x, w, precision="strict"), lambda x, w: functional().conv2d(x, w), x, w, atol=1e-12)
    np.testing.assert_allclose(
        ck.pointwise(x, w[:, :, 0, 0], precision="strict"), ck.pointwise(x, w[:, :, 0, 0]), rtol=1e-12
    )
    np.testing.assert_array_equal(ck.max_pool2d(x, 2, precision="strict"), ck.max_pool2d(x, 2))
    np.testing.assert_array_equal(ck.avg_pool2d(x, 2, precision="strict"), ck.avg_pool2d(x, 2))


# --- pooling

POOLS = [
    dict(kernel_size=2),
    dict(kernel_size=(3, 2), stride=(1, 2)),
    dict(kernel_size=3, stride=2, padding=1),
    dict(kernel_size=3, stride=2, padding=1, ceil_mode=True),
    dict(kernel_size=2, stride=3, ceil_mode=True),
    dict(kernel_size=(4, 3), stride=(3, 2), padding=(2, 1), ceil_mode=True),
    dict(kernel_size=2, stride=2, padding=1, ceil_mode=True),  # the last window would start in the padding
]


@pytest.mark.parametrize("options", POOLS, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 7, 8), (3, 6, 6)])
def test_max_pool2d(options, shape):
    F = functional()
    x = normal(*shape)
    compare(lambda x: ck.max_pool2d(x, **options), lambda x: F.max_pool2d(x, **options), x)
    torch = pytest.importorskip("torch")
    y, indices = ck.max_pool2d(x, return_indices=True, **options)
    yt, it = F.max_pool2d(torch.tensor(x), return_indices=True, **options)
    np.testing.assert_array_equal(y, yt.numpy())
    np.testing.assert_array_equal(indices, it.numpy())
    assert indices.dtype == np.int64


@pytest.mark.parametrize("dilation", [2, (1, 3)])
def test_max_pool2d_with_dilation(dilation):
    F = functional()
    options = dict(kernel_size=2, stride=1, padding=1, dilation=dilation, ceil_mode=True)
    compare(lambda x: ck.max_pool2d(x, **options), lambda x: F.max_pool2d(x, **options), normal(2, 2, 7, 8))


@pytest.mark.parametrize(
    "plane",
    [
        [[1.0, 1, 1, 1]] * 4,
        [[0.0, -0.0, 0.0, -0.0]] * 4,
        [[np.nan, 1, 2, np.nan], [3, np.nan, np.nan, 4], [1, 2, np.inf, np.inf], [3, 4, np.inf, np.nan]],
        [[-np.inf] * 4] * 4,
    ],
    ids=["ties", "signed zeros", "NaN", "minus infinity"],
)
@pytest.mark.parametrize("options", [dict(kernel_size=2), dict(kernel_size=3, stride=1, padding=1)], ids=str)
def test_max_pool2d_of_special_values(plane, options):
    torch = pytest.importorskip("torch")
    F = functional()
    x = np.array(plane).reshape(1, 1, 4, 4)
    compare(lambda x: ck.max_pool2d(x, **options), lambda x: F.max_pool2d(x, **options), x)
    _, indices = ck.max_pool2d(x, return_indices=True, **options)
    _, expected = F.max_pool2d(torch.tensor(x), return_indices=True, **options)
    np.testing.assert_array_equal(indices, expected.numpy())


def test_max_pool2d_indices_may_be_written_to():
    x = ck.Tensor(normal(1, 1, 4, 4), requires_grad=True)
    y, indices = ck.max_pool2d(x, 2, return_indices=True)
    y.sum().backward(retain_graph=True)
    expected, x.grad = x.grad, None
    indices[:] = 0  # were they the ones that backward uses, others could send it into memory that is not ours
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.data, expected.data)


@pytest.mark.parametrize("extra", [{}, dict(count_include_pad=False), dict(divisor_override=3)], ids=str)
@pytest.mark.parametrize("options", POOLS, ids=str)
def test_avg_pool2d(options, extra):
    F = functional()
    for shape in ((2, 3, 7, 8), (3, 6, 6)):
        compare(
            lambda x: ck.avg_pool2d(x, **options, **extra),
            lambda x: F.avg_pool2d(x, **options, **extra),
            normal(*shape),
        )


def test_pools_with_asymmetric_padding():
    F = functional()
    x = normal(1, 2, 5, 6)
    pads = ((1, 0), (0, 1))
    compare(lambda x: ck.avg_pool2d(x, 2, 2, pads), lambda x: F.avg_pool2d(F.pad(x, (0, 1, 1, 0)), 2, 2), x)
    compare(
        lambda x: ck.max_pool2d(x, 2, 2, pads), lambda x: F.max_pool2d(F.pad(x, (0, 1, 1, 0), value=-np.inf), 2, 2), x
    )


def test_pools_of_an_empty_batch():
    x = ck.Tensor(np.zeros((0, 2, 4, 4)), requires_grad=True)
    for pool in (ck.max_pool2d, ck.avg_pool2d):
        y = pool(x, 2)
        assert y.shape == (0, 2, 2, 2)
        x.grad = None
        y.backward(np.zeros(y.shape))
        assert x.grad.shape == x.shape


def test_float32_stays_float32():
    x, w = normal(1, 2, 4, 4, dtype=np.float32), normal(2, 2, 3, 3, dtype=np.float32)
    for y in (
        ck.conv2d(x, w),
        ck.max_pool2d(x, 2),
        ck.avg_pool2d(x, 2),
        ck.pointwise(x, w[..., 0, 0]),
        ops.bias_grad(x),
    ):
        assert y.dtype == np.float32
