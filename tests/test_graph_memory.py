"""What the graph holds on to: nothing that backward does not need, and nothing at all once it is gone.

The garbage collector is off: what is freed here is freed by reference counts alone, so there are no cycles.
"""

import gc
import weakref

import numpy as np
import pytest

import convkern as ck
from convkern import nn, ops, optim


@pytest.fixture(autouse=True)
def no_garbage_collector():
    gc.disable()
    yield
    gc.enable()


def leaf(*shape, seed=0):
    return ck.Tensor(np.random.default_rng(seed).uniform(0.5, 1.5, shape), requires_grad=True)


W4 = np.ones((2, 2, 3, 3))  # (K, C, R, S)

# The result's gradient needs nothing, or the result alone.
INPUT_NOT_NEEDED = {
    "add": lambda h: h + 1,
    "add tensors": lambda h: h + h,
    "sub": lambda h: 1 - h,
    "neg": lambda h: -h,
    "mul number": lambda h: h * 3,
    "mul array": lambda h: h * np.ones(h.shape),
    "div number": lambda h: h / 3,
    "sum": lambda h: h.sum(1),
    "mean": lambda h: h.mean(),
    "exp": ops.exp,
    "sqrt": ops.sqrt,
    "relu": ops.relu,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "softmax": lambda h: ops.softmax(h, 1),
    "log_softmax": lambda h: ops.log_softmax(h, 1),
    "cast": lambda h: h.to(np.float32),
    "clone": ops.clone,
    "advanced index": lambda h: h[[0, 1]],
    "concatenate": lambda h: ops.concatenate([h, h]),
    "max_pool2d": lambda h: ck.max_pool2d(h, 2),
    "avg_pool2d": lambda h: ck.avg_pool2d(h, 2),
    "conv2d frozen": lambda h: ck.conv2d(h, ck.Tensor(W4)),
    "pointwise frozen": lambda h: ck.pointwise(h, np.ones((3, 2))),
    "linear frozen": lambda h: ops.linear(h, np.ones((3, 6))),
    "matmul frozen": lambda h: h @ np.ones((6, 2)),
    "bias_grad": ops.bias_grad,
    "conv2d_input_grad frozen": lambda h: ops.conv2d_input_grad(h, W4, (2, 2, 8, 8)),
    "conv2d_weight_grad frozen": lambda h: ops.conv2d_weight_grad(h, np.ones((2, 3, 4, 4)), 3),
}


@pytest.mark.parametrize("name", INPUT_NOT_NEEDED)
def test_an_input_that_no_gradient_needs_is_freed_after_forward(name):
    x = leaf(2, 2, 6, 6)
    h = x + 0.25
    held = weakref.ref(h.data)
    y = INPUT_NOT_NEEDED[name](h)
    del h
    assert held() is None
    y.sum().backward()
    assert x.grad is not None


INPUT_NEEDED = {
    "log": ops.log,
    "pow": lambda h: h**3,
    "mul": lambda h: h * leaf(2, 2, 6, 6),
    "max": lambda h: h.max(1),
    "conv2d": lambda h: ck.conv2d(h, leaf(3, 2, 3, 3)),
    "pointwise": lambda h: ck.pointwise(h, leaf(3, 2)),
    "linear": lambda h: ops.linear(h, leaf(3, 6)),
    "matmul": lambda h: h @ leaf(6, 2),
}


@pytest.mark.parametrize("name", INPUT_NEEDED)
def test_what_was_saved_is_freed_by_backward(name):
    x = leaf(2, 2, 6, 6)
    h = x + 0.25
    held = weakref.ref(h.data)
    y = INPUT_NEEDED[name](h)
    z = y.sum()
    del h
    assert held() is not None  # otherwise this test could not fail
    z.backward()
    assert held() is None  # though y and z still stand for the graph
    assert y.grad_fn is not None


RESULT_NEEDED = {
    name: INPUT_NOT_NEEDED[name] for name in ("exp", "sqrt", "relu", "sigmoid", "tanh", "softmax", "log_softmax")
}


@pytest.mark.parametrize("name", RESULT_NEEDED)
def test_a_result_that_was_saved_is_freed_by_backward(name):
    y = RESULT_NEEDED[name](leaf(2, 3, 4))
    held = weakref.ref(y.data)
    z = y.sum() * 2
    del y
    assert held() is not None
    z.backward()
    assert held() is None


def test_a_result_and_its_node_do_not_keep_each_other_alive():
    for function in (*RESULT_NEEDED.values(), lambda h: ck.conv2d(h, leaf(3, 2, 3, 3), activation="relu")):
        y = function(leaf(2, 2, 6, 6))
        held, node = weakref.ref(y.data), weakref.ref(y.grad_fn)
        del y
        assert held() is None
        assert node() is None


def network():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3),
    )  # fmt: skip


@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_training_step_leaves_nothing_behind(retain_graph):
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    held = []
    handles = [
        m.register_forward_hook(lambda module, args, y: held.extend([weakref.ref(y.data), weakref.ref(y.grad_fn)]))
        for m in model.modules()
    ]
    x, labels = np.ones((2, 1, 8, 8), np.float32), np.array([0, 2])
    for _ in range(2):
        held.clear()
        loss = ops.cross_entropy(model(x), labels)
        assert len(held) == 2 * 11
        assert sum(ref() is not None for ref in held) > 11
        loss.backward(retain_graph=retain_graph)
        optimizer.step()
        gradients = [weakref.ref(p.grad.data) for p in model.parameters()]
        optimizer.zero_grad()
        del loss
        assert all(ref() is None for ref in held)
        assert all(ref() is None for ref in gradients)
    for handle in handles:
        handle.remove()


def test_backward_frees_the_arrays_though_the_loss_is_kept():
    model = network()
    held = []
    for m in model:
        m.register_forward_hook(lambda module, args, y: held.append(weakref.ref(y.data)))
    loss = ops.cross_entropy(model(np.ones((2, 1, 8, 8), np.float32)), np.array([0, 2]))
    loss.backward()
    assert [ref() for ref in held] == [None] * 10
    assert loss.grad_fn is not None


def test_gradients_on_the_way_are_freed_during_backward():
    seen = []

    class Watch(ck.Function):
        @staticmethod
        def forward(ctx, x):
            return x.data + 1

        @staticmethod
        def backward(ctx, gy):
            seen.append((sum(ref() is not None for ref in held), weakref.ref(gy.data)))
            held.append(seen[-1][1])
            return gy * 2

    held = []
    y = leaf(50)
    for _ in range(10):
        y = Watch.apply(y)
    y.sum().backward()
    # While one gradient is made from the last one, no earlier one is alive.
    assert [alive for alive, _ in seen] == [0] * 10
    assert all(ref() is None for _, ref in seen)


def test_a_function_lets_go_of_what_it_saved():
    class Square(ck.Function):
        @staticmethod
        def forward(ctx, x):
            y = ck.Tensor(x.data**2)
            ctx.save_for_backward(x, y)
            return y

        @staticmethod
        def backward(ctx, gy):
            x, _ = ctx.saved_tensors
            return gy * 2 * x

    x = leaf(4)
    h = x + 1
    y = Square.apply(h)
    z = y.sum()
    held = [weakref.ref(h.data), weakref.ref(y.data)]
    del h, y
    assert all(ref() is not None for ref in held)
    z.backward()
    assert all(ref() is None for ref in held)

    y = Square.apply(leaf(4))
    node = weakref.ref(y.grad_fn)
    del y
    assert node() is None


def test_no_grad_keeps_nothing():
    x = leaf(3)
    with ck.no_grad():
        h = x * 2
        y = h.exp()
    held = weakref.ref(h.data)
    del h
    assert held() is None
    assert y.grad_fn is None


def test_retained_gradients_do_not_keep_their_tensor_alive():
    x = leaf(3)
    h = x * 2
    h.retain_grad()
    y = h.sum()
    gone = weakref.ref(h)
    del h
    assert gone() is None
    y.backward()
    np.testing.assert_array_equal(x.grad.data, 2)


def test_twice_differentiated_is_freed_once_the_gradient_is_let_go():
    x = leaf(3)
    h = x.exp()
    held, node = weakref.ref(h.data), weakref.ref(h.grad_fn)
    h.sum().backward(create_graph=True)
    del h
    assert held() is not None
    gradient, x.grad = x.grad, None
    gradient.sum().backward()
    x.grad = None
    del gradient
    assert held() is None
    assert node() is None
