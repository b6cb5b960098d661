"""The models: their numbers, their seeds, and LeNet-5 with all gradients against the same network in PyTorch."""

import inspect

import numpy as np
import pytest

import convkern as ck
from convkern import models, nn, ops
from convkern.bench.rivals import networks


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
    twin = networks.lenet5().double()
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


# --- networks with batch normalisation


@pytest.mark.parametrize(
    ("name", "count"), [("lenet5", 61_706), ("vgg16_cifar", 14_728_266), ("resnet18_cifar", 11_173_962)]
)
def test_networks_as_in_pytorch(name, count):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = getattr(networks, name)().double()
    mine = models.build(name).to(np.float64)
    assert sum(p.size for p in mine.parameters()) == sum(p.numel() for p in theirs.parameters()) == count
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    rng = np.random.default_rng(0)
    for key, value in state.items():  # weights and biases of batch norm that are not all 1 and 0
        if value.ndim == 1 and "running" not in key:
            state[key] = value + 0.2 * rng.standard_normal(value.shape)
    mine.load_state_dict(state)
    theirs.load_state_dict({key: torch.tensor(value) for key, value in state.items()})

    x = images(4) if name == "lenet5" else images(4, 3, 32)
    labels = np.array([3, 0, 9, 3])
    logits = mine(x)
    ops.cross_entropy(logits, labels).backward()
    expected = theirs(torch.tensor(x))
    torch.nn.functional.cross_entropy(expected, torch.tensor(labels)).backward()
    assert_close(logits.data, expected.detach().numpy())
    grads = {key: p.grad.numpy() for key, p in theirs.named_parameters()}
    largest = max(float(np.abs(g).max()) for g in grads.values())
    for key, p in mine.named_parameters():
        if np.abs(grads[key]).max() < 1e-12 * largest:  # a bias before batch norm: the mean takes it out again
            assert np.abs(p.grad.data).max() < 1e-12 * largest
        else:
            assert_close(p.grad.data, grads[key])
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(mine.state_dict()[key], value.numpy(), rtol=1e-8, atol=1e-10)
    mine.eval()
    theirs.eval()
    assert_close(mine(x).data, theirs(torch.tensor(x)).detach().numpy())


def test_networks_of_other_images():
    assert models.vgg16_cifar(num_classes=3, in_channels=1, image_size=64)[-1].weight.shape == (3, 2048)
    with pytest.raises(ValueError, match="vgg16_cifar: image_size must be at least 32, got 28"):
        models.vgg16_cifar(image_size=28)
    assert models.resnet18_cifar(num_classes=4, in_channels=1)(images(2).astype(np.float32)).shape == (2, 4)


@pytest.mark.parametrize("name", ["vgg16_cifar", "resnet18_cifar"])
def test_seeds_of_networks(name):
    a, b = models.build(name, seed=1), models.build(name, seed=1)
    for key, value in a.state_dict().items():
        np.testing.assert_array_equal(value, b.state_dict()[key])
    weights = [p.data.ravel()[:6] for p in a.parameters() if p.ndim > 1]
    assert len(np.unique(np.concatenate(weights))) == 6 * len(weights)
