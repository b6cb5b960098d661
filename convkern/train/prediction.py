"""What a trained model says about a picture of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import convkern as ck

from ..data.folder import read_scaled
from ..data.pictures import as_array, open_picture
from .checkpoint import Facts
from .evaluation import load_model

_BRIGHT = 128  # of 255: a border above it means dark on white


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one picture.

    Parameters
    ----------
    path : Path
        The picture.
    classes : tuple of str
        The most likely ones, best first.
    probabilities : tuple of float
        Of each of them, 0 to 1.
    inverted : bool
        Whether the picture was dark on a bright ground and has been turned into its negative first.
    """

    path: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    inverted: bool


def predict(folder: str | Path, images: Sequence[str | Path], *, which: str = "best", top: int = 3) -> list[Prediction]:
    """Ask a run's model about pictures.

    Parameters
    ----------
    folder : str or Path
        The run's folder.
    images : sequence of str or Path
        Picture files in any format that Pillow reads.
    which : str
        ``"best"`` or ``"last"`` checkpoint.
    top : int
        How many classes to name, at least 1.

    Returns
    -------
    list of Prediction
        One for each picture.

    Raises
    ------
    ValueError
        If a picture cannot be read (the message names it), or the run cannot.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    model, config, saved = load_model(folder, which)
    # All of them before the first answer; a run on a folder of pictures has seen their middles.
    if config.data == "folder":
        read = [(read_scaled(path, saved.facts.shape), False) for path in images]
    else:
        read = [read_image(path, saved.facts) for path in images]
    answers = []
    for path, (pixels, inverted) in zip(images, read, strict=True):
        one = ck.data.Dataset(pixels[None], np.zeros(1, np.int64), saved.facts.classes)
        x, _ = next(iter(ck.data.DataLoader(one, 1, mean=saved.facts.mean, std=saved.facts.std)))
        with ck.no_grad():
            logits = model(x).numpy()[0].astype(np.float64)
        likely = np.exp(logits - logits.max())
        likely /= likely.sum()
        order = np.argsort(-likely, kind="stable")[:top]
        names = tuple(saved.facts.classes[c] for c in order)
        answers.append(Prediction(Path(path), names, tuple(float(p) for p in likely[order]), inverted))
    return answers


def read_image(path: str | Path, facts: Facts) -> tuple[np.ndarray, bool]:
    """Read a picture the way the model's training images are: channels, size, light on dark.

    Parameters
    ----------
    path : str or Path
    facts : Facts
        Give the channels, height and width.

    Returns
    -------
    pixels : ndarray of uint8, shape (C, H, W)
    inverted : bool
        Whether it was turned into its negative: models of grey images here were trained on light things on a dark
        ground, so a picture whose border is bright is inverted.

    Raises
    ------
    ValueError
        If the file is missing, not a picture, damaged or absurdly large; the message names it.
    """
    channels, height, width = facts.shape
    image = open_picture(path, channels)
    from PIL import Image, ImageOps

    border = _border_level(np.asarray(image))
    inverted = channels == 1 and border >= _BRIGHT
    if inverted:
        image = ImageOps.invert(image)
    # The whole picture is kept: what is missing to the model's aspect ratio is filled with the ground's own colour.
    ground: Any = _ground(np.asarray(image))
    image = ImageOps.pad(image, (width, height), method=Image.Resampling.LANCZOS, color=ground)
    return as_array(image), inverted


def _border(pixels: np.ndarray) -> np.ndarray:
    """The outermost pixels of an (H, W) or (H, W, C) picture, one a row."""
    flat = pixels.reshape(*pixels.shape[:2], -1)
    return np.concatenate([flat[0], flat[-1], flat[:, 0], flat[:, -1]])


def _border_level(pixels: np.ndarray) -> float:
    return float(np.median(_border(pixels)))


def _ground(pixels: np.ndarray) -> int | tuple[int, ...]:
    """The colour of the border, as Pillow takes it."""
    middle = np.median(_border(pixels), axis=0).astype(int).tolist()
    return middle[0] if len(middle) == 1 else tuple(middle)
