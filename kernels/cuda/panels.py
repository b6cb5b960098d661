"""How a slice of an operand comes to shared memory: 16 bytes at a time, asynchronously, into swizzled lines.

A slice has 64 terms t of halves, 32 of float32. An operand whose memory runs along t lies in *rows*: line m holds the terms
of row m, 128 bytes. One whose memory runs along m lies in *columns*: line t holds up to 128 bytes of neighbouring m; panels
of so many m stand one behind the other.

Of a line's 16-byte chunks, chunk c of line l lies at c xor (l mod 8). So the eight lines whose chunks one ldmatrix phase
reads, and the eight chunks that one phase of copies writes, fall into all 32 banks once: no bank conflicts. It is also the
128-byte swizzle of wgmma's descriptors. Columns of float32 are read by lanes, each a single element (:mod:`.warpgroup_gemm`),
of four lines and of eight m: there chunk c of line l lies at c xor 2 · (l mod 4).

Where an element lies in memory is the sum of what m says and of what t says: (offset, down, across), of which down and across
together say whether it lies in its picture or in the padding.

Source: NVIDIA, "Parallel Thread Execution ISA", 9.7 (ldmatrix; wgmma's shared memory layouts).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .language import copy16_async, inlined, int32, uint32
from .tiles import HALF_STEP

CHUNK = 8  # halves in 16 bytes
OUTSIDE = -(1 << 30)  # added to a row number of a picture, it lies in no picture


class Operand(NamedTuple):
    """An operand's two functions of (group, m or t, geometry), and how its memory runs.

    ``by_row`` and ``by_term`` are inlined and give (offset, down, across). With ``padded`` an element is zero unless
    0 <= down < geometry.height and 0 <= across < geometry.width.
    """

    by_row: Callable
    by_term: Callable
    padded: bool
    along_terms: bool


class Panel(NamedTuple):
    """How a block's threads copy an operand's slices."""

    sides: int  # values of m that one thread copies
    nbytes: int  # of a slice
    line: int  # bytes of a line
    begin: Callable  # (group, first, limit, me, geometry, offsets, downs, acrosses): what m says, once
    copy: Callable  # (source, to, coming, last, group, me, geometry, offsets, downs, acrosses): start copying a slice


def make_panel(operand: Operand, width: int, threads: int, elements: int = CHUNK) -> Panel:
    """The copying of slices of ``width`` values of m, of which 16 bytes are so many ``elements``."""
    if operand.along_terms:
        return _rows(operand, width, threads, elements)
    return _columns(operand, width, threads) if elements == CHUNK else _columns_of_floats(operand, width, threads)


@inlined
def _meets(offset, down, across, shift, below, beside, height, width, padded):
    """Whether there is an element, where m and t say so."""
    if padded:
        return uint32(down + below) < uint32(height) and uint32(across + beside) < uint32(width)
    return offset >= 0


def _begin(by_row: Callable, place: Callable, apart: int, count: int) -> Callable:
    """What ``count`` values of m say that a thread copies, ``apart`` from each other from ``place(me)`` on."""

    @inlined
    def begin(group, first, limit, me, geometry, offsets, downs, acrosses):
        for i in range(count):
            m = int32(first + place(me) + i * apart)
            if m < limit:
                offsets[i], downs[i], acrosses[i] = by_row(group, m, geometry)
            else:
                offsets[i], downs[i], acrosses[i] = int32(OUTSIDE), int32(OUTSIDE), int32(0)

    return begin


def _rows(operand: Operand, width: int, threads: int, elements: int) -> Panel:
    by_row, by_term, padded, _ = operand
    apart, copies = threads // 8, width * 8 // threads  # lines between a thread's copies, and their number

    @inlined
    def line_of(me):
        return int32(me // uint32(8))

    @inlined
    def copy(source, to, coming, last, group, me, geometry, offsets, downs, acrosses):
        line, chunk = me // uint32(8), me % uint32(8)
        t = int32(coming + int32(chunk) * elements)
        shift, below, beside = by_term(group, t, geometry)
        place = uint32(to + line * uint32(128) + (chunk ^ (line % uint32(8))) * uint32(16))
        for i in range(copies):
            inside = t < last and _meets(
                offsets[i], downs[i], acrosses[i], shift, below, beside, geometry.height, geometry.width, padded
            )
            copy16_async(uint32(place + uint32(i * apart * 128)), source, int32(offsets[i] + shift), inside)

    return Panel(copies, width * 128, 128, _begin(by_row, line_of, apart, copies), copy)


def _columns(operand: Operand, width: int, threads: int) -> Panel:
    by_row, by_term, padded, _ = operand
    chunks = width // CHUNK  # of all m of a term
    line_chunks = min(chunks, 8)
    line_bytes = 16 * line_chunks
    half_lines = 8 // line_chunks  # lines in 128 bytes
    apart, copies = threads // chunks, HALF_STEP * chunks // threads

    @inlined
    def chunk_of(me):
        return int32(me % uint32(chunks)) * CHUNK

    @inlined
    def copy(source, to, coming, last, group, me, geometry, offsets, downs, acrosses):
        line, chunk = me // uint32(chunks), me % uint32(chunks)
        swizzled = (chunk % uint32(line_chunks)) ^ (line // uint32(half_lines) % uint32(line_chunks))
        panel = chunk // uint32(line_chunks) * uint32(HALF_STEP * line_bytes)
        place = uint32(to + panel + line * uint32(line_bytes) + swizzled * uint32(16))
        for i in range(copies):
            t = int32(coming + int32(line) + i * apart)
            shift, below, beside = by_term(group, t, geometry)
            inside = t < last and _meets(
                offsets[0], downs[0], acrosses[0], shift, below, beside, geometry.height, geometry.width, padded
            )
            copy16_async(uint32(place + uint32(i * apart * line_bytes)), source, int32(offsets[0] + shift), inside)

    return Panel(1, width * 2 * HALF_STEP, line_bytes, _begin(by_row, chunk_of, 0, 1), copy)


def _columns_of_floats(operand: Operand, width: int, threads: int) -> Panel:
    """Eight threads copy a line, of each panel a chunk each, and no thread has two lines: a term is asked but once."""
    by_row, by_term, padded, _ = operand
    panels, lines = width // 32, threads // 8
    if lines != 32:
        raise ValueError(f"columns of float32 are copied by 256 threads, got {threads}")

    @inlined
    def chunk_of(me):
        return int32(me % uint32(8)) * 4

    @inlined
    def copy(source, to, coming, last, group, me, geometry, offsets, downs, acrosses):
        line, chunk = me // uint32(8), me % uint32(8)
        t = int32(coming + int32(line))
        shift, below, beside = by_term(group, t, geometry)
        place = uint32(to + line * uint32(128) + (chunk ^ (line % uint32(4) * uint32(2))) * uint32(16))
        for i in range(panels):
            inside = t < last and _meets(
                offsets[i], downs[i], acrosses[i], shift, below, beside, geometry.height, geometry.width, padded
            )
            copy16_async(uint32(place + uint32(i * lines * 128)), source, int32(offsets[i] + shift), inside)

    return Panel(panels, width * 128, 128, _begin(by_row, chunk_of, 32, panels), copy)
