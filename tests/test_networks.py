"""The networks of the courses: their published parameter counts, and all gradients as in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import convkern as ck
from convkern import models, nn, ops

COUNTS = {
    "lenet5": 61_706,
    "alexnet": 62_378_344,
    "vgg11": 132_863_336,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg16_cifar": 14_728_266,
    "nin": 7_439_608,
    "googlenet": 6_998_552,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet18_cifar": 11_173_962,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnext50_32x4d": 25_028_904,
    "densenet121": 7_978_856,
    "softmax_regression": 7_850,
    "mlp": 203_530,
}


def size(model) -> int:
    return sum(p.size for p in model.parameters())


@pytest.mark.parametrize("name", models.NAMES)
def test_parameter_counts(name, undrawn):
    assert size(models.build(name)) == COUNTS[name]


def test_other_parameter_counts(undrawn):
    assert size(models.alexnet(variant="2014")) == 61_100_840
    assert size(models.linear_regression(3, 2)) == 8
    assert size(models.logistic_regression(5)) == 6
    assert size(models.unet()) == 31_037_698


def torch_twins():
    """For each network's name a function that gives ours, PyTorch's, and the side of the images."""
    pytest.importorskip("torch")
    from torch.nn import Flatten, Linear, Sequential, Sigmoid

    from . import twins

    v11 = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
    v16 = [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"]
    v19 = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]

    def resnext(*options):
        return twins.bottleneck(*options, groups=32, group_width=4)

    return {
        "linear regression": lambda: (models.linear_regression(7, 2), Sequential(Linear(7, 2)), None),
        "logistic regression": lambda: (models.logistic_regression(7), Sequential(Linear(7, 1), Sigmoid()), None),
        "softmax regression": lambda: (models.softmax_regression(5, 3, 6), Sequential(Flatten(), Linear(108, 5)), 6),
        "mlp": lambda: (models.mlp(5, 3, 6, hidden=(8, 7)), twins.mlp(108, 8, 7, 5), 6),
        "resnet20": lambda: (models.resnet20(5), twins.small_resnet(5, 3), 16),
        "resnet32": lambda: (models.resnet32(5), twins.small_resnet(5, 5), 16),
        "resnet44": lambda: (models.resnet44(5), twins.small_resnet(5, 7), 16),
        "resnet56": lambda: (models.resnet56(5), twins.small_resnet(5, 9), 16),
        "resnet110": lambda: (models.resnet110(5), twins.small_resnet(5, 18), 16),
        "unet": lambda: (models.unet(3, width=4, depth=2), twins.UNet(3, 4, 2), 16),
        "alexnet 2012": lambda: (models.alexnet(5), twins.alexnet(5, "2012"), 224),
        "alexnet 2014": lambda: (models.alexnet(5, variant="2014"), twins.alexnet(5, "2014"), 224),
        "vgg11": lambda: (models.vgg11(5, image_size=32), twins.vgg(5, v11, 1), 32),
        "vgg16": lambda: (models.vgg16(5, image_size=32), twins.vgg(5, v16, 1), 32),
        "vgg19 with batch norm": lambda: (
            models.vgg19(5, image_size=64, batch_norm=True),
            twins.vgg(5, v19, 2, True),
            64,
        ),
        "nin": lambda: (models.nin(5), twins.nin(5), 96),
        "googlenet": lambda: (models.googlenet(5), twins.googlenet(5), 64),
        "resnet18": lambda: (models.resnet18(5), twins.resnet(5, twins.basic, (2, 2, 2, 2), 1), 64),
        "resnet34": lambda: (models.resnet34(5), twins.resnet(5, twins.basic, (3, 4, 6, 3), 1), 64),
        "resnet50": lambda: (models.resnet50(5), twins.resnet(5, twins.bottleneck, (3, 4, 6, 3), 4), 64),
        "resnet101": lambda: (models.resnet101(5), twins.resnet(5, twins.bottleneck, (3, 4, 23, 3), 4), 64),
        "resnet152": lambda: (models.resnet152(5), twins.resnet(5, twins.bottleneck, (3, 8, 36, 3), 4), 64),
        "resnext50_32x4d": lambda: (models.resnext50_32x4d(5), twins.resnet(5, resnext, (3, 4, 6, 3), 4), 64),
        "densenet121": lambda: (models.densenet121(5), twins.densenet(5), 64),
        "bottleneck": lambda: (models.Bottleneck(3, 6, stride=2), twins.bottleneck(3, 6, 2), 9),
        "basic block": lambda: (models.BasicBlock(3, 6, stride=2), twins.basic(3, 6, 2), 9),
        "basic block, plain": lambda: (models.BasicBlock(3, 6, stride=2, project=False), twins.plain(3, 6, 2), 9),
    }


QUICK = (
    "linear regression", "logistic regression", "softmax regression", "mlp", "resnet20", "unet", "bottleneck", "basic block",
    "basic block, plain",
)  # fmt: skip
LONG = (
    "resnet32", "resnet44", "resnet56", "resnet110", "alexnet 2012", "alexnet 2014", "vgg11", "vgg16",
    "vgg19 with batch norm", "nin", "googlenet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnext50_32x4d", "densenet121",
)  # fmt: skip


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.full) for name in LONG)])
def test_logits_and_gradients_as_in_pytorch(name, undrawn):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    mine, theirs, side = torch_twins()[name]()
    mine, theirs = mine.to(np.float64), theirs.double()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            value = q.numpy()
            if q.ndim == 1:  # weights and biases of batch norm that are not all 1 and 0
                value = value + 0.1 * rng.standard_normal(q.shape)
                q.copy_(torch.from_numpy(value))
            assert p.shape == value.shape
            p.data[...] = value
            p.mark_changed()
    for module in mine.modules():
        if isinstance(module, nn.Dropout):
            module.eval()  # the twins have none
    x = rng.standard_normal((3, 7) if side is None else (3, 3, side, side))
    ours, other = ck.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, expected = mine(ours), theirs(other)
    scale = np.abs(expected.detach().numpy()).max()
    assert np.abs(y.data - expected.detach().numpy()).max() <= 1e-8 * scale
    seed = rng.standard_normal(expected.shape)
    ops.sum(y * seed).backward()
    (expected * torch.tensor(seed)).sum().backward()
    grads = [q.grad.numpy() for q in theirs.parameters()]
    largest = max(float(np.abs(g).max()) for g in grads)
    pairs = [*zip(mine.parameters(), grads, strict=True), (ours, other.grad.numpy())]
    for p, g in pairs:
        if np.abs(g).max() < 1e-12 * largest:  # a bias before batch norm: the mean takes it out again
            assert np.abs(p.grad.data).max() < 1e-12 * largest
        else:
            assert np.abs(p.grad.data - g).max() <= 1e-8 * np.abs(g).max()


def test_every_network_is_compared():
    assert {*QUICK, *LONG} == set(torch_twins())


def test_a_plain_shortcut_draws_nothing():
    """What is drawn after its block is what is drawn after the block's two convolutions."""
    with nn.init.seeded(3):
        block, after = models.BasicBlock(2, 4, stride=2, project=False), nn.Linear(2, 2)
    with nn.init.seeded(3):
        first, second, third = nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False), nn.Linear(2, 2)
    assert not any(name.startswith("shortcut") for name in block.state_dict())
    for mine, expected in ((block.conv1, first), (block.conv2, second), (after, third)):
        np.testing.assert_array_equal(mine.weight.data, expected.weight.data)


def test_channels_of_a_plain_shortcut():
    x = np.arange(2 * 2 * 3 * 4.0).reshape(2, 2, 3, 4)
    y = models.BasicBlock(2, 5, stride=2, project=False).shortcut(ck.Tensor(x)).data
    assert y.shape == (2, 5, 2, 2)
    np.testing.assert_array_equal(y[:, :2], x[:, :, ::2, ::2])
    assert not y[:, 2:].any()
    facts = {layer.name: layer for layer in models.resnet20().summary((3, 32, 32)).layers}
    assert facts["stages.1.0.shortcut"].output_shape == (1, 32, 16, 16)
    assert facts["stages.2.2.conv2"].receptive_field == (81, 81)  # that of the convolutions alone


EMPTY = {"alexnet": 224, "googlenet": 32, "vgg16": 32, "nin": 96, "resnet20": 32, "densenet121": 32}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_batch_gives_empty_logits(name, undrawn):
    shape = (3, EMPTY[name], EMPTY[name])
    model = models.build_for(name, shape, num_classes=4).eval()
    y = model(np.empty((0, *shape), np.float32))
    assert y.shape == (0, 4)
    ops.sum(y).backward()
    assert all(not p.grad.data.any() for p in model.parameters())


def test_wrong_options():
    with pytest.raises(ValueError, match="alexnet: variant must be '2012' or '2014', got '2013'"):
        models.alexnet(variant="2013")
    for vgg in (models.vgg11, models.vgg16, models.vgg19):
        with pytest.raises(ValueError, match=f"{vgg.__name__}: image_size must be at least 32, got 31"):
            vgg(image_size=31)
    with pytest.raises(
        ValueError, match=r"UNet: height and width of x must be multiples of 4, got shape \(1, 3, 8, 10\)"
    ):
        models.unet(width=2, depth=2)(np.zeros((1, 3, 8, 10), np.float32))


def test_logistic_regression_gives_probabilities():
    y = models.logistic_regression(4)(np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32))
    assert y.shape == (20, 1)
    assert 0 < y.data.min() < y.data.max() < 1


def test_mlp():
    model = models.mlp(num_classes=3, in_channels=2, image_size=5, hidden=(7, 6), dropout=0.5)
    assert [type(m).__name__ for m in model] == ["Flatten", *["Linear", "ReLU", "Dropout"] * 2, "Linear"]
    assert model(np.zeros((4, 2, 5, 5), np.float32)).shape == (4, 3)
