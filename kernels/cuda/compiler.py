"""Compiling kernels for a GPU that need not be there: Numba and libnvvm make PTX, ptxas makes a cubin; both stay on disk.

The folder's name holds a hash of every kernel source, as the CPU's does; a file's name holds the kernel, the target and the
compilers' versions. libnvvm and ptxas must be of one generation, or ptxas refuses what libnvvm writes: both come as wheels,
or from one CUDA toolkit.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compiler import ROOT, sources_hash, user_cache_folder
from ..frames import with_room

if TYPE_CHECKING:
    from .kernel import CudaKernel

INSTALL = 'pip install "convkern[cuda13]" for a GPU, "convkern[cuda-test]" to compile without one'
_WHEELS = ("numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvcc", "nvidia-nvvm-cu12", "nvidia-cuda-nvcc-cu12")


def target(compute_capability: str) -> str:
    """The architecture to compile for: "80" gives "sm_80". Hopper has instructions only under its own name, "sm_90a"."""
    return "sm_90a" if compute_capability == "90" else f"sm_{compute_capability}"


def _capability(architecture: str) -> tuple[Any, ...]:
    """Numba's form of an architecture: "sm_90a" gives (9, 0, "a")."""
    found = re.fullmatch(r"sm_(\d+)(\d)([af]?)", architecture)
    if not found:
        raise ValueError(f"an architecture is named like sm_80 or sm_90a, got {architecture!r}")
    major, minor, suffix = found.groups()
    return (int(major), int(minor), suffix) if suffix else (int(major), int(minor))


@cache
def missing() -> str:
    """What is missing to compile CUDA kernels, in one sentence; "" when nothing is."""
    if "numba-cuda" not in versions():
        return f"numba-cuda is not installed ({INSTALL})"
    return "" if tool("ptxas") else f"the assembler ptxas is not installed ({INSTALL})"


@cache
def versions() -> dict[str, str]:
    """Versions of the wheels, or of the toolkit's assembler, that decide what a kernel becomes."""
    found = {}
    for name in _WHEELS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    assembler = tool("ptxas")
    if assembler and not any("nvcc" in name for name in found):
        found["ptxas"] = _release(assembler)
    return found


def _release(program: Path) -> str:
    """The version that a program of NVIDIA's tells, as "13.0.88"."""
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True)
    number = re.search(r"\bV(\d+(?:\.\d+)+)", done.stdout)
    return number[1] if number else "unknown"


@cache
def tool(name: str) -> Path | None:
    """A program, "ptxas" or "nvdisasm", of NVIDIA's wheels or else of a CUDA toolkit; None if it is not installed.

    The toolkit is the one that CUDA_HOME or CUDA_PATH names, that PATH finds, or that lies in /usr/local/cuda.
    """
    found, file = find_spec("nvidia"), f"{name}{'.exe' if os.name == 'nt' else ''}"
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(folder).glob(f"*/bin/{file}"), reverse=True):
            return path
    homes = [os.environ[variable] for variable in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(variable)]
    on_path = shutil.which(name)
    places = [Path(home, "bin", file) for home in homes] + ([Path(on_path)] if on_path else [])
    return next((path for path in (*places, Path("/usr/local/cuda/bin", file)) if path.is_file()), None)


def _require() -> None:
    if missing():
        raise ModuleNotFoundError(f"CUDA kernels cannot be compiled: {missing()}")


@cache
def _stamp() -> str:
    """Hash over all sources but those of CPU rows."""
    return sources_hash(
        tuple(path for path in sorted(ROOT.rglob("*.py")) if not path.name.startswith(("cpu_", "simd")))
    )


def _path(kernel: CudaKernel, architecture: str, suffix: str) -> Path:
    stamp = "-".join(versions().values())
    return user_cache_folder() / "cuda" / _stamp() / f"{kernel.name}-{architecture}-{stamp}{suffix}"


def _write(path: Path, content: bytes) -> None:
    """Write under a temporary name and rename, so that no process reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(content)
            file.close()
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise


def signature(kernel: CudaKernel) -> Any:
    """Numba's signature of a kernel: pointers, int32, float32, and named tuples of int32."""
    from numba import types

    from .language import POINTERS

    def kind(parameter: Any) -> Any:
        if parameter in ("int", "float"):
            return types.int32 if parameter == "int" else types.float32
        if isinstance(parameter, str):
            return POINTERS[parameter]
        return types.NamedUniTuple(types.int32, len(parameter._fields), parameter)

    return types.void(*map(kind, kernel.parameters))


@with_room
def ptx(kernel: CudaKernel, architecture: str) -> Path:
    """The file with a kernel's PTX for an architecture such as "sm_80"; compiled where it is not there yet.

    Raises
    ------
    ModuleNotFoundError
        If the compiler is not installed; the message says how to get it.
    """
    path = _path(kernel, architecture, ".ptx")
    if not path.exists():
        _require()
        from .language import cuda

        capability = _capability(architecture)
        text, _ = cuda.compile(
            kernel.body, signature(kernel), device=False, abi="numba", cc=capability, output="ptx",
            launch_bounds=kernel.threads,
        )  # fmt: skip
        _write(path, text.encode())
    return path


def assemble(source: Path, architecture: str, result: Path) -> str:
    """Assemble PTX; gives the assembler's report on registers, shared memory and spills."""
    command = [str(tool("ptxas")), "-v", "-O3", f"-arch={architecture}", str(source), "-o", str(result)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ptxas refuses {source}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stderr + done.stdout


def cubin(kernel: CudaKernel, architecture: str) -> Path:
    """The file with a kernel's machine code, and beside it its PTX and the assembler's report; made where it is missing."""
    path = _path(kernel, architecture, ".cubin")
    if not path.exists():
        source = ptx(kernel, architecture)
        _require()
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "kernel.cubin"
            report = assemble(source, architecture, made)
            _write(path.with_suffix(".txt"), report.encode())
            _write(path, made.read_bytes())
    return path


def entry_name(source: Path) -> str:
    """The name of a PTX file's kernel."""
    found = re.search(r"\.entry\s+([\w$]+)", source.read_text())
    if not found:
        raise ValueError(f"{source} has no kernel")
    return found[1]
