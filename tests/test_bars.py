"""What holds for every row of every table: bits do not depend on threads, nothing aborts, scratch stays small."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest

import convkern as ck
from convkern import plan
from convkern.bench import cases
from convkern.bench.cases import Case, PointwiseCase
from convkern.kernels.threads import workspace
from convkern.kernels.variant import Problem

MIB = 1 << 20
MOST = 32 * MIB  # of scratch, a thread


def run(code: str, **env: str) -> str:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, **env})
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr}"
    return done.stdout.strip()


# --- threads

DIGESTS = """
    import hashlib
    import numpy as np, convkern as ck
    from convkern import models, nn, optim
    from convkern.bench import cases, rivals
    from convkern.kernels import threads as pool

    digest = hashlib.sha256()
    names = ("plain", "everything", "stride-2", "groups-2", "depthwise-odd", "pointwise-stride-2", "lenet-1",
             "googlenet-5x5", "depthwise", "pointwise-plain", "pool-plain", "random-001", "random-007", "images-33-groups")
    chosen = [cases.select([name])[0] for name in names]
    chosen.append(cases._conv("winograd-wide", 4, 40, 9, 80, 3, 1, 1))  # and its weight gradient turned, in several jobs
    chosen.append(cases._conv("winograd-many-blocks", 8, 16, 32, 18, 3, 1, 1))
    for case in chosen:
        inputs = rivals.make_inputs(case)
        for direction in case.directions:
            for rival in (rivals.OURS, *rivals.rows(case, direction)):  # every row, planned or not
                digest.update(np.ascontiguousarray(rival.call(case, direction, inputs)()).tobytes())
    rng = np.random.default_rng(0)
    model = models.lenet5()
    x = rng.standard_normal((40, 1, 28, 28), np.float32)
    nn.functional.cross_entropy(model(x), np.arange(40) % 10).backward()
    for parameter in model.parameters():
        if parameter.data.ndim == 4:  # linear layers are BLAS's, whose own threads decide their bits
            digest.update(parameter.grad.data.tobytes())

    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2), nn.Linear(7, 5),
              nn.Upsample(scale_factor=2), nn.Conv2d(16, 16, 3, padding=1, groups=16, padding_mode="reflect"),
              nn.AdaptiveMaxPool2d(3)]
    for block, shape in ((layers, (9, 3, 15, 14)), ([nn.Conv3d(3, 8, 3), nn.MaxPool3d(2)], (4, 3, 6, 9, 9))):
        model = nn.Sequential(*block)
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            y = model(rng.standard_normal(shape, np.float32))
            (y * y).sum().backward()
            optimizer.step()
        for array in (y.data, *(value for value in model.state_dict().values())):
            digest.update(np.ascontiguousarray(array).tobytes())
    print(ck.num_threads(), digest.hexdigest())
"""


def test_processes_with_1_2_and_4_threads_give_the_same_bits():
    results = [run(DIGESTS, NUMBA_NUM_THREADS=count, CONVKERN_NUM_THREADS="").split() for count in ("1", "2", "4")]
    assert [count for count, _ in results] == ["1", "2", "4"]
    assert len({digest for _, digest in results}) == 1


LAYER = """
    import threading
    import numba, numpy as np, convkern as ck

    if {layer!r} != "none":
        from numba.np.ufunc.parallel import _launch_threads

        _launch_threads()
        assert numba.threading_layer() == {layer!r}
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype("f4") for shape in ((4, 3, 20, 20), (5, 3, 3, 3)))
    calls = [
        lambda: ck.conv2d(x, w, padding=1),
        lambda: ck.conv2d_input_grad(want[0], w, x.shape, padding=1),
        lambda: ck.conv2d_weight_grad(x, want[0], 3, padding=1),
        lambda: ck.max_pool2d(x, 2),
    ]
    want = []
    for call in calls:
        want.append(call())
    wrong = []

    def work(first):
        try:
            for i in range(60):
                number = (first + i) % len(calls)
                if not np.array_equal(calls[number](), want[number]):
                    wrong.append(number)
        except BaseException as error:
            wrong.append(error)

    callers = [threading.Thread(target=work, args=(first,)) for first in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong, wrong
    print("right")
"""


@pytest.mark.parametrize("layer", ["none", "workqueue", "omp", "tbb"])
def test_sixteen_callers_under_every_threading_layer_of_numba(layer):
    """Numba's workqueue layer aborts the process on concurrent use; our loops do not go through any of them."""
    if layer in ("omp", "tbb"):
        module = f"numba.np.ufunc.{layer}pool"
        pytest.importorskip(module, reason=f"the {layer} layer is not installed", exc_type=ImportError)
    env = {} if layer == "none" else {"NUMBA_THREADING_LAYER": layer}
    assert run(LAYER.format(layer=layer), NUMBA_NUM_THREADS="4", **env) == "right"


FORK = """
    import os, warnings
    import numba, numpy as np, convkern as ck
    from numba.np.ufunc.parallel import _launch_threads

    _launch_threads()
    warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of fork while threads run; that is the test
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype("f4") for shape in ((4, 3, 20, 20), (5, 3, 3, 3)))
    want = ck.conv2d(x, w, padding=1)
    for _ in range(3):
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(ck.conv2d(x, w, padding=1), want) else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print(numba.threading_layer())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_forked_children_compute_under_every_threading_layer_of_numba(layer):
    """The omp layer ends a forked child that enters it; convkern's loops do not."""
    if layer in ("omp", "tbb"):
        module = f"numba.np.ufunc.{layer}pool"
        pytest.importorskip(module, reason=f"the {layer} layer is not installed", exc_type=ImportError)
    assert run(FORK, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2") == layer


# --- the host's part


def own_seconds(call: Callable[[], object], calls: int = 200, turns: int = 50) -> float:
    """This thread's own time for a call, the best of many turns: other processes add none."""
    best = float("inf")
    for _ in range(turns):
        began = time.thread_time()
        for _ in range(calls):
            call()
        best = min(best, (time.thread_time() - began) / calls)
    return best


@pytest.mark.alone
def test_a_call_costs_at_most_30_microseconds_beside_its_kernel(threads):
    """A layer of four pixels: checking, planning, allocating and recording, over the bare row."""
    threads(1)
    x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
    with plan.traced() as steps:
        y = ck.conv2d(x, w)
    ((problem, row),) = steps
    scratch, none = workspace(row.workspace(problem)), np.empty(0, np.float32)
    kernel = own_seconds(lambda: row.run(x, w, none, problem.spec, scratch, y))
    weight = ck.tensor(w, requires_grad=True)
    for call in (lambda: ck.conv2d(x, w), lambda: ck.conv2d(x, weight)):
        assert 0 < own_seconds(call) - kernel < 30e-6


# --- scratch

HUGE = (
    cases._conv("huge-batch", 1024, 64, 56, 64, 3, 1, 1),
    cases._conv("huge-image", 1, 3, 4096, 8, 3, 1, 1),
    cases._conv("huge-width", 1, 16, (8, 30000), 16, (3, 5), 1, 1),
    cases._conv("huge-strided", 64, 512, 112, 64, 7, 2, 3),
    cases._conv("huge-1x1", 512, 256, 56, 512, 1),
    cases._conv("huge-1x1-strided", 512, 256, 112, 512, 1, 2),
    cases._conv("huge-depthwise", 256, 2048, 56, 2048, 3, 1, 1, groups=2048),
    cases._conv("huge-grouped", 256, 1024, 56, 1024, 3, 1, 1, groups=32),
    PointwiseCase("huge-pointwise", 512, 256, (56, 56), 512),
)
HUGE_WEIGHTS = (
    cases._conv("weights-3x3", 8, 2048, 14, 2048, 3, 1, 1),
    cases._conv("weights-1x1", 8, 4096, 7, 4096, 1),
    PointwiseCase("weights-pointwise", 8, 4096, (7, 7), 4096),
)


def scratch(chosen: Iterable[Case]) -> Iterator[tuple[str, int]]:
    """What every row that takes a case asks for, in bytes."""
    for case in chosen:
        for direction in case.directions:
            for dtype in ("float32", "float64"):
                problem = Problem(case.operation, direction, "cpu", dtype, "default", case.spec())
                for row in plan.rows(case.operation, direction):
                    if not plan.refusal(row, problem):
                        yield f"{case.name} {direction} {dtype} {row.name}", row.workspace(problem)


@pytest.mark.parametrize("count", [1, 2, 16])
def test_scratch_is_bounded(threads, count):
    threads(count)
    layers = (*cases.LAYERS, *cases.POINTWISE_LAYERS, *cases.POOL_LAYERS, *HUGE)
    found = dict(scratch(layers))
    assert len(found) > 6 * len(layers)
    assert {name: size / MIB for name, size in found.items() if size > count * MOST} == {}


def test_scratch_is_bounded_for_huge_weights(threads):
    threads(1)
    assert {name: size / MIB for name, size in scratch(HUGE_WEIGHTS) if size > MOST} == {}


def test_scratch_does_not_grow_with_the_batch(threads):
    threads(2)
    for case in (*HUGE, *cases.LAYERS):
        if case.n < 16:
            continue
        small, large = (dict(scratch([replace(case, n=n)])) for n in (case.n, 64 * case.n))
        for name in small.keys() & large.keys():
            assert large[name] <= max(small[name], 2 * MOST), name
