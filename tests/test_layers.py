"""The layers against the functions that they stand for."""

from inspect import isfunction

import numpy as np
import pytest

import convkern as ck
from convkern import nn, ops
from convkern.nn import functional as F

from .test_nn import f4


@pytest.mark.parametrize(
    ("layer", "function", "shape"),
    [
        (nn.ReLU(), ops.relu, (2, 3)),
        (nn.Sigmoid(), ops.sigmoid, (2, 3)),
        (nn.Tanh(), ops.tanh, (2, 3)),
        (nn.Softmax(1), lambda x: F.softmax(x, 1), (2, 3)),
        (nn.LogSoftmax(dim=0), lambda x: F.log_softmax(x, 0), (2, 3)),
        (nn.Flatten(), lambda x: x.reshape(2, -1), (2, 3, 4)),
        (nn.Flatten(0, 1), lambda x: x.reshape(6, 4), (2, 3, 4)),
        (nn.MaxPool2d(2), lambda x: ck.max_pool2d(x, 2), (1, 2, 5, 5)),
        (nn.MaxPool2d(3, 2, 1, 1, ceil_mode=True), lambda x: ck.max_pool2d(x, 3, 2, 1, ceil_mode=True), (2, 6, 6)),
        (nn.MaxPool2d((2, 1), dilation=(1, 2)), lambda x: ck.max_pool2d(x, (2, 1), dilation=(1, 2)), (2, 6, 6)),
        (nn.AvgPool2d(2), lambda x: ck.avg_pool2d(x, 2), (1, 2, 5, 5)),
        (nn.AvgPool2d(3, 2, 1, True, False), lambda x: ck.avg_pool2d(x, 3, 2, 1, True, False), (2, 6, 6)),
        (nn.AvgPool2d(2, divisor_override=3), lambda x: ck.avg_pool2d(x, 2, divisor_override=3), (2, 6, 6)),
    ],
    ids=lambda value: None if isfunction(value) else repr(value),
)
def test_layers_without_parameters(layer, function, shape):
    x = f4(*shape)
    y = layer(x)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, function(x))
    t = layer(ck.Tensor(x, requires_grad=True))
    assert t.requires_grad
    np.testing.assert_array_equal(t.data, y)


def test_max_pool_layer_with_indices():
    y, indices = nn.MaxPool2d(2, return_indices=True)(f4(1, 2, 4, 4))
    assert indices.shape == y.shape


def test_layers_with_parameters():
    conv = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=((1, 0), (0, 2)), dilation=(1, 2), groups=2)
    x = f4(2, 4, 7, 8)
    assert conv.weight.shape == (6, 2, 3, 2)
    expected = ck.conv2d(x, conv.weight.data, conv.bias.data, (2, 1), ((1, 0), (0, 2)), (1, 2), 2)
    np.testing.assert_array_equal(conv(x).data, expected)
    bare = nn.Conv2d(4, 6, 3, padding="same", bias=False)
    assert bare.bias is None
    assert [n for n, _ in bare.named_parameters()] == ["weight"]
    np.testing.assert_array_equal(bare(x).data, ck.conv2d(x, bare.weight.data, padding="same"))
    linear = nn.Linear(5, 3)
    x = f4(2, 5)
    np.testing.assert_array_equal(linear(x).data, ops.linear(x, linear.weight.data, linear.bias.data))
    assert [n for n, _ in nn.Linear(5, 3, bias=False).named_parameters()] == ["weight"]
    assert nn.Linear(5, 3, dtype=np.float64)(x.astype(np.float64)).dtype == np.float64
    assert nn.Conv2d(1, 1, 1, dtype=np.float64).weight.dtype == np.float64


def test_cross_entropy_loss():
    logits, labels = f4(4, 3), np.array([0, 2, 1, 1])
    for reduction in ("mean", "sum", "none"):
        expected = F.cross_entropy(logits, labels, reduction=reduction)
        np.testing.assert_array_equal(nn.CrossEntropyLoss(reduction=reduction)(logits, labels), expected)


def test_sequential():
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)]
    model = nn.Sequential(*layers)
    assert len(model) == 3
    assert list(model) == layers
    assert model[-1] is layers[2]
    assert list(model[1:]) == layers[1:]
    x = f4(2, 3)
    np.testing.assert_array_equal(model(x).data, layers[2](layers[1](layers[0](x))).data)
    assert nn.Sequential()(x) is x


def test_functional_names_are_the_operations():
    for name in F.__all__:
        assert getattr(F, name) is getattr(ops, name)


def test_sequential_fuses_convolution_and_relu_unless_somebody_looks():
    conv = nn.Conv2d(2, 3, 3)
    model = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Tanh())
    x = np.random.default_rng(0).standard_normal((2, 2, 5, 5)).astype("float32")
    fused = model(ck.tensor(x, requires_grad=True))
    seen = []
    handles = [model[i].register_forward_hook(lambda module, args, y: seen.append(y.data.min())) for i in (0, 1)]
    plain = model(ck.tensor(x, requires_grad=True))
    assert seen[0] < 0 <= seen[1]
    for handle in handles:
        handle.remove()
    np.testing.assert_array_equal(fused.data, plain.data)
    grads = []
    for y in (fused, plain):
        conv.weight.grad = None
        y.sum().backward()
        grads.append(conv.weight.grad.data)
    np.testing.assert_array_equal(*grads)
    names = []
    node = fused.grad_fn
    while node is not None:
        names.append(node.name)
        node = next((edge[0] for edge in node.edges if isinstance(edge, tuple)), None)
    assert names == ["tanh", "conv2d", "conv2d"]
