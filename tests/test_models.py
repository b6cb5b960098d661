"""The models: their numbers, their seeds, and LeNet-5 with all gradients against the same network in PyTorch."""

import inspect

import numpy as np
import pytest

import convkern as ck
from convkern import models, nn, ops


def images(n=3, channels=1, size=28, seed=0):
    return np.random.default_rng(seed).standard_normal((n, channels, size, size))


def test_names_and_build():
    assert "lenet5" in models.NAMES
    for name in models.NAMES:
        assert name in models.__all__
        assert inspect.signature(getattr(models, name)).return_annotation
    built = models.build("lenet5", num_classes=4, seed=3)
    same = models.lenet5(num_classes=4, seed=3)
    for (name, p), (other, q) in zip(built.named_parameters(), same.named_parameters(), strict=True):
        assert name == other
        np.testing.assert_array_equal(p.data, q.data)
    with pytest.raises(ValueError, match=r"model must be one of .*lenet5.*, got 'lenet6'"):
        models.build("lenet6")
    with pytest.raises(TypeError, match="colour"):
        models.build("lenet5", colour=True)


def test_lenet5_is_the_courses():
    model = models.lenet5()
    assert sum(p.size for p in model.parameters()) == 61_706
    assert [type(m).__name__ for m in model] == [
        "Conv2d", "ReLU", "AvgPool2d", "Conv2d", "ReLU", "AvgPool2d", "Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear",
    ]  # fmt: skip
    assert {name: p.shape for name, p in model.named_parameters()} == {
        "0.weight": (6, 1, 5, 5),
        "0.bias": (6,),
        "3.weight": (16, 6, 5, 5),
        "3.bias": (16,),
        "7.weight": (120, 400),
        "7.bias": (120,),
        "9.weight": (84, 120),
        "9.bias": (84,),
        "11.weight": (10, 84),
        "11.bias": (10,),
    }
    assert model[0].padding == 2
    assert model(images().astype(np.float32)).shape == (3, 10)
    assert next(m for m in model.modules() if isinstance(m, nn.Conv2d)) is model[0]


@pytest.mark.parametrize(("size", "features"), [(28, 400), (32, 576), (12, 16), (29, 400), (13, 16)])
def test_lenet5_of_other_images(size, features):
    model = models.lenet5(num_classes=3, in_channels=2, image_size=size)
    assert model[7].weight.shape == (120, features)
    assert model(images(2, 2, size).astype(np.float32)).shape == (2, 3)


def test_seeds():
    a, b, c = models.lenet5(seed=1), models.lenet5(seed=1), models.lenet5(seed=2)
    for name, value in a.state_dict().items():
        np.testing.assert_array_equal(value, b.state_dict()[name])
        assert (value != c.state_dict()[name]).any()
    flat = np.concatenate([p.data.ravel()[:6] for p in a.parameters()])
    assert len(np.unique(flat)) == flat.size  # no two layers draw the same numbers


def torch_lenet(model):
    torch = pytest.importorskip("torch")
    t = torch.nn
    twin = t.Sequential(
        t.Conv2d(1, 6, 5, padding=2), t.ReLU(), t.AvgPool2d(2), t.Conv2d(6, 16, 5), t.ReLU(), t.AvgPool2d(2), t.Flatten(),
        t.Linear(400, 120), t.ReLU(), t.Linear(120, 84), t.ReLU(), t.Linear(84, 10),
    ).double()  # fmt: skip
    twin.load_state_dict({name: torch.tensor(value) for name, value in model.state_dict().items()})
    return twin


def assert_close(got, expected, relative=1e-8):
    """Within a part of the largest element: small gradients are differences of large sums."""
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= relative * np.abs(expected).max()
    assert np.abs(expected).max() > 0


def test_lenet5_forward_and_all_gradients_as_in_pytorch():
    torch = pytest.importorskip("torch")
    model = models.lenet5(seed=5).to(np.float64)
    twin = torch_lenet(model)
    x, labels = images(4), np.array([3, 0, 9, 3])

    mine = ck.Tensor(x, requires_grad=True)
    logits = model(mine)
    loss = ops.cross_entropy(logits, labels)
    loss.backward()

    other = torch.tensor(x, requires_grad=True)
    theirs = twin(other)
    their_loss = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels))
    their_loss.backward()

    assert_close(logits.data, theirs.detach().numpy())
    assert abs(loss.item() - their_loss.item()) < 1e-12
    assert_close(mine.grad.data, other.grad.numpy())
    expected = {name: p.grad.numpy() for name, p in twin.named_parameters()}
    assert len(expected) == 10
    for name, p in model.named_parameters():
        assert_close(p.grad.data, expected[name])


def test_lenet5_trains_as_in_pytorch():
    torch = pytest.importorskip("torch")
    from convkern import optim

    model = models.lenet5(seed=6).to(np.float64)
    twin = torch_lenet(model)
    ours = optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    theirs = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    x, labels = images(8, seed=1), np.arange(8) % 3
    for _ in range(5):
        ours.zero_grad()
        theirs.zero_grad()
        ops.cross_entropy(model(x), labels).backward()
        torch.nn.functional.cross_entropy(twin(torch.tensor(x)), torch.tensor(labels)).backward()
        ours.step()
        theirs.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert name
        assert_close(p.data, q.detach().numpy())


def test_lenet5_float32_is_near_float64():
    x = images(4).astype(np.float32)
    low = models.lenet5(seed=5)
    high = models.lenet5(seed=5).to(np.float64)
    assert_close(low(x).data.astype(np.float64), high(x.astype(np.float64)).data, relative=1e-5)


def test_the_same_input_gives_the_same_bits():
    model = models.lenet5(seed=5)
    x, labels = images(4).astype(np.float32), np.array([1, 2, 3, 4])
    runs = []
    for _ in range(2):
        model.zero_grad()
        loss = ops.cross_entropy(model(x), labels)
        loss.backward()
        runs.append([loss.item(), *(p.grad.data.copy() for p in model.parameters())])
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)
