"""Matrix products: NumPy's results, and its number of threads left alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from convkern import blas


@pytest.mark.parametrize(("m", "k", "n"), [(3, 4, 5), (128, 400, 120), (400, 400, 400), (2, 0, 3)])
def test_product_is_matmul(m, k, n):
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (m, k)).astype("float32"), rng.integers(-4, 5, (k, n)).astype("float32")
    np.testing.assert_array_equal(blas.product(a, b), a @ b)


def test_the_number_of_blas_threads_is_restored():
    functions = blas._openblas()
    if functions is None:
        pytest.skip("NumPy runs on another BLAS than OpenBLAS here")
    read, write = functions
    before = read()
    try:
        for count in (1, 2):
            write(count)
            seen = []
            a = np.ones((8, 8))

            def work(count=count, a=a, seen=seen):
                for _ in range(200):
                    blas.product(a, a)
                seen.append(count)

            callers = [threading.Thread(target=work) for _ in range(4)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            assert len(seen) == 4
            assert read() == count
    finally:
        write(before)


def test_a_failing_product_restores_too():
    functions = blas._openblas()
    if functions is None:
        pytest.skip("NumPy runs on another BLAS than OpenBLAS here")
    before = functions[0]()
    with pytest.raises(ValueError, match="matmul"):
        blas.product(np.ones((2, 3)), np.ones((2, 3)))
    assert functions[0]() == before
