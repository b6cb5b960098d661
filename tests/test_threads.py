"""The parallel loop: the same bits for any number of threads, many callers at once, forked children, the disk cache."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import convkern as ck
from convkern.bench.cases import CONVS, POOLS
from convkern.kernels import compiler, rows
from convkern.kernels import threads as pool

RNG = np.random.default_rng(0)


def everything(dtype: str) -> list[np.ndarray]:
    """Results of all operations over the case table."""
    results = []
    rng = np.random.default_rng(1)
    for case in CONVS:
        spec = case.spec()
        x, w, gy = (rng.standard_normal(s).astype(dtype) for s in (spec.x_shape, spec.w_shape, spec.y_shape))
        options = dict(stride=spec.stride, padding=spec.padding, dilation=spec.dilation, groups=spec.groups)
        results.append(ck.conv2d(x, w, None, **options))
        results.append(ck.conv2d_input_grad(gy, w, x.shape, **options))
        results.append(ck.conv2d_weight_grad(x, gy, spec.kernel, **options))
        results.append(ck.ops.bias_grad(gy))
    for case in POOLS:
        spec = case.spec()
        t = ck.tensor(rng.standard_normal(spec.x_shape).astype(dtype), requires_grad=True)
        y = ck.max_pool2d(t, spec.kernel, spec.stride, spec.padding, spec.dilation, case.ceil_mode)
        z = ck.avg_pool2d(t, spec.kernel, spec.stride, spec.padding, case.ceil_mode)
        (y.sum() + (z * z).sum()).backward()
        results += [y.data, z.data, t.grad.data]
    return results


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_do_not_depend_on_the_number_of_threads(threads, dtype):
    threads(1)
    once = everything(dtype)
    for count in (2, 4):
        threads(count)
        for a, b in zip(once, everything(dtype), strict=True):
            np.testing.assert_array_equal(a, b)


@pool.parallel
def _who(job, worker, spins, done):
    total = done.dtype.type(0)
    for i in range(spins):
        total = total * done.dtype.type(0.5) + done.dtype.type(i)
    done[job] += worker + 1 + done.dtype.type(0) * total


def test_every_job_runs_once_and_helpers_help(threads):
    threads(3)
    seen = set()
    deadline = time.monotonic() + 30  # a busy machine may not let a helper run for long
    while len(seen) < 3 and time.monotonic() < deadline:
        done = np.zeros(64)
        _who(64, 20000, done)
        assert np.all((done >= 1) & (done <= 3))
        seen |= set(done.tolist())
    assert 1.0 in seen
    assert len(seen) > 1, "no helper ever took a job"
    threads(1)
    done = np.zeros(64)
    _who(64, 10, done)
    np.testing.assert_array_equal(done, np.ones(64))


def test_a_helper_looks_once_more_before_it_sleeps():
    """A loop that opens while a helper is on its way to sleep must not run without it."""
    helpers, seen = pool._Helpers(), []

    def serve(mailbox, worker):
        seen.append(helpers.asleep[worker - 1])
        helpers.wake(2)  # the poster comes just after the helper gave up waiting

    helpers._serve = serve
    helpers.wake(2)
    deadline = time.monotonic() + 5
    while len(seen) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    helpers._serve = lambda mailbox, worker: time.sleep(60)  # ends with the process, as helpers do
    assert seen[:2] == [False, True]


def test_sixteen_python_threads_at_once():
    x, w = RNG.standard_normal((4, 3, 20, 20)), RNG.standard_normal((5, 3, 3, 3))
    want = ck.conv2d(x, w, padding=1)
    wrong: list[object] = []

    def work() -> None:
        try:
            for _ in range(50):
                if not np.array_equal(ck.conv2d(x, w, padding=1), want):
                    wrong.append("another result")
        except BaseException as error:
            wrong.append(error)

    callers = [threading.Thread(target=work) for _ in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_computes_with_threads_of_its_own(threads):
    threads(2)
    x, w = RNG.standard_normal((4, 3, 20, 20)), RNG.standard_normal((5, 3, 3, 3))
    want = ck.conv2d(x, w, padding=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of fork while threads run; that is the test
        child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(ck.conv2d(x, w, padding=1), want) else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(ck.conv2d(x, w, padding=1), want)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (1.5, TypeError)])
def test_set_num_threads_refuses_nonsense(value, error):
    before = ck.num_threads()
    with pytest.raises(error, match="threads must be"):
        ck.set_num_threads(value)
    assert ck.num_threads() == before


def test_kernels_refuse_arrays_outside_their_contract():
    done = np.zeros(8)
    _who(8, 1, done)
    with pytest.raises(TypeError):
        _who(4, 1, done[::2])
    done.flags.writeable = False
    with pytest.raises(TypeError):
        _who(8, 1, done)


def _python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=300, env={**os.environ, **env},
    )  # fmt: skip


CONV = """
    import numpy as np, convkern as ck
    from convkern.kernels import compiler, rows
    compiled = []
    with compiler.watch(lambda name, phase: compiled.append((name, phase))):
        y = ck.conv2d(np.ones((1, 1, 4, 4), "f4"), np.ones((1, 1, 3, 3), "f4"))
    assert (y == 9).all()
    print([name for name, phase in compiled if phase == "done"])
"""


def test_kernels_are_kept_on_disk(tmp_path):
    first = _python(CONV, CONVKERN_CACHE_DIR=str(tmp_path))
    assert first.returncode == 0, first.stderr
    assert "conv." in first.stdout
    second = _python(CONV, CONVKERN_CACHE_DIR=str(tmp_path))
    assert second.returncode == 0, second.stderr
    assert second.stdout.strip() == "[]"
    # A damaged cache costs a compilation and a warning, never a failure.
    for file in tmp_path.rglob("*.nbc"):
        file.write_bytes(b"broken")
    third = _python(CONV.replace("import numpy", "import warnings; warnings.simplefilter('default'); import numpy"),
                    CONVKERN_CACHE_DIR=str(tmp_path))  # fmt: skip
    assert third.returncode == 0, third.stderr
    assert "its cache is unreadable" in third.stderr
    assert "conv." in third.stdout


def test_an_unwritable_cache_folder_is_said_and_survived(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    run = _python(CONV.replace("import numpy", "import warnings; warnings.simplefilter('default'); import numpy"),
                  CONVKERN_CACHE_DIR=str(file))  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "set CONVKERN_CACHE_DIR" in run.stderr


def test_the_cache_knows_the_sources_of_a_kernel():
    """All that a kernel's module imports in this package is in its hash, and what it does not import is not."""
    root = compiler.ROOT
    names = {path.relative_to(root).as_posix() for path in compiler.sources_of(root / "conv" / "cpu_depthwise.py")}
    assert {"conv/cpu_depthwise.py", "simd.py", "simd_shift.py", "threads.py", "compiler.py", "spec.py"} <= names
    assert not {"conv/cpu_tiled.py", "pool/cpu_planes.py"} & names
    assert all(path in compiler.sources_of(path) for path in root.rglob("*.py"))


def test_the_cache_follows_the_sources(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("a = 1")
    before = compiler.sources_hash((source,))
    source.write_text("a = 2")
    compiler.sources_hash.cache_clear()
    assert compiler.sources_hash((source,)) != before


def test_whatever_a_kernel_can_call_is_in_its_hash():
    for name, module in list(sys.modules.items()):
        if "kernels" not in name.split(".") or ".cpu_" not in name:
            continue
        mine = compiler.sources_of(Path(module.__file__).resolve())
        for value in vars(module).values():
            home = sys.modules.get(
                value.__name__ if type(value) is type(sys) else getattr(value, "__module__", None) or ""
            )
            if home is not None and ".kernels." in home.__name__:
                assert Path(home.__file__).resolve() in mine, (name, value)


def test_bad_thread_variable_is_named():
    run = _python("import convkern as ck; ck.num_threads()", CONVKERN_NUM_THREADS="many")
    assert run.returncode != 0
    assert "CONVKERN_NUM_THREADS must be a positive integer, got 'many'" in run.stderr


def test_two_kernels_never_share_a_name():
    """Machine code from the disk cache is linked by name: with one name for two kernels, one would run as the other."""

    def body(job, worker, y):
        y[job] = worker

    body.__name__ = "_who"
    with pytest.raises(ValueError, match=r"there is a kernel tests\.test_threads\._who already"):
        pool.parallel(body)


def test_kernels_compiled_by_different_processes_stay_apart(tmp_path):
    """Each process compiles one tile size; a third one loads both from the cache, in the other order."""
    code = """
        import numpy as np, sys
        from convkern.kernels.conv import cpu_tiled_weight as module, reference
        from convkern.kernels.spec import ConvSpec
        from convkern.kernels.threads import workspace
        from convkern.kernels.variant import Problem
        spec = ConvSpec(2, 5, 7, 1, (6, 6), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (6, 6))
        x, gy = np.random.default_rng(0).integers(-4, 5, (2, 2, 7, 6, 6)).astype("f4")
        x = x[:, :5].copy()
        for index in {order}:
            module._choose_tile = lambda *_: module.TILES[index]
            module.weight_work.cache_clear()
            out = np.empty(spec.w_shape, "f4")
            need = module.workspace_bytes(Problem("conv", "weight_grad", "cpu", "float32", "default", spec))
            module.weight_grad(x, gy, spec, workspace(need), out)
            assert (out == reference.weight_grad(x, gy, spec)).all(), index
    """
    for order in ("[0]", "[1]", "[-1]", "[1, 0, -1]"):
        run = _python(code.format(order=order), CONVKERN_CACHE_DIR=str(tmp_path), PYTHONHASHSEED="0")
        assert run.returncode == 0, run.stderr


def test_scratch_measured_for_one_dtype_serves_another():
    pool._local.scratch = None
    assert pool.workspace(20).nbytes % 8 == 0
    x = RNG.standard_normal((1, 3, 5, 5))
    w = RNG.standard_normal((2, 3, 1, 1))
    single = ck.conv2d(x.astype("f4"), w.astype("f4"))
    np.testing.assert_allclose(ck.conv2d(x, w), single, rtol=1e-4, atol=1e-5)


def test_threads_raised_after_scratch_was_measured_stay_out_of_it(threads):
    """Another Python thread may call set_num_threads between a row's measuring its scratch and its running."""
    from convkern.kernels import conv
    from convkern.kernels.variant import Problem

    spec = next(case for case in CONVS if case.n > 1).spec()._replace(n=40)
    x, w, gy = (RNG.integers(-4, 5, s).astype("f4") for s in (spec.x_shape, spec.w_shape, spec.y_shape))
    none = np.empty(0, "f4")
    inputs = {
        "forward": (x, w, none), "forward_residual": (x, w, none, gy), "input_grad": (gy, w), "weight_grad": (x, gy)
    }  # fmt: skip
    shapes = {
        "forward": spec.y_shape, "forward_residual": spec.y_shape, "input_grad": spec.x_shape, "weight_grad": spec.w_shape
    }  # fmt: skip
    for row in conv.VARIANTS:
        problem = Problem("conv", row.direction, "cpu", "float32", "default", spec)
        if (row.name, row.device) != ("tiled", "cpu"):
            continue
        results = []
        for later in (1, 4):
            threads(1)
            room = np.zeros(row.workspace(problem), np.uint8)
            guarded = np.concatenate([room, np.full(1 << 20, 0x5A, np.uint8)])
            out = np.empty(shapes[row.direction], "f4")
            threads(later)
            for _ in range(20):
                row.run(*inputs[row.direction], spec, guarded[: room.size], out)
            assert np.all(guarded[room.size :] == 0x5A)
            results.append(out)
        np.testing.assert_array_equal(*results)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be kept off cores here")
@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: ())(0)) < 2, reason="needs two cores")
def test_a_waking_helper_is_kept_off_the_callers_core(monkeypatch):
    done = threading.Event()
    sleeper = threading.Thread(target=done.wait)
    sleeper.start()
    cores = os.sched_getaffinity(0)
    try:
        for core in cores:
            monkeypatch.setattr(pool, "_libc_getcpu", lambda core=core: core)
            pool._keep_off_this_core(sleeper.native_id)
            assert os.sched_getaffinity(sleeper.native_id) == cores - {core}
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {min(cores)})
        monkeypatch.setattr(pool, "_libc_getcpu", lambda: min(cores))
        monkeypatch.setattr(os, "sched_setaffinity", lambda *_: pytest.fail("there is no other core"))
        pool._keep_off_this_core(sleeper.native_id)
    finally:
        done.set()
        sleeper.join()


def test_helpers_are_called_by_kernels_only():
    """They have no machine code of their own."""
    with pytest.raises(TypeError, match="zero_row is compiled into kernels only"):
        rows.zero_row(np.zeros(40), 0, 16)
