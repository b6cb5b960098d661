"""Settings of all tests."""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

# Before anybody imports PyTorch; subprocesses inherit it.
os.environ["CONVKERN_TUNE"] = "0"  # no test depends on what was measured on this host
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's idle threads would take the core of the process beside

# Kernels compile inside the first example; a shared machine is slow at times.
settings.register_profile("convkern", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("convkern")


# A process holds millions of objects, most of them for good (modules, what Numba knows of kernels): looking through them
# as often as Python does by itself takes a tenth of the time in which kernels compile.
gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """What is there when a module's tests begin is never looked through again."""
    gc.collect()  # only what came since the last time
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Tests have room for their frames; they are called as always, by pytest's own hook, which follows."""
    from convkern.kernels.frames import with_room

    pyfuncitem.obj = with_room(pyfuncitem.obj)


@pytest.fixture
def threads():
    """Set the number of kernel threads; restored afterwards."""
    import convkern as ck

    before = ck.num_threads()
    yield ck.set_num_threads
    ck.set_num_threads(before)


@pytest.fixture(autouse=True)
def company(request, tmp_path_factory):
    """Under ``pytest -n`` tests run side by side; one marked ``alone`` measures time, and waits until no other runs."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    import fcntl

    shared = tmp_path_factory.getbasetemp().parent
    alone = request.node.get_closest_marker("alone")
    with (shared / "gate").open("w") as gate, (shared / "room").open("w") as room:
        fcntl.flock(gate, fcntl.LOCK_EX)  # nobody enters while someone waits here for an empty room
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(gate, fcntl.LOCK_UN)
        yield


class Zeros:
    """In place of a generator of random numbers."""

    def uniform(self, *args):
        return 0.0

    normal = uniform


@pytest.fixture
def undrawn(monkeypatch):
    """Networks have zeros for weights: tests of shapes, or that set all weights themselves, need no millions of draws."""
    from convkern.nn import init

    monkeypatch.setattr(init, "generator", Zeros)


@pytest.fixture(autouse=True)
def nothing_fixed():
    """Every test plans afresh and leaves no row fixed, as a resumed training run does."""
    from convkern import plan

    plan.plan.cache_clear()
    yield
    plan._fixed.clear()
    plan.plan.cache_clear()


@pytest.fixture
def any_size_on_tensor_cores(monkeypatch):
    """Rows on tensor cores take small layers too: nothing is weighed against rows that read NCHW as it is."""
    from convkern.kernels.cuda import costs

    monkeypatch.setattr(costs, "_weighed", lambda problem: False)
