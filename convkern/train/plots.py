"""The pictures of a run: curves, confusion matrix, filters, feature maps, gradients.

Figures are made without pyplot, so that drawing touches no global state and needs no display. Those of any layer (`filters`,
`feature_maps`, `gradient_flow`) are returned, so that a notebook shows them, and written where a path is given.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import convkern as ck

from ..files import require, write_atomic
from .checkpoint import Facts

_DPI = 130
_TRAIN, _TEST = "#2a6f97", "#e07a5f"  # told apart by people who see colours differently, and in grey
_CELL, _MAX_COUNTS = 0.52, 30  # inches; classes of a confusion matrix that says counts
_MAX_FILTERS = 64
_MAX_LAYERS = 5
_MAX_MAPS = 8


def curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss and accuracy of training and test images over the epochs.

    Parameters
    ----------
    history : sequence of dict
        The lines of the metrics file.
    path : Path
        PNG to write.
    """
    figure = _figure(9.0, 3.6)
    epochs = [record["epoch"] for record in history]
    best = max(history, key=lambda record: record["test_accuracy"])
    for place, (kind, factor, label) in enumerate((("loss", 1, "cross-entropy"), ("accuracy", 100, "accuracy in %"))):
        axes = figure.add_subplot(1, 2, place + 1)
        for split, color in (("train", _TRAIN), ("test", _TEST)):
            values = [record[f"{split}_{kind}"] * factor for record in history]
            axes.plot(epochs, values, color=color, marker="o", markersize=3.5, linewidth=1.8, label=f"{split} images")
        axes.set(title=kind.capitalize(), xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(f"Best test accuracy {best['test_accuracy']:.1%} after epoch {best['epoch']}")
    _write(figure, path)


def confusion(counts: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix: colours show the share of the true class, figures the number of images.

    Parameters
    ----------
    counts : ndarray of int, shape (classes, classes)
        Row: the true class. Column: the predicted one.
    classes : sequence of str
    path : Path
        PNG to write.
    """
    cell = min(_CELL, _CELL * _MAX_COUNTS / len(classes))  # more classes than these have smaller cells without counts
    size = 2.6 + cell * len(classes)
    figure = _figure(size + 0.9, size)
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts > 0) if cell == _CELL else ():
        color = "white" if share[row, column] > 0.55 else "#333333"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    small = 10 * cell / _CELL
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor", fontsize=small)
    axes.set_yticks(range(len(classes)), classes, fontsize=small)
    right = np.trace(counts) / max(counts.sum(), 1)
    axes.set(title=f"Which class is taken for which ({right:.1%} right)", xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    _write(figure, path)


def filters(
    model: Any,
    path: Path | None = None,
    layer: str | None = None,
    channel: int | None = None,
    shape: tuple[int, int, int] | None = None,
) -> Any:
    """Draw the filters of a layer.

    Parameters
    ----------
    model : convkern.nn.Module
    path : Path, optional
        PNG to write; nothing is written for a model without a convolution.
    layer : str, optional
        Name of a convolution of one or two axes, or of a Linear, in ``model.named_modules()``; by default the first
        convolution.
    channel : int, optional
        Draw the filters' weights for this input channel. By default those of three channels are colours, others the
        mean over the channels.
    shape : (int, int, int), optional
        (C, H, W) of the pictures that a Linear takes after they were flattened.

    Returns
    -------
    matplotlib.figure.Figure or None
        None for a model without a convolution.

    Raises
    ------
    ValueError
        If there is no such layer, or it has no filters that could be drawn so.
    """
    if layer is None:
        layers = convolutions(model)
        if not layers:
            return None
        layer = layers[0][0]
    w = _filters_of(layer, _layer(model, layer), shape)  # (K, C, R, S)
    if channel is not None:
        if not 0 <= channel < w.shape[1]:
            raise ValueError(f"channel must be from 0 to {w.shape[1] - 1} for layer {layer!r}, got {channel}")
        w = w[:, channel : channel + 1]
    shown = w[:_MAX_FILTERS]
    columns = min(8, max(len(shown), 1)) if len(shown) > 6 else len(shown)
    rows = math.ceil(len(shown) / columns)
    figure = _figure(1.25 * columns + 1.2, 1.4 * rows + 0.8)
    limit = float(np.abs(shown).max()) or 1.0
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    image = None
    for k, (axes, one) in enumerate(zip(grid.flat, shown, strict=False)):
        if len(one) == 3:
            axes.imshow(np.moveaxis(one, 0, 2) / (2 * limit) + 0.5)  # (C, R, S) -> (R, S, C), 0 is grey
        else:
            image = axes.imshow(one.mean(axis=0), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_title(str(k), fontsize=8, pad=3)
    if image is not None:
        figure.colorbar(image, ax=grid.ravel().tolist(), shrink=0.85, label="weight")
    of = f"{len(shown)} of {len(w)}" if len(shown) < len(w) else f"{len(w)}"
    first = convolutions(model)[:1]
    place = "First layer" if first and first[0][0] == layer else "Layer"
    figure.suptitle(f"{place}, {layer!r}: {of} filters of {w.shape[2]}x{w.shape[3]}")
    return _finish(figure, path)


def _filters_of(name: str, layer: Any, shape: tuple[int, int, int] | None) -> np.ndarray:
    """The weights of a layer as (K, C, R, S)."""
    weight = layer._parameters.get("weight")
    if isinstance(layer, ck.nn.Linear):
        if shape is None or math.prod(shape) != weight.shape[1]:
            raise ValueError(f"shape must be (C, H, W) of the {weight.shape[1]} inputs of layer {name!r}, got {shape}")
        return weight.detach().numpy().reshape(-1, *shape)
    if weight is None or len(weight.shape) not in (3, 4):
        raise ValueError(f"layer {name!r} must be a convolution of one or two axes, or a Linear, got {layer!r:.60}")
    w = weight.detach().numpy()
    w = w[:, :, None] if w.ndim == 3 else w  # (K, C, S) -> (K, C, 1, S)
    # A transposed convolution has its inputs first.
    return np.swapaxes(w, 0, 1) if type(layer).__name__.startswith("ConvTranspose") else w


def features(model: Any, dataset: Any, facts: Facts, path: Path) -> None:
    """Draw what the convolutions of a model make of the first image of a data set.

    Parameters
    ----------
    model : convkern.nn.Module
    dataset : convkern.data.ImageSource
    facts : Facts
        Give the normalisation and the classes.
    path : Path
        PNG to write; nothing is written for a model without a convolution.
    """
    if not convolutions(model):
        return
    with ck.data.DataLoader(dataset, 1, mean=facts.mean, std=facts.std).batches() as batches:
        x, labels = next(batches)
    names = _some_convolutions(model)
    maps, logits = _record(model, names, x)
    title = f"Feature maps of the convolutions (predicted: {facts.classes[int(logits.argmax())]})"
    caption = f"first test image\n{facts.classes[int(labels[0])]}"
    _finish(_draw_maps(names, maps, _picture(dataset.pixels(np.array([0]))[0]), caption, title), path)


def feature_maps(model: Any, x: Any, layers: str | Sequence[str] | None = None, path: Path | None = None) -> Any:
    """Draw what layers of a model make of an image.

    Parameters
    ----------
    model : convkern.nn.Module
        In evaluation mode while it is asked; its mode is as before afterwards.
    x : array, (C, H, W) or (1, C, H, W)
        As the model takes it, normalised.
    layers : str or sequence of str, optional
        Names in ``model.named_modules()``; by default up to five of the convolutions.
    path : Path, optional
        PNG to write.

    Returns
    -------
    matplotlib.figure.Figure
        A row for each layer: its first eight maps.

    Raises
    ------
    ValueError
        If there is no such layer, it did not run, or it gave no maps.
    """
    batch = np.asarray(x)
    batch = batch[None] if batch.ndim == 3 else batch
    if batch.ndim != 4 or len(batch) != 1:
        raise ValueError(f"x must be one image (C, H, W) or (1, C, H, W), got shape {np.asarray(x).shape}")
    if layers is None:
        names = _some_convolutions(model)
        if not names:
            raise ValueError(f"layers must be given for a {type(model).__name__} without a convolution")
    else:
        names = [layers] if isinstance(layers, str) else list(layers)
    maps, _ = _record(model, names, batch)
    for name, y in zip(names, maps, strict=True):
        if y.ndim != 3:
            raise ValueError(f"layers must give maps (K, P, Q) of an image, {name!r} gave {y.shape}")
    shown = batch[0] if len(batch[0]) in (1, 3) else batch[0, :1]
    low, high = float(shown.min()), float(shown.max())
    picture = np.round(255 * (shown - low) / ((high - low) or 1.0)).astype(np.uint8)
    return _finish(_draw_maps(names, maps, _picture(picture), "input", "Feature maps"), path)


def _draw_maps(names: list[str], maps: list[np.ndarray], picture: np.ndarray, caption: str, title: str) -> Any:
    """The picture, and beside it a row of maps for each layer."""
    figure = _figure(1.2 * (_MAX_MAPS + 1.6), 1.35 * len(names) + 0.7)
    outer = figure.add_gridspec(len(names), 2, width_ratios=(1.5, _MAX_MAPS))
    axes = figure.add_subplot(outer[:, 0])
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axes.set_title(caption, fontsize=9)
    axes.axis("off")
    for row, (name, y) in enumerate(zip(names, maps, strict=True)):
        inner = outer[row, 1].subgridspec(1, _MAX_MAPS, wspace=0.08)
        for k in range(min(_MAX_MAPS, len(y))):
            axes = figure.add_subplot(inner[k])
            axes.imshow(y[k], cmap="magma")
            axes.axis("off")
            axes.set_title(" ", fontsize=9)  # room for the line below, which must not widen the first map's column
            if k == 0:
                count, height, width = y.shape
                of = f"{_MAX_MAPS} of {count}" if count > _MAX_MAPS else f"{count}"
                line = f"layer {name!r}: {of} maps of {height}x{width}"
                axes.text(0, 1.06, line, transform=axes.transAxes, fontsize=9).set_in_layout(False)
    figure.suptitle(title)
    return figure


def gradients_of(model: Any) -> list[tuple[str, float, float]]:
    """Mean and largest magnitude of the gradients of every layer's weights, in the order of the data.

    Parameters
    ----------
    model : convkern.nn.Module
        After ``loss.backward()``.

    Returns
    -------
    list of (str, float, float)
        The layer's name, the mean and the maximum of abs(grad). Parameters of one axis (biases, scales) are left out.

    Raises
    ------
    ValueError
        If no weight has a gradient.
    """
    found = []
    for name, parameter in model.named_parameters():
        if len(parameter.shape) > 1 and parameter.grad is not None:
            size = np.abs(parameter.grad.data)
            layer = name.removesuffix(".weight") if name != "weight" else type(model).__name__
            found.append((layer, float(size.mean(dtype=np.float64)), float(size.max())))
    if not found:
        raise ValueError(f"the weights of {type(model).__name__} have no gradients: call loss.backward() first")
    return found


def gradient_flow(model: Any, path: Path | None = None) -> Any:
    """Draw how large the gradients are in every layer, from the first to the last: whether they vanish or explode.

    Parameters
    ----------
    model : convkern.nn.Module
        After ``loss.backward()``.
    path : Path, optional
        PNG to write.

    Returns
    -------
    matplotlib.figure.Figure
        Bars of the mean and the largest magnitude, see `gradients_of`, on a logarithmic scale; a layer whose gradients are
        all 0 has no bars.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, figure 7, who
    draw their distribution.
    """
    found = gradients_of(model)
    figure = _figure(min(max(0.28 * len(found) + 1.5, 5.0), 24.0), 4.2)
    axes = figure.add_subplot()
    places = np.arange(len(found))
    means, largest = (np.array([facts[i] for facts in found]) for i in (1, 2))
    axes.bar(places, largest, width=0.85, color=_TEST, alpha=0.45, label="largest")
    axes.bar(places, means, width=0.55, color=_TRAIN, label="mean")
    positive = means[means > 0]
    if len(positive):
        axes.set_yscale("log")
        axes.set_ylim(bottom=positive.min() / 10)
    axes.set_xticks(places, [name for name, _, _ in found], rotation=90, fontsize=8 if len(found) < 60 else 5)
    axes.set(title="Gradient flow, from the first layer to the last", ylabel="magnitude of the gradient")
    axes.grid(alpha=0.25, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _finish(figure, path)


def convolutions(model: Any) -> list[tuple[str, Any]]:
    """Every two-dimensional convolution of a model with its name, in the order of the data."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, ck.nn.Conv2d)]


def _some_convolutions(model: Any) -> list[str]:
    """The names of up to five convolutions, from the first to the last."""
    names = [name for name, _ in convolutions(model)]
    return [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(len(names), _MAX_LAYERS)).astype(int))]


def _layer(model: Any, name: str) -> Any:
    modules = dict(model.named_modules())
    if name not in modules:
        known = ", ".join(n for n in modules if n)
        raise ValueError(f"layer must be a name in {type(model).__name__}, one of {known:.300}; got {name!r}")
    return modules[name]


def _record(model: Any, names: Sequence[str], x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Run a model on one image; returns the output of each layer without its batch axis, and the logits, (classes,)."""
    seen: dict[int, np.ndarray] = {}

    def keep(module: Any, args: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        seen[id(module)] = _array(first)[0].copy()

    layers = [_layer(model, name) for name in names]
    modes = [(module, module.training) for module in model.modules()]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        model.eval()
        with ck.no_grad():
            logits = _array(model(x))[0]
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    for name, layer in zip(names, layers, strict=True):
        if id(layer) not in seen:
            raise ValueError(f"layer {name!r} did not run")
    return [seen[id(layer)] for layer in layers], logits


def _array(value: Any) -> np.ndarray:
    return value.data if isinstance(value, ck.Tensor) else np.asarray(value)


def _picture(pixels: np.ndarray) -> np.ndarray:
    """(C, H, W) bytes as matplotlib shows them: (H, W) grey or (H, W, 3)."""
    return pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2)


def _figure(width: float, height: float) -> Any:
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(figure: Any, path: Path | None) -> Any:
    """Write a figure where a path is given."""
    if path is not None:
        _write(figure, path)
    return figure


def _write(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    write_atomic(path, buffer.getvalue())
