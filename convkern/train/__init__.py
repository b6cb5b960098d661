"""Training on top of models, optimizers and data: one call, one run folder.

    from convkern.train import Config, train
    result = train(Config(epochs=3))

Names load on first use, so that asking for the configuration alone imports neither Pillow nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config as Config
    from .evaluation import Evaluation as Evaluation
    from .evaluation import evaluate as evaluate
    from .interrupt import Interrupted as Interrupted
    from .loop import Result as Result
    from .metrics import accuracy as accuracy
    from .metrics import confusion_matrix as confusion_matrix
    from .prediction import Prediction as Prediction
    from .prediction import predict as predict
    from .run import resume as resume
    from .run import train as train

_HOME = {
    "Config": "config",
    "Evaluation": "evaluation",
    "Interrupted": "interrupt",
    "Prediction": "prediction",
    "Result": "loop",
    "accuracy": "metrics",
    "confusion_matrix": "metrics",
    "evaluate": "evaluation",
    "predict": "prediction",
    "resume": "run",
    "train": "run",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
