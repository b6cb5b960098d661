"""Warnings of dead units and exploding gradients: for models made so on purpose, once, and none for healthy ones."""

import dataclasses
import re

import numpy as np
import pytest

import convkern as ck
from convkern import nn
from convkern.train import Config, checkpoint, health, loop, train
from convkern.train.health import BATCHES, EVERY, Health

from .test_train import write_data

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

WINDOW = EVERY * BATCHES  # steps until a dead unit is told of


@pytest.fixture
def config(tmp_path):
    write_data(tmp_path, 100, 40)
    return Config(data="mnist", data_dir=str(tmp_path), epochs=30, batch_size=32, lr=0.002, out=str(tmp_path / "run"))


def pictures(n=4):
    return np.random.default_rng(0).standard_normal((n, 3, 8, 8)).astype(np.float32)


def said_of(model, steps, x=None):
    """What is said in so many steps without updates, with the step after which it is said."""
    watch, x = Health(model), pictures() if x is None else x
    found = []
    for step in range(steps):
        with watch.forward(step):
            model(x)
        found += [(step + 1, line) for line in watch.warnings()]
    return found


def convolution(channels, dead):
    layer = nn.Conv2d(3, channels, 3)
    layer.weight.data[:dead] = 0
    layer.bias.data[:dead] = -1
    return layer


@pytest.mark.parametrize("dead", [4, 5, 10])
def test_dead_channels_are_told_once(dead):
    model = nn.Sequential(nn.Sequential(convolution(10, dead)), nn.ReLU(), nn.Flatten())
    found = said_of(model, 3 * WINDOW)
    assert found == [
        (
            WINDOW - EVERY + 1,
            f"dead ReLU: {dead} of the 10 units of layer 1 (ReLU) gave 0 for every image of the last 10 batches looked "
            "at, and do not learn; try a lower lr, another initialisation or LeakyReLU",
        )
    ]


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (lambda: nn.Sequential(convolution(4, 4), nn.ReLU()), "0 (Conv2d with ReLU)"),  # computed in one pass
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU6()), "2 (ReLU6)"),
    ],
)
def test_where_the_units_are_is_named(model, layer):
    model = model()
    for p in model.parameters():
        p.data[...] = -1
    x = np.abs(pictures())
    ((_, line),) = said_of(model, WINDOW, x)
    assert f"4 of the 4 units of layer {layer} gave 0" in line


def test_units_of_a_residual_block_are_named():
    model = ck.models.resnet20()
    batch_norm = dict(model.named_modules())["stages.1.0.bn1"]
    batch_norm.bias.data[:16] = -1e4
    ((_, line),) = said_of(model, WINDOW)
    assert "dead ReLU: 16 of the 32 units of layer stages.1.0.bn1 (BatchNorm2d with ReLU)" in line


def test_fewer_dead_units_are_not_worth_a_word():
    assert said_of(nn.Sequential(convolution(10, 3), nn.ReLU()), 2 * WINDOW) == []


def test_units_that_give_something_now_and_then_are_not_dead():
    model = nn.Sequential(convolution(4, 4), nn.ReLU())
    watch = Health(model)
    for step in range(3 * WINDOW):
        model[0].bias.data[...] = -1
        model[0].bias.data[(step // EVERY) % 8 :: 8] = 1  # each in one of eight looks
        with watch.forward(step):
            model(pictures())
        assert watch.warnings() == []


def test_one_pixel_of_one_image_is_enough():
    class Spot(nn.Module):
        def forward(self, x, activation=None):
            y = np.zeros_like(x)
            y[-1, :, -1, 2] = 1e-20
            return ck.Tensor(y)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.spot = Spot()

        def forward(self, x):
            return self.spot(x, activation="relu")

    assert said_of(Model(), WINDOW) == []


def test_negative_activations_of_other_kinds_are_not_dead():
    model = nn.Sequential(convolution(4, 4), nn.LeakyReLU(), nn.Tanh())
    assert said_of(model, WINDOW) == []


class Gradients:
    """A model of two layers whose gradients a test sets."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1, bias=False)))
        self.watch = Health(self.model)
        self.step = 0

    def set(self, first, second, loss=1.0, steps=EVERY):
        """Gradients of these norms, and what is said of them."""
        for layer, norm in ((self.model[0], first), (self.model[1][0], second)):
            for p in layer.parameters():
                p.grad = ck.Tensor(np.full(p.shape, norm / 3, np.float32))  # 9 and 3 elements
        if second is not None:
            self.model[1][0].weight.grad = ck.Tensor(np.full((1, 3), second / np.sqrt(3), np.float32))
        self.watch.gradients(self.step, loss, 1.0)
        self.step += steps
        return self.watch.warnings()


def test_a_large_gradient_is_told_once():
    gradients = Gradients()
    assert gradients.set(999, 500) == []
    (line,) = gradients.set(1001, 2500)
    assert line == (
        "exploding gradients: at step 11 the norm of layer 1.0 is 2.5e+03; "
        "try a lower lr, a warm-up, batch normalisation or --clip-norm"
    )
    assert gradients.set(1e6, 1e6) == []


def test_a_growing_gradient_is_told_with_its_layer():
    gradients = Gradients()
    for i in range(8):
        assert gradients.set(0.2 + 0.01 * i, 0.5) == []
    (line,) = gradients.set(30, 3)
    assert "at step 81 the norm of layer 0 grew from 0.235 to 30; " in line


def test_small_gradients_may_grow():
    gradients = Gradients()
    for _ in range(8):
        gradients.set(1e-4, 1e-5)
    assert gradients.set(5, 5) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_gradient_that_is_not_finite(value):
    with np.errstate(over="ignore", invalid="ignore"):
        (line,) = Gradients().set(1.0, value)
    assert "the norm of layer 1.0 is not finite" in line


def test_between_two_looks_only_a_jump_of_the_loss_is_a_reason():
    gradients = Gradients()
    gradients.set(1, 1, steps=1)
    assert gradients.set(5000, 1, loss=2.9, steps=1) == []
    (line,) = gradients.set(5000, 1, loss=3.1)
    assert "at step 3 the norm of layer 0 is 5e+03" in line


def warnings_of(output):
    return re.findall(r"^warning: (.*)$", output, re.MULTILINE)


@pytest.mark.parametrize("model", ["lenet5", "resnet20"])
def test_healthy_runs_stay_silent(config, capsys, monkeypatch, model):
    monkeypatch.setattr(health, "EVERY", 1)  # 12 steps are a window and more
    train(dataclasses.replace(config, model=model, epochs=3))
    output = capsys.readouterr().out
    assert "epoch" in output
    assert warnings_of(output) == []


def relu_net(facts):
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 12 * 12, 16), nn.ReLU(), nn.Linear(16, 10)
    )
    model[3].bias.data[:] = -100
    return model


def test_a_run_says_it_in_its_progress(config, capsys, monkeypatch):
    monkeypatch.setattr(loop, "build_model", relu_net)
    train(dataclasses.replace(config, epochs=60))  # 240 steps, two windows
    (line,) = warnings_of(capsys.readouterr().out)
    assert line.startswith("dead ReLU: 16 of the 16 units of layer 3 (Linear with ReLU) gave 0 ")


def test_a_run_with_too_high_a_rate_says_that_it_explodes(config, capsys):
    config = dataclasses.replace(config, optimizer="sgd", lr=200.0, model="mlp", schedule="constant")
    with pytest.raises(ValueError, match="the loss became"):
        train(config)
    found = warnings_of(capsys.readouterr().out)
    assert len([line for line in found if line.startswith("exploding gradients: ")]) == 1


def test_looking_changes_no_bit(config, monkeypatch):
    """Once at every step, once never: with layers that compute their ReLU in one pass."""
    weights = []
    for every in (1, 10**9):
        monkeypatch.setattr(health, "EVERY", every)
        monkeypatch.setattr(loop, "build_model", lambda facts: seeded(relu_net, facts))
        result = train(dataclasses.replace(config, epochs=2, out=f"{config.out}-{every}"), quiet=True)
        weights.append(checkpoint.load(result.folder / checkpoint.LAST).weights)
    for name, a in weights[0].items():
        np.testing.assert_array_equal(a, weights[1][name])


def seeded(build, facts):
    with nn.init.seeded(3):
        return build(facts)
