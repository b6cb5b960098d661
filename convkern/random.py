"""Random streams keyed by what they are for, so that a resumed run draws the same numbers."""

from __future__ import annotations

import operator
import threading
from typing import Any

import numpy as np

#: First key of every stream: what the numbers are for. A number is given once and never used for anything else.
SHUFFLE = 0
DRAW_SAMPLE = 1
INITIALISE = 2
NOISE = 3

_MAX_KEYS = 3
_LIMIT = 2**64


def as_int(name: str, value: int) -> int:
    """Return an argument as int, or raise TypeError with its name."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__} {value!r}") from None


def _word(name: str, value: int) -> int:
    word = as_int(name, value)
    if not 0 <= word < _LIMIT:
        raise ValueError(f"{name} must be between 0 and 2**64 - 1, got {word}")
    return word


def rng(seed: int, *keys: int) -> np.random.Generator:
    """Return the generator that belongs to a seed and up to three integers.

    The same arguments always give the same numbers, whatever was drawn before; different arguments, also of
    different count, give streams that never overlap.

    Parameters
    ----------
    seed : int
        The seed of the run, 0 to 2**64 - 1.
    *keys : int
        At most three integers of the same range, by convention purpose, epoch and sample.

    Returns
    -------
    numpy.random.Generator
        A fresh generator over Philox.

    Raises
    ------
    TypeError
        If an argument is not an integer.
    ValueError
        If an argument is out of range or there are more than three keys.
    """
    if len(keys) > _MAX_KEYS:
        raise ValueError(f"keys must be at most {_MAX_KEYS} integers (purpose, epoch, sample), got {len(keys)}")
    words = [_word(f"keys[{i}]", key) for i, key in enumerate(keys)]
    # Philox counts blocks in the first counter word, which leaves the other three, untouched, for the keys.
    counter = np.array([0, *words, *[0] * (_MAX_KEYS - len(words))], dtype=np.uint64)
    key = np.array([_word("seed", seed), len(words)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


class _Noise(threading.local):
    def __init__(self) -> None:
        self.seed = self.step = self.draws = 0
        self.on_device: dict[int, Any] = {}  # CuPy's generators of this step, by device


_noise = _Noise()
_STREAMS = 1 << 16  # of CuPy's generators: by default there are more on a larger GPU, and then other numbers


def seed_noise(seed: int, step: int = 0) -> None:
    """Start this thread's draws of noise layers (dropout and the like) anew.

    A training loop calls it before every step: a resumed run then drops what it would have dropped.

    Parameters
    ----------
    seed : int
        0 to 2**64 - 1.
    step : int
        Of the same range; another step gives other numbers.
    """
    rng(seed, NOISE, step)  # refuses what is no seed
    _noise.seed, _noise.step, _noise.draws, _noise.on_device = seed, step, 0, {}


def noise(device: str = "cpu") -> Any:
    """The generator of this thread's next draw of a noise layer.

    Parameters
    ----------
    device : "cpu" or "cuda"

    Returns
    -------
    numpy.random.Generator or cupy.random.Generator
        CuPy's is one for all draws of a step, since making one takes a while.
    """
    if device == "cuda":
        return _device_noise()
    _noise.draws += 1
    return rng(_noise.seed, NOISE, _noise.step, _noise.draws)


def _device_noise() -> Any:
    import cupy

    number = cupy.cuda.get_device_id()
    if number not in _noise.on_device:
        bits = cupy.random.Philox4x3210([_noise.seed, NOISE, _noise.step], size=_STREAMS)
        _noise.on_device[number] = cupy.random.Generator(bits)
    return _noise.on_device[number]
