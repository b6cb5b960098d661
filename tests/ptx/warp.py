"""Instructions of a whole warp, and asynchronous copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .memory import Fault
from .program import Instruction

if TYPE_CHECKING:
    from .machine import Machine, Step


def _whole_warps(machine: Machine, mask: np.ndarray | None, instruction: Instruction) -> np.ndarray:
    """The warps that execute an instruction together, as numbers from 0."""
    if mask is None:
        return np.arange(machine.lanes.count // 32)
    standing = mask.reshape(-1, 32)
    if (standing.any(axis=1) & ~standing.all(axis=1)).any():
        raise Fault(f"{instruction.text}: only a part of a warp executes it")
    return np.nonzero(standing.any(axis=1))[0]


def _registers(operand: str) -> list[str]:
    return [name.strip() for name in operand.strip("{}").split(",")]


def _matrix_load(machine: Machine, instruction: Instruction) -> Step:
    """ldmatrix: 8x8 matrices of 16-bit elements; lane 8·i + row gives the address of a row of matrix i.

    Lane l gets elements 2·(l mod 4) and the next of row l div 4; with .trans of column l div 4.
    """
    results = _registers(instruction.operands[0])
    address, matrices, turned = machine.address(instruction.operands[1]), len(results), "trans" in instruction.parts

    def step(mask: Any) -> None:
        warps = _whole_warps(machine, mask, instruction)
        # Only the first 8 · matrices lanes' addresses are used.
        who = (warps[:, None] * 32 + np.arange(8 * matrices)).reshape(-1)
        rows = machine.shared.read(machine.lanes, address(), 16, who, instruction.text)
        rows = rows.view(np.uint16).reshape(warps.size, matrices, 8, 8)
        if turned:
            rows = rows.swapaxes(2, 3)
        pairs = np.ascontiguousarray(rows).view(np.uint32).reshape(warps.size, matrices, 32)
        for i, name in enumerate(results):
            full = np.zeros((machine.lanes.count // 32, 32), np.uint32)
            full[warps] = pairs[:, i]
            machine.write(name, full.reshape(-1), mask)

    return step


def _halves(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits).view(np.float16).reshape(*bits.shape, 2).astype(np.float64)


def _bfloats(bits: np.ndarray) -> np.ndarray:
    wide = np.ascontiguousarray(bits).view(np.uint16).astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32).reshape(*bits.shape, 2).astype(np.float64)


def _tensor_floats(bits: np.ndarray) -> np.ndarray:
    """TF32 keeps 10 bits of the fraction; the hardware cuts off the others."""
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)[..., None].astype(np.float64)


_UNPACK = {"f16": _halves, "bf16": _bfloats, "tf32": _tensor_floats}
_SHAPES = {"m16n8k16": ("f16", "bf16"), "m16n8k8": ("tf32",)}


def _multiply(machine: Machine, instruction: Instruction) -> Step:
    """mma.sync of 16 rows and 8 columns: d = a · b + c.

    With g = lane div 4 and t = lane mod 4, a register of a holds row g (or g + 8) and column t (or t + half); of b column g
    and row t (or t + half); of c rows g, g + 8 and columns 2 · t, 2 · t + 1.
    """
    parts = instruction.parts
    kind = parts[7]
    if (
        parts[1:3] != ("sync", "aligned")
        or kind not in _SHAPES.get(parts[3], ())
        or parts[6] != "f32"
        or parts[9] != "f32"
    ):
        raise NotImplementedError(instruction.text)
    results, of_a, of_b, of_c = map(_registers, instruction.operands)
    a, b = ([machine.reader(name, np.uint32) for name in names] for names in (of_a, of_b))
    c = [machine.reader(name, np.float32) for name in of_c]
    unpack = _UNPACK[kind]

    def fragment(source: Any) -> np.ndarray:
        """(warp, g, column)."""
        values = unpack(machine.over_lanes(source()).reshape(-1, 8, 4))
        return values.reshape(values.shape[0], 8, -1)

    def step(mask: Any) -> None:
        _whole_warps(machine, mask, instruction)
        upper, lower, upper_right, lower_right = map(fragment, a)
        left = np.concatenate([np.concatenate([upper, upper_right], 2), np.concatenate([lower, lower_right], 2)], 1)
        right = np.concatenate([fragment(source) for source in b], 2)  # (warp, n, k)
        product = left @ right.swapaxes(1, 2)  # (warp, 16, 8)
        for half in range(2):
            block = product[:, 8 * half : 8 * half + 8].reshape(-1, 8, 4, 2)
            for e in range(2):
                value = block[..., e].reshape(-1) + c[2 * half + e]()
                machine.write(results[2 * half + e], value.astype(np.float32), mask)

    return step


def _shuffle(machine: Machine, instruction: Instruction) -> Step:
    mode, result = instruction.parts[2], instruction.operands[0].split("|")[0]
    value, by = (machine.reader(o, np.uint32) for o in instruction.operands[1:3])

    def step(mask: Any) -> None:
        _whole_warps(machine, mask, instruction)
        values = machine.over_lanes(value()).reshape(-1, 32)
        amount = machine.over_lanes(by()).reshape(-1, 32).astype(np.int64)
        lane = np.arange(32)
        source = {
            "bfly": lane ^ amount,
            "idx": amount % 32,
            "down": np.where(lane + amount < 32, lane + amount, lane),
            "up": np.where(lane >= amount, lane - amount, lane),
        }[mode]
        machine.write(result, np.take_along_axis(values, source, 1).reshape(-1), mask)

    return step


class Copies:
    """Asynchronous copies under way. Nothing arrives before it is waited for, as late as a GPU may deliver it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.committed = np.zeros(machine.lanes.count, np.int64)  # groups of each lane
        self.queue: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []  # lanes, group, place, bytes

    def issue(self, instruction: Instruction) -> Step:
        """cp.async: 4, 8 or 16 bytes, of which the last may be zeros instead of read."""
        machine = self.machine
        to, source = (machine.address(o) for o in instruction.operands[:2])
        size = int(instruction.operands[2])
        count = machine.reader(instruction.operands[3], np.uint32) if len(instruction.operands) > 3 else lambda: size

        def step(mask: Any) -> None:
            who = machine.chosen(mask)
            shared, lanes = machine.shared, machine.lanes
            place = shared.place(lanes, to(), size, who, instruction.text)
            shared.check_write(lanes, place, size, who, instruction.text)
            read = machine.over_lanes(count())[who]
            if not np.isin(read, (0, size)).all():
                raise NotImplementedError(f"{instruction.text}: a part of the bytes")
            values = np.zeros((who.size, size), np.uint8)
            from_memory = read > 0
            if from_memory.any():
                values[from_memory] = machine.memory.read(lanes, source(), size, who[from_memory], instruction.text)
            for w in range(0, size, 4):
                shared.pending[(place + w) // 4] = True
            self.queue.append((who, self.committed[who].copy(), place, values))

        return step

    def commit(self, mask: np.ndarray | None) -> None:
        self.committed[self.machine.chosen(mask)] += 1

    def wait(self, instruction: Instruction) -> Step:
        """Deliver all groups of a lane but its latest ones."""
        everything = instruction.parts[2] == "wait_all"
        latest = 0 if everything else int(instruction.operands[0])

        def step(mask: Any) -> None:
            waits = np.ones(self.machine.lanes.count, bool) if mask is None else mask
            self.queue = [rest for entry in self.queue for rest in self._deliver(entry, waits, latest, everything)]

        return step

    def _deliver(self, entry: Any, waits: np.ndarray, latest: int, everything: bool) -> list[Any]:
        who, group, place, values = entry
        done = waits[who] & ((group < self.committed[who] - latest) | everything)
        if done.any():
            shared, lanes = self.machine.shared, self.machine.lanes
            shared.store(place[done], values[done])
            for w in range(0, values.shape[1], 4):
                word = (place[done] + w) // 4
                shared.pending[word] = False
                # Delivered now: other warps need a barrier from here on.
                shared.words.write_epoch[word] = lanes.epoch[lanes.block[who[done]]]
                shared.words.writer[word] = lanes.warp[who[done]]
                shared.unfenced[word] = who[done] + 1
        left = ~done
        return [(who[left], group[left], place[left], values[left])] if left.any() else []

    def finish(self) -> None:
        if self.queue:
            raise Fault("the kernel ends with asynchronous copies that nobody waited for")


def _copy(machine: Machine, instruction: Instruction) -> Step:
    which = instruction.parts[2] if instruction.parts[1] == "async" else ""
    if which in ("ca", "cg"):
        return machine.copies.issue(instruction)
    if which == "commit_group":
        return machine.copies.commit
    if which in ("wait_group", "wait_all"):
        return machine.copies.wait(instruction)
    raise NotImplementedError(instruction.text)


INSTRUCTIONS = {"ldmatrix": _matrix_load, "mma": _multiply, "shfl": _shuffle, "cp": _copy}
