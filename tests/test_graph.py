"""The graph: backward, accumulation, what is explained, aliasing, retain_grad, detach, freezing, no_grad."""

import threading

import numpy as np
import pytest

import convkern as ck
from convkern import nn, ops


def leaf(values, dtype=np.float64):
    return ck.Tensor(np.array(values, dtype), requires_grad=True)


# --- going backward


def test_gradients_add_up_in_leaves():
    x, y = leaf([1, 2]), leaf([3, 4])
    (x * y).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [3, 4])
    np.testing.assert_array_equal(y.grad.data, [1, 2])
    (x * 10).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [13, 14])
    x.grad = None
    (x * 10).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [10, 10])
    assert not x.grad.requires_grad


def test_only_leaves_get_gradients():
    x = leaf([1, 2])
    h = x * 2
    h.sum().backward()
    assert h.grad is None
    assert x.grad is not None


def test_gradient_argument():
    x = leaf([1, 2, 3])
    for gradient in (np.array([1.0, 10, 100]), ck.tensor(np.array([1.0, 10, 100]))):
        x.grad = None
        (x * 2).backward(gradient)
        np.testing.assert_array_equal(x.grad.data, [2, 20, 200])
    (x * 2)[:1].backward()  # one element needs none
    np.testing.assert_array_equal(x.grad.data, [4, 20, 200])


def test_backward_of_a_leaf():
    x = leaf([1, 2])
    g = np.array([5.0, 6.0])
    x.backward(g)
    x.backward(g)
    np.testing.assert_array_equal(x.grad.data, [10, 12])
    s = leaf(3)
    s.backward()
    assert s.grad.item() == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_have_the_dtype_of_their_tensor(dtype):
    s = leaf(3, dtype)
    h = s * s  # gradients of tensors without axes are added in the leaf …
    (h * h + h + s).backward()  # … and on the way
    assert s.grad.dtype == dtype
    assert s.grad.item() == 4 * 27 + 6 + 1
    s.backward(np.array(1, dtype))
    assert s.grad.dtype == dtype
    assert type(s.grad.data) is np.ndarray


@pytest.mark.parametrize(
    "combine",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a / b,
        lambda a, b: a @ b,
        lambda a, b: ops.concatenate([a, b]),
    ],
)
def test_each_operand_keeps_its_dtype(combine):
    a, b = leaf([[1, 2], [3, 4]], np.float32), leaf([[5, 6], [7, 9]])
    for create_graph in (False, True):
        a.grad = b.grad = None
        y = combine(a * 1, b * 1)  # also on the way
        assert y.dtype == np.float64
        y.sum().backward(create_graph=create_graph)
        assert (a.grad.dtype, b.grad.dtype) == (np.float32, np.float64)


def test_diamonds_and_shared_parts():
    x = leaf([2.0])
    h = x * 3
    y = h * h + h.exp() * 0 + (h + x) * h  # h is used five times
    y.backward()
    # y = h² + (h + x)h with h = 3x: 21 x²
    np.testing.assert_array_equal(x.grad.data, [84])


def test_every_node_is_visited_once_in_a_deep_diamond():
    x = leaf([1.0])
    y = x
    for _ in range(60):
        y = y + y  # 2**60 paths
    y.backward()
    assert x.grad.item() == 2.0**60


def test_unused_branches_and_outputs():
    x, unused = leaf([1, 2]), leaf([5, 6])
    dead = unused * x
    (x * 2).sum().backward()
    assert unused.grad is None
    assert dead.grad_fn is not None
    np.testing.assert_array_equal(x.grad.data, [2, 2])


def test_a_chain_of_ten_thousand_operations():
    x = leaf([1.0])
    y = x
    for _ in range(10_000):
        y = y + 1
    y.backward()
    assert x.grad.item() == 1
    assert y.item() == 10_001
    del y  # taking the chain apart must not recurse either

    y = x
    for _ in range(10_000):
        y = y * 1.0
    del y


def test_a_chain_of_ten_thousand_operations_twice_differentiated():
    n, w = 10_000, leaf(1.0001)
    y = w
    for _ in range(n - 1):
        y = y * w
    y.backward(create_graph=True)
    first, w.grad = w.grad, None
    assert first.item() == pytest.approx(n * 1.0001 ** (n - 1), rel=1e-9)
    first.backward()
    assert w.grad.item() == pytest.approx(n * (n - 1) * 1.0001 ** (n - 2), rel=1e-9)
    del y, first


# --- what backward explains


def test_second_backward_is_explained():
    x = leaf([1, 2])
    y = (x * x).sum()
    y.backward()
    with pytest.raises(
        RuntimeError, match="went through sum before and freed what it had saved; pass retain_graph=True"
    ):
        y.backward()
    np.testing.assert_array_equal(x.grad.data, [2, 4])


def test_a_shared_part_that_was_freed_is_explained():
    x = leaf([1, 2])
    h = x.exp()
    first, second = (h * 2).sum(), (h * 3).sum()
    first.backward()
    with pytest.raises(RuntimeError, match=r"backward went through exp before .* retain_graph=True"):
        second.backward()


def test_retain_graph():
    x = leaf([1, 2])
    h = x.exp()
    first, second = (h * h).sum(), (h * 3).sum()
    first.backward(retain_graph=True)
    first.backward(retain_graph=True)
    second.backward()
    np.testing.assert_allclose(x.grad.data, 4 * np.exp([2, 4]) + 3 * np.exp([1, 2]))


def test_not_a_scalar():
    x = leaf(np.ones((2, 3)))
    with pytest.raises(RuntimeError, match=r"needs a scalar, this Tensor has shape \(2, 3\); pass gradient="):
        (x * 2).backward()


def test_a_gradient_that_does_not_fit():
    y = leaf([1, 2]) * 2
    with pytest.raises(ValueError, match=r"gradient must have the Tensor's shape \(2,\), got \(3,\)"):
        y.backward(np.ones(3))
    with pytest.raises(TypeError, match="gradient must have the Tensor's dtype float64, got float32"):
        y.backward(np.ones(2, np.float32))
    with pytest.raises(TypeError, match="gradient must be an array or a Tensor, got list"):
        y.backward([1.0, 1.0])


def test_nothing_to_differentiate():
    with pytest.raises(RuntimeError, match="does not require grad and was not computed from one that does"):
        ck.tensor([1.0]).backward()
    x = leaf([1.0])
    with ck.no_grad():
        y = x * 2
    with pytest.raises(RuntimeError, match="does not require grad"):
        y.backward()


# --- gradients never share memory


def assert_gradients_are_alone(*tensors):
    arrays = [t.data for t in tensors] + [t.grad.data for t in tensors]
    for i, a in enumerate(arrays):
        assert a.flags.writeable
        for b in arrays[:i]:
            assert not np.shares_memory(a, b)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    "compute",
    [
        lambda a, b: a + b,
        lambda a, b: a + b + a.reshape(2, 2).reshape(4),
        lambda a, b: ops.concatenate([a, b])[2:6],
        lambda a, b: a.clone() + b.clone(),
        lambda a, b: ops.sum(ops.expand(a, (3, 4)), 0) - b,
        lambda a, b: a * b,
    ],
)
def test_gradients_never_alias(compute, create_graph):
    a, b = leaf([1, 2, 3, 4]), leaf([5, 6, 7, 8])
    y = compute(a, b)
    y.retain_grad()
    seed = ck.Tensor(np.ones(4)) if create_graph else np.ones(4)
    y.backward(seed, create_graph=create_graph)
    seed_array = seed.data if create_graph else seed
    assert_gradients_are_alone(a, b, y)
    assert not any(np.shares_memory(t.grad.data, seed_array) for t in (a, b, y))
    before = b.grad.data.copy()
    a.grad.data[:] = -1
    y.grad.data[:] = -1
    np.testing.assert_array_equal(b.grad.data, before)
    np.testing.assert_array_equal(seed_array, 1)


def test_a_leafs_gradient_is_not_the_array_that_was_passed():
    x, g = leaf([1, 2]), np.ones(2)
    x.backward(g)
    x.grad.data[:] = 5
    np.testing.assert_array_equal(g, 1)


# --- retain_grad, detach, freezing


def test_retain_grad():
    x = leaf([1, 2])
    h = x * 3
    y = h * h
    h.retain_grad()
    y.retain_grad()
    x.retain_grad()  # a leaf keeps it anyway
    y.sum().backward()
    np.testing.assert_array_equal(h.grad.data, [6, 12])
    np.testing.assert_array_equal(y.grad.data, [1, 1])
    np.testing.assert_array_equal(x.grad.data, [18, 36])
    with pytest.raises(RuntimeError, match="retain_grad: this Tensor does not require grad"):
        ck.tensor([1.0]).retain_grad()


def test_retained_gradients_under_create_graph():
    x = leaf([2.0])
    h = x * x
    h.retain_grad()
    (h * h).backward(create_graph=True)
    g = h.grad  # 2h
    x.grad = None
    g.backward()
    np.testing.assert_array_equal(x.grad.data, [8])  # 2 · 2x


def test_detach():
    x = leaf([1, 2])
    d = x.detach()
    assert d.is_leaf
    assert not d.requires_grad
    assert d.data is x.data
    (x * d).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [1, 2])


def test_freezing():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    x = ck.Tensor(np.ones((1, 3), np.float32))
    model(x).sum().backward()
    assert model[0].weight.grad is None
    assert model[0].bias.grad is None
    assert model[2].weight.grad is not None
    model[0].requires_grad_()
    model(x).sum().backward()
    assert model[0].weight.grad is not None


def test_frozen_in_the_middle_lets_gradients_through():
    x, w = leaf([[1.0, 2.0]]), ck.Tensor(np.array([[3.0], [4.0]]))
    (x @ w).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [[3, 4]])
    assert w.grad is None


def test_requires_grad_of_results_is_fixed():
    y = leaf([1.0]) * 2
    with pytest.raises(RuntimeError, match=r"leaves only; use detach\(\)"):
        y.requires_grad_(False)


# --- no_grad


def test_no_grad_as_context():
    x = leaf([1.0])
    with ck.no_grad():
        y = x * 2
        with ck.no_grad():
            pass
        z = x * 3
    assert not y.requires_grad
    assert not z.requires_grad
    assert y.is_leaf
    assert (x * 2).requires_grad


def test_no_grad_as_decorator():
    x = leaf([1.0])

    @ck.no_grad()
    def evaluate(factor):
        """What it does."""
        return x * factor

    for factor in (2, 3):
        assert not evaluate(factor).requires_grad
    assert evaluate.__doc__ == "What it does."
    assert (x * 2).requires_grad


def test_no_grad_ends_with_an_error():
    x = leaf([1.0])
    with pytest.raises(ZeroDivisionError), ck.no_grad():
        raise ZeroDivisionError
    assert (x * 2).requires_grad


def test_no_grad_belongs_to_a_thread():
    x = leaf([1.0])
    inside, leave = threading.Event(), threading.Event()
    recorded = []

    def work():
        with ck.no_grad():
            recorded.append((x * 2).requires_grad)
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    recorded.append((x * 2).requires_grad)
    leave.set()
    thread.join()
    assert recorded == [False, True]
