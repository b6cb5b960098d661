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


@contextmanager
def one_front_end() -> Iterator[None]:
    """Inside the block Numba turns a kernel into NVVM's representation once for all targets: it is the same for each, and
    takes most of the time in which kernels compile."""
    from numba.cuda import compiler as numba_cuda

    front_end, held = numba_cuda._compile_pyfunc_with_fixup, {}

    def once(function: Any, *args: Any, **options: Any) -> Any:
        if function not in held:
            held[function] = front_end(function, *args, **options)
        return held[function]

    numba_cuda._compile_pyfunc_with_fixup = once
    try:
        yield
    finally:
        numba_cuda._compile_pyfunc_with_fixup = front_end


def compiled(kernel: Any, target: str) -> Path:
    """The file with a kernel's PTX; where it is not there yet it is made for all targets, which some test will ask for."""
    if not (path := compiler._path(kernel, target, ".ptx")).exists():
        with one_front_end():
            for each in kernel.targets or TARGETS:
                compiler.ptx(kernel, each)
    return path


@lru_cache(maxsize=256)
def program(path: Path) -> ptx.Program:
    return ptx.Program(path.read_text())


def parameters(
    code: ptx.Program, kernel: Any, args: launch.Packed, host: Callable[[Any], Any] = lambda value: value
) -> tuple[Any, ...]:
    """A launch's parameters: numbers as the PTX finds them in the block that the driver would get, arrays themselves."""
    values = [place if place in kernel.pointers else value for place, value in enumerate(args)]
    room = bytearray(kernel.layout.size)
    launch.write(kernel, values, room)
    found, at = [], 8
    for place, (_, kind) in enumerate(code.parameters):
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
        code = program(compiled(kernel, target))
        given = parameters(code, kernel, args, host)
        executed.update(ptx.run(code, blocks, kernel.threads, given, kernel.shared, banks))

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
