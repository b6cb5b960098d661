"""Values and gradients of the operations against PyTorch, where it is installed, and their edge cases."""

import math

import numpy as np
import pytest

import convkern as ck
from convkern import ops


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def compare(ours, theirs, *inputs, rtol=1e-12, atol=1e-13):
    """The same function in both libraries: equal results, shapes, dtypes and gradients; NaN where there is NaN."""
    torch = pytest.importorskip("torch")
    mine = [ck.Tensor(a.copy(), requires_grad=True) for a in inputs]
    other = [torch.tensor(a, requires_grad=True) for a in inputs]
    y, yt = ours(*mine), theirs(*other)
    assert y.shape == tuple(yt.shape)
    assert y.dtype == yt.detach().numpy().dtype
    np.testing.assert_allclose(y.data, yt.detach().numpy(), rtol, atol)
    gy = normal(*y.shape, seed=99, dtype=y.dtype)
    y.backward(gy)
    yt.backward(torch.tensor(gy))
    for x, xt in zip(mine, other, strict=True):
        np.testing.assert_allclose(x.grad.data, xt.grad.numpy(), rtol, atol)
    # Arrays give the same as Tensors.
    np.testing.assert_array_equal(ours(*inputs), y.data)


def functional():
    return pytest.importorskip("torch").nn.functional


# --- arithmetic, reductions, shapes


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (2, 3)), ((2, 1, 3), (4, 1)), ((), (2, 2)), ((3,), (2, 3)), ((1,), (1, 1))]
)
@pytest.mark.parametrize("operation", [ops.add, ops.sub, ops.mul, ops.div], ids=lambda f: f.__name__)
def test_broadcasting(operation, a, b):
    torch = pytest.importorskip("torch")
    compare(operation, getattr(torch, operation.__name__), normal(*a), normal(*b, seed=1))


@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid", "relu", "neg"])
def test_elementwise(name):
    torch = pytest.importorskip("torch")
    compare(getattr(ops, name), getattr(torch, name), normal(3, 4))
    compare(getattr(ops, name), getattr(torch, name), normal())


@pytest.mark.parametrize("name", ["log", "sqrt"])
def test_elementwise_of_positive_numbers(name):
    torch = pytest.importorskip("torch")
    compare(getattr(ops, name), getattr(torch, name), np.exp(normal(3, 4)))


@pytest.mark.parametrize("exponent", [-1, 0, 0.5, 1, 2, 3, 2.5])
def test_powers(exponent):
    compare(lambda x: x**exponent, lambda x: x**exponent, np.exp(normal(5)))


@pytest.mark.parametrize("exponent", [0, 1, 2, 3])
def test_powers_of_zero(exponent):
    compare(lambda x: x**exponent, lambda x: x**exponent, np.array([0.0, -0.0, 1.0, -2.0]))


def test_division_by_extreme_numbers():
    compare(
        ops.div, lambda a, b: a / b, np.array([1e-30, 1e30], np.float32), np.array([1e-25, 1e25], np.float32), rtol=1e-6
    )


@pytest.mark.parametrize("dim", [0, 1, -1, (0, 2), (-1, 0, 1)])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("name", ["sum", "mean", "amax"])
def test_reductions(name, dim, keepdim):
    torch = pytest.importorskip("torch")
    ours = {"sum": ops.sum, "mean": ops.mean, "amax": ops.max}[name]
    compare(lambda x: ours(x, dim, keepdim), lambda x: getattr(torch, name)(x, dim, keepdim), normal(2, 3, 4))


@pytest.mark.parametrize("name", ["sum", "mean", "max"])
def test_full_reductions(name):
    torch = pytest.importorskip("torch")
    compare(getattr(ops, name), getattr(torch, name), normal(2, 3))
    compare(getattr(ops, name), getattr(torch, name), normal())


@pytest.mark.parametrize("x", [[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0], [0.0, -0.0, -1.0, -1.0]])
def test_ties_share_the_gradient_of_max(x):
    torch = pytest.importorskip("torch")
    compare(ops.max, torch.max, np.array(x))
    compare(lambda x: ops.max(x, 1), lambda x: torch.amax(x, 1), np.array(x).reshape(2, 2))


def test_nan_wins_max():
    x = ck.Tensor(np.array([[1.0, np.nan, 3.0], [1.0, 2.0, 0.0]]), requires_grad=True)
    y = x.max(1)
    np.testing.assert_array_equal(y.data, [np.nan, 2])
    y.backward(np.array([5.0, 7.0]))
    np.testing.assert_array_equal(x.grad.data, [[0, 5, 0], [0, 7, 0]])


def test_empty_reductions():
    x = np.zeros((0, 3))
    assert ops.sum(x) == 0
    np.testing.assert_array_equal(ops.sum(x, 0), [0, 0, 0])
    assert ops.max(x, 1).shape == (0,)
    with pytest.raises(ValueError, match=r"mean: nothing to average in shape \(0, 3\) along dim=0"):
        ops.mean(x, 0)
    with pytest.raises(ValueError, match=r"max: nothing to compare in shape \(0, 3\) along dim=None"):
        ops.max(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.reshape(4, -1),
        lambda x: x.flatten(1),
        lambda x: x.flatten(),
        lambda x: x.transpose(0, 2),
        lambda x: x.permute(2, 0, 1),
        lambda x: x[1],
        lambda x: x[:, ::2, None, 1:3],
        lambda x: x[..., -1],
        lambda x: x[[0, 1, 0]],
        lambda x: x[[0, 1, 1], [2, 0, 0]],
        lambda x: x[:, [True, False, True]],
        lambda x: x[1, [0, 0], 2],
    ],
)
def test_shapes_and_indices(function):
    torch = pytest.importorskip("torch")
    x = normal(2, 3, 4)
    mine, other = ck.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, yt = function(mine), function(other)
    np.testing.assert_array_equal(y.data, yt.detach().numpy())
    gy = normal(*y.shape, seed=9)
    y.backward(gy)
    yt.backward(torch.tensor(gy))
    np.testing.assert_allclose(mine.grad.data, other.grad.numpy(), rtol=1e-14)


def test_index_by_tensors():
    x = ck.Tensor(normal(4, 2), requires_grad=True)
    index, rows = ck.tensor([3, 0, 3]), np.array([0, 1, 1])
    y = x[index, ck.Tensor(rows)]
    np.testing.assert_array_equal(y.data, x.data[[3, 0, 3], [0, 1, 1]])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [[0, 1], [0, 0], [0, 0], [1, 1]])
    with pytest.raises(IndexError, match="index 4 is out of bounds"):
        x[4]


def test_concatenate():
    torch = pytest.importorskip("torch")
    a, b = normal(2, 3), normal(2, 1, seed=1)
    compare(lambda a, b: ops.concatenate([a, b, a], -1), lambda a, b: torch.cat([a, b, a], -1), a, b)
    compare(lambda a: ops.concatenate((a,)), lambda a: torch.cat((a,)), a)
    assert type(ops.concatenate([a, b], 1)) is np.ndarray
    assert isinstance(ops.concatenate([a, ck.Tensor(b)], 1), ck.Tensor)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3), (3, 4)),
        ((3,), (3,)),
        ((2, 3), (3,)),
        ((3,), (3, 2)),
        ((5, 2, 3), (3, 4)),
        ((5, 1, 2, 3), (4, 3, 2)),
        ((3,), (2, 3, 4)),
        ((2, 0), (0, 3)),
        ((0, 3), (3, 2)),
    ],
)
def test_matmul(a, b):
    torch = pytest.importorskip("torch")
    compare(ops.matmul, torch.matmul, normal(*a), normal(*b, seed=1))


@pytest.mark.parametrize("x", [(5, 3), (3,), (2, 5, 3), (0, 3)])
def test_linear(x):
    F = functional()
    compare(ops.linear, F.linear, normal(*x), normal(4, 3, seed=1), normal(4, seed=2))
    compare(ops.linear, F.linear, normal(*x), normal(4, 3, seed=1))


# --- activations and losses


def test_relu_blocks_an_infinite_gradient():
    x = ck.tensor([-1.0, 2.0], requires_grad=True)
    with np.errstate(divide="ignore"):
        x.relu().log().sum().backward()
    np.testing.assert_array_equal(x.grad.data, np.array([0.0, 0.5], "float32"))


def test_relu_at_zero_and_nan():
    torch = pytest.importorskip("torch")
    x = np.array([0.0, -0.0, 1e-300, -1e-300, np.inf, -np.inf, np.nan])
    compare(ops.relu, torch.relu, x)
    w = np.ones((1, 1, 1, 1))
    for fused in (
        lambda x: ck.conv2d(x.reshape(1, 1, 1, 7), w, activation="relu"),
        lambda x: ck.pointwise(x.reshape(1, 1, 1, 7), w, activation="relu"),
    ):
        compare(fused, lambda x: torch.relu(x.reshape(1, 1, 1, 7)), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_and_tanh_do_not_overflow(dtype):
    torch = pytest.importorskip("torch")
    x = np.array([-1e4, -100, -20, 0, 20, 100, 1e4, np.inf, -np.inf, np.nan], dtype)
    tolerances = dict(rtol=4 * np.finfo(dtype).eps, atol=2 * np.finfo(dtype).tiny)
    compare(ops.sigmoid, torch.sigmoid, x, **tolerances)
    compare(ops.tanh, torch.tanh, x[:-3], **tolerances)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_of_huge_values(dtype, dim):
    torch = pytest.importorskip("torch")
    x = np.array([[1e4, 1e4 - 1, -1e4], [1.5e38, -1.5e38, 0], [-700, -701, -900]], dtype)
    tolerances = dict(rtol=20 * np.finfo(dtype).eps, atol=8 * np.finfo(dtype).eps)
    compare(lambda x: ops.softmax(x, dim), lambda x: torch.softmax(x, dim), x, **tolerances)
    compare(lambda x: ops.log_softmax(x, dim), lambda x: torch.log_softmax(x, dim), x, **tolerances)
    np.testing.assert_allclose(ops.softmax(x, dim).sum(dim), 1, rtol=4 * np.finfo(dtype).eps)


def test_softmax_of_masked_values():
    x = np.array([[0.0, -np.inf, 0.0]])
    np.testing.assert_array_equal(ops.softmax(x, 1), [[0.5, 0, 0.5]])
    np.testing.assert_allclose(ops.log_softmax(x, 1), [[-math.log(2), -np.inf, -math.log(2)]])
    assert ops.softmax(np.zeros((0, 3)), 1).shape == (0, 3)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy(reduction, dtype):
    torch = pytest.importorskip("torch")
    labels = np.array([3, 0, 0, 1], np.uint8)
    target = torch.tensor(labels.astype(np.int64))
    eps = np.finfo(dtype).eps
    for x in (normal(4, 5, dtype=dtype), 1e4 * normal(4, 5, dtype=dtype)):
        compare(
            lambda x: ops.cross_entropy(x, labels, reduction=reduction),
            lambda x: functional().cross_entropy(x, target, reduction=reduction),
            x, rtol=30 * eps, atol=30 * eps,
        )  # fmt: skip


def test_cross_entropy_of_nothing():
    none = np.zeros((0, 3)), np.zeros(0, int)
    assert ops.cross_entropy(*none, reduction="sum") == 0
    assert ops.cross_entropy(*none, reduction="none").shape == (0,)
    with pytest.raises(ValueError, match="the mean over an empty batch does not exist"):
        ops.cross_entropy(*none)


def test_cross_entropy_of_certain_and_impossible_labels():
    logits = np.array([[0.0, -np.inf], [1000.0, 0.0]])
    np.testing.assert_array_equal(ops.cross_entropy(logits, np.array([0, 1]), reduction="none"), [0, 1000])
    assert ops.cross_entropy(logits[:1], np.array([1]), reduction="sum") == np.inf
