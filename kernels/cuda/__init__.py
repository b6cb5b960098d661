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
- shared arrays are indexed by unsigned numbers: of a signed one it is asked each time whether it counts from the end;
- sums have an order that the problem's shape decides; no atomics on floats;
- local arrays are indexed by loop variables of constant loops alone, so that they live in registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..variant import Problem, Variant, never, no_workspace
from . import costs
from .tiles import WARPGROUP_COLUMNS, WARPGROUP_TF32_COLUMNS

LARGEST = 2**31 - 1  # elements of an array
HALF_KINDS = ("float16", "bfloat16")


def cuda_only(problem: Problem) -> str:
    """The refusal shared by all CUDA rows."""
    if problem.device != "cuda":
        return "runs on CUDA devices only"
    if problem.dtype != "float32":
        return f"takes float32, not {problem.dtype}"
    if problem.layout != "nchw":
        return f"takes NCHW, not {problem.layout}"
    shapes = [getattr(problem.spec, name, ()) for name in ("x_shape", "w_shape", "y_shape")]
    sizes = [math.prod(shape) for shape in shapes] + [_elements(problem.spec)]
    return "takes arrays of fewer than 2**31 elements" if max(sizes) > LARGEST else ""


def either_layout(problem: Problem) -> str:
    """As :func:`cuda_only`, for rows that take channels-last too."""
    return cuda_only(problem._replace(layout="nchw"))


def stored_only(problem: Problem) -> str:
    """The refusal shared by the rows that take float32, float16 and bfloat16 (as the uint16 of its bits) in both layouts."""
    if problem.device == "cuda" and problem.dtype not in ("float32", *HALF_KINDS):
        return f"takes float32, float16 and bfloat16, not {problem.dtype}"
    return either_layout(problem._replace(dtype="float32")) or (_too_old(80) if problem.dtype == "bfloat16" else "")


def tf32_only(problem: Problem) -> str:
    """The refusal shared by the rows that round to TF32, which has to be asked for; they take both layouts."""
    reason = either_layout(problem)
    if not reason and problem.precision != "tf32":
        reason = "rounds to TF32, which only precision='tf32' allows"
    return reason or _too_large(problem.spec) or _too_old(80)


def half_only(kind: str) -> Callable[[Problem], str]:
    """The refusal shared by the rows that multiply halves of a kind, "float16" or "bfloat16".

    They take arrays of that kind (bfloat16 as the uint16 of its bits), and float32 where the precision asks for it.
    """

    def refuses(problem: Problem) -> str:
        if problem.device != "cuda":
            return "runs on CUDA devices only"
        if problem.dtype not in ("float32", kind):
            return f"takes float32 and {kind}, not {problem.dtype}"
        if problem.dtype == "float32" and problem.precision != kind:
            return f"rounds to {kind}, which only precision={kind!r} allows"
        # Operands are padded to eight channels for a group.
        return cuda_only(problem._replace(dtype="float32", layout="nchw")) or _too_large(problem.spec) or _too_old(80)

    return refuses


def warpgroup_only(kind: str) -> Callable[[Problem], str]:
    """The refusal of the rows that multiply halves by warpgroups: what those of :func:`half_only` refuse, and more."""
    plain = half_only(kind)

    def refuses(problem: Problem) -> str:
        return plain(problem) or _not_for_warpgroups(problem, WARPGROUP_COLUMNS)

    return refuses


def warpgroup_tf32_only(problem: Problem) -> str:
    """The refusal of the rows that multiply TF32 by warpgroups: what those of :func:`tf32_only` refuse, and more."""
    return tf32_only(problem) or _not_for_warpgroups(problem, WARPGROUP_TF32_COLUMNS)


def _not_for_warpgroups(problem: Problem, least: int) -> str:
    """Why Hopper's warpgroups cannot or should not multiply, which take at least so many columns."""
    from .launch import capability

    if (found := capability()) != 90:
        return "needs compute capability 9.0" + ("" if found is None else f", here is {found / 10}")
    spec = problem.spec
    columns = (spec.c if problem.direction == "input_grad" else spec.k) // getattr(spec, "groups", 1)
    return "" if columns >= least else f"takes at least {least} channels of results in a group"


def _too_large(spec: Any) -> str:
    """Why an array is too large once each group's channels are padded to a multiple of 8, or its pixels to one of 4."""
    groups = getattr(spec, "groups", 1)
    channels = groups * max(-(-c // groups // 8) * 8 for c in (spec.c, spec.k))
    pixels = spec.pixels if hasattr(spec, "pixels") else max(math.prod(spec.size), math.prod(spec.out))
    taps = math.prod(getattr(spec, "kernel", (1,)))
    size = max(spec.n * -(-pixels // 4) * 4 * channels, channels * channels * taps)
    return "takes arrays of fewer than 2**31 elements with padded channels" if size > LARGEST else ""


def _too_old(needed: int) -> str:
    """Why the current device cannot run a row; "" where there is none to ask."""
    from .launch import capability

    found = capability()
    return "" if found is None or found >= needed else f"needs compute capability {needed / 10}, here is {found / 10}"


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
    rivals: costs.Rivals = (),
    slower: Callable[[Problem], str] = never,
) -> Variant:
    """The row that runs ``function``, as "package.module.name" below ``kernels``, and imports its module only then.

    Where it has NCHW images laid out first, ``rivals`` are the rows that read them as they are, against which it is weighed;
    ``slower`` says what else is expected to be faster.
    """
    module, _, attribute = function.rpartition(".")

    def run(*args: Any) -> None:
        getattr(import_module(f"convkern.kernels.{module}"), attribute)(*args)

    run.__qualname__ = run.__name__ = attribute
    run.__module__ = f"convkern.kernels.{module}"
    weighed = (lambda problem: slower(problem) or costs.slower(name, rivals, problem)) if rivals else slower
    return Variant(name, direction, "cuda", refuses, run, workspace, accuracy, slower=weighed)
