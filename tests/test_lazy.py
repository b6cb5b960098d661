"""Lazy layers, written as the courses write them."""

import copy

import numpy as np
import pytest

import convkern as ck
from convkern import nn, optim
from convkern.optim import swa_utils

from .steps import train_both
from .test_layers_steps import batches, squared

torch = pytest.importorskip("torch")


def lenet(module):
    """LeNet with batch normalisation, of layers that do not say their inputs."""
    return module.Sequential(
        module.LazyConv2d(6, kernel_size=5, padding=2), module.LazyBatchNorm2d(), module.Sigmoid(),
        module.AvgPool2d(kernel_size=2, stride=2),
        module.LazyConv2d(8, kernel_size=3, stride=(1, 2), groups=2, bias=False), module.Tanh(),
        module.Flatten(), module.LazyLinear(5), module.LazyBatchNorm1d(momentum=None), module.ReLU(),
        module.LazyLinear(3, bias=False),
    )  # fmt: skip


def test_twenty_steps():
    mine, theirs = lenet(nn), lenet(torch.nn)
    batch = batches((4, 2, 8, 10), (4, 3))
    mine(batch(0)[0])
    theirs.double()(torch.tensor(batch(0)[0]))
    for name, value in theirs.named_buffers():  # the trial moved the running statistics
        value.data = torch.tensor(dict(mine.named_buffers())[name])
    assert [type(m).__name__ for m in mine] == [type(m).__name__ for m in theirs]
    train_both(mine, theirs, batch, squared, squared)


def test_as_the_courses_use_them():
    """A trial on one batch, an initialisation that asks for the class, then the optimizer."""
    net = lenet(nn)
    assert "LazyConv2d(6, 5, 1, 2, 1, 1, True)" in repr(net)

    def init_cnn(layer):
        if type(layer) == nn.Linear or type(layer) == nn.Conv2d:  # noqa: E721 (as they write it)
            nn.init.xavier_uniform_(layer.weight)
            seen.append(layer)

    seen = []
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    net(x)
    assert net.apply(init_cnn) is net
    assert seen == [net[0], net[4], net[7], net[10]]
    assert net[0].weight.shape == (6, 1, 5, 5)
    assert net[4].weight.shape == (8, 3, 3, 3)
    assert [net[1].num_features, net[8].num_features] == [6, 5]
    assert "Conv2d(1, 6, kernel_size=(5, 5)" in repr(net)
    assert "Lazy" not in repr(net)
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    loss = (net(x) ** 2).mean()
    loss.backward()
    optimizer.step()
    assert (net(x) ** 2).mean().item() < loss.item()


def test_parameters_before_the_first_batch():
    for use in (
        lambda net: list(net.parameters()),
        lambda net: net.state_dict(),
        lambda net: net.load_state_dict({}),
        lambda net: net.to(np.float64),
        lambda net: optim.Adam(net.parameters()),
        lambda net: swa_utils.AveragedModel(net),
    ):
        with pytest.raises(
            RuntimeError, match="LazyConv2d '0' has no parameters yet: run a batch through the model first"
        ):
            use(lenet(nn))


def test_a_summary_is_a_first_batch():
    net = lenet(nn)
    table = net.summary((1, 8, 8))
    assert [layer.kind for layer in table.layers][:3] == ["Conv2d", "BatchNorm2d", "Sigmoid"]
    assert table.parameters == sum(p.size for p in net.parameters())
    assert all(not module._hooks for module in net.modules())
    assert all(module.training for module in net.modules())


def test_mode_hooks_dtype_and_copies():
    layer = nn.LazyLinear(3)
    called = []
    handle = layer.register_forward_hook(lambda module, args, y: called.append((type(module), y.shape)))
    layer.eval()
    twin = copy.deepcopy(layer)
    assert layer(np.ones((2, 5))).dtype == np.float64
    assert type(layer) is nn.Linear
    assert layer.weight.dtype == np.float64
    assert not layer.training
    assert called == [(nn.Linear, (2, 3))]
    handle.remove()
    layer(np.ones((2, 5)))
    assert len(called) == 1
    assert type(twin) is nn.LazyLinear
    assert nn.LazyLinear(3, dtype=np.float32)(np.ones((2, 4), np.float32)).dtype == np.float32
    assert twin.forward(np.ones(7, np.float32)).shape == (3,)
    unbatched = nn.LazyConv2d(4, 3)
    assert unbatched(np.ones((2, 5, 6), np.float32)).shape == (4, 3, 4)
    assert nn.LazyBatchNorm3d()(np.ones((2, 3, 2, 2, 2), np.float32)).shape == (2, 3, 2, 2, 2)


def test_weights_are_those_of_the_layer_they_stand_for():
    with nn.init.seeded(3):
        plain = nn.Linear(5, 3), nn.Conv2d(2, 4, 3)
    lazy = nn.LazyLinear(3), nn.LazyConv2d(4, 3)
    with nn.init.seeded(3):
        lazy[0](np.ones((1, 5), np.float32))
        lazy[1](np.ones((1, 2, 5, 5), np.float32))
    for a, b in zip(plain, lazy, strict=True):
        np.testing.assert_array_equal(a.weight.data, b.weight.data)
        np.testing.assert_array_equal(a.bias.data, b.bias.data)
    before = nn.init._state.draws
    nn.LazyConv2d(4, 3, groups=4)
    assert nn.init._state.draws == before


def test_a_wrong_second_batch_is_told_as_ever():
    net = lenet(nn)
    net(np.ones((2, 2, 8, 8), np.float32))
    with pytest.raises(ValueError, match="x has 4 channels"):
        net(np.ones((2, 4, 8, 8), np.float32))


def test_modules_with_made_up_names():
    net = nn.Sequential(nn.Linear(2, 3))
    net.add_module("last", nn.Linear(3, 1))
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias", "last.weight", "last.bias"]
    assert net(ck.tensor(np.ones((4, 2), np.float32))).shape == (4, 1)
    order = []
    net.apply(lambda module: order.append(type(module).__name__))
    assert order == ["Linear", "Linear", "Sequential"]
