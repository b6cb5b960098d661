"""Operands as :mod:`.half_gemm` and :mod:`.warpgroup_gemm` read them, channels side by side in whole 16 bytes.

Halves are held as the uint16 of their bits; TF32 as float32, rounded to nearest, ties away from zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .half_gemm import reader_and_writer
from .kernel import CudaKernel
from .language import CHUNKS, cuda, divider, float32, int32, quotient, thread, uint16, uint32
from .stored import pointer

SIDE = 32  # of the squares that are turned
THREADS = 256


def padded(channels: int, kind: str = "float16") -> int:
    """Channels, or elements of anything else, in whole chunks of operands of a kind."""
    chunk = CHUNKS[kind]
    return -(-channels // chunk) * chunk


def _written(stored: str, kind: str) -> tuple[Callable, Callable, Callable]:
    """What arrays of ``stored`` become for operands of ``kind``: the rounding, their element, and four bytes that hold it."""
    _, write = reader_and_writer(kind if stored == "float32" else "float32")
    return (write, float32, float32) if kind == "tf32" else (write, uint16, uint32)


class Turn(NamedTuple):
    """From (N, groups, channels, length) to (N, length, groups, padded channels)."""

    groups: int
    channels: int
    padded: int
    length: int
    tall: int  # squares
    wide: int


def _turn_kernel(stored: str, kind: str) -> CudaKernel:
    """Arrays of float32 are rounded to ``kind``, to nearest, ties to even; halves stay what they are."""
    pitch, room = SIDE + 1, SIDE * (SIDE + 1)
    write, element, cell = _written(stored, kind)

    def body(source, out, turn):
        square = cuda.shared.array(room, cell)
        me, block = int32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        l0 = int32(block % uint32(turn.wide) * uint32(SIDE))
        block = block // uint32(turn.wide)
        c0 = int32(block % uint32(turn.tall) * uint32(SIDE))
        block = block // uint32(turn.tall)
        group, n = int32(block % uint32(turn.groups)), int32(block // uint32(turn.groups))
        near, far = int32(me % SIDE), int32(me // SIDE)
        for i in range(0, SIDE, THREADS // SIDE):
            c, at = int32(c0 + far + i), int32(l0 + near)
            value = element(0)
            if c < turn.channels and at < turn.length:
                value = write(source[int32(((n * turn.groups + group) * turn.channels + c) * turn.length + at)])
            square[uint32((far + i) * pitch + near)] = cell(value)
        cuda.syncthreads()
        for i in range(0, SIDE, THREADS // SIDE):
            c, at = int32(c0 + near), int32(l0 + far + i)
            if c < turn.padded and at < turn.length:
                to = int32(((n * turn.length + at) * turn.groups + group) * turn.padded + c)
                out[to] = element(square[uint32(near * pitch + far + i)])

    name = f"{kind}-from-float32" if stored == "float32" else "turn-halves"
    return CudaKernel(name, body, (pointer(stored), pointer(kind), Turn), THREADS)


_TURN_HALVES = _turn_kernel("float16", "float16")
_TURNS = {kind: _turn_kernel("float32", kind) for kind in CHUNKS}


def turn(source, out, kind: str, n: int, groups: int, channels: int, length: int) -> None:
    """out (N, length, groups, padded channels) of ``kind`` from source (N, groups, channels, length); zeros for padding.

    source holds float32, which is rounded to ``kind``, or the bits of halves.
    """
    whole = padded(channels, kind)
    turned = Turn(groups, channels, whole, length, -(-whole // SIDE), -(-length // SIDE))
    kernel = _TURNS[kind] if source.dtype == "float32" else _TURN_HALVES
    kernel(n * groups * turned.tall * turned.wide, source, out, turned)


class Spread(NamedTuple):
    """From (pixels, groups, channels) to (pixels, groups, padded channels)."""

    size: int  # of the result
    channels: int
    padded: int
    by_padded: int
    by_padded_shift: int


def _spread_kernel(stored: str, kind: str) -> CudaKernel:
    write, element, _ = _written(stored, kind)

    def body(source, out, spread):
        i = thread()
        if i < spread.size:
            group = quotient(i, spread.by_padded, spread.by_padded_shift)
            c = int32(i - group * spread.padded)
            out[i] = write(source[int32(group * spread.channels + c)]) if c < spread.channels else element(0)

    name = f"{kind}-spread-from-float32" if stored == "float32" else "spread-halves"
    return CudaKernel(name, body, (pointer(stored), pointer(kind), Spread), THREADS)


_SPREAD_HALVES = _spread_kernel("float16", "float16")
_SPREADS = {kind: _spread_kernel("float32", kind) for kind in CHUNKS}


def spread(source, out, kind: str, channels: int) -> None:
    """As :func:`turn` where channels lie side by side already: source (N, length, groups, channels)."""
    whole = padded(channels, kind)
    numbers = Spread(out.size, channels, whole, *divider(whole))
    kernel = _SPREADS[kind] if source.dtype == "float32" else _SPREAD_HALVES
    kernel(-(-out.size // THREADS), source, out, numbers)
