"""An error inside a model names the layer, what it was given and what it takes."""

import re

import numpy as np
import pytest

import convkern as ck
from convkern import models, nn, subjects

SAID = re.compile(r"(?P<path>[\w.]+) \((?P<kind>\w+)\(.*?\)\) was given \((?P<given>[\d, ]+)\): (?P<why>.+)", re.DOTALL)
NETWORKS = (*models.NAMES, "unet")


def network(name):
    """A model of that name and the shape of a small batch for it."""
    if name == "unet":
        return models.unet(width=4), (2, 3, 32, 32)
    model, image = subjects.network(name)
    return model, (2, *image)


def said(model, x):
    """What the error says of the layer, having checked that it is a layer of the model and of that kind."""
    with pytest.raises(ValueError, match=SAID) as caught, ck.no_grad():
        model(np.zeros(x, np.float32))
    found = SAID.fullmatch(str(caught.value))
    layer = dict(model.named_modules())[found["path"]]
    assert type(layer).__name__ == found["kind"]
    assert repr(layer) in str(caught.value)
    return layer, tuple(int(n) for n in found["given"].split(",") if n), found["why"]


@pytest.mark.parametrize("name", NETWORKS)
def test_wrong_channels_and_too_small_an_image(name, undrawn):
    model, (n, c, h, w) = network(name)
    first = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    layer, given, why = said(model, (n, c + 1, h, w))
    assert layer is first
    if isinstance(first, nn.Linear):
        assert given == (n, (c + 1) * h * w)
        assert f"got {first.weight.shape}" in why
    else:
        assert given == (n, c + 1, h, w)
        assert f"x has {c + 1} channels, but w of shape {first.weight.shape} with groups=1 takes {c}" in why
    layer, given, why = said(model, (n, c, 0, 0))
    if isinstance(first, nn.Linear):
        assert given == (n, 0)
    else:
        assert layer is first
        assert given == (n, c, 0, 0)
        assert f"the kernel's height {first.kernel_size[0]} (dilation 1) does not fit into the input's height 0" in why


@pytest.mark.parametrize("name", ["lenet5", "alexnet", "vgg16", "vgg16_cifar", "nin", "densenet121", "mlp"])
def test_images_of_three_pixels_are_too_small(name, undrawn):
    model, (n, c, _, _) = network(name)
    layer, given, why = said(model, (n, c, 3, 3))
    if name == "mlp":
        assert (layer, given) == (model[1], (n, c * 9))
        assert why == "linear: x of shape (2, 9) needs w of shape (out, 9), got (256, 784)"
    else:
        assert len(given) == 4
        assert re.search(r"the (kernel|window)'s height \d+ .* does not fit into the input's height \d ", why)


def test_small_images_of_resnets_break_where_the_batch_norm_has_one_value():
    model = models.resnet20()
    layer, given, why = said(model, (1, 3, 4, 4))
    assert layer is dict(model.named_modules())["stages.2.0.bn1"]
    assert given == (1, 64, 1, 1)
    assert "training needs more than one value in a channel" in why


class Block(nn.Module):
    """Has a member of its own, calls one layer of a member directly, and adds."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1))

    def forward(self, x):
        return self.body[2](self.body[0](x)) + x


def test_the_path_goes_through_every_module():
    inner = nn.Sequential(nn.Dropout(0), Block())
    model = nn.Sequential(nn.Flatten(2), nn.Sequential(inner))
    inner[1].body[2].weight.data = np.zeros((5, 7, 1, 1), np.float32)
    x = np.zeros((2, 3, 4, 4), np.float32)
    with pytest.raises(
        ValueError, match=r"^1\.body\.2 \(Conv2d\(4, 5, .*\)\) was given \(2, 4, 4, 4\): conv2d: x has 4"
    ):
        inner(x)
    with pytest.raises(ValueError, match=r"^1\.0\.1\.body\.0 \(Conv2d\(3, 4, .*\)\) was given \(2, 3, 16\): "):
        model(x)


def test_an_error_of_the_forward_itself_names_its_module():
    model = nn.Sequential(nn.Sequential(Block()))
    with pytest.raises(ValueError, match=r"^0\.0 \(Block\(\)\) was given \(2, 3, 4, 4\): add: .*\(2, 5, 4, 4\)"):
        model(np.zeros((2, 3, 4, 4), np.float32))


def test_a_layer_that_is_no_member_is_blamed_on_who_called_it():
    class Hiding(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = [nn.Linear(2, 3)]

        def forward(self, x):
            return self.hidden[0](x)

    with pytest.raises(ValueError, match=r"^0 \(Hiding\(\)\) was given \(1, 3\): linear: x of shape \(1, 3\) needs"):
        nn.Sequential(Hiding())(np.zeros((1, 3), np.float32))


def test_a_layer_by_itself_says_what_it_always_said():
    with pytest.raises(ValueError, match=r"^conv2d: x has 4 channels, but w of shape \(2, 3, 1, 1\)"):
        nn.Conv2d(3, 2, 1)(np.zeros((1, 4, 2, 2), np.float32))


def test_fused_layers_are_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU())
    with pytest.raises(ValueError, match=r"^1 \(Linear\(4, 3\)\) was given \(2, 5\): linear: "):
        model(np.zeros((2, 5), np.float32))


def test_lazy_layers_are_named():
    model = nn.Sequential(nn.Flatten(0), nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match=r"^1 \(LazyBatchNorm1d\(.*\)\) was given \(4,\): "):
        model(np.zeros((2, 2), np.float32))


def test_an_error_that_was_caught_on_the_way_and_raised_elsewhere_keeps_its_path():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 2))
            self.kept = None

        def forward(self, x):
            try:
                return self.inner(x)
            except ValueError as error:
                self.kept = error
                raise RuntimeError("worse") from error

    careful = Careful()
    with pytest.raises(RuntimeError, match=r"^worse$"):
        nn.Sequential(careful)(np.zeros((1, 3), np.float32))
    assert str(careful.kept).startswith("0 (Linear(2, 2)) was given (1, 3): ")

    class Again(nn.Module):
        def forward(self, x):
            raise careful.kept

    with pytest.raises(ValueError, match=r"^0 \(Linear\(2, 2\)\) was given \(1, 3\): linear: ") as caught:
        nn.Sequential(Again())(np.zeros((1, 3), np.float32))
    assert str(caught.value).count("was given") == 1


def test_wrong_arguments_and_other_errors():
    class Odd(nn.Module):
        def forward(self, x):
            raise KeyError("weights")

    with pytest.raises(TypeError, match=r"^0 \(ReLU\(\)\) was given \(1,\), \(1,\): .*positional argument"):
        Pair()(np.zeros(1))
    with pytest.raises(KeyError, match=r"^'weights'$"):
        nn.Sequential(Odd())(np.zeros(1))


class Pair(nn.Sequential):
    def __init__(self):
        super().__init__(nn.ReLU())

    def forward(self, x):
        return self[0](x, x)
