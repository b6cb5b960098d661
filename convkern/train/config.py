"""What a training run is told: checked once, kept beside its results, read back strictly."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_json, write_json

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("cosine", "constant")
DEVICES = ("auto", "cpu", "cuda")
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Config:
    """Everything that decides what a training run computes, and where it writes.

    Parameters
    ----------
    model : str
        One of ``convkern.models.NAMES``.
    data : str
        ``"sample"`` (embedded), ``"fashion-mnist"``, ``"mnist"``, ``"cifar10"``, ``"cifar100"``, ``"cifar100-coarse"`` or
        ``"folder"`` (pictures; see :func:`convkern.data.load`).
    data_dir : str or None
        Folder of the data files; None looks where the system keeps them.
    image_size : int or None
        Height and width that the pictures of "folder" are scaled to; None means 224.
    augment : str
        ``"none"``, or some of ``crop``, ``flip``, ``jitter``, ``cutout``, ``erase`` between commas, each with ``=NUMBER``
        or without; see :func:`convkern.data.transforms.augmentation`.
    workers : int
        Threads that prepare the next batches meanwhile. The results have the same bits for any number, which may differ
        when a run is resumed.
    epochs : int
        Passes over the training images, at least 1.
    batch_size : int
        Images a step, at least 1.
    lr : float
        Learning rate of the first step, above 0.
    schedule : str
        ``"cosine"`` lets the learning rate fall to 0 along half a cosine over the whole run, ``"constant"`` keeps it.
    optimizer : str
        ``"sgd"`` (momentum 0.9) or ``"adam"``.
    weight_decay : float
        Factor of the squared-norm penalty, at least 0.
    seed : int
        Keys every random draw: weights, order of the images.
    device : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    out : str or None
        Folder of the run; None makes ``runs/<model>-<data>-<time>`` below the working directory.

    Raises
    ------
    ValueError, TypeError
        If a value is not one that training can use; the message names it.
    """

    model: str = "lenet5"
    data: str = "sample"
    data_dir: str | None = None
    image_size: int | None = None
    augment: str = "none"
    workers: int = 0
    epochs: int = 12
    batch_size: int = 32
    lr: float = 0.004
    schedule: str = "cosine"
    optimizer: str = "adam"
    weight_decay: float = 0.0
    seed: int = 0
    device: str = "auto"
    out: str | None = None

    def __post_init__(self) -> None:
        from .. import data, models
        from .feeding import check_data_options

        _check_name("model", self.model, models.NAMES)
        _check_name("data", self.data, data.NAMES)
        _check_name("optimizer", self.optimizer, OPTIMIZERS)
        _check_name("schedule", self.schedule, SCHEDULES)
        _check_name("device", self.device, DEVICES)
        _check_int("epochs", self.epochs, 1)
        _check_int("batch_size", self.batch_size, 1)
        _check_int("seed", self.seed, 0, MAX_SEED)
        _check_float("lr", self.lr, "a finite number above 0", lambda value: value > 0)
        _check_float("weight_decay", self.weight_decay, "a finite number of at least 0", lambda value: value >= 0)
        for name in ("data_dir", "out"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise TypeError(f"{name} must be a folder's name or None, got {value!r}")
        check_data_options(self)

    def save(self, path: Path) -> None:
        """Write the configuration as JSON."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the file is unreadable, a field is missing or unknown, or a value is not usable.
        """
        fields = read_json(path)
        if not isinstance(fields, dict):
            raise ValueError(f"{path} must hold a JSON object, got a {type(fields).__name__}")
        known = {field.name for field in dataclasses.fields(cls)}
        for word, names in (("unknown", fields.keys() - known), ("missing", known - fields.keys())):
            if names:
                raise ValueError(f"{path}: {word} field {', '.join(sorted(map(repr, names)))}")
        try:
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


def _check_name(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def _check_int(name: str, value: Any, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least or (most is not None and value > most):
        wanted = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def _check_float(name: str, value: Any, wanted: str, holds: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or not holds(value):
        raise ValueError(f"{name} must be {wanted}, got {value}")
