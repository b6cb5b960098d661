"""What is counted while training, and the file that keeps it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_atomic, write_failure


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of the predictions that are right.

    Parameters
    ----------
    predictions, labels : ndarray of int, shape (N,)
        N must be at least 1.

    Returns
    -------
    float
        From 0 to 1.
    """
    _check_pair(predictions, labels)
    if len(labels) == 0:
        raise ValueError("accuracy needs at least one label, got none")
    return float(np.count_nonzero(predictions == labels)) / len(labels)


def confusion_matrix(predictions: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Count how often each class was taken for each other.

    Parameters
    ----------
    predictions, labels : ndarray of int, shape (N,)
        Classes from 0 to num_classes - 1.
    num_classes : int

    Returns
    -------
    ndarray of int64, shape (num_classes, num_classes)
        Row: the true class. Column: the predicted one.
    """
    _check_pair(predictions, labels)
    for name, values in (("predictions", predictions), ("labels", labels)):
        if len(values) and (values.min() < 0 or values.max() >= num_classes):
            raise ValueError(f"{name} must be from 0 to {num_classes - 1}, got {values.min()} to {values.max()}")
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def per_class(confusion: np.ndarray) -> list[dict[str, float]]:
    """Precision, recall and number of images of every class.

    Parameters
    ----------
    confusion : ndarray of int, shape (num_classes, num_classes)
        From `confusion_matrix`.

    Returns
    -------
    list of dict
        Keys ``precision``, ``recall`` (0 to 1, NaN where nothing was predicted or present) and ``count``.
    """
    rows = []
    for c in range(len(confusion)):
        right, present, predicted = int(confusion[c, c]), int(confusion[c].sum()), int(confusion[:, c].sum())
        rows.append(
            {
                "precision": right / predicted if predicted else float("nan"),
                "recall": right / present if present else float("nan"),
                "count": present,
            }
        )
    return rows


def _check_pair(predictions: np.ndarray, labels: np.ndarray) -> None:
    if predictions.ndim != 1 or predictions.shape != labels.shape:
        raise ValueError(f"predictions and labels must be (N,), got {predictions.shape} and {labels.shape}")


class MetricsFile:
    """One JSON object a line, one line an epoch.

    Parameters
    ----------
    path : Path
        Need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Add a line and force it to the disk, so that it is there before the checkpoint that counts on it."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_failure(self.path, error) from error

    def read(self) -> list[dict[str, Any]]:
        """Every whole line; a last one that was cut off in writing is left out.

        Raises
        ------
        ValueError
            If a line other than the last is not a JSON object.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                if number == len(lines):
                    break
                raise ValueError(f"{self.path}, line {number} is not JSON: {error}") from error
            if not isinstance(record, dict):
                raise ValueError(f"{self.path}, line {number} must be a JSON object, got {line.strip()}")
            records.append(record)
        return records

    def rewind(self, epochs: int) -> list[dict[str, Any]]:
        """Drop what was written after an epoch, as if the run had not gone further.

        Parameters
        ----------
        epochs : int
            Finished epochs to keep.

        Returns
        -------
        list of dict
            What is kept.

        Raises
        ------
        ValueError
            If the line of a finished epoch is not there.
        """
        records = self.read()[:epochs]
        if [record.get("epoch") for record in records] != list(range(1, epochs + 1)):
            found = [record.get("epoch") for record in records]
            raise ValueError(f"{self.path} must begin with one line for each of epochs 1 to {epochs}, got {found}")
        write_atomic(self.path, "".join(json.dumps(record) + "\n" for record in records).encode())
        return records
