"""Settings of all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

os.environ["CONVKERN_TUNE"] = "0"  # no test depends on what was measured on this host; subprocesses inherit it

# Kernels compile inside the first example; a shared machine is slow at times.
settings.register_profile("convkern", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("convkern")


@pytest.fixture
def threads():
    """Set the number of kernel threads; restored afterwards."""
    import convkern as ck

    before = ck.num_threads()
    yield ck.set_num_threads
    ck.set_num_threads(before)


@pytest.fixture(autouse=True)
def nothing_fixed():
    """Every test plans afresh and leaves no row fixed, as a resumed training run does."""
    from convkern import plan

    plan.plan.cache_clear()
    yield
    plan._fixed.clear()
    plan.plan.cache_clear()
