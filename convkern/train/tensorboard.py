"""Logs that TensorBoard shows: scalars, histograms of weights and gradients, filters of the first layer, warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..files import require

EVERY = 10  # steps between two points of the curves within an epoch


class Logs:
    """Event files in a run's folder; ``tensorboard --logdir runs`` shows them, also while the run goes on.

    The x of all points is the number of steps made.

    Parameters
    ----------
    folder : Path
    step : int
        Steps made before: what an interrupted run wrote after them is taken back.

    Raises
    ------
    ModuleNotFoundError
        If tensorboardX is not there; the message says how to get it.
    """

    def __init__(self, folder: Path, step: int) -> None:
        require("tensorboardX", extra="tensorboard")
        from tensorboardX import SummaryWriter

        # The suffix keeps apart the files of a run that is resumed within the second.
        self._writer: Any = SummaryWriter(
            str(folder), purge_step=step + 1 if step else None, filename_suffix=f".from-step-{step}"
        )

    def step(self, step: int, loss: float, lr: float) -> None:
        """Log every tenth step, the number of steps made, with its loss and learning rate."""
        if step % EVERY == 0:
            self._writer.add_scalar("step/loss", loss, step)
            self._writer.add_scalar("step/lr", lr, step)

    def epoch(self, step: int, record: dict[str, Any], model: Any) -> None:
        """Log a line of the metrics file, and the weights and last gradients of a model after an epoch."""
        for name, value in record.items():
            if name != "epoch":
                kind, _, what = name.partition("_")
                tag = f"{what}/{kind}" if kind in ("train", "test") and what != "seconds" else f"epoch/{name}"
                self._writer.add_scalar(tag, value, step)
        for name, parameter in model.named_parameters():
            tag = name.replace(".", "/")
            self._writer.add_histogram(f"weights/{tag}", parameter.data, step)
            if parameter.grad is not None:
                self._writer.add_histogram(f"gradients/{tag}", parameter.grad.data, step)
        tiles = filter_tiles(model)
        if tiles is not None:
            self._writer.add_image("filters/first_layer", tiles, step, dataformats="HWC")
        self._writer.flush()

    def warning(self, step: int, text: str) -> None:
        """Log a warning of the progress output."""
        self._writer.add_text("warnings", text, step)

    def close(self) -> None:
        """Write what is still waiting."""
        self._writer.close()


def filter_tiles(model: Any) -> np.ndarray | None:
    """The filters of a model's first convolution side by side, as bytes (H, W, 3); None where there is no convolution.

    Filters of three channels are colours, others the mean over their channels; 0 is grey, the largest weight white.
    """
    from .plots import convolutions

    layers = convolutions(model)
    if not layers:
        return None
    w = layers[0][1].weight.data  # (K, C/groups, R, S)
    planes = w if w.shape[1] == 3 else np.repeat(w.mean(axis=1, keepdims=True), 3, axis=1)  # (K, 3, R, S)
    scaled = planes / (2 * (np.abs(planes).max() or 1.0)) + 0.5
    k, _, r, s = scaled.shape
    columns = int(np.ceil(np.sqrt(k)))
    rows = -(-k // columns)
    grid = np.ones((rows * columns, 3, r + 1, s + 1))  # a line between filters
    grid[:k, :, :r, :s] = scaled
    # (rows, columns, 3, R, S) -> (rows, R, columns, S, 3)
    picture = grid.reshape(rows, columns, 3, r + 1, s + 1).transpose(0, 3, 1, 4, 2)
    return np.round(picture.reshape(rows * (r + 1), columns * (s + 1), 3)[:-1, :-1] * 255).astype(np.uint8)
