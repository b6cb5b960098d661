"""How the work of :mod:`.cuda_tiled` and :mod:`.cuda_tiled_weight` is shared by blocks and threads."""

from __future__ import annotations

from typing import NamedTuple

from ..cuda.language import divider, inlined, int32, quotient
from ..cuda.tiles import RESULTS, UNITS, slot_parts, window_parts
from ..spec import ConvSpec
from .window_lines import ROWS

KERNEL = 3  # rows and columns
BUSY = 1 << 18  # threads that fill a large GPU
LEAST_RUN = 8  # columns of a thread, channels-last: before them it reads some more


class Grid(NamedTuple):
    """Planes of source and result, and who has what: block = (part · groups + group) · blocks + block of results."""

    terms: int  # columns of ROWS rows, of all images
    chunk: int  # of a part
    groups: int
    blocks: int
    inner: int  # planes of the source in a group
    outer: int  # of the result
    height: int
    width: int
    out_height: int
    out_width: int
    strips: int  # of a column
    by_strips: int
    by_strips_shift: int
    by_row: int
    by_row_shift: int
    top: int
    left: int
    weight_outer: int  # from a weight to that of the next plane of the result, and of the source
    weight_inner: int
    first_tap: int  # and from tap to tap: forwards, or turned by 180 degrees
    tap_step: int
    biased: int
    relu: int
    added: int


def make_grid(spec: ConvSpec, sharing: int = 1, **changes: int) -> Grid:
    """The work over x for y, or with other numbers (:func:`_gradient_grid`); so many blocks share a group's four results."""
    inner, outer, taps = spec.c // spec.groups, spec.k // spec.groups, KERNEL * KERNEL
    grid = Grid(
        0, 0, spec.groups, 0, inner, outer, *spec.size, *spec.out, 0, 0, 0, 0, 0, spec.padding[0][0],
        spec.padding[1][0], inner * taps, taps, first_tap=0, tap_step=1, biased=0, relu=0, added=0,
    )._replace(**changes)  # fmt: skip
    blocks, strips = -(-grid.outer // RESULTS), -(-grid.out_height // ROWS)
    terms = spec.n * strips * grid.out_width
    parts = window_parts(spec.groups * blocks * sharing, spec.n * grid.out_height * grid.out_width)
    chunk = max(1, -(-terms // parts))
    names = ("by_strips", "by_strips_shift", "by_row", "by_row_shift")
    divisors = dict(zip(names, (*divider(strips), *divider(grid.out_width)), strict=True))
    return grid._replace(terms=terms, chunk=chunk, blocks=blocks, strips=strips, **divisors)


@inlined
def place(e, grid):
    """Image, first row and column of the e-th column of rows."""
    rest = quotient(e, grid.by_row, grid.by_row_shift)
    n = quotient(rest, grid.by_strips, grid.by_strips_shift)
    return n, int32((rest - n * grid.strips) * ROWS), int32(e - rest * grid.out_width)


class LastGrid(NamedTuple):
    """The same for channels-last images: block = (part, or part · inner + channel) · wide + eight units."""

    terms: int  # (image, strip, segment)
    chunk: int  # of a part
    run: int  # columns of a segment
    groups: int
    blocks: int  # units of a group
    units: int
    wide: int  # blocks that all units take
    inner: int
    outer: int
    sources: int  # channels of a pixel
    results: int
    height: int
    width: int
    out_height: int
    out_width: int
    strips: int
    by_strips: int
    by_strips_shift: int
    segments: int  # of a strip
    by_segments: int
    by_segments_shift: int
    top: int
    left: int
    weight_outer: int  # as in Grid
    weight_inner: int
    first_tap: int
    tap_step: int
    biased: int
    relu: int
    added: int


def make_last_grid(spec: ConvSpec, grid: Grid, sharing: int = 1) -> LastGrid:
    """The work of a grid over NCHW, whose parts and strips are cut anew; so many blocks share a unit's results."""
    units, sources, results = grid.groups * grid.blocks, grid.groups * grid.inner, grid.groups * grid.outer
    threads = spec.n * grid.strips * units  # that slide along whole rows
    wanted = max(1, min(grid.out_width // LEAST_RUN, BUSY // max(threads, 1)))
    run = -(-grid.out_width // wanted)
    segments, wide = -(-grid.out_width // run), -(-units // UNITS)
    terms = spec.n * grid.strips * segments
    chunk = max(1, -(-terms // slot_parts(wide * sharing, terms)))
    return LastGrid(
        terms, chunk, run, grid.groups, grid.blocks, units, wide, grid.inner, grid.outer, sources, results, grid.height,
        grid.width, grid.out_height, grid.out_width, grid.strips, *divider(grid.strips), segments, *divider(segments),
        *grid[grid._fields.index("top") :],
    )  # fmt: skip


@inlined
def last_place(e, grid):
    """Image, strip and segment of the e-th term."""
    rest = quotient(e, grid.by_segments, grid.by_segments_shift)
    n = quotient(rest, grid.by_strips, grid.by_strips_shift)
    return n, int32(rest - n * grid.strips), int32(e - rest * grid.segments)


def tiled_name(name: str, stored: str) -> str:
    """A kernel's name, which says what it reads and writes where that is not float32."""
    return f"conv-tiled-{name}{'' if stored == 'float32' else '-' + stored}"
