"""Layers against PyTorch's over twenty training steps in float64: linear, activations, normalisation, noise."""

import numpy as np
import pytest

import convkern as ck
from convkern import nn
from convkern.nn import functional as F
from convkern.random import seed_noise

from .steps import assert_near, assert_same_state, train_both

torch = pytest.importorskip("torch")

ACTIVATIONS = [
    ("ReLU", ()), ("ReLU", (True,)), ("ReLU6", ()), ("LeakyReLU", ()), ("LeakyReLU", (0.3,)), ("PReLU", ()),
    ("PReLU", (6, 0.1)), ("ELU", ()), ("ELU", (1.7,)), ("SELU", ()), ("Sigmoid", ()), ("Tanh", ()), ("SiLU", ()),
    ("GELU", ()), ("GELU", ("tanh",)), ("Hardswish", ()), ("Softmax", (1,)), ("LogSoftmax", (-1,)),
]  # fmt: skip


def squared(y, target):
    return ((y - target) ** 2).mean()


def batches(shape, target_shape, scale=1.0, seed=0):
    """Another batch at every step."""

    def batch(step):
        rng = np.random.default_rng([seed, step])
        return scale * rng.standard_normal(shape) + 0.3, rng.standard_normal(target_shape)

    return batch


@pytest.mark.parametrize(("name", "arguments"), ACTIVATIONS, ids=str)
def test_activations(name, arguments):
    """Between two linear layers; the inputs reach far into every part of the function."""

    def build(module):
        return module.Sequential(module.Linear(5, 6), getattr(module, name)(*arguments), module.Linear(6, 3))

    lr = 0.001 if name == "LogSoftmax" else 0.05  # its steep slopes make longer steps diverge
    train_both(build(nn), build(torch.nn), batches((8, 5), (8, 3), scale=4.0), squared, squared, lr)


CURVES = ["relu6", "leaky_relu", "elu", "selu", "silu", "gelu", "hardswish", "logsigmoid"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    # PyTorch's float32 GELU is coarser, and NaN at infinity.
    [(name, dtype) for name in CURVES for dtype in ("float32", "float64") if (name, dtype) != ("gelu", "float32")],
)
def test_activations_of_special_values(name, dtype):
    """Kinks, ends and zeros; and where the function runs into a line."""
    x = np.array([-30, -6, -3, -1, -1e-30, -0.0, 0.0, 1e-30, 1, 3, 6, 30, np.inf, np.nan], dtype)
    t = ck.tensor(x, requires_grad=True)
    y = getattr(F, name)(t)
    z = torch.tensor(x, requires_grad=True)
    with np.errstate(invalid="ignore"):
        y.sum().backward()
    w = getattr(torch.nn.functional, name)(z)
    w.sum().backward()
    tolerance = dict(rtol=1e-6, atol=2e-7) if dtype == "float32" else dict(rtol=1e-12, atol=1e-15)
    assert y.dtype == t.grad.dtype == np.dtype(dtype)
    np.testing.assert_allclose(y.data, w.detach().numpy(), **tolerance)
    finite = np.isfinite(x)
    np.testing.assert_allclose(t.grad.data[finite], z.grad.numpy()[finite], **tolerance)


NORMS = [
    ("BatchNorm1d", (6,), {}, (4, 6)),
    ("BatchNorm1d", (6,), dict(momentum=None), (4, 6, 5)),
    ("BatchNorm1d", (6,), dict(affine=False, eps=0.1), (4, 6, 5)),
    ("BatchNorm2d", (6,), {}, (3, 6, 4, 5)),
    ("BatchNorm2d", (6,), dict(momentum=None), (3, 6, 4, 5)),
    ("BatchNorm2d", (6,), dict(momentum=0.7, track_running_stats=False), (3, 6, 4, 5)),
    ("BatchNorm3d", (6,), {}, (2, 6, 3, 4, 2)),
    ("BatchNorm3d", (6,), dict(momentum=None, eps=1e-3), (2, 6, 3, 4, 2)),
    ("LayerNorm", (5,), {}, (3, 6, 4, 5)),
    ("LayerNorm", ((6, 4, 5),), {}, (3, 6, 4, 5)),
    ("LayerNorm", ((4, 5), 0.1, True, False), {}, (3, 6, 4, 5)),
    ("LayerNorm", (6,), dict(elementwise_affine=False), (4, 6)),
    ("InstanceNorm1d", (6,), {}, (3, 6, 5)),
    ("InstanceNorm1d", (6,), dict(affine=True), (6, 5)),
    ("InstanceNorm2d", (6,), dict(affine=True), (3, 6, 4, 5)),
    ("InstanceNorm2d", (6,), dict(affine=True, track_running_stats=True, momentum=0.3), (3, 6, 4, 5)),
    ("InstanceNorm2d", (6,), dict(track_running_stats=True, eps=0.1), (3, 6, 4, 5)),
    ("InstanceNorm3d", (6,), dict(affine=True), (2, 6, 3, 4, 2)),
    ("GroupNorm", (1, 6), {}, (3, 6, 4, 5)),
    ("GroupNorm", (3, 6), {}, (3, 6, 4, 5)),
    ("GroupNorm", (6, 6), dict(affine=False), (3, 6, 4)),
    ("GroupNorm", (2, 6, 0.1), {}, (3, 6)),
    ("LocalResponseNorm", (5,), dict(alpha=0.5), (3, 6, 4, 5)),
    ("LocalResponseNorm", (2, 0.1, 0.5, 2.0), {}, (3, 6, 4)),
    ("LocalResponseNorm", (9,), dict(alpha=0.1), (2, 6, 3, 4, 2)),
]


@pytest.mark.parametrize(("name", "arguments", "options", "shape"), NORMS, ids=str)
def test_normalisation(name, arguments, options, shape):
    """Results, gradients, parameters and running statistics at every step, and evaluation at the end."""
    mine = nn.Sequential(getattr(nn, name)(*arguments, **options), nn.Tanh())
    theirs = torch.nn.Sequential(getattr(torch.nn, name)(*arguments, **options), torch.nn.Tanh())
    rng = np.random.default_rng(7)
    for parameter in theirs.parameters():
        parameter.data = torch.tensor(rng.standard_normal(parameter.shape))
    train_both(mine, theirs, batches(shape, shape, scale=3.0), squared, squared, lr=0.5)
    mine.eval()
    theirs.eval()
    x = 2 * rng.standard_normal(shape) - 1
    assert_near(
        mine(x).data if list(mine.parameters()) else mine(x), theirs(torch.tensor(x)).detach().numpy(), "evaluation"
    )
    assert_same_state(mine, theirs, "after evaluation")


def test_normalisation_keeps_the_memory_format():
    x = np.random.default_rng(0).standard_normal((2, 6, 4, 5)).astype(np.float32)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for layer in (nn.GroupNorm(3, 6), nn.InstanceNorm2d(6), nn.LayerNorm((4, 5)), nn.LocalResponseNorm(3)):
        a, b = ck.tensor(x, requires_grad=True), ck.Tensor(last, requires_grad=True)
        y, z = layer(a), layer(b)
        assert z.data.strides == last.strides
        np.testing.assert_allclose(z.data, y.data, rtol=1e-6, atol=1e-6)
        (y * y * y).sum().backward()
        (z * z * z).sum().backward()
        np.testing.assert_allclose(a.grad.data, b.grad.data, rtol=1e-5, atol=1e-5)


def test_normalisation_of_nothing():
    for layer in (nn.GroupNorm(3, 6), nn.InstanceNorm2d(6), nn.LayerNorm((4, 5)), nn.LocalResponseNorm(3)):
        y = layer(np.zeros((0, 6, 4, 5), np.float32))
        assert np.shape(y.data if isinstance(y, ck.Tensor) else y) == (0, 6, 4, 5)


@pytest.mark.parametrize("options", [{}, dict(bias=False)], ids=str)
def test_linear(options):
    def build(module):
        return module.Sequential(module.Linear(7, 4, **options), module.Tanh(), module.Linear(4, 2, **options))

    train_both(build(nn), build(torch.nn), batches((5, 3, 7), (5, 3, 2)), squared, squared)


# --- noise


class Masked(torch.nn.Module):
    """Dropout in PyTorch with a mask from outside."""

    def forward(self, x):
        return x * self.mask


@pytest.mark.parametrize("name", ["Dropout", "Dropout2d"])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_dropout(name, p):
    """The factors that ones are multiplied with are those that everything is multiplied with."""
    layer, masked = getattr(nn, name)(p), Masked()
    shape = (4, 6, 3, 5)

    def before(step):
        seed_noise(3, step)
        masked.mask = torch.tensor(np.asarray(layer(np.ones(shape))))
        seed_noise(3, step)

    mine = nn.Sequential(nn.Flatten(2), nn.Linear(15, 15), Reshape((4, 6, 3, 5)), layer)
    theirs = torch.nn.Sequential(
        torch.nn.Flatten(2), torch.nn.Linear(15, 15), torch.nn.Unflatten(2, (3, 5)), masked
    )  # fmt: skip
    if p == 1:  # no gradient arrives
        before(0)
        assert (np.asarray(layer(np.ones(shape))) == 0).all()
        return
    train_both(mine, theirs, batches(shape, shape), squared, squared, before=before)


class Reshape(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        return x.reshape(self.shape)


def test_dropout_drops_its_share_and_keeps_the_mean():
    seed_noise(1)
    x = np.ones((100, 50, 20), np.float32)
    for p in (0.2, 0.5, 0.9):
        y = nn.Dropout(p)(x)
        assert y.dtype == np.float32
        assert set(np.unique(y)) == {0, np.float32(1 / (1 - p))}
        sigma = np.sqrt(p * (1 - p) / x.size)
        assert abs((y == 0).mean() - p) < 5 * sigma
        channels = nn.Dropout2d(p)(x)
        assert (channels == channels[:, :, :1]).all()
        assert abs((channels[:, :, 0] == 0).mean() - p) < 5 * sigma * np.sqrt(20)


def test_gaussian_noise():
    seed_noise(1)
    x = np.full((200, 300), 2.0, np.float32)
    y = nn.GaussianNoise(0.5)(x)
    assert y.dtype == np.float32
    assert abs(y.mean() - 2) < 5 * 0.5 / np.sqrt(x.size)
    assert abs(y.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * x.size)
    t = ck.tensor(x, requires_grad=True)
    F.gaussian_noise(t, 0.5).sum().backward()
    np.testing.assert_array_equal(t.grad.data, 1)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.GaussianNoise(1.0)], ids=repr)
def test_noise_depends_on_the_seed_and_the_step_and_ends_with_training(layer):
    x = np.ones((3, 40, 5))
    drawn = []
    for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0)):
        seed_noise(seed, step)
        drawn.append((layer(x), layer(x)))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    several = [drawn[0][0], drawn[0][1], drawn[2][0], drawn[3][0]]
    assert all((a != b).any() for i, a in enumerate(several) for b in several[:i])
    layer.eval()
    assert layer(x) is x
    layer.train()
    for wrong in (-1, 2**64, "0"):
        with pytest.raises((ValueError, TypeError), match="seed must be"):
            seed_noise(wrong)


# --- representations and options


def test_what_the_layers_say_of_themselves():
    for layer, text in [
        (nn.LeakyReLU(0.2), "LeakyReLU(negative_slope=0.2)"),
        (nn.ELU(), "ELU(alpha=1.0)"),
        (nn.GELU("tanh"), "GELU(approximate='tanh')"),
        (nn.PReLU(3), "PReLU(num_parameters=3)"),
        (nn.Dropout(0.2, inplace=True), "Dropout(p=0.2)"),
        (nn.GroupNorm(2, 4), "GroupNorm(2, 4, eps=1e-05, affine=True)"),
        (nn.LocalResponseNorm(5), "LocalResponseNorm(5, alpha=0.0001, beta=0.75, k=1.0)"),
        (nn.ReLU(inplace=True), "ReLU()"),
    ]:
        assert repr(layer) == text
