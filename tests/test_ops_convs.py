"""Convolution of one and three axes, transposed convolution and their layers against PyTorch: values, gradients, errors."""

from __future__ import annotations

import numpy as np
import pytest

import convkern as ck
from convkern import nn

from .bounds import assert_within, floats
from .test_ops import compare, functional, normal

CONVOLUTIONS = {
    "1d": (1, (2, 3, 9), (4, 3, 3), {}),
    "1d, one pixel": (1, (2, 3, 1), (4, 3, 3), dict(padding=1)),
    "1d, all": (1, (2, 4, 21), (6, 2, 4), dict(stride=3, padding=2, dilation=2, groups=2)),
    "1d, depthwise": (1, (2, 4, 12), (8, 1, 3), dict(groups=4, padding=(1,))),
    "1d, same": (1, (1, 2, 8), (3, 2, 4), dict(padding="same", dilation=2)),
    "1d, pointwise": (1, (2, 3, 8), (5, 3, 1), {}),
    "1d, unbatched": (1, (3, 9), (2, 3, 3), dict(padding=1)),
    "1d, empty batch": (1, (0, 3, 5), (4, 3, 3), {}),
    "3d": (3, (2, 3, 5, 6, 7), (4, 3, 3, 2, 3), {}),
    "3d, all": (3, (1, 4, 7, 8, 9), (6, 2, 3, 3, 2), dict(stride=(2, 1, 3), padding=(1, 2, 0), dilation=(2, 2, 1), groups=2)),
    "3d, depthwise": (3, (2, 3, 4, 5, 6), (6, 1, 3, 3, 3), dict(groups=3, padding=1)),
    "3d, same": (3, (1, 2, 4, 5, 6), (3, 2, 2, 3, 5), dict(padding="same")),
    "3d, pointwise": (3, (2, 3, 2, 4, 5), (4, 3, 1, 1, 1), {}),
    "3d, unbatched": (3, (3, 4, 5, 6), (2, 3, 3, 3, 3), dict(padding=1)),
    "3d, empty batch": (3, (0, 3, 4, 5, 6), (4, 3, 3, 3, 3), {}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, bias):
    axes, x, w, options = CONVOLUTIONS[name]
    ours, theirs = getattr(ck, f"conv{axes}d"), getattr(functional(), f"conv{axes}d")
    inputs = [normal(*x), normal(*w, seed=1)] + ([normal(w[0], seed=2)] if bias else [])
    compare(lambda *a: ours(*a, **options), lambda *a: theirs(*a, **options), *inputs, atol=1e-11)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("batched", [True, False])
def test_relu_in_the_same_pass(axes, batched):
    torch = pytest.importorskip("torch")
    ours, theirs = getattr(ck, f"conv{axes}d"), getattr(functional(), f"conv{axes}d")
    x = normal(*((2,) if batched else ()), 3, *(6, 5, 7)[:axes])
    inputs = x, normal(4, 3, *(3, 2, 3)[:axes], seed=1), normal(4, seed=2)
    compare(lambda *a: ours(*a, activation="relu"), lambda *a: torch.relu(theirs(*a)), *inputs, atol=1e-12)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("batched", [True, False])
def test_residual(batched, activation):
    """Added between bias and activation, whatever its order in memory; channels-last follows x."""
    torch = pytest.importorskip("torch")
    last = torch.relu if activation else lambda y: y
    inputs = normal(*((2,) if batched else ()), 4, 9, 7), normal(6, 2, 3, 3, seed=1), normal(6, seed=2)
    options = dict(stride=2, padding=1, groups=2)
    residual = normal(*functional().conv2d(*map(torch.tensor, inputs), **options).shape, seed=3)
    compare(
        lambda x, w, b, r: ck.conv2d(x, w, b, **options, residual=r, activation=activation),
        lambda x, w, b, r: last(functional().conv2d(x, w, b, **options) + r),
        *inputs, residual, atol=1e-12,
    )  # fmt: skip
    want = ck.conv2d(*inputs, **options, residual=residual, activation=activation)
    strided = np.ascontiguousarray(residual.T).T
    out = np.empty_like(want)
    assert ck.conv2d(*inputs, **options, residual=strided, activation=activation, out=out) is out
    np.testing.assert_array_equal(out, want)
    matrix, flat = normal(5, 4, seed=4), normal(*inputs[0].shape[:-3], 5, 9, 7, seed=5)
    compare(
        lambda x, w, r: ck.pointwise(x, w, residual=r, activation=activation),
        lambda x, w, r: last(functional().conv2d(x, w[:, :, None, None]) + r),
        inputs[0], matrix, flat, atol=1e-12,
    )  # fmt: skip


def test_residual_in_channels_last():
    x, w, residual = normal(2, 4, 5, 6), normal(4, 4, 3, 3, seed=1), normal(2, 4, 5, 6, seed=2)
    want = ck.conv2d(x, w, padding=1, residual=residual)
    y = ck.conv2d(np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), w, padding=1, residual=residual)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("name", [n for n, case in CONVOLUTIONS.items() if "padding" not in case[3] and case[1][0]])
def test_gradients_as_operations(name):
    torch = pytest.importorskip("torch")
    axes, x, w, options = CONVOLUTIONS[name]
    function, grad = f"conv{axes}d", torch.nn.grad
    gy = normal(*getattr(ck, function)(normal(*x), normal(*w), **options).shape, seed=2)
    if len(x) == axes + 2:
        compare(
            lambda gy, w: getattr(ck, function + "_input_grad")(gy, w, x, **options),
            lambda gy, w: getattr(grad, function + "_input")(x, w, gy, **options),
            gy, normal(*w, seed=1), atol=1e-12,
        )  # fmt: skip
        compare(
            lambda a, gy: getattr(ck, function + "_weight_grad")(a, gy, w[2:], **options),
            lambda a, gy: getattr(grad, function + "_weight")(a, w, gy, **options),
            normal(*x), gy, atol=1e-12,
        )  # fmt: skip


TRANSPOSED = {
    "1d": (1, (2, 3, 9), (3, 4, 3), {}),
    "1d, all": (1, (2, 4, 8), (4, 3, 4), dict(stride=3, padding=2, output_padding=2, dilation=2, groups=2)),
    "1d, unbatched": (1, (3, 7), (3, 2, 4), dict(stride=2, padding=1)),
    "2d": (2, (2, 3, 5, 6), (3, 4, 3, 2), {}),
    "2d, up by two": (2, (2, 3, 5, 6), (3, 4, 2, 2), dict(stride=2)),
    "2d, output padding": (2, (2, 3, 5, 6), (3, 4, 3, 3), dict(stride=2, padding=1, output_padding=1)),
    "2d, all": (2, (1, 4, 5, 6), (4, 3, 3, 2), dict(stride=(3, 2), padding=(1, 0),
        output_padding=(2, 1), groups=2, dilation=(1, 3))),
    "2d, output padding from the dilation": (2, (2, 2, 4, 5), (2, 3, 3, 2), dict(output_padding=(1, 2), dilation=(2, 3))),
    "2d, the same, padded": (2, (2, 2, 4, 5), (2, 3, 3, 2), dict(padding=(2, 1), output_padding=(1, 2), dilation=(2, 3))),
    "2d, depthwise": (2, (2, 3, 5, 6), (3, 1, 3, 3), dict(groups=3, stride=2, padding=1)),
    "2d, unbatched": (2, (3, 5, 6), (3, 2, 3, 3), dict(stride=2)),
    "2d, empty batch": (2, (0, 3, 5, 6), (3, 2, 3, 3), dict(stride=2)),
    "3d": (3, (2, 3, 3, 4, 5), (3, 4, 2, 3, 2), dict(stride=2)),
    "3d, all": (3, (1, 4, 3, 4, 3), (4, 2, 3, 3, 2), dict(stride=(2, 1, 3), padding=(1, 0, 1),
        output_padding=(1, 0, 2), groups=2, dilation=(1, 2, 1))),
}  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name, bias):
    axes, x, w, options = TRANSPOSED[name]
    function = f"conv_transpose{axes}d"
    inputs = [normal(*x), normal(*w, seed=1)]
    inputs += [normal(w[1] * options.get("groups", 1), seed=2)] if bias else []
    ours, theirs = getattr(ck, function), getattr(functional(), function)
    compare(lambda *a: ours(*a, **options), lambda *a: theirs(*a, **options), *inputs, atol=1e-11)


def test_transposed_convolution_with_relu_and_out():
    torch = pytest.importorskip("torch")
    inputs = normal(2, 3, 4, 5), normal(3, 2, 3, 3, seed=1), normal(2, seed=2)
    theirs = lambda *a: torch.relu(functional().conv_transpose2d(*a, stride=2))  # noqa: E731
    compare(lambda *a: ck.conv_transpose2d(*a, stride=2, activation="relu"), theirs, *inputs, atol=1e-12)
    out = np.empty((2, 2, 11, 9)).transpose(0, 1, 3, 2)
    assert ck.conv_transpose2d(*inputs, stride=2, out=out) is out
    np.testing.assert_array_equal(out, ck.conv_transpose2d(*inputs, stride=2))


@pytest.mark.parametrize("name", [n for n in CONVOLUTIONS if "empty" not in n and "same" not in n])
def test_float32_within_its_bound(name):
    """Against PyTorch in float64, by the number of products in each sum."""
    torch = pytest.importorskip("torch")
    axes, x, w, options = CONVOLUTIONS[name]
    rng = np.random.default_rng(3)
    inputs = floats(rng, x, np.float32), floats(rng, w, np.float32)
    wide = [torch.tensor(a, dtype=torch.float64) for a in inputs]
    theirs = getattr(functional(), f"conv{axes}d")
    y = getattr(ck, f"conv{axes}d")(*inputs, **options, precision="strict")
    assert y.dtype == np.float32
    terms = int(np.prod(w[1:]))
    magnitude = theirs(*(a.abs() for a in wide), **options).numpy()
    assert_within(y, theirs(*wide, **options).numpy(), magnitude, terms)


def test_out_of_one_axis():
    x, w = normal(2, 3, 9), normal(4, 3, 3, seed=1)
    out = np.empty((2, 4, 7))
    assert ck.conv1d(x, w, out=out) is out
    np.testing.assert_array_equal(out, ck.conv1d(x, w))
    gx = np.empty_like(x)
    assert ck.conv1d_input_grad(out, w, x.shape, out=gx) is gx
    np.testing.assert_array_equal(gx, ck.conv1d_input_grad(out, w, x.shape))
    nested = ck.conv1d(x, w, padding=((2, 1),))
    np.testing.assert_array_equal(nested, ck.conv1d(np.pad(x, ((0, 0), (0, 0), (2, 1))), w))


# --- layers

LAYERS = {
    "Conv1d": ((4, 6, 3), dict(stride=2, padding=1, groups=2), (2, 4, 9)),
    "Conv2d": ((4, 6, 3), dict(stride=2, padding=1, groups=2), (2, 4, 9, 8)),
    "Conv3d": ((4, 6, 3), dict(stride=(1, 2, 1), padding=1, bias=False), (2, 4, 5, 6, 7)),
    "ConvTranspose1d": ((4, 6, 3), dict(stride=2, padding=1, output_padding=1, groups=2), (2, 4, 9)),
    "ConvTranspose2d": ((4, 6, (3, 2)), dict(stride=3, output_padding=(2, 1), dilation=2), (2, 4, 5, 6)),
    "ConvTranspose3d": ((4, 6, 2), dict(stride=2, bias=False), (2, 4, 3, 4, 5)),
}


def same_layer(name, args, options):
    """The layer in both libraries, with the same parameters, in float64."""
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, name)(*args, **options, dtype=torch.float64)
    ours = getattr(nn, name)(*args, **options, dtype=np.float64)
    for (mine, p), (other, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert (mine, p.shape) == (other, tuple(q.shape))
        p.data[...] = q.detach().numpy()
    return ours, theirs


def compare_layers(ours, theirs, x):
    """Equal results, and equal gradients of input and parameters."""
    torch = pytest.importorskip("torch")
    mine, other = ck.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, yt = ours(mine), theirs(other)
    np.testing.assert_allclose(y.data, yt.detach().numpy(), rtol=1e-12, atol=1e-12)
    gy = normal(*y.shape, seed=7)
    y.backward(gy)
    yt.backward(torch.tensor(gy))
    pairs = zip([mine, *ours.parameters()], [other, *theirs.parameters()], strict=True)
    for p, q in pairs:
        np.testing.assert_allclose(p.grad.data, q.grad.numpy(), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_pytorchs(name):
    args, options, shape = LAYERS[name]
    compare_layers(*same_layer(name, args, options), normal(*shape))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, "same", (1, 2, 0)], ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_padding_modes_are_pytorchs(axes, padding, mode):
    padding = padding[:axes] if isinstance(padding, tuple) else padding
    options = dict(padding=padding, padding_mode=mode, dilation=(1, 2, 1)[:axes])
    layers = same_layer(f"Conv{axes}d", (2, 3, (4, 3, 2)[:axes]), options)
    compare_layers(*layers, normal(*(2, 2, 6, 7, 5)[: axes + 2]))


def test_padding_mode_of_a_float32_layer_under_sequential():
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")
    x = normal(2, 2, 5, 6, dtype=np.float32)
    want = ck.conv2d(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), "reflect"), layer.weight.data, layer.bias.data)
    np.testing.assert_array_equal(layer(x).data, want)
    np.testing.assert_array_equal(nn.Sequential(layer, nn.ReLU())(x).data, np.maximum(want, 0))
    assert "padding_mode='reflect'" in repr(layer)


def test_transposed_layer_takes_the_wanted_size():
    torch = pytest.importorskip("torch")
    ours, theirs = same_layer("ConvTranspose2d", (2, 3, 3), dict(stride=2, padding=1))
    x = normal(1, 2, 4, 5)
    for size in ((7, 9), (8, 10), (7, 10)):
        want = theirs(torch.tensor(x), output_size=size).detach().numpy()
        np.testing.assert_allclose(ours(x, output_size=size).data, want, rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match=r"output_size must be between \[7, 9\] and \[8, 10\] for x .*got \(9, 9\)"):
        ours(x, output_size=(9, 9))


def test_multiply_adds_of_the_summary():
    assert nn.Conv1d(4, 6, 3, groups=2).summary((4, 9)).multiply_adds == 6 * 7 * 2 * 3
    assert nn.Conv3d(2, 3, (1, 2, 3)).summary((1, 2, 3, 4, 5)).multiply_adds == 3 * 3 * 3 * 3 * 2 * 6
    up = nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2)
    assert up.summary((3, 4, 5, 7)).multiply_adds == 3 * (4 * 5 * 7) * 3 * 9


X1, X3 = np.ones((2, 3, 9), np.float32), np.ones((2, 3, 4, 5, 6), np.float32)
X2, W2 = np.ones((2, 3, 5, 6), np.float32), np.ones((3, 4, 3, 3), np.float32)
ERRORS = {
    "rank of x": (lambda: ck.conv1d(X2, np.ones((4, 3, 3), np.float32)), ValueError,
        r"conv1d: x must have axes \(N, C, W\) or \(C, W\), got shape \(2, 3, 5, 6\)"),
    "rank of w": (lambda: ck.conv3d(X3, W2), ValueError,
        r"conv3d: w must have 5 axes \(K, C/groups, U, R, S\), got shape \(3, 4, 3, 3\)"),
    "width": (lambda: ck.conv1d(X1, np.ones((1, 3, 12), np.float32)), ValueError,
        r"conv1d: the kernel's width 12 \(dilation 1\) does not fit into the input's width 9 with padding \(0, 0\)"),
    "time": (lambda: ck.conv3d(X3, np.ones((1, 3, 7, 1, 1), np.float32), padding=1), ValueError,
        r"conv3d: the kernel's time 7 \(dilation 1\) does not fit into the input's time 4 with padding \(1, 1\)"),
    "channels": (lambda: ck.conv3d(X3, np.ones((1, 2, 1, 1, 1), np.float32)), ValueError,
        r"conv3d: x has 3 channels, but w of shape \(1, 2, 1, 1, 1\) with groups=1 takes 2"),
    "stride": (lambda: ck.conv3d(X3, np.ones((1, 3, 1, 1, 1), np.float32), stride=(1, 2)), ValueError,
        r"conv3d: stride must be an int or 3 ints, got \(1, 2\)"),
    "gradient": (lambda: ck.conv1d_input_grad(X1, np.ones((3, 2, 3), np.float32), (2, 2, 9)), ValueError,
        r"conv1d_input_grad: gy must have the output's shape \(2, 3, 7\) for input \(2, 2, 9\), got \(2, 3, 9\)"),
    "transposed channels": (lambda: ck.conv_transpose2d(X2, np.ones((4, 3, 3, 3), np.float32)), ValueError,
        r"conv_transpose2d: x has 3 channels, but w of shape \(4, 3, 3, 3\) takes 4"),
    "transposed rank": (lambda: ck.conv_transpose3d(X3, W2), ValueError,
        r"conv_transpose3d: w must have 5 axes \(C, K/groups, U, R, S\), got shape \(3, 4, 3, 3\)"),
    "output padding": (lambda: ck.conv_transpose2d(X2, W2, stride=2, output_padding=(0, 2)), ValueError,
        r"output_padding must be smaller than stride or dilation, got output_padding \(0, 2\), stride \(2, 2\)"),
    "nothing left": (lambda: ck.conv_transpose2d(X2, W2, padding=4), ValueError,
        r"x of shape \(2, 3, 5, 6\) with w of shape \(3, 4, 3, 3\).* leaves an output of size -1 along axis 2"),
    "transposed bias": (lambda: ck.conv_transpose2d(X2, W2, np.ones(3, np.float32)), ValueError,
        r"conv_transpose2d: bias must have shape \(4,\), one value per output channel, got \(3,\)"),
    "transposed padding": (lambda: ck.conv_transpose2d(X2, W2, padding="same"), TypeError,
        "conv_transpose2d: padding must be an int or 2 ints, got 'same'"),
    "transposed groups": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=3), ValueError,
        "ConvTranspose1d: groups=3 must divide in_channels=4 and out_channels=6"),
    "transposed mode": (lambda: nn.ConvTranspose1d(4, 6, 3, padding_mode="reflect"), ValueError,
        "ConvTranspose1d: padding_mode must be 'zeros', got 'reflect'"),
    "kernel of a layer": (lambda: nn.Conv3d(1, 1, (3, 3)), ValueError,
        r"Conv3d: kernel_size must be an int or 3 ints, got \(3, 3\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
