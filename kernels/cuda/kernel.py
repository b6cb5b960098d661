"""A CUDA kernel: its function, what it takes, and its launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import launch

_names: set[str] = set()


class CudaKernel:
    """``kernel(blocks, *args)`` runs ``body(*args)`` in that many blocks of ``threads`` threads.

    Parameters
    ----------
    name : str
        Unique: it names the compiled file.
    body : function
        The kernel, see :mod:`convkern.kernels.cuda`.
    parameters : tuple
        For each argument "float32" or "int64" (a pointer to the elements of an array), "table" (a pointer to int64 numbers
        and the addresses of arrays), "int" (an int32), "float" (a float32), or a NamedTuple class (all of whose fields are
        int32).
    threads : int
        Threads of a block, a multiple of 32.
    shared : int
        Bytes of dynamic shared memory.
    targets : tuple of str, optional
        The only architectures that it can be compiled for, as "sm_90a".
    """

    def __init__(
        self,
        name: str,
        body: Callable[..., None],
        parameters: tuple[Any, ...],
        threads: int,
        shared: int = 0,
        targets: tuple[str, ...] = (),
    ) -> None:
        if name in _names:
            raise ValueError(f"there is a CUDA kernel {name} already")
        if threads % 32 or not 32 <= threads <= 1024:
            raise ValueError(f"{name}: a block has whole warps, 32 to 1024 threads; got {threads}")
        _names.add(name)
        self.name, self.body, self.parameters = name, body, parameters
        self.threads, self.shared, self.targets = threads, shared, targets
        self.pointers: list[int] = []  # where arrays and tables are among the packed arguments
        place = 0
        for kind in parameters:
            if isinstance(kind, str) and kind not in ("int", "float"):
                self.pointers.append(place)
            place += 1 if isinstance(kind, str) else len(kind._fields)
        KERNELS[name] = self

    def __call__(self, blocks: int, *args: Any) -> None:
        if blocks > 0:
            launch.launcher(self, blocks, launch.pack(self, args))

    def __repr__(self) -> str:
        return f"CudaKernel({self.name!r}, threads={self.threads}, shared={self.shared})"


KERNELS: dict[str, CudaKernel] = {}
