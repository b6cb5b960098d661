"""A CUDA kernel: its function, what it takes, and its launches."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from . import launch

_CODES = {"int": "i", "float": "f"}  # of the struct module; all else is an address

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
        self.kinds = tuple(
            np.dtype(kind) if isinstance(kind, str) and kind not in (*_CODES, "table") else kind for kind in parameters
        )
        self.pointers: list[int] = []  # where arrays and tables are among the packed arguments
        self.tables: list[int] = []
        codes = "@N"  # the parameters' size, then each where its own size aligns it, as the driver wants them
        for kind in parameters:
            if not isinstance(kind, str):
                codes += "i" * len(kind._fields)
                continue
            if kind not in _CODES:
                self.pointers.append(len(codes) - 2)
            if kind == "table":
                self.tables.append(len(codes) - 2)
            codes += _CODES.get(kind, "P")
        self.layout = struct.Struct(codes)
        if self.layout.size - 8 > launch.LARGEST_BLOCK:
            raise ValueError(f"{name}: parameters take {self.layout.size - 8} bytes, at most {launch.LARGEST_BLOCK} go")
        KERNELS[name] = self

    def __call__(self, blocks: int, *args: Any) -> None:
        if blocks > 0:
            launch.launcher(self, blocks, launch.pack(self, args))

    def __repr__(self) -> str:
        return f"CudaKernel({self.name!r}, threads={self.threads}, shared={self.shared})"


KERNELS: dict[str, CudaKernel] = {}
