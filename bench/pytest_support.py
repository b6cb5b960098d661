"""What the pytest-benchmark files share: enumerating cases x directions x rivals, and one timed run."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable
from typing import Any

import pytest

from .cases import Case
from .rivals import RIVALS, Rival, make_inputs, rows

SECONDS = 0.3  # of measuring for one case, direction and rival
MIN_ROUNDS, MAX_ROUNDS = 3, 50
COPIES = 3


def contests(cases: Iterable[Case]) -> list[Any]:
    """A parameter set (case, direction, rival) for every rival and kernel row that takes a case.

    Cases that are not tagged "quick" are marked full.
    """
    found = []
    for case in cases:
        marks = () if "quick" in case.tags else (pytest.mark.full,)
        for direction in case.directions:
            for rival in (*RIVALS, *rows(case, direction)):
                if not rival.refuses(case, direction):
                    name = f"{case.name}-{direction}-{rival.name}"
                    found.append(pytest.param(case, direction, rival, id=name, marks=marks))
    return found


def race(benchmark: Any, case: Case, direction: str, rival: Rival) -> None:
    """Time one rival on one case; what it has to compile, and its inputs, are made before the clock starts."""
    calls = [rival.call(case, direction, make_inputs(case, seed)) for seed in range(COPIES)]
    calls[0]()
    started = time.perf_counter()
    calls[1]()
    once = max(time.perf_counter() - started, 1e-9)
    rounds = min(max(MIN_ROUNDS, int(SECONDS / once)), MAX_ROUNDS)
    iterations = max(1, math.ceil(SECONDS / (rounds * once)))
    turn = itertools.cycle(calls)
    benchmark.group = f"{case.name} {direction}"
    benchmark.extra_info["flops"] = case.flops
    benchmark.pedantic(lambda: next(turn)(), rounds=rounds, iterations=iterations)
