"""The pictures of a run: curves, confusion matrix, filters, feature maps.

Figures are made without pyplot, so that drawing touches no global state and needs no display.
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


def filters(model: Any, path: Path) -> None:
    """Draw the filters of a model's first convolution.

    Parameters
    ----------
    model : convkern.nn.Module
    path : Path
        PNG to write; nothing is written for a model without a convolution.
    """
    layers = convolutions(model)
    if not layers:
        return
    name, layer = layers[0]
    w = layer.weight.detach().numpy()  # (K, C/groups, R, S)
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
    figure.suptitle(f"First layer, {name!r}: {of} filters of {w.shape[2]}x{w.shape[3]}")
    _write(figure, path)


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
    layers = convolutions(model)
    if not layers:
        return
    chosen = [layers[i] for i in np.unique(np.linspace(0, len(layers) - 1, min(len(layers), _MAX_LAYERS)).astype(int))]
    with ck.data.DataLoader(dataset, 1, mean=facts.mean, std=facts.std).batches() as batches:
        x, labels = next(batches)
    maps, logits = _record(model, [layer for _, layer in chosen], x)
    predicted = facts.classes[int(logits.argmax())]

    figure = _figure(1.2 * (_MAX_MAPS + 1.6), 1.35 * len(chosen) + 0.7)
    outer = figure.add_gridspec(len(chosen), 2, width_ratios=(1.5, _MAX_MAPS))
    axes = figure.add_subplot(outer[:, 0])
    axes.imshow(_picture(dataset.pixels(np.array([0]))[0]), cmap="gray", vmin=0, vmax=255)
    axes.set_title(f"first test image\n{facts.classes[int(labels[0])]}", fontsize=9)
    axes.axis("off")
    for row, ((name, _), y) in enumerate(zip(chosen, maps, strict=True)):
        inner = outer[row, 1].subgridspec(1, _MAX_MAPS, wspace=0.08)
        for k in range(min(_MAX_MAPS, len(y))):
            axes = figure.add_subplot(inner[k])
            axes.imshow(y[k], cmap="magma")
            axes.axis("off")
            axes.set_title(" ", fontsize=9)  # room for the line below, which must not widen the first map's column
            if k == 0:
                count, height, width = y.shape
                of = f"{_MAX_MAPS} of {count}" if count > _MAX_MAPS else f"{count}"
                line = f"convolution {name!r}: {of} maps of {height}x{width}"
                axes.text(0, 1.06, line, transform=axes.transAxes, fontsize=9).set_in_layout(False)
    figure.suptitle(f"Feature maps of the convolutions (predicted: {predicted})")
    _write(figure, path)


def convolutions(model: Any) -> list[tuple[str, Any]]:
    """Every convolution of a model with its name, in the order of the data."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, ck.nn.Conv2d)]


def _record(model: Any, layers: list[Any], x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Run a model on one image; returns the output of each layer, (K, P, Q), and the logits, (classes,)."""
    seen: dict[int, np.ndarray] = {}
    handles = [
        layer.register_forward_hook(lambda module, args, output: seen.update({id(module): output.numpy()[0].copy()}))
        for layer in layers
    ]
    try:
        model.eval()
        with ck.no_grad():
            logits = model(x).numpy()[0]
    finally:
        for handle in handles:
            handle.remove()
    return [seen[id(layer)] for layer in layers], logits


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


def _write(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    write_atomic(path, buffer.getvalue())
