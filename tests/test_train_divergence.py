"""What a run that diverges says; and noise layers, whose draws a resumed run repeats."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import convkern as ck
from convkern.train import Config, Interrupted, checkpoint, divergence, evaluation, loop, resume, train

from .test_train import interrupt_after, write_data

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")


@pytest.fixture
def config(tmp_path):
    write_data(tmp_path, 100, 40)
    return Config(data="mnist", data_dir=str(tmp_path), epochs=2, batch_size=32, lr=0.002, out=str(tmp_path / "run"))


def test_diverging_run_says_what_to_do(config):
    message = (
        r"the loss became (nan|inf) in epoch 1, step \d+: the first layer whose output was not finite is "
        r"\w+(\.\w+)? \((Conv2d|Linear)\)(, whose weight and bias are not|, whose bias is not)?; the last good "
        r"checkpoint is .*run/last\.safetensors, after epoch 0; try a lower lr than 1e\+"
    )
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(config, optimizer="sgd", lr=1e30), quiet=True)


@pytest.mark.parametrize("index", [0, 1, 3])
def test_the_first_layer_that_breaks_is_named(config, monkeypatch, index):
    """One weight becomes NaN after five steps, in the second epoch; the checkpoint of the first is good."""
    real = loop.Trainer._step

    def breaking(trainer, x, labels):
        result = real(trainer, x, labels)
        if trainer.position.epoch == 1 and trainer.position.step == 1:
            path, layer = [(n, m) for n, m in trainer.model.named_modules() if "weight" in m._parameters][index]
            broken.append((path, layer))
            layer.weight.data.flat[0] = np.nan
        return result

    broken = []
    monkeypatch.setattr(loop.Trainer, "_step", breaking)
    with pytest.raises(ValueError, match="the loss became nan in epoch 2, step 3") as caught:
        train(config, quiet=True)
    ((path, layer),) = broken
    said = f"not finite is {path} ({type(layer).__name__}), whose weight is not; the last good checkpoint is "
    assert said in str(caught.value)
    assert "last.safetensors, after epoch 1;" in str(caught.value)


def test_a_checkpoint_of_broken_weights_is_not_called_good(config, monkeypatch):
    """Ctrl-C after a step that broke the weights: the best checkpoint is older and good."""
    first = train(dataclasses.replace(config, epochs=1), quiet=True)
    saved = checkpoint.load(first.folder / checkpoint.LAST)
    next(iter(saved.weights.values())).flat[0] = np.inf
    checkpoint.save(first.folder / checkpoint.LAST, saved)
    said = divergence._last_good(first.folder)
    assert said == f"the last good checkpoint is {first.folder / checkpoint.BEST}, after epoch 1"
    assert divergence._last_good(first.folder / "nowhere") == "there is no good checkpoint"


def test_looking_for_the_layer_leaves_the_model_as_it_was():
    model = ck.nn.Sequential(
        ck.nn.BatchNorm2d(2),
        ck.nn.Conv2d(2, 3, 1),
        ck.nn.ReLU(),
        ck.nn.Dropout(0.5),
        ck.nn.Flatten(),
        ck.nn.Linear(48, 2),
    )
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 4)).astype(np.float32)
    state = model.state_dict()
    assert divergence.first_layer_not_finite(model, x) is None
    model[1].bias.data[:] = 3e38
    model[1].weight.data[:] = 3e38
    assert divergence.first_layer_not_finite(model, x) == "1 (Conv2d)"
    model[0].weight.data[0] = np.nan
    assert divergence.first_layer_not_finite(model, x) == "0 (BatchNorm2d), whose weight is not"
    for name in ("0.running_mean", "0.running_var", "0.num_batches_tracked"):
        np.testing.assert_array_equal(model.state_dict()[name], state[name])
    assert all(not module._hooks for module in model.modules())
    assert "the images are not finite" in divergence.describe(np.nan, "step 1", model, [x * np.nan], Path("none"), 0.1)


def test_dropout_of_a_resumed_run_is_that_of_an_uninterrupted_one(config, monkeypatch):
    def with_dropout(*args, **options):
        model = real(*args, **options)
        dropout = ck.nn.Dropout(0.2)
        dropout.register_forward_hook(lambda layer, args, y: masks.append((np.asarray(y) == 0)[:4]))
        return ck.nn.Sequential(dropout, model, ck.nn.GaussianNoise(0.1))

    masks: list[np.ndarray] = []
    real = evaluation.build_model
    monkeypatch.setattr(loop, "build_model", with_dropout)
    monkeypatch.setattr(loop.Trainer, "_draw", lambda trainer, history: 0.0)
    whole = train(dataclasses.replace(config, out=f"{config.out}-whole"), quiet=True)
    drawn = {mask.tobytes() for mask in masks if 0.1 < mask.mean() < 0.3}  # the trial's images are all zeros
    assert len(drawn) == 8  # steps
    with monkeypatch.context() as patch:
        interrupt_after(5, patch)
        with pytest.raises(Interrupted):
            train(config)
    resume(config.out, quiet=True)
    other = dataclasses.replace(config, seed=1, out=f"{config.out}-other")
    states = [checkpoint.load(Path(out) / checkpoint.LAST).weights for out in (whole.folder, config.out)]
    for name, value in states[0].items():
        np.testing.assert_array_equal(states[1][name], value)
    different = checkpoint.load(train(other, quiet=True).folder / checkpoint.LAST).weights
    assert any((different[name] != value).any() for name, value in states[0].items())


class Fragile(ck.nn.Module):
    """Gives NaN where its first input was dropped."""

    def forward(self, x):
        return x * (np.nan if x.flat[0] == 0 and x.any() else 1.0)


@pytest.mark.parametrize("seed", range(6))
def test_the_search_drops_what_the_step_dropped(config, monkeypatch, seed):
    real = evaluation.build_model
    monkeypatch.setattr(loop, "build_model", lambda facts: ck.nn.Sequential(ck.nn.Dropout(0.3), Fragile(), real(facts)))
    monkeypatch.setattr(loop.Trainer, "_draw", lambda trainer, history: 0.0)
    with pytest.raises(
        ValueError, match=r"the first layer whose output was not finite is 1 \(Fragile\); the last good"
    ):
        train(dataclasses.replace(config, seed=seed, epochs=20), quiet=True)


def test_model_that_breaks_in_the_last_step_is_noticed(config, monkeypatch):
    def broken(*args, **options):
        return dataclasses.replace(real(*args, **options), loss=float("nan"))

    real = loop.evaluate_model
    monkeypatch.setattr(loop, "evaluate_model", broken)
    message = (
        r"the loss became nan in the test after epoch 1: the output of every layer was finite; the last good "
        r"checkpoint is .*, after epoch 0; try a lower lr than 0\.002"
    )
    with pytest.raises(ValueError, match=message):
        train(config, quiet=True)
