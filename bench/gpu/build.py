"""Stage build: every kernel compiled for this device, on all cores, so that no later stage waits for a compiler."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from ...kernels.cuda import compiler
from ...kernels.cuda.kernel import KERNELS, CudaKernel
from ...kernels.cuda.launch import device_capability
from . import stage


def kernel_names() -> list[str]:
    """The names of all kernels of all ``kernels/*/cuda_*.py`` files, largest operations first."""
    for path in sorted(Path(compiler.ROOT).glob("*/cuda_*.py")):
        import_module(f"convkern.kernels.{path.parent.name}.{path.stem}")
    return sorted(KERNELS, key=lambda name: (not name.startswith("conv"), name))


def kernels() -> dict[str, CudaKernel]:
    """Those of the library, then the benchmark's own: single instructions, and the notebook's ladder."""
    from . import primitives, rungs

    found = {name: KERNELS[name] for name in kernel_names()}
    own = [primitives.kernel(name) for name in primitives.BODIES] + [rungs.kernel(name) for name in rungs.RUNGS]
    return {**found, **{kernel.name: kernel for kernel in own}}


def build(name: str, target: str) -> tuple[str, float, str]:
    """Compile one kernel: its name, the seconds, and the assembler's report."""
    started = time.perf_counter()
    path = compiler.cubin(kernels()[name], target)
    return name, time.perf_counter() - started, path.with_suffix(".txt").read_text()


def work(report: stage.Report) -> None:
    import cupy  # noqa: F401  (device_capability asks the module that is loaded)

    target = compiler.target(str(device_capability()))
    names = [name for name, kernel in kernels().items() if not kernel.targets or target in kernel.targets]
    report.found(target=target, kernels=len(names), spilling=[])
    with ProcessPoolExecutor(min(len(names), os.cpu_count() or 1), get_context("spawn")) as pool:
        jobs = {pool.submit(build, name, target): name for name in names}
        for job in as_completed(jobs):
            made = report.attempt(f"kernel {jobs[job]}", job.result)
            if made is None:
                continue
            report.add("built", {"kernel": made[0], "seconds": round(made[1], 2)})
            if " 0 bytes spill stores, 0 bytes spill loads" not in made[2]:
                report.add("spilling", made[0])


if __name__ == "__main__":
    stage.run("build", work)
