"""A row of a kernel table, and the problem that it is asked to solve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

CPU_DTYPES = ("float32", "float64")
SHARED_BYTES = 24 * 1024 * 1024  # of scratch that all threads share; with a thread's own it stays below 32 MiB


class Problem(NamedTuple):
    """What one call of an operation needs done, in hashable form."""

    operation: str  # folder: "conv", "pointwise", "pool"
    direction: str  # "forward", "input_grad", …
    device: str  # "cpu" or "cuda"
    dtype: str
    precision: str  # "default", "strict", or what may be rounded: "tf32", "float16", "bfloat16"
    spec: Any  # ConvSpec, PoolSpec, …
    layout: str = "nchw"  # of all arrays of images; "channels_last": the same shapes with other strides

    @property
    def itemsize(self) -> int:
        """Bytes of an element, as the CPU rows take them."""
        return 8 if self.dtype == "float64" else 4

    @property
    def operations(self) -> int | None:
        """Arithmetic of the definition, a multiply-add counted as two; None where there is none worth counting."""
        count = None if self.direction == "bias_grad" else getattr(self.spec, "multiply_adds", None)
        return None if count is None else 2 * count


def never(problem: Problem) -> str:
    """No other row is known to be faster."""
    return ""


def as_defined(problem: Problem) -> int | None:
    """The definition's arithmetic."""
    return problem.operations


class Variant(NamedTuple):
    """One row: an algorithm for one direction of one operation on one device.

    Attributes
    ----------
    name : str
        Unique within the table and direction.
    refuses : callable
        ``refuses(problem)`` gives the reason, in words, why the row cannot take the problem; "" when it can.
    run : callable
        The kernel, see :mod:`convkern.kernels`.
    workspace : callable
        ``workspace(problem)`` gives the bytes of scratch that ``run`` needs.
    accuracy : str
        "exact": a plain sum in the array's dtype, inside gamma_n times the sum of magnitudes; otherwise the name of
        the stated bound.
    tunables : dict
        Tile sizes and thresholds, with the host they were measured on.
    slower : callable
        ``slower(problem)`` names, for a problem that the row can take, another row that is expected to be faster; "" when
        there is none. Such a row is taken only where it was measured to be the fastest.
    operations : callable
        ``operations(problem)`` counts the row's own arithmetic, a multiply-add as two; None where nothing is worth counting.
    """

    name: str
    direction: str
    device: str
    refuses: Callable[[Problem], str]
    run: Callable[..., None]
    workspace: Callable[[Problem], int]
    accuracy: str = "exact"
    tunables: Mapping[str, Any] = MappingProxyType({})
    slower: Callable[[Problem], str] = never
    operations: Callable[[Problem], int | None] = as_defined


def no_workspace(problem: Problem) -> int:
    return 0


def cpu_only(problem: Problem) -> str:
    """The refusal shared by all general CPU rows."""
    if problem.device != "cpu":
        return "runs on the CPU only"
    if problem.dtype not in CPU_DTYPES:
        return f"takes {' and '.join(CPU_DTYPES)}, not {problem.dtype}"
    return ""


def too_large(elements: int, itemsize: int) -> str:
    """Why a row does not take a problem for which it would keep so many elements in shared scratch; "" if it may."""
    if elements * itemsize <= SHARED_BYTES:
        return ""
    wanted = elements * itemsize / 2**20
    return f"would need {wanted:.0f} MiB of scratch for all threads, of which there are at most {SHARED_BYTES >> 20}"
