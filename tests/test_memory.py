"""The pool: large results reuse what collected arrays left, and nobody can tell otherwise."""

from __future__ import annotations

import gc
import threading
import tracemalloc

import numpy as np
import pytest

import convkern as ck
from convkern import memory

LARGE = (300, 400)  # 480 KB of float32


@pytest.fixture(autouse=True)
def fresh_pool():
    gc.collect()
    memory.empty_cache()
    yield
    memory.empty_cache()


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_a_collected_array_serves_the_next():
    first = memory.empty(LARGE, np.float32)
    where = address(first)
    assert first.shape == LARGE
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    assert first.flags.writeable
    assert where % 64 == 0
    other = memory.empty(LARGE, np.float32)
    assert not np.may_share_memory(first, other)
    del first
    again = memory.empty((400, 300), np.float32)
    assert address(again) == where
    assert not np.may_share_memory(again, other)


def test_memory_is_held_as_long_as_any_view_lives():
    array = memory.empty(LARGE, np.float32)
    array[...] = 7
    view = array[10:20].reshape(-1)[::3].T
    del array
    for _ in range(4):
        memory.empty(LARGE, np.float32)[...] = 0
    assert np.all(view == 7)
    assert memory.is_view(view)
    where = memory._pool.waiting
    del view
    assert memory._pool.waiting > where


def test_small_arrays_are_numpys():
    assert memory.empty((3, 4), np.float64).base is None
    assert memory.empty((0, 1 << 20), np.float64).shape == (0, 1 << 20)
    assert not memory.is_view(memory.empty(LARGE, np.float64))


def test_the_pool_is_bounded(monkeypatch):
    monkeypatch.setattr(memory, "KEPT", 1_000_000)
    arrays = [memory.empty(LARGE, np.float32) for _ in range(5)]
    del arrays
    assert 0 < memory._pool.waiting <= 1_000_000
    memory.empty_cache()
    assert memory._pool.waiting == 0


@pytest.mark.parametrize("nbytes", [64 * 1024, 100_001, 1 << 20, 123_456_789])
def test_sizes_waste_at_most_an_eighth(nbytes):
    assert nbytes <= memory._size_class(nbytes) <= nbytes * 9 / 8


def test_a_steady_step_takes_no_new_block(monkeypatch):
    taken = []
    fresh = memory.bytearray if hasattr(memory, "bytearray") else bytearray
    monkeypatch.setattr(memory, "bytearray", lambda n: taken.append(n) or fresh(n), raising=False)
    model = ck.models.lenet5()
    x = np.random.default_rng(0).standard_normal((64, 1, 28, 28), dtype=np.float32)
    labels = np.arange(64) % 10

    def step() -> None:
        model.zero_grad()
        ck.nn.functional.cross_entropy(model(x), labels).backward()

    step()
    assert taken
    step()
    taken.clear()
    for _ in range(3):
        step()
    assert not taken


def test_many_threads_share_the_pool():
    wrong = []

    def work(number: int) -> None:
        for _ in range(200):
            array = memory.empty(LARGE, np.float32)
            array[...] = number
            if not np.all(array == number):
                wrong.append(number)

    callers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.parametrize("name", ["lenet5", "resnet18_cifar", "vgg16_cifar"])
def test_a_steady_step_takes_no_new_memory(name):
    """After a few steps all large arrays come from the pool; what NumPy allocates besides is small."""
    channels, size = (1, 28) if name == "lenet5" else (3, 32)
    model = ck.models.build(name)
    optimizer = ck.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = np.random.default_rng(0).standard_normal((8, channels, size, size)).astype(np.float32)
    labels = np.arange(8)

    def step():
        optimizer.zero_grad()
        ck.nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    for _ in range(3):
        step()
    gc.collect()
    before = memory.misses()
    tracemalloc.start()
    try:
        step()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert memory.misses() == before
    assert peak - held < 1 << 20  # a single activation of VGG16 at this batch has 2 MiB


def test_misses_are_counted():
    memory.empty_cache()
    before = memory.misses()
    first = memory.empty((1 << 20,), np.float32)
    assert memory.misses() == before + 1
    del first
    assert memory.empty((1 << 20,), np.float32).size == 1 << 20
    assert memory.misses() == before + 1
