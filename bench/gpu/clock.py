"""Times on the device, by CUDA events: rivals take turns in one process, over inputs that no cache can hold.

Before each turn the device is kept busy while the host queues the turn's launches, so that what is measured is the device's
time alone; what the host adds shows in the training steps and in the cost of a launch.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Call = Callable[[], Any]

TURNS = 7
TURN_SECONDS = 1.5e-3  # about this much work a turn
MOST_CALLS = 20
MOST_COPIES = 512
WAIT_CYCLES = 200_000  # of the device for each call, while the host queues it: 100 microseconds and more


def _turn(calls: Any, count: int) -> float:
    """Seconds of a call, over ``count`` of them."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(WAIT_CYCLES * (count + 2))
    start.record()
    for _ in range(count):
        next(calls)()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / count


def interleave(contenders: Mapping[str, Sequence[Call]], turns: int = TURNS) -> dict[str, float]:
    """Median seconds of a call of each contender.

    Parameters
    ----------
    contenders : mapping
        For each the same call over several copies of its inputs, which take turns.
    turns : int
        Of each contender.
    """
    rings = {name: itertools.cycle(calls) for name, calls in contenders.items()}
    counts = {}
    for name, ring in rings.items():
        for _ in contenders[name]:  # warms every copy
            next(ring)()
        once = max(_turn(ring, 2), 1e-7)
        counts[name] = max(1, min(MOST_CALLS, round(TURN_SECONDS / once)))
    samples: dict[str, list[float]] = {name: [] for name in rings}
    for _ in range(turns):
        for name, ring in rings.items():
            samples[name].append(_turn(ring, counts[name]))
    return {name: statistics.median(found) for name, found in samples.items()}


def copies_for(nbytes: int, cache: int) -> int:
    """How many copies of inputs of this size flow past a cache of that size before the first comes again: twice as much as it
    holds, however small a copy is."""
    return max(2, min(MOST_COPIES, -(-2 * cache // max(nbytes, 1))))
