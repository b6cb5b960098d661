"""Denormal numbers: flushed inside kernels on every thread, kept on demand, and the caller's own arithmetic untouched."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numba import types

import convkern as ck
from convkern.kernels import compiler, denormals
from convkern.kernels import threads as pool

TINY = {"float32": np.float32(2) ** -140, "float64": np.float64(2) ** -1060}  # denormal, and halves of them too


@pytest.fixture
def flush():
    """Set the mode; restored afterwards."""
    yield ck.set_flush_denormals
    ck.set_flush_denormals(True)


@pool.parallel
def _halve(job, worker, spins, x, y):
    half = y.dtype.type(0.5)
    for i in range(x.shape[1]):
        value = x[job, i]
        for _ in range(spins):
            value *= half
        y[job, i] = value


def _mode() -> int:
    read = compiler.cached_njit(lambda: denormals.float_mode(), types.int64())
    return int(read())


def halved(dtype: str, jobs: int = 64) -> np.ndarray:
    x = np.full((jobs, 50), TINY[dtype])
    y = np.ones_like(x)
    _halve(jobs, 1, x, y)
    return y


needs_flush = pytest.mark.skipif(not denormals.FLUSH_BITS, reason="this CPU's mode is not known")


@needs_flush
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 3])
def test_kernels_flush_on_every_thread_unless_told_otherwise(threads, flush, dtype, count):
    threads(count)
    np.testing.assert_array_equal(halved(dtype), 0)
    assert flush(False) is True
    np.testing.assert_array_equal(halved(dtype), TINY[dtype] / 2)
    assert flush(True) is True
    np.testing.assert_array_equal(halved(dtype), 0)


@needs_flush
def test_the_callers_mode_is_left_alone(threads, flush):
    for count in (1, 2):
        threads(count)
        for mode in (True, False):
            flush(mode)
            before = _mode()
            halved("float32")
            assert _mode() == before
    assert TINY["float32"] * np.float32(0.5) > 0  # NumPy still computes with them


@needs_flush
def test_a_caller_that_flushes_does_not_change_the_result(flush):
    """All threads compute alike, whatever mode the calling one comes with."""
    torch = pytest.importorskip("torch")
    flush(False)
    torch.set_flush_denormal(True)
    try:
        np.testing.assert_array_equal(halved("float32"), TINY["float32"] / 2)
    finally:
        torch.set_flush_denormal(False)


@needs_flush
def test_a_layer_of_tiny_weights_is_right_and_not_slow(threads, flush):
    """Weights that decayed to almost nothing: products and partial sums are denormal through and through."""
    threads(1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 32, 28, 28), np.float32)
    w = rng.standard_normal((32, 32, 3, 3), np.float32)
    tiny = w * np.float32(1e-39)
    assert 0 < np.abs(tiny).max() < np.finfo(np.float32).tiny
    np.testing.assert_array_equal(ck.conv2d(x, tiny, padding=1), 0)

    def seconds(weights: np.ndarray) -> float:
        best = np.inf
        for _ in range(20):
            began = time.thread_time()
            ck.conv2d(x, weights, padding=1)
            best = min(best, time.thread_time() - began)
        return best

    assert seconds(tiny) < 3 * seconds(w)  # 20 to 50 times on CPUs that compute denormals in microcode
    flush(False)
    want = ck.conv2d(x.astype(np.float64), tiny.astype(np.float64), padding=1)
    got = ck.conv2d(x, tiny, padding=1, precision="strict")  # Winograd's sums of weights would lose digits
    assert np.abs(want).max() > 1e-38
    # A denormal result has no relative precision left: each of the 288 products may be off by half the smallest number.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=288 * 1.5e-45)


def test_the_mode_must_be_a_bool():
    for mode in (1, None, "on"):
        with pytest.raises(TypeError, match="set_flush_denormals: mode must be True or False, got"):
            ck.set_flush_denormals(mode)
