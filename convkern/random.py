"""Random streams keyed by what they are for, so that a resumed run draws the same numbers."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

#: First key of every stream: what the numbers are for. A number is given once and never used for anything else.
SHUFFLE = 0
DRAW_SAMPLE = 1
INITIALISE = 2
NOISE = 3
AUGMENT = 4

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


# Philox4x64-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011): factors and steps of the key.
_FACTORS = np.array([[[0xD2E7470EE14C6C93]], [[0xCA5A826395121157]]], dtype=np.uint64)
_KEY_STEPS = np.array([[[0x9E3779B97F4A7C15]], [[0xBB67AE8584CAA73B]]], dtype=np.uint64)
_ROUNDS = 10
_HALF, _LOW = np.uint64(32), np.uint64(2**32 - 1)
_MANTISSA = np.uint64(11)  # a double keeps the upper 53 of 64 bits


def uniforms(seed: int, purpose: int, epoch: int, samples: npt.ArrayLike, count: int) -> npt.NDArray[np.float64]:
    """Draw the same number of uniform numbers for each of many samples at once.

    Parameters
    ----------
    seed, purpose, epoch : int
        As in `rng`.
    samples : array_like of int
        (B,), the last key of every sample.
    count : int
        Numbers for each sample.

    Returns
    -------
    numpy.ndarray
        float64, (B, count), from 0 to below 1: row i has the numbers of
        ``rng(seed, purpose, epoch, samples[i]).random(count)``, whatever stands in the other rows.

    Raises
    ------
    TypeError, ValueError
        As `rng`.
    """
    keys = np.asarray(samples)
    if keys.ndim != 1 or keys.dtype.kind not in "iu":
        raise TypeError(f"samples must be integers of shape (B,), got {keys.dtype} of shape {keys.shape}")
    if len(keys) and keys.min() < 0:
        raise ValueError(f"samples must be at least 0, got {keys.min()}")
    if as_int("count", count) < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    if not count:  # what a transform without chance asks for
        return np.empty((len(keys), 0))
    blocks = -(-count // 4)
    # The counter is (block from 1, purpose, epoch, sample), as rng() and NumPy have it; axes (word, block, sample).
    even = np.empty((2, blocks, len(keys)), dtype=np.uint64)  # words 0 and 2
    odd = np.empty_like(even)  # words 1 and 3
    even[0], even[1] = np.arange(1, blocks + 1, dtype=np.uint64)[:, None], _word("epoch", epoch)
    odd[0], odd[1] = _word("purpose", purpose), keys.astype(np.uint64)
    key = np.array([[[_word("seed", seed)]], [[_MAX_KEYS]]], dtype=np.uint64)
    for _ in range(_ROUNDS):
        high, low = _product(_FACTORS, even)
        even, odd = high[::-1] ^ odd ^ key, low[::-1]
        key = key + _KEY_STEPS
    words = np.stack([even[0], odd[0], even[1], odd[1]], axis=2)  # (block, sample, word)
    bits = words.transpose(1, 0, 2).reshape(len(keys), 4 * blocks)[:, :count]
    return np.multiply(bits >> _MANTISSA, 2.0**-53, dtype=np.float64)


def _product(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> tuple[npt.NDArray, npt.NDArray]:
    """The upper and the lower 64 bits of products of 64-bit numbers, by halves."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    middle = a_high * b_low + (a_low * b_low >> _HALF)  # at most (2**32 - 1) * 2**32, so none of this overflows
    other = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _HALF) + (other >> _HALF), a * b


class _Noise(threading.local):
    def __init__(self) -> None:
        self.seed = self.step = self.draws = 0
        self.on_device: dict[int, Any] = {}  # CuPy's generators of this step, by device
        self.draws_kept: list[Draw] | None = None  # where draws are kept that a CUDA graph reads


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
        return _device_noise() if _noise.draws_kept is None else _Kept(_noise.draws_kept)
    _noise.draws += 1
    return rng(_noise.seed, NOISE, _noise.step, _noise.draws)


class Draw:
    """An array that a CUDA graph reads, filled anew before each replay with what the eager step would draw."""

    def __init__(self, kind: str, size: Any, dtype: Any) -> None:
        import cupy

        self.kind, self.values = kind, cupy.empty(size, dtype)

    def again(self) -> None:
        """Draw from this step's generator; draws are repeated in the order in which they were first met."""
        self.values[...] = getattr(_device_noise(), self.kind)(self.values.shape, dtype=self.values.dtype)


class _Kept:
    """Stands for CuPy's generator while a step is recorded: nothing is drawn, the arrays are kept."""

    def __init__(self, draws: list[Draw]) -> None:
        self.draws = draws

    def _keep(self, kind: str, size: Any, dtype: Any) -> Any:
        self.draws.append(Draw(kind, size, dtype))
        return self.draws[-1].values

    def random(self, size: Any, dtype: Any) -> Any:
        return self._keep("random", size, dtype)

    def standard_normal(self, size: Any, dtype: Any) -> Any:
        return self._keep("standard_normal", size, dtype)


@contextmanager
def drawn_into(draws: list[Draw]) -> Iterator[None]:
    """Inside the block the noise on GPUs is not drawn: the arrays for it are added to ``draws``."""
    _noise.draws_kept = draws
    try:
        yield
    finally:
        _noise.draws_kept = None


def _device_noise() -> Any:
    import cupy

    number = cupy.cuda.get_device_id()
    if number not in _noise.on_device:
        bits = cupy.random.Philox4x3210([_noise.seed, NOISE, _noise.step], size=_STREAMS)
        _noise.on_device[number] = cupy.random.Generator(bits)
    return _noise.on_device[number]
