"""Instructions that each lane executes for itself: integer and float arithmetic, comparisons, conversions, loads, stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import functions
from .program import KINDS, Instruction

if TYPE_CHECKING:
    from .machine import Machine, Step

WIDE = {np.uint16: np.uint32, np.int16: np.int32, np.uint32: np.uint64, np.int32: np.int64}
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def _kind(instruction: Instruction) -> Any:
    return KINDS[instruction.parts[-1]]


def _plain(function: Any, count: int) -> Any:
    """The instruction that applies a NumPy function to ``count`` operands of its type."""

    def build(machine: Machine, instruction: Instruction) -> Step:
        kind, result = _kind(instruction), instruction.operands[0]
        first, *others = (machine.reader(o, kind) for o in instruction.operands[1 : count + 1])
        if not others:
            return lambda mask: machine.write(result, function(first()), mask)
        (second,) = others
        return lambda mask: machine.write(result, function(first(), second()), mask)

    return build


def _logical(function: Any, of_booleans: Any, count: int) -> Any:
    """The same, with another function for predicates."""

    def build(machine: Machine, instruction: Instruction) -> Step:
        return _plain(of_booleans if _kind(instruction) is np.bool_ else function, count)(machine, instruction)

    return build


def _product(machine: Machine, instruction: Instruction) -> Step:
    """mul and mad: the low half, the high half, or all of an integer product; or a float product."""
    kind, result = _kind(instruction), instruction.operands[0]
    which = instruction.parts[1]
    a, b = (machine.reader(o, kind) for o in instruction.operands[1:3])
    adds = instruction.parts[0] == "mad"
    if which == "wide":
        wide = WIDE[kind]
        c = machine.reader(instruction.operands[3], wide) if adds else lambda: wide(0)
        return lambda mask: machine.write(
            result, np.asarray(a()).astype(wide) * np.asarray(b()).astype(wide) + c(), mask
        )
    if which == "hi":
        if kind not in (np.uint32, np.int32) or adds:
            raise NotImplementedError(instruction.text)
        wide = WIDE[kind]
        return lambda mask: machine.write(
            result, ((np.asarray(a()).astype(wide) * np.asarray(b()).astype(wide)) >> wide(32)).astype(kind), mask
        )
    c = machine.reader(instruction.operands[3], kind) if adds else None
    if c is None:
        return lambda mask: machine.write(result, a() * b(), mask)
    return lambda mask: machine.write(result, a() * b() + c(), mask)


def _fma(machine: Machine, instruction: Instruction) -> Step:
    """Rounded once: the product of two float32 is exact in float64."""
    if _kind(instruction) is not np.float32:
        raise NotImplementedError(instruction.text)
    result = instruction.operands[0]
    a, b, c = (machine.reader(o, np.float32) for o in instruction.operands[1:4])
    if "rm" in instruction.parts:
        return lambda mask: machine.write(result, functions.rounded_down(a(), b(), c()), mask)
    return lambda mask: machine.write(result, (np.multiply(a(), b(), dtype=np.float64) + c()).astype(np.float32), mask)


def _divide(machine: Machine, instruction: Instruction) -> Step:
    """div and rem; integers round towards zero, and dividing them by zero gives all ones, as on GPUs."""
    kind, result, remainder = _kind(instruction), instruction.operands[0], instruction.parts[0] == "rem"
    a, b = (machine.reader(o, kind) for o in instruction.operands[1:3])
    if kind in (np.float32, np.float64):
        return lambda mask: machine.write(result, a() / b(), mask)

    def step(mask: Any) -> None:
        x, y = np.asarray(a(), kind), np.asarray(b(), kind)
        safe = np.where(y == 0, kind(1), y)
        whole = x // safe
        if kind in (np.int32, np.int64):
            whole = whole + ((x % safe != 0) & ((x < 0) != (safe < 0)))
        value = x - whole * safe if remainder else whole
        machine.write(result, np.where(y == 0, kind(-1) if kind in (np.int32, np.int64) else ~kind(0), value), mask)

    return step


def _shift(machine: Machine, instruction: Instruction) -> Step:
    """By more than the width gives zero, or the sign."""
    kind, result = _kind(instruction), instruction.operands[0]
    value, by = machine.reader(instruction.operands[1], kind), machine.reader(instruction.operands[2], np.uint32)
    width = 8 * np.dtype(kind).itemsize
    left = instruction.parts[0] == "shl"

    def step(mask: Any) -> None:
        v, amount = np.asarray(value()), np.minimum(by(), np.uint32(width))
        within = np.minimum(amount, np.uint32(width - 1)).astype(kind)
        shifted = np.left_shift(v, within) if left else np.right_shift(v, within)
        beyond = kind(0) if left or kind not in (np.int16, np.int32, np.int64) else shifted
        machine.write(result, np.where(amount >= width, beyond, shifted), mask)

    return step


def _bit_field_insert(machine: Machine, instruction: Instruction) -> Step:
    kind, result = _kind(instruction), instruction.operands[0]
    a, b = (machine.reader(o, kind) for o in instruction.operands[1:3])
    position, length = (int(o, 0) for o in instruction.operands[3:5])
    field = kind(((1 << length) - 1) << position)
    return lambda mask: machine.write(result, (b() & ~field) | ((a() << kind(position)) & field), mask)


_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def _compare(machine: Machine, instruction: Instruction) -> Step:
    """setp; the float comparisons that end in u are true where an operand is NaN, the others false (ne included)."""
    name, kind, result = instruction.parts[1], _kind(instruction), instruction.operands[0]
    if len(instruction.operands) != 3 or "|" in result:
        raise NotImplementedError(instruction.text)
    a, b = (machine.reader(o, kind) for o in instruction.operands[1:3])
    if name in ("nan", "num"):
        return lambda mask: machine.write(result, (np.isnan(a()) | np.isnan(b())) == (name == "nan"), mask)
    floating = kind in (np.float32, np.float64)
    unordered = floating and name.endswith("u")
    function = _COMPARE[name[:-1] if unordered else name]

    def step(mask: Any) -> None:
        x, y = a(), b()
        value = function(x, y)
        if floating:
            nan = np.isnan(x) | np.isnan(y)
            value = (value | nan) if unordered else (value & ~nan)
        machine.write(result, value, mask)

    return step


def _select(machine: Machine, instruction: Instruction) -> Step:
    kind, result = _kind(instruction), instruction.operands[0]
    a, b = (machine.reader(o, kind) for o in instruction.operands[1:3])
    condition = machine.reader(instruction.operands[3])
    return lambda mask: machine.write(result, np.where(condition(), a(), b()), mask)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of bfloat16, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded)


def _convert(machine: Machine, instruction: Instruction) -> Step:
    result, parts = instruction.operands[0], instruction.parts
    if "tf32" in parts:  # .rna: to nearest, ties away from zero
        bits = machine.reader(instruction.operands[1], np.uint32)

        def rounded(value: np.ndarray) -> np.ndarray:
            nan = (value & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            return np.where(nan, np.uint32(0x7FFFFFFF), (value + np.uint32(0x1000)) & np.uint32(0xFFFFE000))

        return lambda mask: machine.write(result, rounded(bits()), mask)
    if "f16x2" in parts or "bf16x2" in parts:
        high, low = (machine.reader(o, np.float32) for o in instruction.operands[1:3])

        def half(values: Any) -> Any:
            if "bf16x2" in parts:
                return _bfloat16(machine.over_lanes(values))
            return machine.over_lanes(values).astype(np.float16).view(np.uint16).astype(np.uint32)

        return lambda mask: machine.write(result, half(high()) << np.uint32(16) | half(low()), mask)
    if parts[-2] == "bf16":
        source = machine.reader(instruction.operands[1], np.float32)
        return lambda mask: machine.write(result, _bfloat16(machine.over_lanes(source())).astype(np.uint16), mask)
    if "sat" in parts and parts[-2:] == ("f32", "f32"):  # to 0 … 1, NaN to 0
        value = machine.reader(instruction.operands[1], np.float32)
        return lambda mask: machine.write(result, np.fmin(np.fmax(value(), np.float32(0)), np.float32(1)), mask)
    to, source = KINDS[parts[-2]], machine.reader(instruction.operands[1], KINDS[parts[-1]])
    if to in (np.float16, np.float32, np.float64) or KINDS[parts[-1]] not in (np.float32, np.float64, np.float16):
        return lambda mask: machine.write(result, np.asarray(source()).astype(to), mask)
    raise NotImplementedError(instruction.text)


def _move(machine: Machine, instruction: Instruction) -> Step:
    result, kind = instruction.operands[0], _kind(instruction)
    source = machine.reader(instruction.operands[1], kind)
    return lambda mask: machine.write(result, source(), mask)


def _address_space(machine: Machine, instruction: Instruction) -> Step:
    """cvta: addresses are the same in every space here."""
    if "shared" in instruction.parts:
        raise NotImplementedError(instruction.text)
    result, source = instruction.operands[0], machine.reader(instruction.operands[1], np.uint64)
    return lambda mask: machine.write(result, source(), mask)


def _space(machine: Machine, instruction: Instruction) -> Any:
    for name, memory in (("global", machine.memory), ("shared", machine.shared)):
        if name in instruction.parts:
            return memory
    raise NotImplementedError(f"{instruction.text}: the state space is not known")


def _vector(instruction: Instruction, operand: str) -> tuple[list[str], Any, int]:
    """The registers of a load or store, the type that holds their bits, and all bytes."""
    names = [name.strip() for name in operand.strip("{}").split(",")]
    kind = BITS[np.dtype(_kind(instruction)).itemsize]
    return names, kind, len(names) * np.dtype(kind).itemsize


def _load(machine: Machine, instruction: Instruction) -> Step:
    if instruction.parts[1] == "param":
        result, value = instruction.operands[0], machine.parameters[instruction.operands[1].strip("[]")]
        return lambda mask: machine.write(result, value, mask)
    space, address = _space(machine, instruction), machine.address(instruction.operands[1])
    names, kind, size = _vector(instruction, instruction.operands[0])

    def step(mask: Any) -> None:
        who = machine.chosen(mask)
        values = space.read(machine.lanes, address(), size, who, instruction.text).view(kind)
        for i, name in enumerate(names):
            full = np.zeros(machine.lanes.count, kind)
            full[who] = values[:, i]
            machine.write(name, full, mask)

    return step


def _store(machine: Machine, instruction: Instruction) -> Step:
    space, address = _space(machine, instruction), machine.address(instruction.operands[0])
    names, kind, size = _vector(instruction, instruction.operands[1])
    sources = [machine.reader(name, kind) for name in names]

    def step(mask: Any) -> None:
        who = machine.chosen(mask)
        values = np.stack([machine.over_lanes(source())[who] for source in sources], axis=1).view(np.uint8)
        space.write(machine.lanes, address(), size, who, values, instruction.text)

    return step


INSTRUCTIONS = {
    "add": _plain(np.add, 2), "sub": _plain(np.subtract, 2), "min": _plain(np.minimum, 2), "max": _plain(np.maximum, 2),
    "neg": _plain(np.negative, 1), "abs": _plain(np.abs, 1),
    "and": _logical(np.bitwise_and, np.logical_and, 2), "or": _logical(np.bitwise_or, np.logical_or, 2),
    "xor": _logical(np.bitwise_xor, np.logical_xor, 2), "not": _logical(np.invert, np.logical_not, 1),
    "mul": _product, "mad": _product, "fma": _fma, "div": _divide, "rem": _divide, "shl": _shift, "shr": _shift,
    "bfi": _bit_field_insert, "setp": _compare, "selp": _select, "cvt": _convert, "mov": _move, "cvta": _address_space,
    "ld": _load, "st": _store, **functions.INSTRUCTIONS,
}  # fmt: skip
