"""Reading PTX text."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

# How a register of a PTX type is kept; b and s types share the unsigned one and are viewed as needed.
KINDS = {
    "pred": np.bool_,
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "f16": np.float16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64,
}  # fmt: skip


class Instruction(NamedTuple):
    """``@[!]guard opcode operands``; the opcode also split at its dots."""

    guard: str | None
    negated: bool
    opcode: str
    parts: tuple[str, ...]
    operands: tuple[str, ...]
    text: str


class Program:
    """One kernel: its parameters (name, type), shared arrays (name, alignment, bytes), registers, code and labels."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"//[^\n]*", "", text)
        found = re.search(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{(.*)\n\}", text, re.S)
        if not found:
            raise ValueError("the PTX has no kernel")
        self.name, parameters, attributes, body = found.groups()
        limit = re.search(r"\.maxntid\s+(\d+)", attributes)
        self.most_threads = int(limit[1]) if limit else None
        self.parameters = [(p.split()[-1], p.split()[1][1:]) for p in parameters.split(",") if p.strip()]
        self.shared = [
            (name, int(alignment), int(size or 0))
            for alignment, name, size in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d*)\]", text)
        ]
        if re.search(r"\.local\s", body):
            raise ValueError(f"{self.name} uses local memory: an array did not become registers")
        self.registers = {
            f"%{prefix}{i}": KINDS[kind]
            for kind, prefix, count in re.findall(r"\.reg\s+\.(\w+)\s+%(\w+)<(\d+)>", body)
            for i in range(int(count))
        }
        self.code: list[Instruction] = []
        self.labels: dict[str, int] = {}
        for statement in re.split(r"(?<=;)|(?<=:)\s*\n", re.sub(r"\.reg[^;]*;", "", body)):
            self._add(statement.strip())

    def _add(self, statement: str) -> None:
        while label := re.match(r"(\$[\w$]+):\s*", statement):
            self.labels[label[1]] = len(self.code)
            statement = statement[label.end() :]
        statement = statement.rstrip(";").strip()
        if not statement or statement.startswith("."):
            return
        guard = re.match(r"@(!?)(%p\d+)\s+", statement)
        rest = statement[guard.end() :] if guard else statement
        opcode, _, operands = rest.partition(" ")
        opcode, _, more = opcode.strip().partition("\t")
        self.code.append(
            Instruction(
                guard[2] if guard else None, bool(guard and guard[1]), opcode, tuple(opcode.split(".")),
                split_operands(more + operands), statement,
            )
        )  # fmt: skip


def split_operands(text: str) -> tuple[str, ...]:
    """Split at the commas outside of braces and brackets."""
    return tuple(part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text) if part.strip())
