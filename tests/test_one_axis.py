"""Two-dimensional rows on what one axis makes of them: height 1, kernels of one row, long and odd widths."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from convkern.kernels import conv, pool
from convkern.kernels.spec import ConvSpec, PoolSpec, empty_window, output_size

from .bounds import integers
from .test_kernels import DTYPES, check_conv, check_pool, cpu_rows, row_id

NONE = (0, 0)


def line(n, c, k, groups, width, kernel, stride=1, padding=NONE, dilation=1) -> ConvSpec:
    out = output_size(width, kernel, stride, padding, dilation)
    window = ((1, width), (1, kernel), (1, stride), (NONE, padding), (1, dilation), (1, out))
    return ConvSpec(n, c, k, groups, *window)


LINES = [
    line(2, 3, 5, 1, 1, 1),
    line(2, 3, 5, 1, 16, 3, padding=(1, 1)),
    line(1, 5, 9, 1, 17, 4, padding=(2, 1)),
    line(3, 17, 33, 1, 130, 3),
    line(2, 4, 6, 2, 301, 9, 2, (4, 4)),
    line(2, 4, 6, 2, 67, 5, 3, (0, 3), 2),
    line(2, 6, 6, 6, 100, 3, 1, (1, 1)),
    line(2, 3, 6, 3, 51, 5, 2, (2, 2)),
    line(40, 1, 4, 1, 33, 7, 1, (3, 3)),
    line(1, 16, 24, 1, 90, 1, 2),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", cpu_rows(conv.VARIANTS), ids=row_id)
def test_conv_rows_on_lines(row, dtype):
    for spec in LINES:
        exact = row.accuracy == "exact"
        check_conv(row, spec, dtype, make=integers, exact=exact)
        if row.direction == "forward":
            check_conv(row, spec._replace(activation=1), dtype, make=integers, exact=exact)


@st.composite
def pool_lines(draw) -> PoolSpec:
    kernel, dilation, stride = draw(st.integers(1, 5)), draw(st.integers(1, 2)), draw(st.integers(1, 5))
    span = dilation * (kernel - 1) + 1
    padding = (draw(st.integers(0, span // 2)), draw(st.integers(0, span // 2)))
    width = max(1, span - sum(padding)) + draw(st.integers(0, 90))
    out = output_size(width, kernel, stride, padding, dilation, draw(st.booleans()))
    assume(empty_window(width, kernel, stride, padding[0], dilation, out) is None)
    window = ((1, width), (1, kernel), (1, stride), (NONE, padding), (1, dilation), (1, out))
    return PoolSpec(draw(st.integers(1, 3)), draw(st.integers(1, 4)), *window, draw(st.integers(0, 1)))


@given(spec=pool_lines(), dtype=st.sampled_from(DTYPES))
def test_pool_rows_on_lines(spec, dtype):
    for row in cpu_rows(pool.VARIANTS):
        check_pool(row, spec, dtype)
