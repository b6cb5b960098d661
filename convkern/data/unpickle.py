"""Read the pickles of CIFAR's python version without running what is in them.

A pickle may name any function of any module and have it called. This reader knows four names, which is what a dict of
bytes, lists, integers and NumPy byte arrays needs, and stands a class of its own in for each of them: nothing outside
this file is ever called, not even NumPy.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt


class _DType:
    """Stands in for numpy.dtype; only bytes are admitted."""

    __slots__ = ()

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise ValueError(f"arrays must be uint8 ('u1'), got {code!r}")

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment, which bytes do not have."""


class _Array:
    """Stands in for numpy.ndarray and the function that rebuilds one."""

    __slots__ = ("value",)
    value: npt.NDArray[np.uint8]

    def __init__(self, *_: object) -> None:
        self.value = np.empty(0, dtype=np.uint8)  # as NumPy does: the content comes with the state

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, data = state
        if not isinstance(dtype, _DType) or not isinstance(data, bytes):
            raise TypeError("arrays must be a dtype and bytes")
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) != len(data):
            raise ValueError(f"array of shape {shape!r} cannot hold {len(data)} bytes")
        self.value = np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if fortran_order else "C")


class _Latin1:
    """Stands in for _codecs.encode, through which Python 3 writes bytes in the protocols of Python 2."""

    __slots__ = ()

    def __new__(cls, text: str, encoding: object) -> Any:
        if type(text) is not str or encoding not in ("latin1", b"latin1"):
            raise ValueError(f"bytes must be written as latin1, got {encoding!r}")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        raise ValueError("unexpected state")


_ADMITTED: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _Latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise ValueError(f"the pickle asks for {module}.{name}, which a CIFAR file does not need") from None


def read_batch(content: bytes, source: str) -> dict[str, Any]:
    """Read one pickled batch of CIFAR's python version.

    Parameters
    ----------
    content : bytes
        The pickle, as Python 2 or Python 3 wrote it.
    source : str
        Name for error messages.

    Returns
    -------
    dict
        Keys as str; arrays as uint8 NumPy arrays, read-only; everything else as pickled.

    Raises
    ------
    ValueError
        If the pickle is corrupt, is not a dict with text keys, or asks for anything that the format does not need.
    """
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a corrupt pickle can raise nearly anything
        raise ValueError(f"{source}: expected a pickled CIFAR batch, but it was refused: {error}") from error
    if type(batch) is not dict:
        raise ValueError(f"{source}: expected a pickled dict, got {type(batch).__name__}")
    result: dict[str, Any] = {}
    for key, value in batch.items():
        if type(key) not in (str, bytes):
            raise ValueError(f"{source}: expected text as the keys of the pickled dict, got {key!r}")
        name = key.decode("latin1") if type(key) is bytes else key
        result[name] = value.value if type(value) is _Array else value
    return result
