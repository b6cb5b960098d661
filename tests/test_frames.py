"""Frames of Python calls: no depth of calls is slower than another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from convkern.kernels.frames import with_room

resource = pytest.importorskip("resource", reason="counts page faults as Unix does")
CALLS = 300


def at_every_depth(levels):
    """The most page faults of CALLS calls from one of so many levels; a new chunk of frames is a page fault or more."""

    def leaf():
        pass

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    before = faults()
    for _ in range(CALLS):
        leaf()
    here = faults() - before
    return max(here, at_every_depth(levels - 1)) if levels else here


def test_calls_cost_no_memory_at_any_depth_where_there_is_room():
    with ThreadPoolExecutor(1) as thread:  # this one has room, see conftest.py
        assert thread.submit(at_every_depth, 250).result() >= CALLS  # somewhere a chunk is full
        assert thread.submit(with_room(at_every_depth), 250).result() < CALLS // 10


def test_what_is_called_with_room_is_called_as_before():
    def function(a, *, b=2):
        """Text."""
        return a, b

    roomy = with_room(function)
    assert roomy(1, b=3) == (1, 3)
    assert (roomy.__name__, roomy.__doc__) == ("function", "Text.")
    with pytest.raises(TypeError, match="unexpected keyword"):
        roomy(1, c=3)
