"""Running CUDA rows without a GPU: launches go to the PTX interpreter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkern.kernels.cuda import compiler, launch

from . import ptx

TARGETS = ("sm_80", "sm_90a")
TABLES = ("conv", "pointwise", "pool", "elementwise", "norm", "adaptive", "entropy", "reduce")
NUMPY = ("entropy", "reduce")  # what NumPy does on the CPU

needs_compiler = pytest.mark.skipif(
    bool(compiler.missing()), reason=f"CUDA kernels are not tested: {compiler.missing()}"
)


def skip_without_compiler() -> None:
    """Skip the rest of a test module, whose imports need the compiler."""
    if compiler.missing():
        pytest.skip(f"CUDA kernels are not tested: {compiler.missing()}", allow_module_level=True)


@lru_cache(maxsize=256)
def program(path: Path) -> ptx.Program:
    return ptx.Program(path.read_text())


def parameters(
    compiled: ptx.Program, kernel: Any, args: launch.Packed, host: Callable[[Any], Any] = lambda value: value
) -> tuple[Any, ...]:
    """A launch's parameters: numbers as the PTX finds them in the block that the driver would get, arrays themselves."""
    values = [place if place in kernel.pointers else value for place, value in enumerate(args)]
    room = bytearray(kernel.layout.size)
    launch.write(kernel, values, room)
    found, at = [], 8
    for place, (_, kind) in enumerate(compiled.parameters):
        dtype = np.dtype(ptx.KINDS[kind])
        at = -(-at // dtype.itemsize) * dtype.itemsize
        (number,) = np.frombuffer(room, dtype, 1, at)
        at += dtype.itemsize
        if place in kernel.pointers:
            assert number == place, f"{kernel.name}: the address {place} is written elsewhere"
            value = args[place]
            number = tuple(map(host, value)) if type(value) is tuple else host(value)
        found.append(number)
    assert at == len(room) == 8 + int.from_bytes(room[:8], "little"), f"{kernel.name} takes {at - 8} bytes"
    return tuple(found)


@contextmanager
def interpreted(
    target: str, banks: bool = False, host: Callable[[Any], Any] = lambda value: value
) -> Iterator[Counter]:
    """Inside the block CUDA rows take NumPy arrays, or what ``host`` turns into such, and run in the interpreter; gives what
    was executed. With ``banks`` it counts the bank conflicts of shared memory too."""
    executed: Counter = Counter()

    def launcher(kernel: Any, blocks: int, args: tuple[Any, ...]) -> None:
        compiled = program(compiler.ptx(kernel, target))
        given = parameters(compiled, kernel, args, host)
        executed.update(ptx.run(compiled, blocks, kernel.threads, given, kernel.shared, banks))

    previous = launch.launcher, launch.asked, launch.upload
    launch.launcher, launch.asked = launcher, lambda: 80 if target == "sm_80" else 90
    launch.upload = lambda table: table  # the interpreter gives arrays their addresses
    try:
        yield executed
    finally:
        launch.launcher, launch.asked, launch.upload = previous


def cuda_rows(operation: str) -> list[Any]:
    return [row for row in import_module(f"convkern.kernels.{operation}").VARIANTS if row.device == "cuda"]


def any_target(operation: str) -> list[Any]:
    """The rows that every target has."""
    return [row for row in cuda_rows(operation) if not row.name.startswith("warpgroup")]
