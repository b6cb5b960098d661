"""Error bounds derived from the length of a sum, and exact data that needs none."""

from __future__ import annotations

import numpy as np


def gamma(terms: int, dtype: np.dtype) -> float:
    """Higham's γₙ: the relative error bound of a sum of n products in any order, fused or not."""
    unit = np.finfo(dtype).eps / 2
    assert terms * unit < 1
    return terms * unit / (1 - terms * unit)


def assert_within(got: np.ndarray, exact: np.ndarray, magnitude: np.ndarray, terms: int) -> None:
    """Elementwise |got - exact| <= γₙ · magnitude, where magnitude is the same sum over absolute values.

    ``exact`` is itself a float64 sum, so its own error is allowed for; denormal results may flush.
    """
    assert got.shape == exact.shape
    assert exact.dtype == magnitude.dtype == np.float64
    own = gamma(terms, np.dtype(np.float64))
    bound = (gamma(terms, got.dtype) + own) * magnitude + terms * np.finfo(got.dtype).tiny
    excess = np.abs(got.astype(np.float64) - exact) - bound
    worst = np.unravel_index(np.argmax(excess), excess.shape) if excess.size else None
    assert not excess.size or np.all(excess <= 0), (
        f"at {worst}: got {got[worst]}, exact {exact[worst]}, bound {bound[worst]}"
    )


def halves(array: np.ndarray, kind: str) -> np.ndarray:
    """The bits, as float16 or for bfloat16 as uint16, of an array rounded to nearest, ties to even."""
    if kind == "float16":
        return array.astype(np.float16)
    # A float32 between two bfloat16 is nearer to the one below if its lower 16 bits are below one half.
    upper, lower = np.divmod(np.ascontiguousarray(array, np.float32).view(np.uint32), np.uint32(1 << 16))
    up = (lower > 1 << 15) | ((lower == 1 << 15) & (upper % 2 == 1))
    return (upper + up).astype(np.uint16)


def from_halves(array: np.ndarray, kind: str) -> np.ndarray:
    """As float32."""
    if kind == "float16":
        return array.astype(np.float32)
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)


def floats(rng: np.random.Generator, shape: tuple[int, ...], dtype: object) -> np.ndarray:
    """Normal numbers over three orders of magnitude."""
    return (rng.standard_normal(shape) * 10.0 ** rng.uniform(-1.5, 1.5, shape)).astype(dtype)


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: object) -> np.ndarray:
    """Small integers as floats: every product and sum of them here is exact, in any order."""
    return rng.integers(-4, 5, shape).astype(dtype)
