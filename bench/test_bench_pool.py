"""Pooling and pointwise convolution: every rival and every kernel row. ``pytest bench/``; ``-m ""`` takes them all."""

from __future__ import annotations

from typing import Any

import pytest

from convkern.bench.cases import POINTWISE_LAYERS, POOL_LAYERS, Case
from convkern.bench.pytest_support import contests, race
from convkern.bench.rivals import Rival


@pytest.mark.parametrize(("case", "direction", "rival"), contests(POOL_LAYERS))
def test_pool(benchmark: Any, case: Case, direction: str, rival: Rival) -> None:
    race(benchmark, case, direction, rival)


@pytest.mark.parametrize(("case", "direction", "rival"), contests(POINTWISE_LAYERS))
def test_pointwise(benchmark: Any, case: Case, direction: str, rival: Rival) -> None:
    race(benchmark, case, direction, rival)
