"""Copies of rows in whole vectors: every step, every part of a row, nothing read or written outside."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from convkern.kernels.rows import SLACK, copy_row
from convkern.kernels.threads import parallel


@parallel
def _copy(job, worker, at, count, start, step, low, high, source, scratch):
    copy_row(scratch, at, count, source, start, step, low, high, 64)


@given(data=st.data(), dtype=st.sampled_from(["float32", "float64"]), step=st.integers(1, 6), count=st.integers(1, 70))
def test_copy_row(data, dtype, step, count):
    low = data.draw(st.integers(0, count))
    high = data.draw(st.integers(low, count))
    before = data.draw(st.integers(0, 5))
    # The row's ends lie outside of the source where they are padding.
    source = np.arange(1, 2 + max(0, high - 1 - low) * step, dtype=dtype)
    scratch = np.full(before + count + SLACK, 7, dtype)
    _copy(1, before, count, -low * step, step, low, high, source, scratch)
    want = np.zeros(count, dtype)
    want[low:high] = source[::step][: high - low]
    np.testing.assert_array_equal(scratch[before : before + count], want)
    np.testing.assert_array_equal(scratch[:before], 7)
