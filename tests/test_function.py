"""Function: users' own operations."""

import doctest

import numpy as np
import pytest

import convkern as ck
from convkern import graph


def leaf(values, dtype=np.float64):
    return ck.Tensor(np.array(values, dtype), requires_grad=True)


class Swish(ck.Function):
    """x · sigmoid(x), a custom activation with a derivative that can be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, gy):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return gy * (s + x * s * (1 - s))


class Exp(ck.Function):
    """Saves its own result."""

    @staticmethod
    def forward(ctx, x):
        y = ck.Tensor(np.exp(x.data))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gy):
        (y,) = ctx.saved_tensors
        return gy * y


class SumAndProduct(ck.Function):
    """Two inputs, two results."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a.data + b.data, a.data * b.data

    @staticmethod
    def backward(ctx, gs, gp):
        a, b = ctx.saved_tensors
        SumAndProduct.received = (gs, gp)
        SumAndProduct.needs = ctx.needs_input_grad
        return gs + gp * b, gs + gp * a


def test_docstring_example():
    finder = doctest.DocTestFinder()
    (example,) = (t for t in finder.find(graph.Function, "Function", globs={}) if t.examples and t.name == "Function")
    assert len(example.examples) >= 5
    failures, tried = doctest.DocTestRunner().run(example)
    assert (failures, tried) == (0, len(example.examples))


def test_first_and_second_derivative():
    x = np.random.default_rng(0).standard_normal((2, 3))
    for function in (Swish, Exp):
        assert ck.gradcheck(function.apply, [x], atol=1e-8)

        def gradient(x, function=function):
            y = function.apply(x)
            (y * y).sum().backward(create_graph=True)
            return x.grad

        assert ck.gradcheck(gradient, [x], atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_give_arrays_and_tensors_give_tensors(dtype):
    x = np.array([0.0, 1.0], dtype)
    y = Swish.apply(x)
    assert type(y) is np.ndarray
    assert y.dtype == dtype
    assert not Swish.apply(ck.Tensor(x)).requires_grad
    recorded = Swish.apply(leaf(x, dtype))
    assert recorded.grad_fn.name == "Swish"
    with ck.no_grad():
        assert not Swish.apply(leaf(x, dtype)).requires_grad
    np.testing.assert_array_equal(recorded.data, y)


def test_without_axes():
    x = leaf(0.5)
    h = x * x
    y = Swish.apply(h + h)  # its gradient arrives as a sum of numbers
    (y + y * y).backward()
    assert x.grad.dtype == np.float64
    assert ck.gradcheck(lambda x: Swish.apply(x * x) * Swish.apply(x * x), [np.array(0.5)])


def test_several_results():
    a, b = leaf([1.0, 2.0]), leaf([3.0, 5.0])
    total, product = SumAndProduct.apply(a, b)
    (total * 10 + product).sum().backward()
    np.testing.assert_array_equal(a.grad.data, [13, 15])
    np.testing.assert_array_equal(b.grad.data, [11, 12])
    assert ck.gradcheck(lambda a, b: ck.ops.concatenate(SumAndProduct.apply(a, b)), [a, b])


@pytest.mark.parametrize("create_graph", [False, True])
def test_an_unused_result_has_a_gradient_of_zeros(create_graph):
    a, b = leaf([1.0, 2.0]), leaf([3.0, 5.0])
    _, product = SumAndProduct.apply(a, b)
    product.sum().backward(create_graph=create_graph)
    unused, _ = SumAndProduct.received
    assert isinstance(unused, ck.Tensor)
    np.testing.assert_array_equal(unused.data, [0, 0])
    assert unused.dtype == np.float64
    np.testing.assert_array_equal(a.grad.data, [3, 5])


def test_needs_input_grad():
    a, b = leaf([1.0]), ck.Tensor(np.array([2.0]))
    total, _ = SumAndProduct.apply(a, b)
    total.sum().backward()
    assert SumAndProduct.needs == (True, False)
    assert b.grad is None
    SumAndProduct.apply(np.array([1.0]), leaf([2.0]))[0].sum().backward()
    assert SumAndProduct.needs == (False, True)


def returning(gradients):
    """A Function of x and y with the given gradients."""

    class Custom(ck.Function):
        @staticmethod
        def forward(ctx, x, y):
            ctx.save_for_backward(x)
            return x.data + y.data

        @staticmethod
        def backward(ctx, gy):
            return gradients(ctx, gy)

    return Custom


@pytest.mark.parametrize(
    ("gradients", "error", "message"),
    [
        (lambda ctx, gy: gy, RuntimeError, "gradient of Custom gave 1 results for 2 inputs"),
        (lambda ctx, gy: (gy, gy, None), RuntimeError, "gradient of Custom gave 3 results for 2 inputs"),
        (
            lambda ctx, gy: (gy[:1], gy),
            RuntimeError,
            r"gradient of Custom has shape \(1,\) for an input of shape \(2,\)",
        ),
        (lambda ctx, gy: (gy, [1.0, 1.0]), TypeError, r"gradient from Custom\.backward must be an array .* got list"),
    ],
)
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("on_the_way", [False, True])
def test_wrong_gradients(gradients, error, message, create_graph, on_the_way):
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    if on_the_way:
        z = returning(gradients).apply(x * 1, y * 1)
    else:
        z = returning(gradients).apply(x, y)
    with pytest.raises(error, match=message):
        z.sum().backward(create_graph=create_graph)


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_may_be_arrays_none_or_of_another_dtype(create_graph):
    x, y = leaf([1.0, 2.0], np.float32), leaf([3.0, 4.0], np.float32)
    custom = returning(lambda ctx, gy: (np.array([5.0, 6.0]), None))
    custom.apply(x * 1, y).sum().backward(create_graph=create_graph)
    assert isinstance(x.grad, ck.Tensor)
    assert x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad.data, [5, 6])
    assert y.grad is None


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_returned_array_is_not_taken_for_the_gradients_own(create_graph):
    x, y, constant = leaf([1.0, 2.0]), leaf([3.0, 4.0]), np.array([7.0, 7.0])
    returning(lambda ctx, gy: (ctx.saved_tensors[0], constant)).apply(x, y).sum().backward(create_graph=create_graph)
    x.grad.data[:] = 0
    y.grad.data[:] = 0
    np.testing.assert_array_equal(x.data, [1, 2])
    np.testing.assert_array_equal(constant, 7)


def test_forward_records_nothing():
    class Product(ck.Function):
        @staticmethod
        def forward(ctx, x):
            Product.inside = x * x
            return Product.inside

        @staticmethod
        def backward(ctx, gy):
            return gy * 100  # not what recording forward would give

    x = leaf([3.0])
    Product.apply(x).backward()
    assert not Product.inside.requires_grad
    assert x.grad.item() == 100


def test_a_write_to_what_was_saved_is_noticed():
    for function in (Swish, Exp):
        x = leaf([1.0, 2.0])
        y = function.apply(x)
        z = y.sum()
        with ck.no_grad():
            (x if function is Swish else y).mul_(2)
        with pytest.raises(RuntimeError, match=f"gradient of {function.__name__} needs was changed in place"):
            z.backward()


def test_an_input_given_back_is_another_tensor():
    class Identity(ck.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, gy):
            return -gy

    x = leaf([1.0, 2.0])
    y = Identity.apply(x)
    assert y is not x
    assert y.version is x.version
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [-1, -1])


def test_numbers_and_options_pass_through():
    class Scale(ck.Function):
        @staticmethod
        def forward(ctx, x, factor, name):
            ctx.factor = factor
            assert name == "twice"
            return x.data * factor

        @staticmethod
        def backward(ctx, gy):
            return gy * ctx.factor, None, None

    x = leaf([1.0])
    Scale.apply(x, 2.0, "twice").backward()
    assert x.grad.item() == 2


def test_what_is_no_result():
    class Text(ck.Function):
        @staticmethod
        def forward(ctx, x):
            return "text"

    with pytest.raises(TypeError, match=r"the result of Text\.forward must be an array or a Tensor, got str"):
        Text.apply(leaf([1.0]))
    with pytest.raises(NotImplementedError):
        ck.Function.apply(leaf([1.0]))
