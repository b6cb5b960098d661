"""Instructions of elementary functions: roots, reciprocals, powers of two, and what libdevice builds its functions from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .program import KINDS, Instruction

if TYPE_CHECKING:
    from .machine import Machine, Step

EX2_ERROR = np.float32(2.0**-22)  # of ex2.approx, relative, as the PTX manual states it


def _floats(machine: Machine, instruction: Instruction, count: int) -> Any:
    if KINDS[instruction.parts[-1]] is not np.float32:
        raise NotImplementedError(instruction.text)
    return [machine.reader(o, np.float32) for o in instruction.operands[1 : count + 1]]


def _rounded(function: Any) -> Any:
    """sqrt.rn and rcp.rn: rounded to nearest."""

    def build(machine: Machine, instruction: Instruction) -> Step:
        if "rn" not in instruction.parts:
            raise NotImplementedError(instruction.text)
        (x,) = _floats(machine, instruction, 1)
        return lambda mask: machine.write(instruction.operands[0], function(x()), mask)

    return build


def _power_of_two(machine: Machine, instruction: Instruction) -> Step:
    """ex2.approx: off by as much as the manual admits, up or down by the operand's last bit; denormals become zero."""
    (x,) = _floats(machine, instruction, 1)
    tiny = np.finfo(np.float32).tiny

    def step(mask: Any) -> None:
        v = np.asarray(x())
        exact = np.exp2(v)
        off = np.where(np.ascontiguousarray(v).view(np.uint32) & np.uint32(1), EX2_ERROR, -EX2_ERROR)
        result = np.where((v == 0) | np.isinf(v), exact, exact + exact * off)
        machine.write(instruction.operands[0], np.where(result < tiny, np.float32(0), result), mask)

    return step


def _sign(machine: Machine, instruction: Instruction) -> Step:
    """copysign: the first operand's sign, the second's size."""
    sign, size = _floats(machine, instruction, 2)
    return lambda mask: machine.write(instruction.operands[0], np.copysign(size(), sign()), mask)


def rounded_down(a: Any, b: Any, c: Any) -> np.ndarray:
    """fma.rm: the largest float32 that is not above a · b + c."""
    product, addend = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)  # what float64 rounded off
    near = total.astype(np.float32)
    above = (near > total) | ((near == total) & (lost < 0))
    return np.where(above, np.nextafter(near, np.float32(-np.inf)), near)


INSTRUCTIONS = {"sqrt": _rounded(np.sqrt), "rcp": _rounded(np.reciprocal), "ex2": _power_of_two, "copysign": _sign}
