"""Gradients that are passed on without being written out: the same ones arrive, whoever looks at them on the way."""

import numpy as np
import pytest

import convkern as ck
from convkern import nn, ops, plan
from convkern.nn import functional as F

PASS = "avg_relu_bias_backward"
X = np.random.default_rng(0).standard_normal((3, 2, 9, 10)).astype(np.float32)


def layers() -> list[ck.Tensor]:
    """Fresh leaves: image, weight and bias."""
    rng = np.random.default_rng(1)
    shapes = (4, 2, 3, 3), (4,)
    values = (X, *(rng.standard_normal(shape).astype(np.float32) for shape in shapes))
    return [ck.tensor(value, requires_grad=True) for value in values]


def gradients(leaves, loss) -> tuple[list[np.ndarray], list[str]]:
    with plan.traced() as steps:
        loss.backward()
    return [leaf.grad.data for leaf in leaves], [problem.direction for problem, _ in steps]


def plain(leaves, kernel=2):
    """The pooled result, by operations that know nothing of each other."""
    x, w, b = leaves
    y = F.conv2d(x, w, padding=1) + b.reshape(1, 4, 1, 1)
    return y, F.avg_pool2d(y.relu(), kernel)


@pytest.mark.parametrize("kernel", [2, (2, 2), (3, 1), (3, 4)])
def test_pool_relu_and_bias_go_back_in_one_pass(kernel):
    want, _ = gradients(leaves := layers(), (plain(leaves, kernel)[1] ** 2).sum())
    x, w, b = leaves = layers()
    y = F.conv2d(x, w, b, padding=1, activation="relu")
    got, directions = gradients(leaves, (F.avg_pool2d(y, kernel) ** 2).sum())
    assert PASS in directions
    assert not {"avg_backward", "relu_bias_grad"} & set(directions)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options", [dict(kernel_size=3, stride=2), dict(kernel_size=2, padding=1), dict(kernel_size=(2, 3))], ids=str
)
def test_other_windows_are_written_out(options):
    x, w, b = leaves = layers()
    y = F.conv2d(x, w, b, padding=1, activation="relu")
    _, directions = gradients(leaves, F.avg_pool2d(y, **options).sum())
    assert PASS not in directions
    assert {"avg_backward", "relu_bias_grad"} <= set(directions)


@pytest.mark.parametrize("pools_first", [True, False])
def test_two_that_use_a_result_add_up(pools_first):
    def loss(y, pooled):
        return (pooled**2).sum() + (y.relu() ** 3).sum() if pools_first else (y.relu() ** 3).sum() + (pooled**2).sum()

    want, _ = gradients(leaves := layers(), loss(*plain(leaves)))
    x, w, b = leaves = layers()
    y = F.conv2d(x, w, b, padding=1, activation="relu")
    got, _ = gradients(leaves, loss(y, F.avg_pool2d(y, 2)))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_two_pools_of_one_result_add_up():
    want, _ = gradients(leaves := layers(), (F.avg_pool2d(plain(leaves)[0].relu(), 2) * 3).sum())
    x, w, b = leaves = layers()
    y = F.conv2d(x, w, b, padding=1, activation="relu")
    got, _ = gradients(leaves, (F.avg_pool2d(y, 2) + 2 * F.avg_pool2d(y, 2)).sum())
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_gradient_that_is_kept_is_whole():
    x, w, b = layers()
    y = F.conv2d(x, w, b, padding=1, activation="relu")
    y.retain_grad()
    F.avg_pool2d(y, 2).sum().backward()
    want = np.zeros(y.shape, np.float32)
    want[:, :, :8, :10] = 0.25
    np.testing.assert_array_equal(y.grad.data, want)


def test_leaves_and_others_get_arrays():
    x = ck.tensor(X, requires_grad=True)
    F.avg_pool2d(x, 2).sum().backward()
    np.testing.assert_array_equal(np.unique(x.grad.data), [0, 0.25])
    x = ck.tensor(X, requires_grad=True)
    F.avg_pool2d(x * 3, 2).sum().backward()
    np.testing.assert_array_equal(np.unique(x.grad.data), [0, 0.75])


def test_without_a_bias_or_a_relu_nothing_is_folded():
    x, w, b = layers()
    for y in (F.conv2d(x, w, activation="relu"), F.conv2d(x, w, b), F.conv2d(x, w, b.data, activation="relu")):
        with plan.traced() as steps:
            F.avg_pool2d(y, 2).sum().backward()
        assert PASS not in [problem.direction for problem, _ in steps]


def test_derivatives_of_both_orders():
    def pooled(x, w, b):
        return (F.avg_pool2d(F.conv2d(x, w, b, activation="relu"), 2) ** 2).sum()

    def gradients_of(*leaves):
        pooled(*leaves).backward(create_graph=True)
        return ops.concatenate([leaf.grad.reshape(-1) for leaf in leaves])

    point = [leaf.data.astype(np.float64) for leaf in layers()]
    for fn in (pooled, gradients_of):
        assert (result := ck.gradcheck(fn, point)), result


def test_a_model_takes_it_by_itself():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AvgPool2d(2))
    with plan.traced() as steps:
        model(X).sum().backward()
    assert PASS in [problem.direction for problem, _ in steps]
