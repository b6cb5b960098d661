"""The facts of a host that every result file names."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import convkern as ck

PACKAGES = ("numpy", "numba", "llvmlite", "torch")


def facts() -> dict[str, Any]:
    """CPU, cores, threads, versions, load and date, ready for JSON.

    Returns
    -------
    dict
        ``cpu`` and ``llvm_cpu`` (names), ``cores`` (those that this process may use), ``threads`` (those that a rival may
        use), ``load`` (processes that were running just before, mean of a minute; None where the system does not say),
        ``platform``, ``versions`` (by package, None for one that is not installed), ``blas`` and ``date`` (UTC).
    """
    from llvmlite import binding

    return {
        "cpu": cpu_name(),
        "llvm_cpu": binding.get_host_cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": ck.num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            "convkern": ck.__version__,
            **{name: _version(name) for name in PACKAGES},
        },
        "blas": _blas(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """What the maker calls this CPU, or the machine's type where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    if platform.system() == "Darwin":
        brand = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(brand, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _blas() -> str:
    """The linear algebra that NumPy was built with; it keeps its own number of threads."""
    built = np.show_config(mode="dicts")
    blas = (built or {}).get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()
