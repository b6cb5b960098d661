"""Tensor: what it holds, how arrays come in and go out, its operators and its in-place writes."""

import copy

import numpy as np
import pytest

import convkern as ck
from convkern import ops


def leaf(values, dtype=np.float64):
    return ck.Tensor(np.array(values, dtype), requires_grad=True)


# --- what it holds


def test_tensor_shares_and_tensor_function_copies():
    a = np.arange(3.0)
    assert ck.Tensor(a).data is a
    copied = ck.tensor(a)
    a[0] = 7
    np.testing.assert_array_equal(copied.data, [0, 1, 2])
    again = ck.tensor(copied)
    copied.copy_(5)
    np.testing.assert_array_equal(again.data, [0, 1, 2])


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (1.5, np.float32),
        ([[1.0, 2.0]], np.float32),
        ((1, 2), np.int64),
        (True, np.bool_),
        (np.float64(1.5), np.float64),
        (np.float32(1.5), np.float32),
        (np.arange(2.0), np.float64),
        (np.arange(2, dtype=np.int8), np.int8),
    ],
    ids=repr,
)
def test_dtypes(given, dtype):
    for made in (ck.Tensor(given), ck.tensor(given)):
        assert type(made.data) is np.ndarray
        assert made.dtype == dtype
        np.testing.assert_array_equal(made.data, np.asarray(given))


def test_attributes():
    x = ck.tensor(np.zeros((2, 3, 4)), requires_grad=True)
    assert (x.shape, x.ndim, x.size, len(x), x.dtype, x.device) == ((2, 3, 4), 3, 24, 2, np.float64, "cpu")
    assert x.is_leaf
    assert x.grad is None
    assert x.grad_fn is None
    y = x.sum()
    assert not y.is_leaf
    assert y.requires_grad
    assert y.grad_fn.name == "sum"
    assert x.T.shape == (4, 3, 2)
    assert not ck.tensor([1.0]).requires_grad


def test_numbers():
    x = ck.tensor([[2.5]])
    assert (float(x), int(x), x.item(), bool(x)) == (2.5, 2, 2.5, True)
    assert isinstance(x.item(), float)
    assert not ck.tensor(0.0)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(ck.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="size 1"):
        ck.tensor([1.0, 2.0]).item()


def test_repr():
    x = leaf([0.5, 1])
    assert repr(x) == "tensor([0.5, 1. ], requires_grad=True)"
    assert repr(x * 2) == "tensor([1., 2.], grad_fn=<mul>)"
    assert repr(x.detach()) == "tensor([0.5, 1. ])"
    assert len(repr(ck.Tensor(np.zeros((1000, 1000))))) < 1000


def test_requires_grad_needs_a_float():
    with pytest.raises(TypeError, match="requires_grad needs float32 or float64, got int64"):
        ck.Tensor(np.arange(3), requires_grad=True)
    with pytest.raises(TypeError, match="requires_grad needs float32 or float64, got bool"):
        ck.tensor([True]).requires_grad_()
    with pytest.raises(TypeError, match="requires_grad needs float32 or float64, got float16"):
        ck.tensor(np.zeros(2, np.float16), requires_grad=True)


def test_deep_copies_are_independent():
    x = leaf([1, 2])
    (x * x).sum().backward()
    y = copy.deepcopy(x)
    assert y.requires_grad
    with ck.no_grad():
        y.copy_(0)
    y.grad.copy_(0)
    np.testing.assert_array_equal(x.data, [1, 2])
    np.testing.assert_array_equal(x.grad.data, [2, 4])


# --- arrays in and out


class OnlyArray:
    """Gives its values by __array__ alone."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype, copy=copy)


class OnlyDLPack:
    """Gives its values by __dlpack__ alone."""

    def __init__(self, values, device=(1, 0)):
        self.values, self.device = values, device

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


@pytest.mark.parametrize("kind", [OnlyArray, OnlyDLPack])
def test_foreign_arrays(kind):
    a = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(ck.Tensor(kind(a)).data, a)
    result = ops.add(kind(a), 1)
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, a + 1)
    w = leaf(np.ones((2, 3)))
    (w * kind(a)).sum().backward()
    np.testing.assert_array_equal(w.grad.data, a)


def test_arrays_on_another_device_are_refused():
    with pytest.raises(TypeError, match="data lives on another device; NumPy arrays and arrays on the CPU are taken"):
        ck.Tensor(OnlyDLPack(np.zeros(2), device=(2, 0)))  # kDLCUDA


def test_pytorch_tensors():
    torch = pytest.importorskip("torch")
    t = torch.arange(6.0).reshape(2, 3)
    x = ck.Tensor(t)
    t[0, 0] = 9
    assert x.data[0, 0] == 9  # shared
    np.testing.assert_array_equal(ops.relu(-t), np.zeros((2, 3)))
    with pytest.raises(TypeError, match=r"data: Tensor does not give its array: .*requires grad"):
        ck.Tensor(torch.zeros(2, requires_grad=True))
    with pytest.raises(TypeError, match="data: Tensor does not give its array"):
        ck.Tensor(torch.zeros(2, dtype=torch.bfloat16))
    assert torch.from_dlpack(ck.Tensor(np.arange(3.0))).tolist() == [0, 1, 2]


def test_numpy_and_array_protocols():
    a = np.arange(3.0)
    x = ck.Tensor(a)
    assert x.numpy() is a
    assert np.asarray(x) is a or np.shares_memory(np.asarray(x), a)
    assert np.asarray(x, dtype=np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(x), a)
    assert np.shares_memory(np.from_dlpack(x), a)
    y = leaf([1.0])
    for use in (y.numpy, lambda: np.asarray(y), lambda: np.from_dlpack(y)):
        with pytest.raises(RuntimeError, match=r"requires grad: use \.detach\(\)\.numpy\(\)"):
            use()
    assert y.detach().numpy() is y.data


def test_array_subclasses_become_plain_arrays():
    class Special(np.ndarray):
        pass

    special = np.zeros((2, 2)).view(Special)
    assert type(ck.Tensor(special).data) is np.ndarray
    assert np.shares_memory(ck.Tensor(special).data, special)


@pytest.mark.parametrize("nothing", ["text", object(), None, {1: 2}], ids=["str", "object", "None", "dict"])
def test_what_is_no_array(nothing):
    with pytest.raises(TypeError, match=f"data must be an array or a Tensor, got {type(nothing).__name__}"):
        ck.Tensor(nothing)


# --- operators

A, B = np.array([[1.0, -2.0, 3.0]]), np.array([[2.0], [0.5]])


@pytest.mark.parametrize(
    "compute",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a / b,
        lambda a, b: -a * b,
        lambda a, b: b**2 + a**3,
        lambda a, b: b @ a,
        lambda a, b: 1 + a,
        lambda a, b: 1 - a,
        lambda a, b: 3 * a,
        lambda a, b: 2 / a,
        lambda a, b: a > b,
        lambda a, b: a >= b,
        lambda a, b: a < b,
        lambda a, b: a <= b,
        lambda a, b: a[0, 1:],
        lambda a, b: a.reshape(3),
        lambda a, b: a.reshape((3, 1)) + b[0],
        lambda a, b: a.T,
        lambda a, b: a.transpose(0, 1) if isinstance(a, ck.Tensor) else a.transpose(1, 0),
        lambda a, b: a.sum(),
        lambda a, b: a.mean(),
        lambda a, b: a.max(),
        lambda a, b: a.argmax(),
    ],
)
def test_operators_are_numpys(compute):
    expected = compute(A, B)
    for a, b in ((ck.Tensor(A), ck.Tensor(B)), (ck.Tensor(A), B), (A, ck.Tensor(B))):
        got = compute(a, b)
        got = got.data if isinstance(got, ck.Tensor) else got
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype


def test_numpy_operands_leave_the_operation_to_the_tensor():
    x = leaf([1, 2])
    for y in (np.ones(2) + x, np.ones(2) - x, np.ones(2) * x, np.ones(2) / x, np.ones((2, 2)) @ x, np.float64(2) * x):
        assert isinstance(y, ck.Tensor)
        assert y.requires_grad
    with pytest.raises(TypeError, match="__array_ufunc__"):
        np.add(np.ones(2), x)


def test_methods_are_the_operations():
    x = ck.Tensor(np.random.default_rng(0).uniform(0.1, 1, (2, 3, 4)))
    for name in ("exp", "log", "sqrt", "relu", "sigmoid", "tanh", "clone", "flatten"):
        np.testing.assert_array_equal(getattr(x, name)().data, getattr(ops, name)(x.data))
    for name in ("softmax", "log_softmax", "sum", "mean", "max"):
        np.testing.assert_array_equal(getattr(x, name)(1).data, getattr(ops, name)(x.data, 1))
    assert x.sum((0, 2), keepdim=True).shape == (1, 3, 1)
    assert x.permute(2, 0, 1).shape == x.permute((2, 0, 1)).shape == (4, 2, 3)
    assert x.transpose(0, -1).shape == (4, 3, 2)
    assert x.reshape(4, -1).shape == (4, 6)
    np.testing.assert_array_equal(x.argmax(1), x.data.argmax(1))


def test_python_numbers_keep_float32():
    x = ck.tensor([1.0, 2.0], requires_grad=True)
    for y in (x + 1.5, 1.5 * x, x / 3, x**2, x - True, x.sum() * 2.0, x.mean() ** 2, x.sum() / 3):
        assert y.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_without_axes_are_arrays_of_the_same_dtype(dtype):
    x = np.array(0.5, dtype)
    weak = [ops.add(x, 1), ops.mul(x, 2.0), ops.neg(x), ops.div(1, x), ops.pow(x, 2), ops.sum(x), ops.mean(x)]
    for y in (
        *weak,
        *(f(x) for f in (ops.max, ops.exp, ops.log, ops.sqrt, ops.relu, ops.sigmoid, ops.tanh, ops.clone)),
    ):
        assert type(y) is np.ndarray
        assert y.shape == ()
        assert y.dtype == dtype


def test_iteration():
    assert [t.item() for t in ck.tensor([1.0, 2.0])] == [1, 2]


def test_to():
    x = leaf([1.5], np.float32)
    y = x.to(np.float64)
    assert y.dtype == np.float64
    (y * 2).sum().backward()
    assert x.grad.dtype == np.float32
    assert x.to("float32") is x
    assert x.to("cpu") is x.to("auto") is x
    assert not x.to(np.int64).requires_grad


# --- writing in place


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda t: t.__setitem__(slice(1, None), 5), [1, 5, 5]),
        (lambda t: t.__setitem__(ck.tensor([0, 2]), ck.tensor([7.0, 8.0])), [7, 2, 8]),
        (lambda t: t.copy_(np.array([4, 5, 6])), [4, 5, 6]),
        (lambda t: t.zero_(), [0, 0, 0]),
        (lambda t: t.add_(1), [2, 3, 4]),
        (lambda t: t.add_(ck.tensor([1.0, 1.0, 2.0]), alpha=-2), [-1, 0, -1]),
        (lambda t: t.mul_(3), [3, 6, 9]),
    ],
    ids=["slice", "indices", "copy_", "zero_", "add_", "add_ alpha", "mul_"],
)
def test_in_place_writes(write, expected):
    t = ck.Tensor(np.array([1.0, 2.0, 3.0]))
    before = t.version.count
    array = t.data
    write(t)
    assert t.data is array
    assert t.version.count == before + 1
    np.testing.assert_array_equal(t.data, expected)
    leaf_ = leaf([1, 2, 3])
    with pytest.raises(
        RuntimeError, match=r"writes in place into a Tensor that requires grad; do it under no_grad\(\)"
    ):
        write(leaf_)
    np.testing.assert_array_equal(leaf_.data, [1, 2, 3])
    with ck.no_grad():
        write(leaf_)
    np.testing.assert_array_equal(leaf_.data, expected)


def test_a_write_that_would_lose_a_gradient_is_refused():
    t, x = ck.tensor([1.0, 2.0]), leaf([3.0, 4.0], np.float32)
    for write in (lambda: t.copy_(x), lambda: t.__setitem__(0, x[0]), lambda: t.add_(x), lambda: t.mul_(x * 2)):
        with pytest.raises(RuntimeError, match="gradient"):
            write()
    np.testing.assert_array_equal(t.data, [1, 2])
    with ck.no_grad():
        t.copy_(x)
    np.testing.assert_array_equal(t.data, [3, 4])


def test_assigning_data_counts_as_a_change():
    x = leaf([1, 2])
    before = x.version.count
    x.data = np.zeros(2)
    assert x.version.count == before + 1
    np.testing.assert_array_equal(x.data, [0, 0])
    with pytest.raises(TypeError, match="data must be an array"):
        x.data = [1, 2]


def test_augmented_assignment_makes_a_new_tensor():
    x = leaf([1, 2])
    y = x
    y += 1
    assert y is not x
    assert y.grad_fn is not None
    np.testing.assert_array_equal(x.data, [1, 2])


def test_whatever_shares_the_array_shares_its_version():
    x = ck.Tensor(np.arange(6.0).reshape(2, 3))
    sharing = [
        x.detach(), ck.Tensor(x), x.reshape(6), x.T, x[0], x[:, None], x.flatten(), x.permute(1, 0)[1:], x.reshape(3, 2).T,
        ops.expand(x, (4, 2, 3)),
    ]  # fmt: skip
    for view in sharing:
        assert np.shares_memory(view.data, x.data)
        assert view.version is x.version
    for own in (x.clone(), x + 0, x[[0, 1]], ck.tensor(x), x.to(np.float32)):
        assert own.version is not x.version
