"""How the work of :mod:`.cuda_tiled` and :mod:`.cuda_tiled_weight` is shared by blocks and threads."""

from __future__ import annotations

from typing import NamedTuple

from ..cuda.language import divider, inlined, int32, quotient
from ..cuda.tiles import RESULTS, window_parts
from ..spec import ConvSpec
from .window_lines import ROWS

KERNEL = 3  # rows and columns


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
