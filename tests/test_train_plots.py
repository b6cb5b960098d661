"""Pictures of any layer: what is drawn are the layer's own numbers."""

import dataclasses

import numpy as np
import pytest

import convkern as ck
from convkern import nn
from convkern.train import Config, loop, plots, resume, train
from convkern.train import folder as folders

from .test_train import write_data
from .test_train_pictures import drawn

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")
pytest.importorskip("PIL.Image")


def images(figure):
    """The arrays that are drawn as pictures, in their order."""
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.get_images()]


def picture(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def small():
    return nn.Sequential(
        nn.Conv2d(2, 9, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(9, 3, 2), nn.Flatten(), nn.Linear(12, 4)
    )


def test_filters_of_any_layer(tmp_path):
    model = small()
    w = model[3].weight.data
    found = images(plots.filters(model, tmp_path / "a.png", "3"))[:3]
    np.testing.assert_array_equal(found, w.mean(axis=1))
    drawn(tmp_path / "a.png")
    np.testing.assert_array_equal(images(plots.filters(model, layer="3", channel=7))[:3], w[:, 7])
    first = plots.filters(model)
    np.testing.assert_array_equal(images(first)[:9], model[0].weight.data.mean(axis=1))
    assert first.get_suptitle() == "First layer, '0': 9 filters of 3x3"
    assert plots.filters(model, layer="3").get_suptitle() == "Layer, '3': 3 filters of 2x2"


def test_filters_of_three_channels_are_colours():
    layer = nn.Conv2d(3, 4, 5)
    found = images(plots.filters(nn.Sequential(layer)))
    limit = np.abs(layer.weight.data).max()
    for k in range(4):
        np.testing.assert_allclose(found[k], np.moveaxis(layer.weight.data[k], 0, 2) / (2 * limit) + 0.5)


def test_filters_of_other_kinds():
    transposed, line, linear = nn.ConvTranspose2d(5, 2, 3), nn.Conv1d(4, 3, 6), nn.Linear(2 * 3 * 4, 5)
    model = nn.Sequential(transposed, line, linear)
    np.testing.assert_array_equal(images(plots.filters(model, layer="0"))[:2], transposed.weight.data.mean(axis=0))
    np.testing.assert_array_equal(images(plots.filters(model, layer="1", channel=3))[1], line.weight.data[1, 3:4])
    expected = linear.weight.data.reshape(5, 2, 3, 4)
    np.testing.assert_array_equal(images(plots.filters(model, layer="2", shape=(2, 3, 4)))[:5], expected.mean(axis=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "7"}, "layer must be a name in Sequential, one of 0, 1, 2, 3, 4, 5; got '7'"),
        ({"layer": "1"}, r"layer '1' must be a convolution of one or two axes, or a Linear, got ReLU\(\)"),
        ({"layer": "5"}, r"shape must be \(C, H, W\) of the 12 inputs of layer '5', got None"),
        ({"layer": "5", "shape": (1, 5, 5)}, r"shape must be \(C, H, W\) of the 12 inputs of layer '5', got \(1, 5, 5\)"),
        ({"layer": "3", "channel": 9}, "channel must be from 0 to 8 for layer '3', got 9"),
        ({"layer": "3", "channel": -1}, "channel must be from 0 to 8 for layer '3', got -1"),
    ],
)  # fmt: skip
def test_filters_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        plots.filters(small(), **options)


def test_feature_maps_of_any_layer(tmp_path):
    model, x = small(), picture(2, 8, 8)
    model.train()
    model[5].training = False
    figure = plots.feature_maps(model, x, ["0", "1", "2", "3"], tmp_path / "a.png")
    drawn(tmp_path / "a.png")
    expected, y = [], x[None]
    for i in range(4):
        y = model[i](y)
        expected += list(np.asarray(y.data[0])[:8])
    found = images(figure)
    assert len(found) == 1 + 8 + 8 + 8 + 3
    for a, b in zip(found[1:], expected, strict=True):
        np.testing.assert_array_equal(a, b)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == [
        "layer '0': 8 of 9 maps of 6x6", "layer '1': 8 of 9 maps of 6x6", "layer '2': 8 of 9 maps of 3x3",
        "layer '3': 3 maps of 2x2",
    ]  # fmt: skip
    assert [m.training for m in model] == [True] * 5 + [False]
    assert all(not m._hooks for m in model.modules())


def test_feature_maps_of_blocks_and_of_the_convolutions():
    model = ck.models.resnet20()
    x = picture(1, 3, 16, 16)
    block = images(plots.feature_maps(model, x, "stages.1.0"))
    assert len(block) == 1 + 8
    stem = model.eval().stages[0](model.stem(x))
    np.testing.assert_allclose(block[1], model.stages[1][0](stem).data[0, 0], rtol=1e-5, atol=1e-6)
    figure = plots.feature_maps(model, x)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert len(texts) == 5
    assert texts[0] == "layer 'stem.0': 8 of 16 maps of 16x16"
    shown = images(figure)[0].astype(float)  # colours from the smallest to the largest number
    colours = np.moveaxis(x[0], 0, 2)
    np.testing.assert_allclose(shown, 255 * (colours - x.min()) / (x.max() - x.min()), atol=0.51)


def test_layers_that_give_several_results_show_the_first():
    model = nn.Sequential(nn.MaxPool2d(2, return_indices=True))

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = model[0]

        def forward(self, x):
            return self.pool(x)[0].reshape(1, -1)

    x = picture(1, 4, 4)
    np.testing.assert_array_equal(images(plots.feature_maps(First(), x, "pool"))[1], ck.max_pool2d(x, 2)[0])


def test_feature_maps_refuse():
    model = small()
    with pytest.raises(ValueError, match=r"x must be one image .*, got shape \(2, 2, 8, 8\)"):
        plots.feature_maps(model, picture(2, 2, 8, 8))
    with pytest.raises(ValueError, match=r"layers must give maps \(K, P, Q\) of an image, '5' gave \(4,\)"):
        plots.feature_maps(model, picture(2, 8, 8), "5")
    with pytest.raises(ValueError, match="layer must be a name in Sequential"):
        plots.feature_maps(model, picture(2, 8, 8), "conv1")
    with pytest.raises(ValueError, match="layers must be given for a Sequential without a convolution"):
        plots.feature_maps(nn.Sequential(nn.Flatten()), picture(2, 8, 8))
    model.add_module("spare", nn.ReLU())
    model.forward = lambda x: model[0](x)
    with pytest.raises(ValueError, match="layer 'spare' did not run"):
        plots.feature_maps(model, picture(2, 8, 8), "spare")


def bars(figure):
    """The heights of the largest and the mean magnitudes, and the labels under them."""
    (axes,) = figure.axes
    largest, means = ([patch.get_height() for patch in group] for group in axes.containers)
    return largest, means, [label.get_text() for label in axes.get_xticklabels()]


def test_gradient_flow_shows_every_layer(tmp_path):
    model = small()
    model(picture(3, 2, 8, 8)).sum().backward()
    largest, means, names = bars(plots.gradient_flow(model, tmp_path / "a.png"))
    drawn(tmp_path / "a.png")
    assert names == ["0", "3", "5"]
    gradients = [np.abs(model[i].weight.grad.data) for i in (0, 3, 5)]
    assert largest == pytest.approx([g.max() for g in gradients])
    assert means == pytest.approx([g.mean() for g in gradients], rel=1e-6)
    assert plots.gradients_of(model) == list(zip(names, means, largest, strict=True))


def test_vanishing_gradients_are_seen(tmp_path):
    """Ten sigmoid layers: the gradients fall by orders of magnitude towards the first one."""
    with nn.init.seeded(0):
        model = nn.Sequential(*(m for _ in range(10) for m in (nn.Linear(8, 8), nn.Sigmoid())))
    model(picture(4, 8)).sum().backward()
    _, means, _ = bars(plots.gradient_flow(model))
    assert means[0] < 1e-4 * means[-1]


def test_gradient_flow_where_some_or_all_are_zero_or_missing(tmp_path):
    model = small()
    with pytest.raises(ValueError, match=r"have no gradients: call loss\.backward\(\) first"):
        plots.gradient_flow(model)
    (model(picture(3, 2, 8, 8)).sum() * 0.0).backward()
    plots.gradient_flow(model, tmp_path / "zero.png")
    assert bars(plots.gradient_flow(model))[0] == [0, 0, 0]
    model[3].weight.grad = None
    model[0].weight.grad.data[0, 0, 0, 0] = -2
    assert bars(plots.gradient_flow(model, tmp_path / "one.png"))[::2] == ([2.0, 0.0], ["0", "5"])
    layer = nn.Linear(2, 2)
    layer(picture(1, 2)).sum().backward()
    assert bars(plots.gradient_flow(layer))[2] == ["Linear"]


def test_a_run_draws_the_gradients_of_its_first_batch(tmp_path, monkeypatch):
    write_data(tmp_path, 100, 40)
    config = Config(data="mnist", data_dir=str(tmp_path), epochs=1, batch_size=32, out=str(tmp_path / "run"))
    drawn_of = []
    real = plots.gradient_flow

    def spy(model, path):
        drawn_of.append(plots.gradients_of(model))
        return real(model, path)

    monkeypatch.setattr(plots, "gradient_flow", spy)
    folder = train(config, quiet=True).folder
    drawn(folder / folders.GRADIENTS)
    (folder / folders.GRADIENTS).unlink()
    resume(folder, quiet=True)
    drawn(folder / folders.GRADIENTS)
    assert drawn_of[0] == drawn_of[1]
    trainer = loop.Trainer(dataclasses.replace(config))
    model = ck.train.evaluation.load_model(folder, "last")[0].train()
    x, labels = next(iter(trainer.loader))
    nn.functional.cross_entropy(model(x), labels).backward()
    assert plots.gradients_of(model) == drawn_of[0]
