"""CUDA rows that have no twin on the CPU, against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np

from convkern.kernels.entropy import reference as entropy_reference
from convkern.kernels.entropy.spec import EntropySpec
from convkern.kernels.reduce import reference as reduce_reference
from convkern.kernels.spec import ChannelSpec

from .bounds import assert_within, floats
from .test_kernels import run

EPS = float(np.finfo("f4").eps)


def check_entropy(row: Any, spec: EntropySpec, wrong: bool = True) -> bool:
    """An exponential is off by 2 units (NVIDIA) and its argument's rounding, a sum of C by γ, a logarithm by 1 unit."""
    rng = np.random.default_rng(9)
    x = rng.normal(0, 3, (spec.n, spec.c, spec.pixels)).astype("f4")
    labels = rng.integers(0, spec.c, (spec.n, spec.pixels))
    if labels.size and wrong:
        labels.reshape(-1)[::3] = spec.ignored
        labels.reshape(-1)[-1] = spec.c  # is no class
    size = np.abs(x).max(initial=1)
    wide = x.astype(np.float64)
    losses, logs, total = entropy_reference.forward(wide, labels, spec)
    if row.direction == "forward":
        got = np.empty_like(losses, "f4"), np.empty_like(logs, "f4"), np.empty(2, "f4")
        if not run("entropy", row, spec, "float32", x, labels, out=got):
            return False
        bound = EPS * (4 + spec.c + 4 * size)
        np.testing.assert_allclose(got[0], losses, rtol=0, atol=bound)
        np.testing.assert_allclose(got[1], logs, rtol=0, atol=bound)
        np.testing.assert_allclose(got[2], total, rtol=0, atol=bound * max(1, labels.size))
        assert not labels.size or not wrong or np.isnan(got[2][0])
        return True
    rates = rng.normal(0, 1, labels.shape).astype("f4")
    out, rounded = np.empty_like(x), logs.astype("f4")
    if not run("entropy", row, spec, "float32", x, labels, rounded, rates, out=(out,)):
        return False
    want = entropy_reference.input_grad(wide, labels, rounded.astype(np.float64), rates.astype(np.float64), spec)
    bound = EPS * (8 + 4 * size) * np.abs(rates)[:, None] * np.ones_like(want)
    bad = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(out), bad)
    assert (np.abs(out - want) <= bound)[~bad].all()
    return True


def check_sum(row: Any, spec: ChannelSpec) -> bool:
    x = floats(np.random.default_rng(10), (spec.n, spec.c, spec.pixels), "float32")
    out = np.empty(spec.c, "f4")
    if not run("reduce", row, spec, "float32", x, out=(out,)):
        return False
    wide = x.astype(np.float64)
    magnitude = reduce_reference.sum(np.abs(wide), spec)
    assert_within(out, reduce_reference.sum(wide, spec), magnitude, max(1, spec.n * spec.pixels))
    return True
