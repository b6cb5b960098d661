"""Initialisation of weights, under the names that PyTorch gives them.

Draws come from the streams of one seed, in the order in which they are made: inside ``with seeded(seed):`` the same model
gets the same weights, whatever was drawn before.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..random import INITIALISE, rng
from ..tensor import Tensor

GAINS = dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "sigmoid"), 1.0)
GAINS |= {"tanh": 5 / 3, "relu": math.sqrt(2), "selu": 0.75}


class _State(threading.local):
    seed = 0
    draws = 0


_state = _State()


def manual_seed(seed: int) -> None:
    """Start the thread's initialisation draws anew.

    Parameters
    ----------
    seed : int
        0 to 2**64 - 1.
    """
    rng(seed)  # refuses what is no seed
    _state.seed, _state.draws = seed, 0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed inside the ``with`` block, and go on as before after it.

    Parameters
    ----------
    seed : int
        0 to 2**64 - 1.

    Yields
    ------
    None
    """
    before = _state.seed, _state.draws
    manual_seed(seed)
    try:
        yield
    finally:
        _state.seed, _state.draws = before


def generator() -> np.random.Generator:
    """The generator of the next draw.

    Returns
    -------
    numpy.random.Generator
    """
    _state.draws += 1
    return rng(_state.seed, INITIALISE, _state.draws)


def fans(tensor: Tensor) -> tuple[int, int]:
    """Inputs that one output sums, and outputs that one input reaches.

    Parameters
    ----------
    tensor : Tensor, (K, C/groups, …) or (out, in)

    Returns
    -------
    (int, int)
        Fan in and fan out.
    """
    if tensor.ndim < 2:
        raise ValueError(f"fan in and fan out need at least 2 axes, got shape {tensor.shape}")
    taps = math.prod(tensor.shape[2:])
    return tensor.shape[1] * taps, tensor.shape[0] * taps


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Factor on the standard deviation that keeps the variance through a nonlinearity.

    Parameters
    ----------
    nonlinearity : str
        "linear", "conv1d", "conv2d", "conv3d", "sigmoid", "tanh", "relu", "leaky_relu" or "selu".
    param : float, optional
        The negative slope of "leaky_relu", 0.01 by default.

    Returns
    -------
    float
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2 / (1 + slope**2))
    if nonlinearity not in GAINS:
        raise ValueError(f"nonlinearity must be 'leaky_relu' or one of {sorted(GAINS)}, got {nonlinearity!r}")
    return GAINS[nonlinearity]


def _fill(tensor: Tensor, values: np.ndarray) -> Tensor:
    tensor.data[...] = values
    tensor.mark_changed()
    return tensor


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Uniform numbers.

    Parameters
    ----------
    tensor : Tensor
        Overwritten in place.
    a, b : float
        Ends of the range [a, b).

    Returns
    -------
    Tensor
        The same.
    """
    return _fill(tensor, generator().uniform(a, b, tensor.shape))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normal numbers.

    Parameters
    ----------
    tensor : Tensor
        Overwritten in place.
    mean, std : float
        Mean and standard deviation.

    Returns
    -------
    Tensor
        The same.
    """
    return _fill(tensor, generator().normal(mean, std, tensor.shape))


def constant_(tensor: Tensor, value: float) -> Tensor:
    """One value everywhere.

    Parameters
    ----------
    tensor : Tensor
        Overwritten in place.
    value : float

    Returns
    -------
    Tensor
        The same.
    """
    return _fill(tensor, np.asarray(value))


def zeros_(tensor: Tensor) -> Tensor:
    """Zeros.

    Parameters
    ----------
    tensor : Tensor
        Overwritten in place.

    Returns
    -------
    Tensor
        The same.
    """
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Ones.

    Parameters
    ----------
    tensor : Tensor
        Overwritten in place.

    Returns
    -------
    Tensor
        The same.
    """
    return constant_(tensor, 1.0)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    return calculate_gain(nonlinearity, a) / math.sqrt(fans(tensor)[mode == "fan_out"])


def kaiming_uniform_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """He initialisation, uniform in ±gain·√(3/fan).

    Parameters
    ----------
    tensor : Tensor, (K, C/groups, …) or (out, in)
        Overwritten in place.
    a : float
        Negative slope of "leaky_relu".
    mode : "fan_in" or "fan_out"
        Keeps the variance forward or backward.
    nonlinearity : str
        As in :func:`calculate_gain`.

    Returns
    -------
    Tensor
        The same.

    References
    ----------
    He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", 2015.
    """
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """He initialisation, normal with standard deviation gain/√fan; source as :func:`kaiming_uniform_`.

    Parameters
    ----------
    tensor, a, mode, nonlinearity
        As in :func:`kaiming_uniform_`.

    Returns
    -------
    Tensor
        The same.
    """
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Xavier initialisation, uniform in ±gain·√(6/(fan_in + fan_out)).

    Parameters
    ----------
    tensor : Tensor, (K, C/groups, …) or (out, in)
        Overwritten in place.
    gain : float
        See :func:`calculate_gain`.

    Returns
    -------
    Tensor
        The same.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """
    bound = gain * math.sqrt(6 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Xavier initialisation, normal with standard deviation gain·√(2/(fan_in + fan_out)); source as the uniform one.

    Parameters
    ----------
    tensor, gain
        As in :func:`xavier_uniform_`.

    Returns
    -------
    Tensor
        The same.
    """
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(fans(tensor))))


def orthogonal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """A random matrix with orthogonal rows or columns, whichever are fewer; axes after the first count as one.

    Parameters
    ----------
    tensor : Tensor, (K, C/groups, …) or (out, in)
        Overwritten in place.
    gain : float
        Length of each of those rows or columns.

    Returns
    -------
    Tensor
        The same.

    References
    ----------
    Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
    2014.
    """
    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_: tensor must have at least 2 axes, got shape {tensor.shape}")
    if tensor.size == 0:
        return tensor
    rows = tensor.shape[0]
    drawn = generator().normal(size=(rows, tensor.size // rows))
    q, r = np.linalg.qr(drawn if rows >= drawn.shape[1] else drawn.T)
    q = q * np.where(np.diag(r) < 0, -1, 1)  # without it q would not be uniform over all such matrices
    return _fill(tensor, gain * (q if rows >= drawn.shape[1] else q.T).reshape(tensor.shape))
