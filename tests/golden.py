"""What the assembler makes of every CUDA kernel: ``python -m tests.golden`` writes it to golden.json, a test compares.

For each kernel and target: registers of a thread, bytes of shared memory, spills and stack, instructions on local memory and
in float64 (none of these four may be there), the mix of instructions in the main loop, and the warps that a multiprocessor
can hold at once as a share of its 64 (theoretical occupancy).
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from convkern.files import write_json
from convkern.kernels.cuda import compiler

from .gpu import TARGETS, compiled

FILE = Path(__file__).with_name("golden.json")
KERNELS = Path(__file__).parents[1] / "kernels"

SHARED = {"sm_80": 164 * 1024, "sm_90a": 228 * 1024}  # bytes of a multiprocessor; a block takes 1024 more than its own
REGISTERS, WARPS, BLOCKS = 65536, 64, 32  # of a multiprocessor, both targets

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*)")

FLOAT64 = re.compile(r"D(ADD|MUL|FMA|SETP|MMA|MNMX)|.*\.F64")


def all_kernels() -> dict[str, Any]:
    """Every kernel of every cuda_*.py file, by name."""
    for path in sorted(KERNELS.glob("*/cuda_*.py")):
        import_module(f"convkern.kernels.{path.parent.name}.{path.stem}")
    return dict(sorted(import_module("convkern.kernels.cuda.kernel").KERNELS.items()))


def disassemble(cubin: Path) -> list[tuple[str, str]]:
    """(opcode, rest) of each instruction; a label is ("", its name)."""
    done = subprocess.run(
        [str(compiler.tool("nvdisasm")), "-c", str(cubin)], capture_output=True, text=True, check=True
    )
    code = []
    for line in done.stdout.splitlines():
        if found := INSTRUCTION.match(line):
            code.append((found[1], found[2]))
        elif label := re.match(r"^(\.L_x_\d+):", line):
            code.append(("", label[1]))
    return code


def main_loop(code: list[tuple[str, str]]) -> Counter:
    """Instructions of the innermost loop with the most arithmetic, by the first part of the opcode; empty without loops."""
    labels = {rest: i for i, (opcode, rest) in enumerate(code) if not opcode}
    loops = []
    for end, (opcode, rest) in enumerate(code):
        target = re.search(r"\((\.L_x_\d+)\)", rest) if opcode.startswith("BRA") else None
        if target and labels.get(target[1], end) < end - 1:
            mix = Counter(o.split(".")[0] for o, _ in code[labels[target[1]] : end + 1] if o)
            loops.append((sum(mix[o] for o in ("FFMA", "HMMA", "HGMMA", "FADD")) / mix.total(), mix.total(), mix))
    return max(loops, key=lambda loop: loop[:2])[2] if loops else Counter()


def occupancy(registers: int, shared: int, threads: int, target: str) -> float:
    """Warps that fit at once over those that a multiprocessor can hold."""
    warps = threads // 32
    by_registers = (
        4 * (REGISTERS // 4 // (-(-registers * 32 // 256) * 256)) // warps
    )  # a warp lives in one of four quarters
    by_shared = SHARED[target] // (-(-(shared + 1024) // 128) * 128)
    return min(BLOCKS, WARPS // warps, by_registers, by_shared) * warps / WARPS


def facts(kernel: Any, target: str) -> dict[str, Any]:
    compiled(kernel, target)
    cubin = compiler.cubin(kernel, target)
    report = cubin.with_suffix(".txt").read_text()
    if "serialized" in report:  # the assembler found a use of a product's sums before its wait
        raise AssertionError(f"{kernel.name}: {report}")
    code = disassemble(cubin)
    opcodes = Counter(opcode for opcode, _ in code if opcode)
    number = lambda pattern: int(found[1]) if (found := re.search(pattern, report)) else 0  # noqa: E731
    registers, shared = number(r"Used (\d+) registers"), number(r"(\d+) bytes smem") + kernel.shared
    return {
        "threads": kernel.threads,
        "registers": registers,
        "shared_bytes": shared,
        "spill_bytes": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        "stack_bytes": number(r"(\d+) bytes stack frame"),
        "local_instructions": sum(n for o, n in opcodes.items() if o.split(".")[0] in ("LDL", "STL")),
        "float64_instructions": sum(n for o, n in opcodes.items() if FLOAT64.match(o)),
        "instructions": opcodes.total(),
        "main_loop": dict(sorted(main_loop(code).items(), key=lambda item: (-item[1], item[0]))),
        "occupancy": round(occupancy(registers, shared, kernel.threads, target), 3),
    }  # fmt: skip


def of_targets(kernel: Any) -> dict[str, Any]:
    """What golden.json holds of a kernel."""
    return {target: facts(kernel, target) for target in kernel.targets or TARGETS}


def everything() -> dict[str, Any]:
    """What golden.json holds."""
    kernels = {name: of_targets(kernel) for name, kernel in all_kernels().items()}
    return {"compilers": compiler.versions(), "kernels": kernels}


@cache
def read() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    write_json(FILE, everything())
