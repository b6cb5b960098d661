"""The names that CUDA kernels are written with. The only file that imports Numba's CUDA target.

``cuda`` is Numba's module (threadIdx, syncthreads, shared.array …); ``inlined`` marks a function that kernels call.
"""

from __future__ import annotations

from llvmlite import ir
from numba import config, cuda, float32, int32, int64, types, uint32, uint64

POINTERS = {"float32": types.CPointer(types.float32), "int64": types.CPointer(types.int64)}


def inlined(function):
    """A function that is compiled into each kernel that calls it."""
    return cuda.jit(device=True, inline="always")(function)


@inlined
def quotient(value, multiplier, shift):
    """value // divisor for 0 <= value < 2**31, with the pair that :func:`divider` gives: a product and a shift."""
    return int32((uint64(uint32(value)) * uint64(uint32(multiplier))) >> uint64(shift))


def divider(divisor: int) -> tuple[int, int]:
    """The multiplier, as the int32 of its bits, and the shift with which :func:`quotient` divides by ``divisor``.

    Source: Granlund and Montgomery, "Division by invariant integers using multiplication", 1994, theorem 4.2 for 31 bits.
    """
    shift = 31 + (divisor - 1).bit_length()
    multiplier = (1 << shift) // divisor + 1
    return multiplier - (1 << 32) if multiplier >= 1 << 31 else multiplier, shift


if config.ENABLE_CUDASIM:  # Numba's simulator runs kernels as Python, which has no intrinsics

    def load4(array, index):
        """Four neighbours of a float32 array from ``index`` on, a multiple of 4, in one instruction."""
        return array[index], array[index + 1], array[index + 2], array[index + 3]

else:
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    @intrinsic
    def load4(typingctx, array, index):
        """Four neighbours of a float32 array from ``index`` on, a multiple of 4, in one instruction."""

        def codegen(context, builder, signature, args):
            first = context.make_array(array)(context, builder, args[0]).data
            position = context.cast(builder, args[1], index, types.int64)
            vector = ir.VectorType(ir.FloatType(), 4)
            address = builder.bitcast(builder.gep(first, [position]), vector.as_pointer(first.type.addrspace))
            value = builder.load(address, align=16)
            return cgutils.pack_array(builder, [builder.extract_element(value, ir.IntType(32)(i)) for i in range(4)])

        return types.UniTuple(types.float32, 4)(array, index), codegen


@inlined
def thread():
    """Index of this thread in a one-dimensional grid."""
    return int32(cuda.blockIdx.x) * int32(cuda.blockDim.x) + int32(cuda.threadIdx.x)


__all__ = [
    "POINTERS",
    "cuda",
    "divider",
    "float32",
    "inlined",
    "int32",
    "int64",
    "load4",
    "quotient",
    "thread",
    "uint32",
    "uint64",
]
