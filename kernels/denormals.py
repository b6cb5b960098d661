"""Flushing denormal numbers to zero inside kernels.

Numbers below the smallest normal one (1.2e-38 in float32, 2.2e-308 in float64) make a multiplication 20 to 50 times slower
on many CPUs; weights that decay and activations that die out produce them. The CPU can take and give zeros in their place:
bits FTZ (15) and DAZ (6) of MXCSR on x86, FZ (24) of FPCR on ARM. The mode belongs to a thread, so every thread of a
parallel loop sets it when it enters and puts back what it found when it leaves.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, sections 10.2.3.3 and 10.2.3.4.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_TRIPLE = binding.get_process_triple()
X86 = _TRIPLE.startswith(("x86_64", "i686"))
ARM = _TRIPLE.startswith(("aarch64", "arm64"))
FLUSH_BITS = 0x8040 if X86 else 1 << 24 if ARM else 0
KEPT_BITS = ~FLUSH_BITS  # of the mode that a thread comes with

_I32, _I64 = ir.IntType(32), ir.IntType(64)

_bits = FLUSH_BITS


def flush_bits() -> int:
    """The bits that kernels set in the mode of each thread, 0 while denormals are kept."""
    return _bits


def set_flush_denormals(mode: bool) -> bool:
    """Whether kernels take and give zero in place of denormal numbers; see :func:`convkern.set_flush_denormals`."""
    global _bits
    if not isinstance(mode, bool):
        raise TypeError(f"set_flush_denormals: mode must be True or False, got {mode!r}")
    _bits = FLUSH_BITS if mode else 0
    return FLUSH_BITS != 0


def _call(builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic
def float_mode(typingctx):
    """This thread's floating-point control register."""

    def codegen(context, builder, signature, args):
        if X86:
            cell = cgutils.alloca_once(builder, _I32)
            _call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), builder.bitcast(cell, ir.IntType(8).as_pointer()))
            return builder.zext(builder.load(cell), _I64)
        if ARM:
            return _call(builder, "llvm.aarch64.get.fpcr", _I64)
        return ir.Constant(_I64, 0)

    return types.int64(), codegen


@intrinsic
def set_float_mode(typingctx, mode):
    """Set this thread's floating-point control register."""

    def codegen(context, builder, signature, args):
        if X86:
            cell = cgutils.alloca_once(builder, _I32)
            builder.store(builder.trunc(args[0], _I32), cell)
            _call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), builder.bitcast(cell, ir.IntType(8).as_pointer()))
        elif ARM:
            _call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
