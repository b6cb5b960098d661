"""wgmma: matrix products of a warpgroup (four warps), which read shared memory by themselves and go on by themselves.

A product reads its operands, and its sums hold nothing, until its group has been waited for; what is found to touch them
before is a fault. Operands in shared memory are read through the asynchronous proxy: who wrote them must have passed a proxy
fence, and then a barrier. TF32's first operand may be in registers, which are touched no more than sums.

Operands lie in the 128-byte swizzle: lines of 128 bytes, eight of them a pattern of 1024 whose 16-byte chunks c of
line r lie at c xor r. The descriptor holds the start, the swizzle mode and distances of patterns. K-major a line is a row of
terms, and the next eight rows are "stride" away. MN-major, for transposed operands, a line is 64 rows of one term: the next
eight terms are "stride" away, the next 64 rows "leading dimension".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .memory import FIRST_SHARED, Fault
from .program import Instruction

if TYPE_CHECKING:
    from .machine import Machine, Step

SWIZZLE_128 = 1
PATTERN, ROW = 1024, 128  # bytes
ROWS = 64  # of a product
TERMS = 32  # bytes of a row that a product takes
LINES = 16  # terms that a product takes of a transposed operand


class Products:
    """Matrix products under way, and the registers of their sums."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.registers = {
            name
            for instruction in machine.program.code
            if instruction.parts[:2] == ("wgmma", "mma_async")
            for operand in instruction.operands[:2]  # sums, and what may be a descriptor or the registers of an operand
            if operand.startswith("{")
            for name in _names(operand)
        }
        count = machine.lanes.count // 128 if self.registers else 0
        # For each warpgroup: closed groups, each a list of words read, then the open one.
        self.queue: list[list[list[np.ndarray]]] = [[[]] for _ in range(count)]
        # For each register and warpgroup the groups, counted from the first, whose product writes it last; 0: none.
        self.until = {name: np.zeros(count, np.int64) for name in self.registers}
        self.done = np.zeros(count, np.int64)
        self.touched = {name: np.ones(count, bool) for name in self.registers}  # since the last wgmma.fence

    def _groups(self, mask: np.ndarray | None) -> np.ndarray:
        """The warpgroups of which a lane executes an instruction."""
        if mask is None:
            return np.arange(len(self.queue))
        return np.nonzero(mask.reshape(-1, 128).any(axis=1))[0]

    def whole_groups(self, mask: np.ndarray | None, instruction: Instruction) -> np.ndarray:
        if self.machine.lanes.threads % 128:
            raise Fault(f"{instruction.text}: a block of {self.machine.lanes.threads} threads has no whole warpgroups")
        if mask is not None:
            standing = mask.reshape(-1, 128)
            if (standing.any(axis=1) & ~standing.all(axis=1)).any():
                raise Fault(f"{instruction.text}: only a part of a warpgroup executes it")
        return self._groups(mask)

    def reader(self, register: str) -> Any:
        """Reading a sum or an operand's register, which must have been waited for."""

        def read() -> np.ndarray:
            groups = self._groups(self.machine.mask)
            if (self.until[register][groups] > self.done[groups]).any():
                raise Fault(f"{register} is read while a matrix product that has it is under way: a wait is missing")
            return self.machine.registers[register]

        return read

    def overwritten(self, register: str, mask: np.ndarray | None) -> None:
        groups = self._groups(mask)
        if (self.until[register][groups] > self.done[groups]).any():
            raise Fault(f"{register} is written while a matrix product that has it is under way: a wait is missing")
        self.touched[register][groups] = True

    def fence(self, mask: np.ndarray | None) -> None:
        groups = self._groups(mask)
        for touched in self.touched.values():
            touched[groups] = False

    def commit(self, mask: np.ndarray | None) -> None:
        for group in self._groups(mask):
            self.queue[group].append([])

    def wait(self, instruction: Instruction) -> Step:
        latest = int(instruction.operands[0])

        def step(mask: Any) -> None:
            for group in self.whole_groups(mask, instruction):
                closed = len(self.queue[group]) - 1
                for _ in range(max(0, closed - latest)):
                    for words in self.queue[group].pop(0):
                        np.subtract.at(self.machine.shared.in_use, words, 1)
                    self.done[group] += 1

        return step

    def finish(self) -> None:
        if any(group for queue in self.queue for group in queue):
            raise Fault("the kernel ends with matrix products that nobody waited for")

    def operand(self, group: int, descriptor: int, rows: int, turned: bool, text: str) -> np.ndarray:
        """The bits of an operand (rows, 8 words), or transposed (16 terms, words of two rows), marked as in use."""
        shared, lanes = self.machine.shared, self.machine.lanes
        start, leading, distance = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
        if descriptor >> 62 != SWIZZLE_128:
            raise Fault(
                f"{text}: the descriptor's swizzle mode is {descriptor >> 62}, only 1 (128 bytes) is known here"
            )
        if descriptor >> 49 & 7 or start % PATTERN >= (1 if turned else ROW) or start % ROW > ROW - TERMS:
            raise Fault(
                f"{text}: the descriptor's start {start} does not lie in the first line of a pattern of 1024 bytes"
            )
        if turned:
            line, chunk = np.arange(LINES)[:, None], np.arange(rows // 8)[None]
            at = start + line // 8 * distance + line % 8 * ROW + chunk // 8 * leading + chunk % 8 * 16
        else:
            line, chunk = np.arange(rows)[:, None], np.arange(TERMS // 16)[None]
            at = start + line // 8 * distance + line % 8 * ROW + chunk * 16
        at ^= (at >> 7 & 7) << 4
        if (at < FIRST_SHARED).any() or (at + 16 > shared.size).any():
            raise Fault(f"{text}: shared memory out of bounds, byte {int(at.max())} + 16 of {shared.size}")
        block = group * 128 // lanes.threads
        words = ((at + block * shared.size)[..., None] // 4 + np.arange(4)).reshape(len(at), -1)
        if shared.pending[words].any():
            raise Fault(f"{text}: reads shared memory that an asynchronous copy has not delivered: a wait is missing")
        if not shared.written.reshape(-1, 4)[words].all():
            raise Fault(f"{text}: reads shared memory that nobody wrote")
        if shared.unfenced[words].any():
            raise Fault(f"{text}: reads what was written through the generic proxy without a proxy fence")
        if (shared.words.write_epoch[words] == lanes.epoch[block]).any():
            raise Fault(f"{text}: race in shared memory: reads what was written or fenced without a barrier since")
        shared.words.read_epoch[words], shared.words.reader[words] = lanes.epoch[block], -1
        np.add.at(shared.in_use, words, 1)
        self.queue[group][-1].append(words)
        return shared.data.view(np.uint32)[words]


def _names(operand: str) -> list[str]:
    return [name.strip() for name in operand.strip("{}").split(",")]


def _values(bits: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        return bits.view(np.float16).astype(np.float64)
    if kind == "bf16":
        return (bits.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


def _operand(
    products: Products, group: int, descriptor: int, rows: int, turned: bool, kind: str, text: str
) -> np.ndarray:
    """The numbers of an operand (rows, terms)."""
    values = _values(products.operand(group, descriptor, rows, turned, text), kind)
    return values.T if turned else values


def _fragments(machine: Machine, names: list[str]) -> np.ndarray:
    """The numbers (warpgroup, 64 rows, 8 terms) of an operand in registers: rows g, g + 8 of term t, then of t + 4."""
    bits = np.stack([machine.over_lanes(machine.registers[name]) for name in names])
    # (far term, lower row, warpgroup, warp, g, t) -> (warpgroup, warp, lower row, g, far term, t)
    bits = bits.reshape(2, 2, -1, 4, 8, 4).transpose(2, 3, 1, 4, 0, 5).reshape(-1, ROWS, 8)
    return _values(np.ascontiguousarray(bits).view(np.uint32), "tf32")


def _multiply(machine: Machine, instruction: Instruction) -> Step:
    """d = a · b + d for 64 rows; a thread's sums are rows g and g + 8 of its warp's 16, two columns of every eight."""
    products, parts, text = machine.products, instruction.parts, f"wgmma {'.'.join(instruction.parts[4:])}"
    shape = re.fullmatch(r"m64n(\d+)k(8|16)", parts[4])
    rest = instruction.operands[4:]
    turned = tuple(flag == "1" for flag in rest[2:])  # each operand; those of TF32 cannot be
    if rest[:2] != ("1", "1") or len(rest) != (2 if parts[6] == "tf32" else 4) or not {*rest[2:]} <= {"0", "1"}:
        raise NotImplementedError(instruction.text)
    if not shape or parts[2:4] != ("sync", "aligned") or parts[5] != "f32" or parts[6] != parts[7]:
        raise NotImplementedError(instruction.text)
    columns, kind, names = int(shape[1]), parts[6], _names(instruction.operands[0])
    if len(names) != columns // 2 or kind not in ("f16", "bf16", "tf32"):
        raise NotImplementedError(instruction.text)
    if int(shape[2]) != (8 if kind == "tf32" else 16):
        raise NotImplementedError(instruction.text)
    left = _names(instruction.operands[1]) if instruction.operands[1].startswith("{") else []
    if left and (kind != "tf32" or len(left) != 4):
        raise NotImplementedError(instruction.text)
    described = instruction.operands[2 if left else 1 : 3]
    sources = [machine.reader(operand, np.uint64) for operand in described]
    adds = machine.reader(instruction.operands[3], np.bool_)

    def step(mask: Any) -> None:
        descriptors = [machine.over_lanes(source()).reshape(-1, 128) for source in sources]
        given = _fragments(machine, left) if left else None
        kept = machine.over_lanes(adds()).reshape(-1, 128)
        sums = np.stack([machine.registers[name] for name in names]).reshape(columns // 2, -1, 128).copy()
        for group in products.whole_groups(mask, instruction):
            if any((d[group] != d[group, 0]).any() for d in (*descriptors, kept)):
                raise Fault(f"{text}: its operands differ among the lanes of a warpgroup")
            if any(products.touched[name][group] for name in names + left):
                raise Fault(f"{text}: its registers were written without a wgmma.fence since")
            *first, second = (
                _operand(products, group, int(d[group, 0]), size, turn, kind, text)
                for d, size, turn in zip(
                    descriptors,
                    (ROWS, columns)[-len(descriptors) :],
                    turned or (False,) * len(descriptors),
                    strict=True,
                )
            )
            product = (first[0] if given is None else given[group]) @ second.T
            # (warp, half, g, eight columns, t, neighbour) -> (register, lane)
            product = product.reshape(4, 2, 8, columns // 8, 4, 2).transpose(3, 1, 5, 0, 2, 4).reshape(-1, 128)
            sums[:, group] = product + (sums[:, group] if kept[group, 0] else 0)
            for name in names + left:
                products.until[name][group] = products.done[group] + len(products.queue[group])
        for name, values in zip(names, sums.reshape(columns // 2, -1), strict=True):
            machine.registers[name] = values

    return step


def _warpgroup(machine: Machine, instruction: Instruction) -> Step:
    which, products = instruction.parts[1], machine.products
    if which == "mma_async":
        return _multiply(machine, instruction)
    if which == "wait_group":
        return products.wait(instruction)
    return {"fence": products.fence, "commit_group": products.commit}[which]


def _fence(machine: Machine, instruction: Instruction) -> Step:
    """fence.proxy.async: what the lane wrote may be read through the asynchronous proxy, by others after a barrier."""
    if instruction.parts[1:3] != ("proxy", "async"):
        raise NotImplementedError(instruction.text)

    def step(mask: Any) -> None:
        shared, lanes = machine.shared, machine.lanes
        here = np.zeros(lanes.count + 1, bool)
        here[machine.chosen(mask) + 1] = True
        words = np.nonzero(here[shared.unfenced])[0]
        lane = shared.unfenced[words] - 1
        # A pending copy's bytes are written later.
        words, lane = words[~shared.pending[words]], lane[~shared.pending[words]]
        shared.unfenced[words] = 0
        shared.words.write_epoch[words], shared.words.writer[words] = lanes.epoch[lanes.block[lane]], lanes.warp[lane]

    return step


INSTRUCTIONS = {"wgmma": _warpgroup, "fence": _fence}
