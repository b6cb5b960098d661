"""Writing, compiling and launching CUDA kernels with Numba as the compiler, and CuPy as what owns arrays and streams.

A kernel is a plain Python function in a ``cuda_*.py`` file, written with the names of :mod:`.language`. It takes pointers,
named tuples of int32 and numbers; a :class:`~.kernel.CudaKernel` says their types and the threads of a block. Calling it
with a grid compiles it to a cubin (:mod:`.compiler`: PTX by libnvvm, machine code by ptxas, kept on disk), loads it once for
each device and launches it on CuPy's current stream (:mod:`.launch`). Compiling needs no GPU.

Rows on "cuda" keep the contract of :mod:`convkern.kernels` with CuPy arrays in place of NumPy's. Nothing here is imported
before such a row runs: a table names its CUDA rows through :func:`row`.

What a kernel may do:

- indices are int32: rows refuse arrays of 2**31 elements or more;
- shared memory is reached by all warps of a block, with a barrier between one warp's write and another's access;
- sums have an order that the problem's shape decides; no atomics on floats;
- local arrays are indexed by loop variables of constant loops alone, so that they live in registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..variant import Problem, Variant, no_workspace

LARGEST = 2**31 - 1  # elements of an array


def cuda_only(problem: Problem) -> str:
    """The refusal shared by all CUDA rows."""
    if problem.device != "cuda":
        return "runs on CUDA devices only"
    if problem.dtype != "float32":
        return f"takes float32, not {problem.dtype}"
    shapes = [getattr(problem.spec, name, ()) for name in ("x_shape", "w_shape", "y_shape")]
    sizes = [math.prod(shape) for shape in shapes] + [_elements(problem.spec)]
    return "takes arrays of fewer than 2**31 elements" if max(sizes) > LARGEST else ""


def tf32_only(problem: Problem) -> str:
    """The refusal shared by the rows that round to TF32, which has to be asked for."""
    reason = cuda_only(problem)
    return reason or ("" if problem.precision == "tf32" else "rounds to TF32, which only precision='tf32' allows")


def _elements(spec: Any) -> int:
    """Elements of the largest array of a spec that has no shapes, 0 for others."""
    if hasattr(spec, "pixels"):
        return int(spec.n * max(spec.c, getattr(spec, "k", 0)) * spec.pixels)
    return int(getattr(spec, "size", 0)) if isinstance(getattr(spec, "size", 0), int) else 0


def row(
    name: str,
    direction: str,
    function: str,
    workspace: Callable[[Problem], int] = no_workspace,
    refuses: Callable[[Problem], str] = cuda_only,
    accuracy: str = "exact",
) -> Variant:
    """The row that runs ``function``, as "package.module.name" below ``kernels``, and imports its module only then."""
    module, _, attribute = function.rpartition(".")

    def run(*args: Any) -> None:
        getattr(import_module(f"convkern.kernels.{module}"), attribute)(*args)

    run.__qualname__ = run.__name__ = attribute
    run.__module__ = f"convkern.kernels.{module}"
    return Variant(name, direction, "cuda", refuses, run, workspace, accuracy)
