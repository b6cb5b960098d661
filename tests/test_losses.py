"""Losses against PyTorch's: over twenty training steps in float64, and value by value with every option."""

import numpy as np
import pytest

import convkern as ck
from convkern import nn
from convkern.nn import functional as F

from .steps import assert_near, train_both

torch = pytest.importorskip("torch")

REDUCTIONS = ("mean", "sum", "none")
WEIGHT = np.array([1.0, 0.2, 3.0, 0.0, 0.7])  # of five classes


def both(name, arrays, options):
    """The loss here and in PyTorch; arrays become buffers of both."""
    mine = getattr(nn, name)(**arrays, **options)
    theirs = getattr(torch.nn, name)(**{k: torch.tensor(v) for k, v in arrays.items()}, **options)
    return mine, theirs


def network(module, last=None):
    layers = [module.Linear(6, 8), module.Tanh(), module.Linear(8, 5)]
    return module.Sequential(*layers, *([] if last is None else [last]))


NUMBERS = [
    ("MSELoss", {}, {}),
    ("L1Loss", {}, {}),
    ("HuberLoss", {}, {}),
    ("HuberLoss", {}, dict(delta=0.3)),
    ("SmoothL1Loss", {}, {}),
    ("SmoothL1Loss", {}, dict(beta=0.2)),
    ("SmoothL1Loss", {}, dict(beta=0.0)),
    ("BCELoss", {}, {}),
    ("BCELoss", dict(weight=np.array([0.5, 1, 2, 1, 3.0])), {}),
    ("BCEWithLogitsLoss", {}, {}),
    ("BCEWithLogitsLoss", dict(weight=np.array([[0.5], [1], [2], [1]])), {}),
    ("BCEWithLogitsLoss", dict(pos_weight=np.array([0.5, 1, 2, 1, 3.0])), {}),
]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("name", "arrays", "options"), NUMBERS, ids=str)
def test_losses_of_numbers(name, arrays, options, reduction):
    probabilities = name.startswith("BCE")

    def batch(step):
        rng = np.random.default_rng(step)
        target = rng.random((4, 5)) if probabilities else 2 * rng.standard_normal((4, 5))
        return rng.standard_normal((4, 6)), target

    last = [nn.Sigmoid(), torch.nn.Sigmoid()] if name == "BCELoss" else [None, None]
    loss, other = both(name, arrays, dict(reduction=reduction, **options))
    train_both(network(nn, last[0]), network(torch.nn, last[1]), batch, loss, other, lr=0.02)


LABELS = [
    ({}, {}),
    (dict(weight=WEIGHT), {}),
    ({}, dict(ignore_index=2)),
    (dict(weight=WEIGHT), dict(ignore_index=0)),
    ({}, dict(label_smoothing=0.1)),
    (dict(weight=WEIGHT), dict(label_smoothing=0.3, ignore_index=1)),
    ({}, dict(label_smoothing=1.0)),
]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss"])
@pytest.mark.parametrize(("arrays", "options"), LABELS, ids=str)
def test_losses_of_labels(name, arrays, options, reduction):
    if name == "NLLLoss":
        options = {k: v for k, v in options.items() if k != "label_smoothing"}

    def batch(step):
        rng = np.random.default_rng(step)
        return rng.standard_normal((12, 6)), rng.integers(0, 5, 12)

    last = [nn.LogSoftmax(1), torch.nn.LogSoftmax(1)] if name == "NLLLoss" else [None, None]
    loss, other = both(name, arrays, dict(reduction=reduction, **options))
    train_both(network(nn, last[0]), network(torch.nn, last[1]), batch, loss, other, lr=0.02)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", [{}, dict(label_smoothing=0.2)], ids=str)
@pytest.mark.parametrize("arrays", [{}, dict(weight=WEIGHT)], ids=["plain", "weights"])
def test_cross_entropy_of_probabilities(arrays, options, reduction):
    def batch(step):
        rng = np.random.default_rng(step)
        return rng.standard_normal((4, 6)), rng.dirichlet(np.ones(5), 4)

    loss, other = both("CrossEntropyLoss", arrays, dict(reduction=reduction, **options))
    train_both(network(nn), network(torch.nn), batch, loss, other)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("shape", "labels"), [((5,), ()), ((3, 5, 4), (3, 4)), ((2, 5, 3, 4), (2, 3, 4)), ((2, 5, 1, 2, 3), (2, 1, 2, 3))]
)
def test_pixels(name, reduction, shape, labels):
    """A class for every pixel, or one vector of logits alone."""
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal(shape), np.asarray(rng.integers(0, 5, labels))
    options = dict(reduction=reduction, ignore_index=3 if labels else -100)
    t, z = ck.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y = getattr(F, name)(t, target, WEIGHT + 0.1, **options)
    other = getattr(torch.nn.functional, name)(z, torch.tensor(target), torch.tensor(WEIGHT + 0.1), **options)
    assert_near(y.data, other.detach().numpy(), "loss")
    gy = rng.standard_normal(y.shape)
    y.backward(gy)
    other.backward(torch.tensor(gy))
    assert_near(t.grad.data, z.grad.numpy(), "gradient")
    np.testing.assert_array_equal(getattr(F, name)(x, target, WEIGHT + 0.1, **options), y.data)  # arrays as Tensors


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss"])
def test_gradients_of_the_target(name):
    rng = np.random.default_rng(0)
    arrays = 2 * rng.standard_normal((2, 3, 4))
    mine = [ck.tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    getattr(F, name)(*mine).backward()
    getattr(torch.nn.functional, name)(*theirs).backward()
    for a, b in zip(mine, theirs, strict=True):
        assert_near(a.grad.data, b.grad.numpy(), name)


def test_binary_cross_entropy_at_the_ends():
    """A logarithm is never below -100, and its slope never above 1e12."""
    x, target = np.array([0.0, 0.0, 1.0, 1.0, 0.5]), np.array([0.0, 1.0, 0.0, 1.0, 0.25])
    t, z = ck.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y = F.binary_cross_entropy(t, target, reduction="none")
    other = torch.nn.functional.binary_cross_entropy(z, torch.tensor(target), reduction="none")
    np.testing.assert_allclose(y.data, other.detach().numpy(), rtol=1e-12)
    y.sum().backward()
    other.sum().backward()
    np.testing.assert_allclose(t.grad.data, z.grad.numpy(), rtol=1e-8)  # PyTorch's 1e-12 is a float32


def test_large_logits_do_not_overflow():
    x, target = np.array([-800.0, 800.0, -800.0, 800.0]), np.array([0.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(F.binary_cross_entropy_with_logits(x, target, reduction="none"), [0, 0, 800, 800])
    d = np.array([1e200, -np.inf])
    np.testing.assert_array_equal(F.huber_loss(d, np.zeros(2), "none", 2.0), [2e200, np.inf])


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_what_is_ignored_does_not_spoil_the_loss(bad):
    logits = np.random.default_rng(0).standard_normal((3, 5))
    logits[1, 2] = bad
    target = np.array([0, 9, 4])
    expected = F.cross_entropy(logits[[0, 2]], target[[0, 2]])
    assert F.cross_entropy(logits, target, ignore_index=9) == pytest.approx(expected, rel=1e-14)
    losses = F.cross_entropy(logits, target, ignore_index=9, reduction="none", label_smoothing=0.1)
    assert losses[1] == 0
    assert np.isfinite(losses[[0, 2]]).all()


def test_float32_stays_float32():
    x = np.random.default_rng(0).random((4, 5)).astype(np.float32)
    for name in ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy"):
        assert getattr(F, name)(x, x[::-1].copy()).dtype == np.float32
    assert F.binary_cross_entropy_with_logits(x, x, pos_weight=x[0]).dtype == np.float32
    labels, weight = np.array([0, 1, 2, 3]), WEIGHT.astype(np.float32)
    for reduction in REDUCTIONS:
        t = ck.tensor(x, requires_grad=True)
        y = F.cross_entropy(t, labels, weight, label_smoothing=0.1, ignore_index=1, reduction=reduction)
        y.sum().backward()
        assert y.dtype == t.grad.dtype == np.float32


def test_weights_are_saved_with_a_model_that_holds_the_loss():
    loss = nn.CrossEntropyLoss(WEIGHT)
    assert list(loss.state_dict()) == ["weight"]
    assert nn.CrossEntropyLoss().state_dict() == {}
    assert nn.NLLLoss().weight is None
