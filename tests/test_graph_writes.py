"""In-place writes between forward and backward: noticed where they matter, allowed where they do not."""

import numpy as np
import pytest

import convkern as ck
from convkern import nn, ops, optim


def leaf(values, dtype=np.float64):
    return ck.Tensor(np.array(values, dtype), requires_grad=True)


def save_twice(x):
    return (x * x).sum()


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.__setitem__(0, 5.0),
        lambda x: x.copy_(np.zeros(2)),
        lambda x: x.zero_(),
        lambda x: x.add_(1.0),
        lambda x: x.mul_(2.0),
        lambda x: setattr(x, "data", np.zeros(2)),
        lambda x: x.detach().add_(1.0),
        lambda x: x.reshape(1, 2).mul_(3.0),
        lambda x: x[:1].zero_(),
        lambda x: nn.init.zeros_(x),
    ],
)
def test_a_write_to_a_saved_tensor_is_noticed(write):
    x = leaf([1, 2])
    y = save_twice(x)
    with ck.no_grad():
        write(x)
    with pytest.raises(RuntimeError, match="the gradient of mul needs was changed in place after it was used"):
        y.backward()
    assert x.grad is None


@pytest.mark.parametrize("view", [lambda x: x.reshape(2, 1), lambda x: x.T, lambda x: x[1:], lambda x: x.detach()])
def test_a_write_to_the_base_of_a_saved_view_is_noticed(view):
    x, w = leaf([1, 2]), leaf([3.0])
    y = (view(x) * w).sum()
    with ck.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_an_optimizer_step_is_noticed():
    w = leaf([[1.0, 2.0]])
    for optimizer in (optim.SGD([w], lr=0.1), optim.Adam([w], lr=0.1)):
        for product in (lambda: leaf([[3.0, 4.0]]) @ w.T, lambda: ops.linear(leaf([3.0, 4.0]), w)):
            y = product().sum()
            y.backward(retain_graph=True)
            optimizer.step()
            with pytest.raises(RuntimeError, match=r"gradient of (matmul|linear) needs was changed in place"):
                y.backward()


def test_load_state_dict_is_noticed():
    layer = nn.Linear(2, 1)
    y = layer(ck.tensor([[1.0, 2.0]], requires_grad=True)).sum()
    layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="gradient of linear needs was changed in place"):
        y.backward()


@pytest.mark.parametrize("function", [ops.exp, ops.tanh, ops.sigmoid, ops.sqrt, ops.relu, lambda x: ops.softmax(x, 0)])
def test_a_write_to_a_saved_result_is_noticed(function):
    x = leaf([1, 2])
    y = function(x)
    z = y.sum()
    with ck.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        z.backward()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.max(x, 1),
        lambda x: ops.max(x, 1, keepdim=True),
        lambda x: ops.log(x),
        lambda x: x**3,
        lambda x: ops.cross_entropy(x, np.array([0, 1])),
        lambda x: ck.conv2d(x.reshape(1, 1, 2, 2), leaf(np.ones((1, 1, 1, 1)))),
        lambda x: ck.pointwise(x.reshape(1, 1, 2, 2), leaf(np.ones((1, 1)))),
    ],
)
def test_a_write_to_what_an_operation_needs_is_noticed(function):
    x = leaf([[1, 2], [4, 3]])
    y = function(x).sum()
    with ck.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_a_write_that_does_not_matter_is_allowed():
    x, y = leaf([1, 2]), leaf([3, 4])
    z = (x + y).sum() + (x * 3).sum() + x.reshape(1, 2).sum()
    with ck.no_grad():
        x.zero_()
    z.backward()
    np.testing.assert_array_equal(x.grad.data, [5, 5])
    w = leaf([1, 2])
    (w * np.array([3.0, 4.0])).sum().backward()  # w itself is not needed: the other factor has no gradient
    y = (w * np.array([3.0, 4.0])).sum()
    with ck.no_grad():
        w.add_(1)
    y.backward()
    np.testing.assert_array_equal(w.grad.data, [6, 8])


def test_a_write_before_use_is_allowed():
    x = leaf([1, 2])
    with ck.no_grad():
        x.mul_(2)
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [4, 8])


def test_backward_under_create_graph_notices_writes_too():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    with ck.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward(create_graph=True)
