"""Asking a model about labelled images that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import convkern as ck

from . import checkpoint as checkpoints
from . import folder as folders
from .checkpoint import Facts
from .config import Config
from .feeding import load_split
from .metrics import accuracy, confusion_matrix

CHECKPOINTS = {"best": checkpoints.BEST, "last": checkpoints.LAST}


@dataclass(frozen=True)
class Evaluation:
    """A model's answers to a set of labelled images.

    Parameters
    ----------
    loss : float
        Mean cross-entropy.
    accuracy : float
        0 to 1.
    predictions : ndarray of int64, shape (N,)
    confusion : ndarray of int64, shape (classes, classes)
        Row: the true class. Column: the predicted one.
    classes : tuple of str
    epoch : int
        Finished epochs of the weights; 0 where that is not known.
    """

    loss: float
    accuracy: float
    predictions: np.ndarray
    confusion: np.ndarray
    classes: tuple[str, ...]
    epoch: int = 0


def build_model(facts: Facts) -> Any:
    """The model that the facts name, with first weights from their seed."""
    return ck.models.build_for(facts.model, facts.shape, num_classes=len(facts.classes), seed=facts.seed)


def evaluate_model(
    model: Any,
    dataset: Any,
    facts: Facts,
    batch_size: int,
    between: Callable[[], None] | None = None,
    workers: int = 0,
) -> Evaluation:
    """Ask a model about every image of a data set.

    Parameters
    ----------
    model : convkern.nn.Module
        Left in evaluation mode; it is asked on the device where its parameters are.
    dataset : convkern.data.Dataset
    facts : Facts
        Give the normalisation and the classes.
    batch_size : int
    between : callable, optional
        Called after every batch; what it raises ends the evaluation.
    workers : int
        Threads that prepare the next batches meanwhile.

    Returns
    -------
    Evaluation
    """
    loader = ck.data.DataLoader(dataset, batch_size, mean=facts.mean, std=facts.std, num_workers=workers)
    place = ck.device.of(next(model.parameters()).data)
    model.eval()
    loss_sum = 0.0
    answers = []
    with ck.no_grad(), np.errstate(over="ignore", invalid="ignore"):  # what is not finite shows in the loss
        for x, labels in loader:
            logits = model(ck.device.moved(x, place))  # (B, classes)
            there = ck.device.moved(labels, place)
            loss_sum += float(ck.nn.functional.cross_entropy(logits, there).item()) * len(labels)
            answers.append(ck.device.moved(logits.data, "cpu").argmax(axis=1))
            if between is not None:
                between()
    predictions = np.concatenate(answers)
    return Evaluation(
        loss=loss_sum / len(predictions),
        accuracy=accuracy(predictions, dataset.labels),
        predictions=predictions,
        confusion=confusion_matrix(predictions, dataset.labels, len(facts.classes)),
        classes=facts.classes,
    )


def load_model(folder: str | Path, which: str = "best") -> tuple[Any, Config, checkpoints.Checkpoint]:
    """Build a run's model with the weights of one of its checkpoints, the averaged ones where the run kept an average.

    Parameters
    ----------
    folder : str or Path
        The run's folder.
    which : str
        ``"best"`` or ``"last"``.

    Returns
    -------
    model, config, checkpoint

    Raises
    ------
    ValueError
        If the folder is not that of a run, has no such checkpoint yet, or its files are damaged.
    """
    if which not in CHECKPOINTS:
        raise ValueError(f"checkpoint must be one of {', '.join(CHECKPOINTS)}; got {which!r}")
    path = folders.existing(folder)
    config = Config.load(path / folders.CONFIG)
    if not (path / CHECKPOINTS[which]).exists():
        raise ValueError(f"{path} has no {CHECKPOINTS[which]} yet: no epoch of the run has ended")
    saved = checkpoints.load(path / CHECKPOINTS[which], config.model)
    model = build_model(saved.facts)
    model.load_state_dict(saved.tested)
    model.eval()
    return model, config, saved


def evaluate(folder: str | Path, *, which: str = "best", data_dir: str | None = None) -> Evaluation:
    """Measure a run's checkpoint on the test images of its data set.

    Parameters
    ----------
    folder : str or Path
        The run's folder.
    which : str
        ``"best"`` or ``"last"``.
    data_dir : str or None
        Where the data files are now, if not where they were.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        If the folder is not that of a run, its files are damaged, or the data cannot be read.
    """
    model, config, saved = load_model(folder, which)
    dataset = load_split(config, "test", data_dir)
    found = evaluate_model(model, dataset, saved.facts, config.batch_size, workers=config.workers)
    return Evaluation(**{**vars(found), "epoch": saved.position.epoch})
