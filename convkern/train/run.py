"""Starting a run, and going on with one that stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import device, plan
from ..files import read_json, remove_leftovers, require, write_json
from . import checkpoint as checkpoints
from . import folder as folders
from .checkpoint import LAST
from .config import Config
from .loop import Result, Trainer
from .progress import choose


def train(config: Config | None = None, *, quiet: bool = False) -> Result:
    """Train a model from its first weights.

    Parameters
    ----------
    config : Config, optional
        By default LeNet-5 on the embedded sample.
    quiet : bool
        Print nothing.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        If the data cannot be read, the model does not take their images, or the loss stops being finite.
    OSError
        If the run folder cannot be written.
    Interrupted
        On Ctrl-C, after the last step has been saved.
    """
    require("safetensors", "matplotlib")
    config = config or Config()
    config = dataclasses.replace(config, **_resolved(device=config.device, data_dir=config.data_dir))
    trainer = Trainer(config)
    progress = choose(config.epochs, len(trainer.loader), quiet)
    try:
        trainer.warm_up(progress)
    except ValueError as error:
        shape = "x".join(map(str, trainer.facts.shape))
        raise ValueError(
            f"{config.model!r} cannot learn from the {shape} images of {config.data!r}: {error}"
        ) from error
    trainer.folder = folders.create(config)
    config.save(trainer.folder / folders.CONFIG)
    write_json(trainer.folder / folders.PLAN, plan.choices())
    trainer.save(LAST)
    return trainer.run(progress)


def resume(folder: str | Path, *, quiet: bool = False, **changes: Any) -> Result:
    """Go on with a run exactly as if it had not stopped.

    Parameters
    ----------
    folder : str or Path
        The run's folder.
    quiet : bool
        Print nothing.
    **changes
        Fields of `Config`. ``data_dir`` may differ, and under a constant learning rate ``epochs`` may grow; any
        other must be as it was.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        If the folder is not that of a run, its files are damaged, the data are not those it was trained on, or a
        change would give other results.
    Interrupted
        On Ctrl-C, after the last step has been saved.
    """
    require("safetensors", "matplotlib")
    path = folders.existing(folder)
    was = Config.load(path / folders.CONFIG)
    config = _with_changes(was, _resolved(**changes))
    device.check(config.device)
    saved = checkpoints.load(path / LAST, config.model)
    rows = _read_plan(path / folders.PLAN)
    remove_leftovers(path)
    trainer = Trainer(config)
    trainer.folder = path
    trainer.restore(saved)
    plan.use(rows)  # the kernels that the run began with: others may round differently
    progress = choose(config.epochs, len(trainer.loader), quiet)
    trainer.warm_up(progress)
    if config != was:
        config.save(path / folders.CONFIG)
    return trainer.run(progress)


def _resolved(**values: Any) -> dict[str, Any]:
    """What "auto" and a relative folder mean here and now: the run may be resumed from another place."""
    if "device" in values:
        values["device"] = device.check(values["device"])
    if values.get("data_dir") is not None:
        values["data_dir"] = str(Path(values["data_dir"]).absolute())
    return values


def _with_changes(was: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration to go on with, or a ValueError where a change would give other results."""
    config = dataclasses.replace(was, **changes)
    for name in changes:
        before, after = getattr(was, name), getattr(config, name)
        if after == before or name == "data_dir":  # the checksum of the data says whether they are the same
            continue
        if name == "workers":  # no result depends on them
            continue
        if name != "epochs":
            raise ValueError(f"{name} cannot change when a run is resumed: it was {before!r}, got {after!r}")
        if was.schedule != "constant":
            raise ValueError(
                f"epochs cannot change when a run is resumed, for its {was.schedule} schedule depends on them: "
                f"it was {before}, got {after}"
            )
        if after < before:
            raise ValueError(f"epochs can only grow when a run is resumed: it was {before}, got {after}")
    return config


def _read_plan(path: Path) -> dict[str, str]:
    rows = read_json(path)
    if not isinstance(rows, dict) or not all(isinstance(row, str) for row in rows.values()):
        raise ValueError(f"{path} must hold a JSON object of row names, got {rows!r:.80}")
    return rows
