"""Checkpoints: safetensors files that hold all that a run needs to go on bit for bit."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files import require, write_atomic

LAST = "last.safetensors"
BEST = "best.safetensors"
_FORMAT = 2
_KEY = "convkern"  # the metadata entry; safetensors allows strings only, so it holds JSON


@dataclass(frozen=True)
class Facts:
    """What a model was made for: enough to build it again and to feed it pictures.

    Parameters
    ----------
    model : str
        Name in ``convkern.models``.
    shape : tuple of int
        (C, H, W) of the images.
    mean, std : tuple of float
        Of every channel, in the 0 to 1 scale.
    classes : tuple of str
    seed : int
        Of the run.
    data_crc : int
        Checksum of the training and test images and labels.
    """

    model: str
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    seed: int
    data_crc: int


@dataclass
class Position:
    """How far a run has come, with the sums that the current epoch's metrics are made of.

    Parameters
    ----------
    epoch : int
        Finished epochs.
    step : int
        Finished steps of the epoch after those.
    loss_sum : float
        Sum of the losses of this epoch's images so far.
    correct, seen : int
        Images of this epoch predicted rightly, and all so far.
    seconds : float
        Training time of this epoch so far.
    waited : float
        What of it was spent waiting for batches.
    best_accuracy : float
        Of the finished epochs on the test images, 0 to 1; -1 before the first.
    best_epoch : int
        The epoch that reached it, from 1; 0 before the first.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    best_accuracy: float = -1.0
    best_epoch: int = 0


@dataclass
class Checkpoint:
    """One moment of a run.

    Parameters
    ----------
    facts : Facts
    position : Position
    weights : dict of str to ndarray
        The model's ``state_dict()``.
    optimizer : dict
        The optimizer's ``state_dict()``.
    schedule : dict
        The schedule's ``state_dict()``, which JSON can hold.
    average : dict of str to ndarray
        The ``state_dict()`` of the averaged model; empty where no average is kept.
    """

    facts: Facts
    position: Position
    weights: dict[str, np.ndarray]
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    average: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def tested(self) -> dict[str, np.ndarray]:
        """The weights that are tested: the averaged ones where there are some, by the model's own names."""
        prefix = "module."
        averaged = {k.removeprefix(prefix): a for k, a in self.average.items() if k.startswith(prefix)}
        return averaged or self.weights


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises
    ------
    OSError
        If the disk is full or refuses; a checkpoint that was there before is whole.
    """
    require("safetensors")
    from safetensors.numpy import save as to_bytes

    arrays, values = _flatten(checkpoint.optimizer)
    tensors = {f"model.{name}": a for name, a in checkpoint.weights.items()} | arrays
    tensors |= {f"average.{name}": a for name, a in checkpoint.average.items()}
    tensors = {name: np.array(a, order="C") for name, a in tensors.items()}  # safetensors misreads strided arrays
    metadata = {
        "format": _FORMAT,
        "facts": asdict(checkpoint.facts),
        "position": asdict(checkpoint.position),
        "optimizer": values,
        "schedule": checkpoint.schedule,
        "crc": _crc(tensors),
    }
    note = f"; the previous {path.name} is untouched" if path.exists() else ""
    write_atomic(path, to_bytes(tensors, metadata={_KEY: json.dumps(metadata)}), note)


def load(path: Path, model: str | None = None) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    path : Path
    model : str or None
        The model that it must belong to; None takes any.

    Raises
    ------
    ValueError
        If the file is missing, damaged or not a checkpoint (the message names it), or belongs to another model
        (the message names both).
    """
    require("safetensors")
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"{path} does not exist: is {path.parent} a run folder of 'convkern train'?")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if metadata["format"] != _FORMAT:
            raise ValueError(f"format {metadata['format']}, this version reads {_FORMAT}")
        if metadata["crc"] != _crc(tensors):
            raise ValueError("the checksum does not match")
        facts = Facts(**{name: _tuples(value) for name, value in metadata["facts"].items()})
        position = Position(**metadata["position"])
        optimizer = _unflatten(tensors, metadata["optimizer"])
        schedule = dict(metadata["schedule"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not a convkern checkpoint: {error}") from error
    if model is not None and facts.model != model:
        raise ValueError(f"{path} holds the model {facts.model!r}, expected {model!r}")
    weights, average = (
        {name.removeprefix(prefix): a for name, a in tensors.items() if name.startswith(prefix)}
        for prefix in ("model.", "average.")
    )
    return Checkpoint(facts, position, weights, optimizer, schedule, average)


def _flatten(optimizer: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Split an optimizer's state into named arrays and what JSON can hold."""
    arrays: dict[str, np.ndarray] = {}
    values: dict[str, Any] = {"param_groups": optimizer.get("param_groups", []), "state": {}}
    for index, entries in optimizer.get("state", {}).items():
        values["state"][str(index)] = {}
        for name, value in entries.items():
            if isinstance(value, np.ndarray):
                arrays[f"optimizer.{index}.{name}"] = value
            else:
                values["state"][str(index)][name] = value
    return arrays, values


def _unflatten(tensors: dict[str, np.ndarray], values: dict[str, Any]) -> dict[str, Any]:
    groups = [{k: v if k == "params" else _tuples(v) for k, v in group.items()} for group in values["param_groups"]]
    state = {int(index): dict(entries) for index, entries in values["state"].items()}
    for full_name, a in tensors.items():
        kind, _, rest = full_name.partition(".")
        if kind == "optimizer":
            index, _, name = rest.partition(".")
            state[int(index)][name] = a
    return {"state": state, "param_groups": groups}


def _tuples(value: Any) -> Any:
    """JSON knows no tuples: what was one came back as a list."""
    return tuple(value) if isinstance(value, list) else value


def _crc(tensors: dict[str, np.ndarray]) -> int:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(f"{name}{tensors[name].dtype}{tensors[name].shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).data, crc)
    return crc
