"""How arrays hold their elements: float32, or halves as the uint16 of their bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .images import flat, is_last
from .language import HALVES, as_it_is, narrow, widen

STORED = ("float32", *HALVES)
_KINDS = {"f": "float32", "e": "float16", "H": "bfloat16"}  # by NumPy's letter of the dtype


def pointer(stored: str) -> str:
    """The type of a pointer to such elements."""
    return "uint16" if stored in HALVES else "float32"


def reader_and_writer(stored: str) -> tuple[Callable, Callable]:
    """Inlined functions that turn an element of ``stored``, one of STORED, to float32 and back, to nearest, ties to even."""
    return (widen[stored], narrow[stored]) if stored in HALVES else (as_it_is, as_it_is)


def stored_as(array: Any) -> str:
    """What the elements of an array are: "float32", "float16", or "bfloat16" where it holds uint16."""
    return _KINDS[array.dtype.char]


def bits(array: Any) -> Any:
    """Halves as the uint16 of their bits."""
    return array if array.dtype.char == "f" else array.view("uint16")


def ready(array: Any) -> Any:
    """An array as kernels take it, which read images as they lie."""
    return bits(flat(array) if is_last(array) else array)
