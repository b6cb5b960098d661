"""Modules: registration, state, hooks, modes, conversion, summary."""

import copy
import gc

import numpy as np
import pytest

import convkern as ck
from convkern import models, nn


def f4(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Block(nn.Module):
    """A module with everything: parameters, a buffer, members, plain attributes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.name = "block"
        self.register_buffer("mean", np.zeros(3, np.float32))
        self.rest = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))

    def forward(self, x):
        y = self.conv(x) * self.scale.reshape(3, 1, 1) - self.mean.reshape(3, 1, 1)
        return self.rest(y)


NAMES = ["scale", "conv.weight", "conv.bias", "rest.2.weight", "rest.2.bias"]


# --- registration


def test_registration():
    block = Block()
    assert [name for name, _ in block.named_parameters()] == NAMES
    assert [id(p) for p in block.parameters()] == [id(p) for _, p in block.named_parameters()]
    assert [n for n, _ in block.named_modules()] == ["", "conv", "rest", "rest.0", "rest.1", "rest.2"]
    assert list(block.modules())[1] is block.conv
    assert list(block.children()) == [block.conv, block.rest]
    assert [n for n, _ in block.named_buffers()] == ["mean"]
    assert next(block.buffers()) is block.mean
    assert block.name == "block"
    assert isinstance(block.scale, nn.Parameter)
    assert block.scale.requires_grad


def test_a_name_stands_for_one_thing():
    block = Block()
    order = [name for name, _ in block.named_parameters()]
    block.scale = nn.Parameter(np.zeros(3, np.float32))
    assert [name for name, _ in block.named_parameters()] == order
    for value in (nn.ReLU(), nn.Parameter(np.ones(1)), None, nn.Linear(1, 1), nn.Parameter(np.ones(1)), 3):
        for name in ("conv", "scale", "mean", "name", "fresh"):
            setattr(block, name, value)
            assert getattr(block, name) is value
            registries = (block._parameters, block._modules, block._buffers, block.__dict__)
            assert sum(name in registry for registry in registries) == 1
    block.register_buffer("conv", np.ones(2))
    block.conv = np.zeros(2)
    assert dict(block.named_buffers())["conv"] is block.conv
    np.testing.assert_array_equal(block.conv, 0)


def test_removal():
    block = Block()
    del block.scale, block.conv, block.mean, block.name
    assert [name for name, _ in block.named_parameters()] == NAMES[3:]
    for name in ("scale", "conv", "mean", "name"):
        with pytest.raises(AttributeError, match=name):
            getattr(block, name)
        with pytest.raises(AttributeError):
            delattr(block, name)


def test_super_init_is_missed():
    class Forgetful(nn.Module):
        def __init__(self):
            self.layer = nn.ReLU()

    with pytest.raises(AttributeError, match=r"Forgetful: call super\(\)\.__init__\(\) before assigning 'layer'"):
        Forgetful()


def test_shared_modules_and_parameters_count_once():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert [n for n, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert len(list(model.modules())) == 3
    other = nn.Linear(3, 3)
    other.weight = shared.weight
    tied = nn.Sequential(shared, other)
    assert [n for n, _ in tied.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    model(ck.Tensor(f4(2, 3))).sum().backward()
    assert shared.weight.grad is not None


# --- state


def test_state_dict_round_trip():
    a, b = Block(), Block()
    a.mean += 2
    state = a.state_dict()
    assert list(state) == [*NAMES, "mean"]
    assert all(type(v) is np.ndarray for v in state.values())
    assert b.load_state_dict(state) is None
    for name, value in b.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
    x = f4(2, 2, 4, 4)
    np.testing.assert_array_equal(a(x).data, b(x).data)


def test_state_dict_copies():
    block = Block()
    state = block.state_dict()
    before = copy.deepcopy(state)
    for value in state.values():
        value += 1
    for name, value in block.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    block.load_state_dict(state)
    for value in state.values():
        value += 1
    for name, value in block.state_dict().items():
        np.testing.assert_array_equal(value, before[name] + 1)


def test_load_state_dict_keeps_the_arrays_and_takes_anything_that_converts():
    block = Block()
    arrays = {name: p.data for name, p in block.named_parameters()}
    state = {name: value.astype(np.float64) + 1 for name, value in block.state_dict().items()}
    state["scale"] = ck.tensor([5.0, 6.0, 7.0], requires_grad=True)
    state["mean"] = np.array([1, 2, 3])
    block.load_state_dict(state)
    for name, p in block.named_parameters():
        assert p.data is arrays[name]
        assert p.dtype == np.float32
        assert p.requires_grad
    np.testing.assert_array_equal(block.scale.data, [5, 6, 7])
    np.testing.assert_array_equal(block.mean, [1, 2, 3])
    assert block.mean.dtype == np.float32


def test_load_state_dict_names_all_that_does_not_fit():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 3), nn.Linear(3, 2))
    before = model.state_dict()
    state = model.state_dict()
    del state["0.bias"]
    state["1.weight"] = f4(3, 5)
    state["2.bias"] = np.array(["a", "b"])
    state["3.weight"] = f4(1)
    state["0.weight"] += 1  # fits, but must not be taken either
    with pytest.raises(ValueError, match="load_state_dict: the state does not fit Sequential: ") as caught:
        model.load_state_dict(state)
    for part in (
        "missing 0.bias",
        "unexpected 3.weight",
        "1.weight has shape (3, 5), expected (3, 4)",
        "2.bias has dtype <U1, which does not convert to float32",
    ):
        assert part in str(caught.value)
    with pytest.raises(TypeError, match=r"2\.bias must be an array or a Tensor, got list"):
        model.load_state_dict({**state, **before, "2.bias": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"2\.bias has dtype complex128"):
        model.load_state_dict({**before, "0.weight": before["0.weight"] + 1, "2.bias": np.ones(2, complex)})
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_deep_copies_are_independent():
    block = Block()
    twin = copy.deepcopy(block)
    x = f4(1, 2, 4, 4)
    np.testing.assert_array_equal(block(x).data, twin(x).data)
    twin.conv.weight.data[:] = 0
    assert block.conv.weight.data.any()
    assert [n for n, _ in twin.named_parameters()] == NAMES


# --- hooks


def test_forward_hooks():
    layer, calls = nn.Linear(3, 2), []
    first = layer.register_forward_hook(lambda module, args, y: calls.append((module, args, y)))
    x = ck.Tensor(f4(1, 3))
    y = layer(x)
    (called,) = calls
    assert called[0] is layer
    assert called[1] == (x,)
    assert called[2] is y
    second = layer.register_forward_hook(lambda module, args, y: y * 0)
    third = layer.register_forward_hook(lambda module, args, y: y + 1)
    np.testing.assert_array_equal(layer(x).data, [[1, 1]])  # in the order of registration, each sees the last one's
    second.remove()
    np.testing.assert_array_equal(layer(x).data, y.data + 1)
    first.remove()
    third.remove()
    assert layer(x).data.any()
    assert len(calls) == 3


def test_an_old_handle_takes_no_new_hook_off():
    layer, calls = nn.ReLU(), []
    old = layer.register_forward_hook(lambda *a: calls.append("old"))
    old.remove()
    layer.register_forward_hook(lambda *a: calls.append("new"))
    old.remove()
    layer(f4(2))
    assert calls == ["new"]


def test_a_hook_may_remove_itself():
    layer, calls = nn.ReLU(), []

    def once(module, args, y):
        calls.append(1)
        handle.remove()

    handle = layer.register_forward_hook(once)
    layer(f4(2))
    layer(f4(2))
    assert calls == [1]


# --- modes, conversion, freezing


def test_train_and_eval():
    block = Block()
    assert block.training
    assert block.eval() is block
    assert not any(m.training for m in block.modules())
    block.rest.train()
    assert not block.training
    assert all(m.training for m in block.rest.modules())
    assert block.train() is block
    assert all(m.training for m in block.modules())


def test_to_dtype():
    block = Block()
    block.register_buffer("steps", np.array(3))
    block(f4(1, 2, 4, 4)).sum().backward()
    before = block.state_dict()
    assert block.to(np.float64) is block
    assert {p.dtype for p in block.parameters()} == {np.dtype(np.float64)}
    assert block.mean.dtype == np.float64
    assert block.steps.dtype == np.int64
    assert all(p.grad is None and p.requires_grad for p in block.parameters())
    for name, value in block.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    y = block(f4(1, 2, 4, 4).astype(np.float64))
    assert y.dtype == np.float64
    y.sum().backward()
    assert {p.grad.dtype for p in block.parameters()} == {np.dtype(np.float64)}
    assert block.to("float32").conv.weight.dtype == np.float32


def test_zero_grad_and_freezing():
    block = Block()
    x = f4(1, 2, 4, 4)
    block(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    block.zero_grad()
    assert all(p.grad is None for p in block.parameters())
    block.conv.requires_grad_(False)
    block(x).sum().backward()
    assert [n for n, p in block.named_parameters() if p.grad is None] == ["conv.weight", "conv.bias"]


def test_a_model_is_freed_without_the_garbage_collector():
    import weakref

    gc.collect()
    gc.disable()
    try:
        block = Block()
        block(f4(1, 2, 4, 4)).sum().backward()
        held = [weakref.ref(p.data) for p in block.parameters()]
        del block
        assert all(ref() is None for ref in held)
    finally:
        gc.enable()


# --- what they say


def test_repr():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding="same", dilation=2, groups=2, bias=False), nn.MaxPool2d(2), nn.Linear(3, 2)
    )
    assert repr(model) == (
        "Sequential(\n"
        "  (0): Conv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=same, dilation=(2, 2), groups=2, bias=False)\n"
        "  (1): MaxPool2d(kernel_size=2, stride=2, padding=0)\n"
        "  (2): Linear(3, 2)\n"
        ")"
    )
    assert repr(nn.Sequential(nn.Sequential(nn.ReLU()))) == "Sequential(\n  (0): Sequential(\n    (0): ReLU()\n  )\n)"
    assert repr(nn.AvgPool2d((3, 2), 1, 1)) == "AvgPool2d(kernel_size=(3, 2), stride=1, padding=1)"
    assert repr(nn.Linear(3, 2, bias=False)) == "Linear(3, 2, bias=False)"


def test_summary_of_lenet():
    model = models.lenet5()
    summary = model.summary((1, 28, 28))
    assert summary.parameters == 61_706
    assert summary.multiply_adds == 416_520
    assert summary.input_shape == (1, 1, 28, 28)
    facts = {layer.name: layer for layer in summary.layers}
    assert [layer.kind for layer in summary.layers] == [type(m).__name__ for m in model]
    assert facts["0"].output_shape == (1, 6, 28, 28)
    assert (facts["0"].parameters, facts["0"].multiply_adds) == (6 * 25 + 6, 28 * 28 * 6 * 25)
    assert (facts["3"].parameters, facts["3"].multiply_adds) == (16 * 150 + 16, 10 * 10 * 16 * 150)
    assert facts["5"].output_shape == (1, 16, 5, 5)
    assert (facts["7"].parameters, facts["7"].multiply_adds) == (400 * 120 + 120, 400 * 120)
    text = str(summary)
    for part in ("(1, 16, 10, 10)", "61,706", "416,520", "Conv2d", "multiply-adds"):
        assert part in text
    assert len({len(line) for line in text.splitlines()[1:]}) == 1  # columns line up
    batch = model.summary((8, 1, 28, 28))
    assert batch.multiply_adds == 8 * 416_520
    assert batch.parameters == 61_706


def fields(model, *shape):
    return [layer.receptive_field for layer in model.summary(shape).layers]


def test_receptive_fields():
    lenet = fields(models.lenet5(), 1, 28, 28)
    assert lenet[:6] == [(5, 5), (5, 5), (6, 6), (14, 14), (14, 14), (16, 16)]
    assert set(lenet[6:]) == {None}
    assert fields(nn.Sequential(*(nn.Conv2d(1, 1, 3) for _ in range(3))), 1, 9, 9)[-1] == (7, 7)  # as one 7x7
    vgg = models.vgg16(image_size=32).summary((3, 32, 32))
    assert [f.receptive_field for f in vgg.layers if f.kind == "Conv2d"][-1] == (196, 196)
    assert [f.receptive_field for f in vgg.layers if f.kind == "MaxPool2d"][-1] == (212, 212)
    assert fields(models.resnet50(5), 3, 64, 64)[-2] == (427, 427)
    up = nn.Sequential(nn.Conv2d(1, 1, 2, 2), nn.ConvTranspose2d(1, 1, 2, 2), nn.Conv2d(1, 1, 3))
    assert fields(up, 1, 8, 8) == [(2, 2), (2, 2), (4, 4)]
    assert fields(nn.Sequential(nn.AdaptiveAvgPool2d(2)), 1, 8, 6) == [(4, 3)]


def test_receptive_fields_of_dilated_pooling_unpooling_and_resizing():
    assert fields(nn.Sequential(nn.MaxPool2d((3, 2), 1, dilation=(2, 3))), 1, 9, 9) == [(5, 4)]
    up = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 3))
    assert fields(up, 1, 8, 8) == [(3, 3), (3, 3), (4, 4)]
    linear = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(1, 1, 2))
    assert fields(linear, 1, 8, 8) == [(2, 2), (2, 2)]


def test_receptive_fields_along_one_and_three_axes():
    line = nn.Sequential(nn.Conv1d(2, 3, 5), nn.MaxPool1d(2), nn.Conv1d(3, 1, 3), nn.Flatten(), nn.Linear(8, 2))
    assert fields(line, 1, 2, 24) == [(5,), (6,), (10,), None, None]
    video = nn.Sequential(
        nn.Conv3d(1, 2, (3, 5, 2)), nn.ReLU(), nn.AvgPool3d((1, 2, 2)), nn.Conv3d(2, 2, 3, stride=(2, 1, 1)),
        nn.Conv3d(2, 1, 2),
    )  # fmt: skip
    shape = (1, 1, 9, 16, 13)
    assert fields(video, *shape) == [(3, 5, 2), (3, 5, 2), (3, 6, 3), (5, 10, 7), (7, 12, 9)]
    for p in video.parameters():
        p.data[...] = 1
    x = ck.Tensor(np.ones(shape, np.float32), requires_grad=True)
    video(x)[0, 0, 0, 1, 0].backward()
    assert tuple(np.ptp(places) + 1 for places in np.nonzero(x.grad.data[0, 0])) == (7, 12, 9)
    assert "  7x12x9\n" in str(video.summary(shape[1:]))
    assert line.summary((2, 24)).input_shape == (1, 2, 24)


class Returns(nn.Module):
    """A layer without members whose result is what a function makes of x."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


class PoolAndBack(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.back = nn.MaxUnpool2d(2)
        self.both = Returns(lambda x: {"x": x, "more": [x, (x[:, :1],)]})
        self.nothing = Returns(lambda x: None)
        self.last = nn.Conv2d(2, 1, 3)

    def forward(self, x):
        x = self.both(self.back(*self.pool(self.conv(x))))["x"]
        self.nothing(x)
        return self.last(x=x)


def test_summary_of_layers_with_several_results():
    summary = PoolAndBack().summary((1, 8, 8))
    facts = {layer.name: layer for layer in summary.layers}
    assert list(facts) == ["conv", "pool", "back", "both", "last"]
    assert facts["pool"].output_shape == (1, 2, 4, 4)
    assert facts["pool"].memory == 2 * 16 * (4 + 8)  # values and int64 indices
    assert facts["both"].memory == (128 + 128 + 64) * 4
    assert [layer.receptive_field for layer in summary.layers][:4] == [(3, 3), (4, 4), (4, 4), (4, 4)]
    assert facts["last"].multiply_adds == 36 * 18


def test_receptive_fields_are_where_the_gradient_reaches():
    model = nn.Sequential(
        nn.Conv2d(1, 2, (3, 2), stride=2, dilation=(1, 3)), nn.AvgPool2d((2, 3), stride=1), nn.Conv2d(2, 1, 3, stride=(2, 1)),
        nn.Conv2d(1, 1, 2, dilation=2),
    )  # fmt: skip
    for p in model.parameters():
        p.data[...] = 1
    x = ck.Tensor(np.ones((1, 1, 60, 50), np.float32), requires_grad=True)
    model(x)[0, 0, 3, 4].backward()
    rows, columns = np.nonzero(x.grad.data[0, 0])
    assert fields(model, 1, 60, 50)[-1] == (np.ptp(rows) + 1, np.ptp(columns) + 1)


def test_memory_of_a_summary():
    summary = models.lenet5().summary((4, 1, 28, 28))
    assert summary.layers[0].memory == 4 * 6 * 28 * 28 * 4
    assert summary.memory == sum(layer.memory for layer in summary.layers)


def test_summary_leaves_the_model_as_it_was():
    block = Block()
    block.rest.eval()
    calls = []
    block.conv.register_forward_hook(lambda *a: calls.append(1))
    summary = block.summary((2, 4, 4))
    assert summary.parameters == sum(p.size for p in block.parameters())
    assert block.training
    assert not block.rest.training
    assert all(p.grad is None for p in block.parameters())
    assert calls == [1]
    assert all(not m._hooks for m in block.modules() if m is not block.conv)
    with pytest.raises(ValueError, match="x has 3 channels"):
        block.summary((3, 4, 4))
    assert not block.rest[2]._hooks
    assert block.training


def test_summary_counts_shared_parameters_once_and_groups():
    shared = nn.Linear(3, 3)
    summary = nn.Sequential(shared, nn.ReLU(), shared).summary((1, 3))
    assert summary.parameters == 12
    assert summary.multiply_adds == 18
    grouped = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, padding=1)).summary((4, 5, 5))
    assert grouped.multiply_adds == 8 * 25 * 9
    assert nn.Sequential(nn.Linear(3, 2)).to(np.float64).summary((1, 3)).parameters == 8
