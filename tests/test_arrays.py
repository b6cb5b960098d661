"""Arrays of every kind go in, arrays of the same format come out; out= takes the result."""

import numpy as np
import pytest

import convkern as ck
from convkern import device, ops
from convkern.random import seed_noise

from .test_tensor import OnlyArray, OnlyDLPack


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


N, C, H, W, K = 2, 3, 6, 7, 4
# name -> (function of two arrays and options, their shapes)
OPERATIONS = {
    "conv2d": (lambda x, w, **o: ck.conv2d(x, w, padding=1, **o), (N, C, H, W), (K, C, 3, 3)),
    "conv2d relu": (lambda x, w, **o: ck.conv2d(x, w, activation="relu", **o), (N, C, H, W), (K, C, 3, 3)),
    "conv2d unbatched": (lambda x, w, **o: ck.conv2d(x, w, stride=2, **o), (C, H, W), (K, C, 3, 2)),
    "conv2d bias": (lambda x, b, **o: ck.conv2d(x, WEIGHT, b, **o), (N, C, H, W), (K,)),
    "conv2d_input_grad": (lambda g, w, **o: ck.conv2d_input_grad(g, w, (N, C, H, W), **o), (N, K, 4, 5), (K, C, 3, 3)),
    "conv2d_weight_grad": (lambda x, g, **o: ck.conv2d_weight_grad(x, g, 3, **o), (N, C, H, W), (N, K, 4, 5)),
    "pointwise": (ck.pointwise, (N, C, H, W), (K, C)),
    "pointwise unbatched": (ck.pointwise, (C, H, W), (K, C, 1, 1)),
    "pointwise_input_grad": (ck.pointwise_input_grad, (N, K, H, W), (K, C)),
    "pointwise_weight_grad": (ck.pointwise_weight_grad, (N, C, H, W), (N, K, H, W)),
    "max_pool2d": (lambda x, _, **o: ck.max_pool2d(x, 2, **o), (N, C, H, W), (1,)),
    "max_pool2d unbatched": (lambda x, _, **o: ck.max_pool2d(x, (2, 3), 1, **o), (C, H, W), (1,)),
    "avg_pool2d": (lambda x, _, **o: ck.avg_pool2d(x, 3, 2, 1, **o), (N, C, H, W), (1,)),
    "avg_pool2d unbatched": (lambda x, _, **o: ck.avg_pool2d(x, 2, **o), (C, H, W), (1,)),
}
WEIGHT = normal(K, C, 3, 3, seed=5)
WITH_OUT = list(OPERATIONS)


def drawn(function, x):
    """The same noise at every call."""
    seed_noise(0)
    return function(x)


MORE = {
    "bias_grad": (lambda g, _: ops.bias_grad(g), (N, K, H, W), (1,)),
    "linear": (ops.linear, (N, C), (K, C)),
    "matmul": (ops.matmul, (N, C), (C, K)),
    "add": (ops.add, (N, C), (C,)),
    "relu": (lambda x, _: ops.relu(x), (N, C), (1,)),
    "softmax": (lambda x, _: ops.softmax(x, 1), (N, C), (1,)),
    "cross_entropy": (lambda x, _: ops.cross_entropy(x, np.array([0, 2])), (N, C), (1,)),
    "nll_loss": (lambda x, _: ops.nll_loss(x, np.array([0, 2])), (N, C), (1,)),
    "cross_entropy of probabilities": (ops.cross_entropy, (N, C), (N, C)),
    "mse_loss": (ops.mse_loss, (N, C), (N, C)),
    "l1_loss": (ops.l1_loss, (N, C), (N, C)),
    "huber_loss": (lambda x, t: ops.huber_loss(x, t, delta=0.5), (N, C), (N, C)),
    "smooth_l1_loss": (lambda x, t: ops.smooth_l1_loss(x, t, beta=0.5), (N, C), (N, C)),
    "binary_cross_entropy": (lambda x, t: ops.binary_cross_entropy(ops.sigmoid(x), t), (N, C), (N, C)),
    "binary_cross_entropy_with_logits": (ops.binary_cross_entropy_with_logits, (N, C), (N, C)),
    **{
        name: (lambda x, _, name=name: getattr(ops, name)(x), (N, C, H, W), (1,))
        for name in ("relu6", "leaky_relu", "elu", "selu", "silu", "gelu", "hardswish", "logsigmoid", "erf", "abs")
    },
    "gelu tanh": (lambda x, _: ops.gelu(x, "tanh"), (N, C, H, W), (1,)),
    "clamp": (lambda x, _: ops.clamp(x, -0.5, 0.5), (N, C), (1,)),
    "where": (lambda a, b: ops.where(np.eye(N, C) > 0, a, b), (N, C), (C,)),
    "prelu": (ops.prelu, (N, C, H, W), (C,)),
    "layer_norm": (lambda x, w: ops.layer_norm(x, (H, W), w), (N, C, H, W), (H, W)),
    "group_norm": (lambda x, w: ops.group_norm(x, 3, w), (N, C, H, W), (C,)),
    "instance_norm": (lambda x, w: ops.instance_norm(x, weight=w), (N, C, H, W), (C,)),
    "local_response_norm": (lambda x, _: ops.local_response_norm(x, 2), (N, C, H, W), (1,)),
    "dropout": (lambda x, _: drawn(ops.dropout, x), (N, C), (1,)),
    "dropout2d": (lambda x, _: drawn(ops.dropout2d, x), (N, C, H, W), (1,)),
    "gaussian_noise": (lambda x, _: drawn(ops.gaussian_noise, x), (N, C), (1,)),
    "sum": (lambda x, _: ops.sum(x, 0), (N, C), (1,)),
    "getitem": (lambda x, _: ops.getitem(x, [1, 0, 1]), (N, C), (1,)),
    "concatenate": (lambda a, b: ops.concatenate([a, b]), (N, C), (K, C)),
}


def inputs(name, dtype=np.float32):
    function, *shapes = {**OPERATIONS, **MORE}[name]
    return function, [normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


def strided(a):
    """The same values, with gaps between them along every axis."""
    big = np.zeros([2 * n + 1 for n in a.shape], a.dtype)
    view = big[tuple(slice(1, 2 * n + 1, 2) for n in a.shape)]
    view[...] = a
    return view


def backwards(a):
    """The same values behind negative strides."""
    flip = tuple(slice(None, None, -1) for _ in a.shape)
    return np.ascontiguousarray(a[flip])[flip]


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def misaligned(a):
    raw = np.empty(a.nbytes + 1, np.uint8)[1:]
    view = raw.view(a.dtype).reshape(a.shape) if raw.ctypes.data % a.itemsize else raw[1:].view(a.dtype)
    view[...] = a
    assert not view.flags.aligned
    return view


def swapped(a):
    return a.astype(a.dtype.newbyteorder("S"))


KINDS = {
    "strided": strided,
    "negative strides": backwards,
    "Fortran order": np.asfortranarray,
    "read-only": read_only,
    "misaligned": misaligned,
    "byte-swapped": swapped,
    "__array__": OnlyArray,
    "__dlpack__": OnlyDLPack,
    "subclass": lambda a: a.view(type("Special", (np.ndarray,), {})),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*OPERATIONS, *MORE])
def test_arrays_of_every_kind(name, kind):
    function, arrays = inputs(name)
    expected = function(*arrays)
    changed = [KINDS[kind](a) for a in arrays]
    got = function(*changed)
    assert type(got) is np.ndarray
    assert got.dtype == (changed[0].dtype if name == "getitem" and kind == "byte-swapped" else np.float32)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)  # matmul picks another BLAS path for strides
    for a, b in zip(arrays, changed, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.from_dlpack(b) if kind == "__dlpack__" else np.asarray(b))


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith("__")])
def test_kernels_receive_plain_arrays(kind):
    given = device.as_array(KINDS[kind](normal(3, 4, 5)), "x")
    plain = device.kernel_array(given)
    assert plain.flags.c_contiguous
    assert plain.flags.aligned
    assert plain.flags.writeable
    assert plain.dtype.isnative
    np.testing.assert_array_equal(plain, normal(3, 4, 5))
    assert device.kernel_array(plain) is plain


@pytest.mark.parametrize("name", [*OPERATIONS, *MORE])
def test_pytorch_tensors_go_in(name):
    torch = pytest.importorskip("torch")
    function, arrays = inputs(name)
    got = function(*(torch.tensor(a) for a in arrays))
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, function(*arrays))


@pytest.mark.parametrize("name", ["conv2d", "pointwise", "linear", "matmul", "add"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_meets_arrays_of_every_kind(name, kind):
    """What is not a Tensor is saved for backward as well."""
    function, (x, w) = inputs(name)
    gradients = []
    for given in (x, KINDS[kind](x)):
        leaf = ck.tensor(w, requires_grad=True)
        function(given, leaf).sum().backward()
        gradients.append(leaf.grad.data)
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-5)


@pytest.mark.parametrize("name", [*OPERATIONS, *MORE])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_give_arrays_and_tensors_give_tensors(name, dtype):
    function, arrays = inputs(name, dtype)
    if name == "conv2d bias":
        function = lambda x, b: ck.conv2d(x, WEIGHT.astype(dtype), b)  # noqa: E731
    plain = function(*arrays)
    assert type(plain) is np.ndarray
    assert plain.dtype == dtype
    wrapped = function(*(ck.Tensor(a) for a in arrays))
    assert isinstance(wrapped, ck.Tensor)
    assert not wrapped.requires_grad
    recorded = function(ck.Tensor(arrays[0], requires_grad=True), arrays[1])
    assert recorded.requires_grad
    for tensor in (wrapped, recorded):
        np.testing.assert_array_equal(tensor.data, plain)


# --- channels last


def channels_last(a):
    return np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def is_channels_last(a):
    return a.transpose(0, 2, 3, 1).flags.c_contiguous


FOLLOW = [n for n in OPERATIONS if "unbatched" not in n and "weight_grad" not in n]


@pytest.mark.parametrize("name", FOLLOW)
def test_the_result_follows_the_memory_format(name):
    function, (x, w) = inputs(name)
    plain, last = function(x, w), function(channels_last(x), w)
    assert plain.flags.c_contiguous
    assert is_channels_last(last)
    assert not last.flags.c_contiguous
    np.testing.assert_array_equal(last, plain)
    if w.ndim == 4:
        np.testing.assert_array_equal(function(x, channels_last(w)), plain)


def test_one_channel_or_one_pixel_is_both_formats():
    w = np.ones((2, 1, 3, 3), np.float32)
    assert ck.conv2d(normal(1, 1, 5, 5), w).flags.c_contiguous
    assert ck.pointwise(normal(2, 3, 1, 1), normal(4, 3)).flags.c_contiguous


def test_gradients_through_channels_last():
    x, w = normal(N, C, H, W), normal(K, C, 3, 3, seed=1)
    gradients = []
    for array in (x, channels_last(x)):
        a, b = ck.Tensor(array, requires_grad=True), ck.tensor(w, requires_grad=True)
        y = ck.max_pool2d(ck.conv2d(a, b, activation="relu"), 2)
        y.sum().backward()
        gradients.append((a.grad.data, b.grad.data))
    for got, expected in zip(*gradients, strict=True):
        np.testing.assert_array_equal(got, expected)


# --- batches


@pytest.mark.parametrize("name", [n for n in OPERATIONS if "weight_grad" not in n and "unbatched" not in n])
def test_an_empty_batch_gives_an_empty_result(name):
    function, (x, w) = inputs(name)
    empty = x[:0]
    if name == "conv2d_input_grad":
        function = lambda g, w, **o: ck.conv2d_input_grad(g, w, (0, C, H, W), **o)  # noqa: E731
    y = function(empty, w)
    assert y.shape == (0, *inputs(name)[0](x, w).shape[1:])
    assert y.dtype == np.float32
    leaf = ck.tensor(w, requires_grad=True)
    t = function(ck.Tensor(empty, requires_grad=True), leaf)
    t.sum().backward()
    if leaf.grad is not None:  # a pool has no second input
        np.testing.assert_array_equal(leaf.grad.data, np.zeros_like(w))


def test_weight_gradients_of_an_empty_batch_are_zero():
    x, gy = normal(0, C, H, W), normal(0, K, 4, 5)
    np.testing.assert_array_equal(ck.conv2d_weight_grad(x, gy, 3), np.zeros((K, C, 3, 3)))
    np.testing.assert_array_equal(ck.pointwise_weight_grad(x, normal(0, K, H, W)), np.zeros((K, C)))
    np.testing.assert_array_equal(ops.bias_grad(gy), np.zeros(K))


def test_one_image_without_batch():
    x, w, b = normal(C, H, W), normal(K, C, 3, 3, seed=1), normal(K, seed=2)
    for function in (
        lambda x: ck.conv2d(x, w, b, padding=1),
        lambda x: ck.pointwise(x, w[:, :, 0, 0], b),
        lambda x: ck.max_pool2d(x, 2),
        lambda x: ck.avg_pool2d(x, 2),
    ):
        np.testing.assert_array_equal(function(x), function(x[None])[0])
    y, indices = ck.max_pool2d(x, 2, return_indices=True)
    assert y.shape == indices.shape == (C, H // 2, W // 2)
    gy = normal(K, 4, 5, seed=3)
    np.testing.assert_array_equal(
        ck.conv2d_input_grad(gy, w, x.shape), ck.conv2d_input_grad(gy[None], w, (1, C, H, W))[0]
    )
    np.testing.assert_array_equal(ck.conv2d_weight_grad(x, gy, 3), ck.conv2d_weight_grad(x[None], gy[None], 3))


# --- out=


@pytest.mark.parametrize("name", WITH_OUT)
def test_out_takes_the_result(name):
    function, arrays = inputs(name)
    expected = function(*arrays)
    out = np.full_like(expected, np.nan)
    assert function(*arrays, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("make", [strided, backwards, np.asfortranarray, misaligned, swapped])
@pytest.mark.parametrize("name", WITH_OUT)
def test_out_of_every_layout(name, make):
    function, arrays = inputs(name)
    expected = function(*arrays)
    out = make(np.full_like(expected, np.nan))
    assert function(*arrays, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", FOLLOW)
def test_out_keeps_its_own_memory_format(name):
    function, (x, w) = inputs(name)
    expected = function(x, w)
    for x_format in (np.ascontiguousarray, channels_last):
        for out_format in (np.ascontiguousarray, channels_last):
            out = out_format(np.full_like(expected, np.nan))
            strides = out.strides
            function(x_format(x), w, out=out)
            assert out.strides == strides
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", WITH_OUT)
def test_out_that_does_not_fit(name):
    function, arrays = inputs(name)
    y = function(*arrays)
    shape = r"\(" + ", ".join(map(str, y.shape)) + r"\)"
    for out in (y[..., :-1], y[None], y.astype(np.float64), y.astype(np.int32)):
        with pytest.raises(ValueError, match=f"out must have shape {shape} and dtype float32, got .* and {out.dtype}"):
            function(*arrays, out=out)
    with pytest.raises(TypeError, match="out must be a NumPy array, got list"):
        function(*arrays, out=y.tolist())
    with pytest.raises(TypeError, match="out must be a NumPy array, got Tensor"):
        function(*arrays, out=ck.Tensor(y))
    with pytest.raises(ValueError, match="out is read-only"):
        function(*arrays, out=read_only(y))


@pytest.mark.parametrize("name", WITH_OUT)
def test_out_is_for_arrays(name):
    function, arrays = inputs(name)
    out = function(*arrays)
    before = out.copy()
    with pytest.raises(TypeError, match="out is for arrays; a Tensor's operations make their own results"):
        function(ck.Tensor(arrays[0]), arrays[1], out=out)
    np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("name", WITH_OUT)
@pytest.mark.parametrize("wrap", [lambda a: a, OnlyArray, OnlyDLPack], ids=["array", "__array__", "__dlpack__"])
def test_out_must_not_overlap_an_input(name, wrap):
    function, arrays = inputs(name)
    y = function(*arrays)
    memory = np.zeros(max(y.size, arrays[0].size), np.float32)
    out = memory[: y.size].reshape(y.shape)
    x = memory[: arrays[0].size].reshape(arrays[0].shape)
    if wrap is OnlyArray:
        x = SharesArray(x)
    elif wrap is OnlyDLPack:
        x = OnlyDLPack(x)
    with pytest.raises(ValueError, match="out overlaps an input"):
        function(x, arrays[1], out=out)
    assert not memory.any()


class SharesArray:
    """Gives its own array by __array__."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_out_with_a_bias_that_overlaps():
    x, w = normal(1, 1, 2, 2), normal(1, 1, 1, 1)
    out = np.zeros((1, 1, 2, 2), np.float32)
    for function, kernel in ((ck.conv2d, w), (ck.pointwise, w)):
        with pytest.raises(ValueError, match="out overlaps an input"):
            function(x, kernel, out.reshape(-1)[:1], out=out)


def test_inputs_are_left_alone():
    for name in OPERATIONS:
        function, arrays = inputs(name)
        before = [a.copy() for a in arrays]
        y = function(*arrays)
        for a, b in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(a, b)
            assert not np.shares_memory(y, a)
