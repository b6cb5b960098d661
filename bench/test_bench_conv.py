"""Convolution: every rival and every kernel row over the layers. ``pytest bench/``; ``-m ""`` takes them all."""

from __future__ import annotations

from typing import Any

import pytest

from convkern.bench.cases import LAYERS, LOOPS, Case
from convkern.bench.pytest_support import contests, race
from convkern.bench.rivals import Rival


@pytest.mark.parametrize(("case", "direction", "rival"), contests((*LOOPS, *LAYERS)))
def test_conv(benchmark: Any, case: Case, direction: str, rival: Rival) -> None:
    race(benchmark, case, direction, rival)
