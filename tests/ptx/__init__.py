"""An interpreter of PTX, so that CUDA kernels are proved on machines without a GPU.

It executes the PTX that Numba emits, for many blocks at once: a register is a NumPy array over the lanes (threads) of all
blocks of a batch. It raises :class:`Fault` for what a GPU would silently get wrong: accesses that are out of bounds or
misaligned, reads of memory that nobody wrote, races between warps without a barrier, reads of what an asynchronous copy
or a warpgroup's matrix product has not been waited for, and missing fences before such products. It knows the
instructions that the kernels use and refuses others.

Source: NVIDIA, "Parallel Thread Execution ISA", version 9.
"""

from .machine import run
from .memory import Fault
from .program import KINDS, Program

__all__ = ["KINDS", "Fault", "Program", "run"]
