"""The folder of a run: its name, and what the files in it are called."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from .config import Config

CONFIG = "config.json"
METRICS = "metrics.jsonl"
PLAN = "plan.json"
CURVES = "curves.png"
CONFUSION = "confusion.png"
FILTERS = "filters.png"
FEATURES = "features.png"
GRADIENTS = "gradients.png"


def create(config: Config) -> Path:
    """Make a new folder for a run.

    Parameters
    ----------
    config : Config
        ``out`` names the folder; None means ``runs/<model>-<data>-<YYYYmmdd-HHMMSS>`` below the working directory.

    Returns
    -------
    Path
        The folder. Nothing that exists is written over: where the name is taken by something other than an empty
        folder, ``-2``, ``-3`` and so on is appended.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    if config.out is None:
        wanted = Path("runs") / f"{config.model}-{config.data}-{time.strftime('%Y%m%d-%H%M%S')}"
    else:
        wanted = Path(config.out)
        if wanted.is_dir() and not any(wanted.iterdir()):
            return wanted
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(2):
        try:
            wanted.mkdir()
            return wanted
        except FileExistsError:
            stem = wanted.name if number == 2 else wanted.name.rpartition("-")[0]
            wanted = wanted.with_name(f"{stem}-{number}")
    raise AssertionError("unreachable: itertools.count has no end")


def existing(folder: str | Path) -> Path:
    """Check that a folder is that of a run.

    Raises
    ------
    ValueError
        If it is not there or holds no configuration.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder: give the run folder that 'convkern train' printed")
    if not (path / CONFIG).is_file():
        raise ValueError(f"{path} holds no {CONFIG}: give the run folder that 'convkern train' printed")
    return path
