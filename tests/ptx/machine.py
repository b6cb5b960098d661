"""Executing a kernel: the lanes that stand at the lowest instruction go on together until they part or meet others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from . import arithmetic, warp, warpgroup
from .memory import FIRST_SHARED, Fault, Global, Lanes, Shared
from .program import KINDS, Instruction, Program

LANES = 16384  # that run together at most; a block is never cut
LONGEST = 10_000_000  # steps after which a kernel is taken to hang

Step = Callable[[Any], None]


def run(
    program: Program, blocks: int, threads: int, args: tuple[Any, ...], dynamic_shared: int = 0, banks: bool = False
) -> Counter:
    """Run a kernel over its grid; arrays among ``args`` are read and written in place.

    Parameters
    ----------
    program : Program
    blocks, threads : int
        Of the one-dimensional grid, and of a block.
    args : tuple
        A NumPy array for each pointer, a NumPy scalar for each number; a tuple is a table of int64, in which arrays stand for
        their addresses.
    dynamic_shared : int
        Bytes of the shared array without a size.
    banks : bool
        Count also, for each opcode on shared memory, "… phases" and the bank "… conflicts" among them.

    Returns
    -------
    Counter
        How many warps executed each opcode.

    Raises
    ------
    Fault
        For a bug in the kernel, naming the instruction.
    """
    if program.most_threads is not None and threads > program.most_threads:
        raise Fault(f"{threads} threads, but the kernel was compiled for {program.most_threads}")
    if len(args) != len(program.parameters):
        raise Fault(f"the kernel has {len(program.parameters)} parameters, got {len(args)}")
    memory, parameters = Global(), {}
    for (name, kind), value in zip(program.parameters, args, strict=True):
        if isinstance(value, np.ndarray):
            parameters[name] = np.uint64(memory.add(value))
        elif isinstance(value, tuple):  # a table of numbers and of arrays' addresses
            table = [memory.add(entry) if isinstance(entry, np.ndarray) else entry for entry in value]
            parameters[name] = np.uint64(memory.add(np.array(table, np.int64)))
        else:
            if value.dtype.itemsize != np.dtype(KINDS[kind]).itemsize:
                raise Fault(f"parameter {name} is {kind}, got {value.dtype}")
            parameters[name] = value.view(KINDS[kind])
    counts: Counter = Counter()
    together = max(1, LANES // threads)
    for first in range(0, blocks, together):
        lanes = Lanes(first, min(together, blocks - first), threads)
        machine = Machine(program, lanes, blocks, parameters, memory, dynamic_shared, counts)
        machine.shared.conflicts = counts if banks else None
        machine.run()
    return counts


class Machine:
    """The state of a batch of blocks."""

    def __init__(
        self, program: Program, lanes: Lanes, blocks: int, parameters: dict[str, Any], memory: Global,
        dynamic_shared: int, counts: Counter,
    ) -> None:  # fmt: skip
        self.program, self.lanes, self.memory, self.parameters, self.counts = program, lanes, memory, parameters, counts
        self.symbols: dict[str, int] = {}
        end = FIRST_SHARED
        for name, alignment, size in program.shared:
            end = -(-end // max(alignment, 16)) * max(alignment, 16)
            self.symbols[name] = end
            end += size or dynamic_shared
        self.shared = Shared(lanes, end)
        self.registers = {name: np.zeros(lanes.count, kind) for name, kind in program.registers.items()}
        self.special = {
            "%tid.x": lanes.thread.astype(np.uint32), "%laneid": (lanes.thread % 32).astype(np.uint32),
            "%ctaid.x": (lanes.first_block + lanes.block).astype(np.uint32),
            "%ntid.x": np.uint32(lanes.threads), "%nctaid.x": np.uint32(blocks),
            "%dynamic_smem_size": np.uint32(dynamic_shared),
        }  # fmt: skip
        self.copies = warp.Copies(self)
        self.mask: np.ndarray | None = None  # of the lanes that execute the current instruction
        self.products = warpgroup.Products(self)
        self.steps = [self._compile(instruction) for instruction in program.code]

    # --- operands

    def reader(self, operand: str, kind: Any = None) -> Callable[[], Any]:
        """A function that gives an operand's value as ``kind``: an array over the lanes, or a constant."""
        if operand in self.special:
            return lambda: self.special[operand]
        if operand.startswith("%"):
            registers = self.registers
            declared = self.program.registers[operand]
            if operand in self.products.registers:
                return self.products.reader(operand)
            if kind is None or kind == declared:
                return lambda: registers[operand]
            if np.dtype(kind).itemsize == np.dtype(declared).itemsize and np.bool_ not in (kind, declared):
                return lambda: registers[operand].view(kind)
            return lambda: registers[operand].astype(kind)
        constant = self._constant(operand, kind)
        return lambda: constant

    def _constant(self, operand: str, kind: Any) -> Any:
        if operand in self.symbols:
            return np.uint64(self.symbols[operand]) if kind is None else kind(self.symbols[operand])
        if operand.startswith("0f"):
            return np.array([int(operand[2:], 16)], np.uint32).view(np.float32)[0]
        if operand.startswith("0d"):
            return np.array([int(operand[2:], 16)], np.uint64).view(np.float64)[0]
        value, kind = int(operand, 0), kind or np.int64
        if kind is np.bool_:
            return np.bool_(value)
        bits = 8 * np.dtype(kind).itemsize
        return np.array([value & (2**bits - 1)], f"u{bits // 8}").view(kind)[0]

    def write(self, register: str, value: Any, mask: np.ndarray | None) -> None:
        """Set a register in the lanes of a mask, None for all."""
        kind = self.program.registers[register]
        if register in self.products.registers:
            self.products.overwritten(register, mask)
        value = np.asarray(value)
        if value.dtype != kind:
            same = value.dtype.itemsize == np.dtype(kind).itemsize and np.bool_ not in (kind, value.dtype.type)
            value = value.view(kind) if same else value.astype(kind)
        if mask is None:
            self.registers[register] = self.over_lanes(value)
        else:
            self.registers[register] = np.where(mask, value, self.registers[register])

    def chosen(self, mask: np.ndarray | None) -> np.ndarray:
        return np.arange(self.lanes.count) if mask is None else np.nonzero(mask)[0]

    def over_lanes(self, value: Any) -> np.ndarray:
        return value if np.shape(value) else np.full(self.lanes.count, value)

    def address(self, operand: str) -> Callable[[], np.ndarray]:
        """A function that gives the address of ``[base]`` or ``[base+offset]``."""
        found = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if not found:
            raise NotImplementedError(f"address {operand}")
        base, offset = self.reader(found[1]), int(found[2] or 0)
        return lambda: self.over_lanes(base()).astype(np.int64) + offset

    # --- instructions

    def _compile(self, instruction: Instruction) -> Step | None:
        opcode = instruction.parts[0]
        if opcode in ("bra", "ret", "bar", "barrier"):
            return None
        for table in (warp.INSTRUCTIONS, warpgroup.INSTRUCTIONS, arithmetic.INSTRUCTIONS):
            if opcode in table:
                return table[opcode](self, instruction)
        raise NotImplementedError(instruction.text)

    def run(self) -> None:
        lanes, end = self.lanes, len(self.steps)
        self.at = np.zeros(lanes.count, np.int64)
        self.waiting = np.zeros(lanes.count, bool)
        for _ in range(LONGEST):
            running = ~self.waiting & (self.at < end)
            if not running.any():
                if not self.waiting.any():
                    self.copies.finish()
                    self.products.finish()
                    return
                self._release()
                continue
            lowest = int(self.at[running].min())
            mask = running & (self.at == lowest)
            others = self.at[running & ~mask]
            with np.errstate(all="ignore"):
                self._go(lowest, mask, int(others.min()) if others.size else end)
        raise Fault(f"{self.program.name} does not end")

    def _release(self) -> None:
        """All lanes wait or have returned: open the barriers."""
        returned = ~self.waiting
        blocks = np.unique(self.lanes.block[self.waiting])
        if np.isin(self.lanes.block[returned], blocks).any():
            raise Fault("some threads of a block returned while others wait at a barrier")
        self.lanes.epoch[blocks] += 1
        self.waiting[:] = False

    def _go(self, now: int, mask: np.ndarray, stop: int) -> None:
        """Run the lanes of a mask from an instruction on, until they part, wait, or reach lanes that stand at ``stop``."""
        program, end = self.program, len(self.steps)
        everyone = None if mask.all() else mask
        warps = max(1, int(mask.sum()) // 32)
        while now < end:
            instruction, step = program.code[now], self.steps[now]
            kind = instruction.parts[0]
            taken = everyone
            if instruction.guard is not None:
                taken = mask & (self.registers[instruction.guard] ^ instruction.negated)
                if not taken.any():
                    now += 1
                    if now == stop:
                        break
                    continue
                if taken.all():
                    taken = None
            self.counts[instruction.opcode] += warps
            if kind in ("bra", "ret"):
                target = end if kind == "ret" else program.labels[instruction.operands[0]]
                self.at[mask] = now + 1
                self.at[mask if taken is None else taken] = target
                return
            if kind in ("bar", "barrier"):
                self._arrive(now, mask if taken is None else taken, instruction)
                return
            self.mask = taken
            step(taken)
            now += 1
            if now == stop:
                break
        self.at[mask] = now

    def _arrive(self, now: int, mask: np.ndarray, instruction: Instruction) -> None:
        if instruction.parts[1] != "sync" or "warp" in instruction.parts or instruction.operands[0] != "0":
            raise NotImplementedError(instruction.text)
        standing = mask.reshape(-1, 32)
        if (standing.any(axis=1) & ~standing.all(axis=1)).any():
            raise Fault(f"{instruction.text}: a part of a warp waits at a barrier")
        self.at[mask] = now + 1
        self.waiting |= mask
