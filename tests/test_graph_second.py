"""Second derivatives: backward that is recorded itself."""

import numpy as np
import pytest

import convkern as ck
from convkern import ops


def leaf(values, dtype=np.float64):
    return ck.Tensor(np.array(values, dtype), requires_grad=True)


def test_second_derivative_of_a_cube():
    x = leaf([2.0])
    (x**3).backward(create_graph=True)
    first = x.grad
    np.testing.assert_array_equal(first.data, [12])
    x.grad = None
    first.backward(create_graph=True)
    second = x.grad
    np.testing.assert_array_equal(second.data, [12])
    x.grad = None
    second.backward()
    np.testing.assert_array_equal(x.grad.data, [6])


def test_gradients_add_up_under_create_graph():
    x = leaf([2.0])
    (x * x).backward(create_graph=True)
    (x * x * x).backward(create_graph=True)
    total = x.grad
    np.testing.assert_array_equal(total.data, [4 + 12])
    x.grad = None
    total.backward()
    np.testing.assert_array_equal(x.grad.data, [2 + 12])


def test_gradient_penalty():
    """The gradient of a function of a gradient, as in the Wasserstein penalty."""
    w, x = leaf([1.0, -2.0]), leaf([3.0, 0.5])
    (w * x * x).sum().backward(create_graph=True)
    gx = x.grad  # 2 w x
    w.grad = x.grad = None
    (gx * gx).sum().backward()
    np.testing.assert_allclose(w.grad.data, 8 * w.data * x.data**2)
    np.testing.assert_allclose(x.grad.data, 8 * w.data**2 * x.data)


def test_hessian_vector_product_against_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x0, w0, v0 = rng.standard_normal((2, 2, 6, 6)), rng.standard_normal((3, 2, 3, 3)), rng.standard_normal((3, 2, 3, 3))
    labels = np.array([1, 2])

    def loss(x, w, conv, pool, flatten, entropy, tanh):
        return entropy(flatten(pool(tanh(conv(x, w)), 2)), labels)

    w = leaf(w0)
    y = loss(ck.Tensor(x0), w, ck.conv2d, ck.max_pool2d, lambda t: t.flatten(1), ops.cross_entropy, ops.tanh)
    y.backward(create_graph=True)
    gradient, w.grad = w.grad, None
    (gradient * v0).sum().backward()

    f = torch.nn.functional
    wt = torch.tensor(w0, requires_grad=True)
    yt = loss(
        torch.tensor(x0), wt, f.conv2d, f.max_pool2d, lambda t: t.flatten(1),
        lambda z, k: f.cross_entropy(z, torch.tensor(k)), torch.tanh,
    )  # fmt: skip
    (gt,) = torch.autograd.grad(yt, wt, create_graph=True)
    (ht,) = torch.autograd.grad((gt * torch.tensor(v0)).sum(), wt)
    np.testing.assert_allclose(y.item(), yt.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient.data, gt.detach().numpy(), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(w.grad.data, ht.numpy(), rtol=1e-9, atol=1e-13)
