"""Initialisation: bounds exactly, standard deviations within what chance allows, and the same numbers from the same seed."""

import math
import threading

import numpy as np
import pytest

import convkern as ck
from convkern import nn
from convkern.nn import init

SHAPE = (64, 32, 3, 5)  # (K, C/groups, R, S): fan in 32·15, fan out 64·15
FAN_IN, FAN_OUT = 480, 960
SIZE = math.prod(SHAPE)
SIGMAS = 5  # a right generator fails one of these comparisons less than once in a million draws


def empty(shape=SHAPE, dtype=np.float64):
    return ck.Tensor(np.full(shape, np.nan, dtype))


def assert_uniform(x, bound):
    """All inside the bound, the extremes close to it, mean and variance as of a uniform distribution."""
    assert x.min() >= -bound
    assert x.max() <= bound
    # The chance that the largest of n lies below (1 - t)·bound is (1 - t/2)^n; t = 40/n gives 2e-9.
    assert x.max() > bound * (1 - 40 / x.size)
    assert x.min() < -bound * (1 - 40 / x.size)
    deviation = bound / math.sqrt(3)
    assert abs(x.mean()) < SIGMAS * deviation / math.sqrt(x.size)
    # Var(x²) = bound⁴ (1/5 - 1/9)
    assert abs((x**2).mean() - deviation**2) < SIGMAS * bound**2 * math.sqrt(4 / 45 / x.size)


def assert_normal(x, std, mean=0.0):
    assert abs(x.mean() - mean) < SIGMAS * std / math.sqrt(x.size)
    # Var((x - mean)²) = 2 std⁴
    assert abs(((x - mean) ** 2).mean() - std**2) < SIGMAS * std**2 * math.sqrt(2 / x.size)
    assert np.abs(x - mean).max() > 3 * std  # not uniform: that would end at √3


GAINS = [
    (dict(nonlinearity="relu"), math.sqrt(2)),
    (dict(nonlinearity="tanh"), 5 / 3),
    (dict(nonlinearity="linear"), 1),
    (dict(nonlinearity="conv2d"), 1),
    (dict(nonlinearity="sigmoid"), 1),
    (dict(nonlinearity="selu"), 3 / 4),
    (dict(), math.sqrt(2)),
    (dict(a=0.2), math.sqrt(2 / 1.04)),
    (dict(a=math.sqrt(5)), math.sqrt(1 / 3)),
]


def assert_std(fill, std):
    """Exactly this standard deviation: the numbers of the standard normal distribution, scaled."""
    with init.seeded(1):
        standard = init.normal_(empty()).data
    with init.seeded(1):
        np.testing.assert_allclose(fill(empty()).data, std * standard, rtol=1e-14)


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", FAN_IN), ("fan_out", FAN_OUT)])
@pytest.mark.parametrize(("options", "gain"), GAINS, ids=str)
def test_kaiming(mode, fan, options, gain):
    with init.seeded(1):
        assert_uniform(init.kaiming_uniform_(empty(), mode=mode, **options).data, gain * math.sqrt(3 / fan))
        assert_normal(init.kaiming_normal_(empty(), mode=mode, **options).data, gain / math.sqrt(fan))
    assert_std(lambda t: init.kaiming_normal_(t, mode=mode, **options), gain / math.sqrt(fan))


@pytest.mark.parametrize("gain", [1.0, 5 / 3])
def test_xavier(gain):
    with init.seeded(2):
        assert_uniform(init.xavier_uniform_(empty(), gain).data, gain * math.sqrt(6 / (FAN_IN + FAN_OUT)))
        assert_normal(init.xavier_normal_(empty(), gain).data, gain * math.sqrt(2 / (FAN_IN + FAN_OUT)))
    assert_std(lambda t: init.xavier_normal_(t, gain), gain * math.sqrt(2 / (FAN_IN + FAN_OUT)))


def test_matrices_and_defaults():
    with init.seeded(3):
        assert_uniform(init.xavier_uniform_(empty((200, 100))).data, math.sqrt(6 / 300))
        assert_normal(init.kaiming_normal_(empty((200, 100))).data, math.sqrt(2 / 100))
        x = init.uniform_(empty()).data
        assert x.min() >= 0
        assert x.max() < 1
        assert_uniform(x - 0.5, 0.5)
        assert_normal(init.normal_(empty(), mean=3, std=0.5).data, 0.5, 3)
        assert_normal(init.normal_(empty()).data, 1)
    np.testing.assert_array_equal(init.zeros_(empty()).data, 0)
    np.testing.assert_array_equal(init.ones_(empty()).data, 1)
    np.testing.assert_array_equal(init.constant_(empty(), -2.5).data, -2.5)


def test_gains_are_pytorchs():
    calculate_gain = pytest.importorskip("torch").nn.init.calculate_gain
    for name in (*init.GAINS, "leaky_relu"):
        assert init.calculate_gain(name) == pytest.approx(calculate_gain(name), rel=1e-15)
    assert init.calculate_gain("leaky_relu", 0.3) == pytest.approx(calculate_gain("leaky_relu", 0.3))


def test_fans():
    assert init.fans(empty()) == (FAN_IN, FAN_OUT)
    assert init.fans(empty((7, 3))) == (3, 7)


@pytest.mark.parametrize("fill", [init.kaiming_uniform_, init.xavier_normal_, init.uniform_, init.ones_])
def test_fills_in_place(fill):
    parameter = nn.Parameter(np.full((4, 3), np.nan, np.float32))
    array, version = parameter.data, parameter.version.count
    assert fill(parameter) is parameter
    assert parameter.data is array
    assert parameter.dtype == np.float32
    assert np.isfinite(array).all()
    assert parameter.version.count > version
    assert parameter.is_leaf


@pytest.mark.parametrize("layer", [lambda: nn.Conv2d(6, 50, 3, groups=2), lambda: nn.Linear(27, 50)])
def test_layers_start_as_in_pytorch(layer):
    """Weight and bias uniform in ±1/√fan_in, here 27."""
    with init.seeded(4):
        made = [layer() for _ in range(20)]
    bound = np.float32(1 / math.sqrt(27))
    assert_uniform(np.concatenate([m.weight.data.ravel() for m in made]).astype(np.float64), float(bound))
    assert_uniform(np.concatenate([m.bias.data for m in made]).astype(np.float64), float(bound))


# --- seeds


def test_the_same_seed_gives_the_same_numbers():
    def draw():
        return np.concatenate([init.normal_(empty((3, 2))).data, init.uniform_(empty((3, 2))).data])

    with init.seeded(7):
        first = draw()
        second = draw()
    init.normal_(empty((5, 5)))  # what is drawn in between does not matter
    with init.seeded(7):
        np.testing.assert_array_equal(draw(), first)
        np.testing.assert_array_equal(draw(), second)
    assert (first != second).all()
    with init.seeded(8):
        assert (draw() != first).all()


def test_a_block_leaves_the_surrounding_draws_alone():
    init.manual_seed(5)
    expected = [init.uniform_(empty((4,))).data for _ in range(3)]
    init.manual_seed(5)
    got = [init.uniform_(empty((4,))).data]
    with init.seeded(99):
        init.uniform_(empty((4,)))
    got.append(init.uniform_(empty((4,))).data)
    with pytest.raises(ZeroDivisionError), init.seeded(98):
        raise ZeroDivisionError
    got.append(init.uniform_(empty((4,))).data)
    np.testing.assert_array_equal(got, expected)


def test_threads_draw_for_themselves():
    drawn = []

    def work():
        init.manual_seed(8)  # and nobody sets it back
        drawn.append(init.normal_(empty((4,))).data)

    with init.seeded(7):
        expected = init.normal_(empty((2, 4))).data, init.normal_(empty((4,))).data
    with init.seeded(7):
        first = init.normal_(empty((2, 4))).data
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        second = init.normal_(empty((4,))).data
    np.testing.assert_array_equal(first, expected[0])
    np.testing.assert_array_equal(second, expected[1])
    with init.seeded(8):
        np.testing.assert_array_equal(drawn[0], init.normal_(empty((4,))).data)


# --- orthogonal


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (6, 2, 3, 1), (2, 3, 2, 2), (1, 7)])
@pytest.mark.parametrize("gain", [1.0, math.sqrt(2)])
def test_orthogonal(shape, gain):
    with init.seeded(6):
        x = init.orthogonal_(empty(shape), gain).data.reshape(shape[0], -1)
    rows, columns = x.shape
    product = x @ x.T if rows <= columns else x.T @ x
    np.testing.assert_allclose(product, gain**2 * np.eye(min(rows, columns)), atol=1e-14)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (6, 2, 3)])
def test_orthogonal_as_in_pytorch(shape, monkeypatch):
    """From the same normal numbers the same matrix."""
    torch = pytest.importorskip("torch")
    drawn = np.random.default_rng(0).standard_normal((shape[0], math.prod(shape[1:])))

    class Draws:
        def normal(self, size):
            assert size == drawn.shape
            return drawn

    monkeypatch.setattr(init, "generator", Draws)
    normal = torch.tensor(drawn)
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, *_, **__: self.copy_(normal.reshape(self.shape)))
    expected = torch.nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64), 1.3).numpy()
    np.testing.assert_allclose(init.orthogonal_(empty(shape), 1.3).data, expected, rtol=1e-8, atol=1e-12)


def test_orthogonal_matrices_are_spread_evenly():
    """The sign of every element is as often + as -: without the correction the diagonal's would not be."""
    with init.seeded(7):
        signs = np.mean([np.sign(init.orthogonal_(empty((3, 3))).data) for _ in range(2000)], axis=0)
    assert np.abs(signs).max() < SIGMAS / math.sqrt(2000)


def test_orthogonal_refuses_a_vector_and_takes_nothing():
    with pytest.raises(ValueError, match=r"orthogonal_: tensor must have at least 2 axes, got shape \(3,\)"):
        init.orthogonal_(empty((3,)))
    assert init.orthogonal_(empty((0, 3))).shape == (0, 3)
