"""Functions that are compiled into kernels and have no machine code of their own.

Numba compiles every function that another one calls for calls from Python too: with wrappers, and down to machine code.
A kernel has dozens of helpers which nobody calls but kernels. Each of them is simplified by itself and goes no further than
LLVM's representation; the kernel links and inlines them, and is optimised once, as a whole. Kernels compile in two thirds of
the time that way, and are as fast or faster.
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc
from numba.core import codegen, typed_passes
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.registry import CPUDispatcher

_Library: Any = codegen.JITCodeLibrary  # Numba annotates a part of itself only
_Lowering: Any = typed_passes.NativeLowering
_Compiler: Any = CompilerBase
_Dispatcher: Any = CPUDispatcher


class _LinkedLibrary(_Library):
    """Simplified code that other libraries link; no machine code is made of it."""

    def _optimize_final_module(self) -> None:
        """Nothing: the kernel is optimised when it has linked this."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LinkedLowering(_Lowering):
    """Numba's lowering into a :class:`_LinkedLibrary`."""

    _name = "linked_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _LinkedLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        code = state["cr"]
        # Callers find the code by this object; nobody calls it, see Linked.__call__.
        name = code.fndesc.qualname.split(".")[-1]
        stand_in = _dynfunc.make_function(code.fndesc.lookup_module(), name, "", 0, code.env, (state.library,))
        state.targetctx.insert_user_function(stand_in, code.fndesc, [state.library])
        state["cr"] = code._replace(cfunc=stand_in)
        return True


class _LinkedCompiler(_Compiler):
    """Numba's pipeline with another lowering."""

    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.passes = [
            (_LinkedLowering if step is typed_passes.NativeLowering else step, text) for step, text in pipeline.passes
        ]
        pipeline._finalized = False
        pipeline.finalize()
        return [pipeline]


class Linked(_Dispatcher):
    """A function that kernels call, and nobody else."""

    def __init__(self, function: Any, **options: Any) -> None:
        options |= dict(nopython=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
        super().__init__(function, targetoptions=options, pipeline_class=_LinkedCompiler)

    def __call__(self, *args: Any) -> Any:
        raise TypeError(f"{self.py_func.__qualname__} is compiled into kernels only and cannot be called from Python")
