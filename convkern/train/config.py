"""What a training run is told: checked once, kept beside its results, read back strictly."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from ..files import read_json, write_json
from .options import check_capture, check_int, check_name, check_techniques

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
        Learning rate after the warm-up, above 0; of "one-cycle" the highest.
    schedule : str
        ``"cosine"`` lets the learning rate fall to 0 along half a cosine over the whole run, ``"constant"`` keeps it; the
        others are ``"step"``, ``"multi-step"``, ``"exponential"``, ``"cosine-restarts"``, ``"one-cycle"`` and
        ``"plateau"``, see :class:`convkern.train.techniques.Schedule`.
    optimizer : str
        ``"sgd"``, ``"adagrad"``, ``"rmsprop"``, ``"adam"`` or ``"adamw"``.
    weight_decay : float
        Factor of the squared-norm penalty (of "adamw" of the weights themselves), at least 0.
    decay_biases : bool
        Whether weight decay is also for biases and the parameters of normalisations.
    momentum : float or None
        Of "sgd" (None means 0.9) and "rmsprop" (None means 0).
    nesterov : bool
        Of "sgd".
    beta1, beta2, alpha : float or None
        Decay of the running means: of "adam" and "adamw" (None means 0.9 and 0.999), of "rmsprop" (0.99).
    warmup_epochs : float
        Epochs, or a part of one, in which the learning rate rises linearly before the schedule begins.
    period : int or None
        Epochs between two drops of "step", until the first restart of "cosine-restarts"; None means a third of the run.
    period_mult : int or None
        Each period of "cosine-restarts" has so many times the epochs of the one before; None means 1.
    milestones : tuple of int or None
        Epochs after which "multi-step" drops; None means half and three quarters of the run.
    gamma : float or None
        Factor of a drop of "step", "multi-step" and "plateau" (None means 0.1), of an epoch of "exponential" (0.9).
    patience : int or None
        Epochs without a better test loss that "plateau" waits for; None means 3.
    min_lr : float or None
        Lowest learning rate of "cosine", "cosine-restarts" and "plateau"; None means 0.
    pct_start : float or None
        Share of the run in which "one-cycle" rises; None means 0.3.
    label_smoothing : float
        Share of the target that goes to all classes alike while training, from 0 to below 1.
    clip_norm, clip_value : float or None
        Largest norm of all gradients together, or largest magnitude of each of their elements; None clips nothing.
    ema : float or None
        Decay of an exponential moving average of the weights at every step. With one, it is the averaged weights that
        are tested, drawn, and used by `evaluate` and `predict`; None keeps no average.
    seed : int
        Keys every random draw: weights, order of the images, augmentation.
    tensorboard : bool
        Also write logs for TensorBoard into the run's folder; see :class:`convkern.train.tensorboard.Logs`.
    device : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    capture : bool
        On "cuda": replay CUDA graphs of the training step in place of its launches; see :mod:`convkern.capture`. Smaller
        batches, the first whole one and every 10th step, whose activations are looked at, run eagerly. The bits are those
        of the eager steps, with linear layers' products by our own kernels.
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
    decay_biases: bool = True
    momentum: float | None = None
    nesterov: bool = False
    beta1: float | None = None
    beta2: float | None = None
    alpha: float | None = None
    warmup_epochs: float = 0.0
    period: int | None = None
    period_mult: int | None = None
    milestones: tuple[int, ...] | None = None
    gamma: float | None = None
    patience: int | None = None
    min_lr: float | None = None
    pct_start: float | None = None
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None
    ema: float | None = None
    seed: int = 0
    tensorboard: bool = False
    device: str = "auto"
    capture: bool = False
    out: str | None = None

    def __post_init__(self) -> None:
        from .. import data, models
        from .feeding import check_data_options

        if isinstance(self.milestones, list):  # JSON knows no tuples
            object.__setattr__(self, "milestones", tuple(self.milestones))
        check_name("model", self.model, models.NAMES)
        check_name("data", self.data, data.NAMES)
        check_name("device", self.device, DEVICES)
        check_int("epochs", self.epochs, 1)
        check_int("batch_size", self.batch_size, 1)
        check_int("seed", self.seed, 0, MAX_SEED)
        check_techniques(self)
        check_capture(self)
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
