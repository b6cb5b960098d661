"""The rivals of a benchmark: one signature for all of them, one file for each way of doing it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from . import numba_loops, numpy_im2col, ours, python_loops, pytorch
from .rival import Disagreement, Inputs, Rival, check_agreement, make_inputs

__all__ = [
    "OURS",
    "RIVALS",
    "STRICT",
    "Disagreement",
    "Inputs",
    "Rival",
    "check_agreement",
    "make_inputs",
    "rows",
    "select",
]

OURS, STRICT = ours.PUBLIC, ours.STRICT
RIVALS: tuple[Rival, ...] = (
    OURS,
    pytorch.NCHW,
    pytorch.CHANNELS_LAST,
    numba_loops.PARALLEL,
    numba_loops.SERIAL,
    numpy_im2col.NUMPY,
    python_loops.PYTHON,
)
rows = ours.rows


def select(wanted: Sequence[str]) -> tuple[Rival, ...]:
    """The rivals that names or patterns stand for, those left out whose package is not installed; ours comes first.

    Parameters
    ----------
    wanted : sequence of str
        Names, or patterns with ``*``, ``?`` and ``[...]``.

    Raises
    ------
    ValueError
        If one of them matches no rival.
    ModuleNotFoundError
        If a rival was asked for by its full name and its package is not installed.
    """
    chosen = {OURS.name}
    for text in wanted:
        matching = [rival for rival in RIVALS if fnmatchcase(rival.name, text)]
        if not matching:
            names = ", ".join(rival.name for rival in RIVALS)
            raise ValueError(f"rivals must be among {names}, or patterns that match some of them; got {text!r}")
        for rival in matching:
            if reason := rival.missing():
                if rival.name == text:
                    raise ModuleNotFoundError(f"rival {text}: {reason}")
            else:
                chosen.add(rival.name)
    return tuple(rival for rival in RIVALS if rival.name in chosen)
