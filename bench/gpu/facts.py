"""Stage facts: the device, the driver, and the versions of everything that decides a result. Works without a GPU too."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

from ...device import gpu
from ...kernels.cuda import compiler
from . import stage

PACKAGES = ("numpy", "numba", "numba-cuda", "llvmlite", "cupy-cuda13x", "cupy-cuda12x", "torch", "triton", "pytest")
NUMBERS = (
    "multiProcessorCount", "sharedMemPerMultiprocessor", "sharedMemPerBlockOptin", "regsPerMultiprocessor", "l2CacheSize",
    "totalGlobalMem", "clockRate", "memoryClockRate", "memoryBusWidth", "major", "minor",
)  # fmt: skip


def output(*command: str) -> str:
    """What a program prints, or why it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not to be had: {error}"
    return (done.stdout or done.stderr).strip()


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def device_properties() -> dict[str, Any]:
    import cupy

    found = cupy.cuda.runtime.getDeviceProperties(0)
    return {
        "name": found["name"].decode(),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        **{name: int(found[name]) for name in NUMBERS if name in found},
    }


def torch_facts() -> dict[str, Any]:
    import torch

    return {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "sees": torch.cuda.is_available()}


def work(report: stage.Report) -> None:
    report.found(
        python=sys.version,
        platform=platform.platform(),
        packages={name: version(name) for name in PACKAGES},
        compilers=compiler.versions(),
        ptxas=str(compiler.tool("ptxas")),
        nvidia_smi=output("nvidia-smi"),
    )
    name, missing = gpu()
    if name:
        report.found(properties=report.attempt("device properties", device_properties))
        report.found(torch=report.attempt("PyTorch", torch_facts))
    if missing:
        report.fail(f"no GPU to measure on: {missing}")


if __name__ == "__main__":
    stage.run("facts", work)
