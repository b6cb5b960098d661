"""CUDA rows that have no twin on the CPU, against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np

from convkern.kernels.entropy import reference as entropy_reference
from convkern.kernels.entropy.spec import EntropySpec
from convkern.kernels.reduce import reference as reduce_reference
from convkern.kernels.spec import ChannelSpec
from convkern.kernels.variant import Problem, Variant
from convkern.plan import HALVES

from .bounds import assert_within, floats, from_halves, gamma, halves, integers
from .test_kernels import conv_definition, conv_shapes, run

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


# --- convolution over arrays of halves, and in both layouts

IMAGES = {"forward": (0,), "forward_residual": (0, 3), "input_grad": (0,), "weight_grad": (0, 1)}  # among the arguments
UNITS = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}  # relative rounding, and that of denormals


def last(array: np.ndarray) -> np.ndarray:
    """The same values with channels side by side."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def run_as_stored(row: Variant, problem: Problem, arrays: list[np.ndarray]) -> np.ndarray:
    """What the row writes of float32 arrays, which are stored in the problem's dtype and layout; as float32."""
    assert row.refuses(problem) == ""
    kind, lie = problem.dtype, last if problem.layout == "channels_last" else np.asarray
    store = (lambda array: halves(array, kind)) if kind in HALVES else np.copy
    given = [lie(store(a)) if i in IMAGES[row.direction] else store(a) for i, a in enumerate(arrays)]
    copies = [array.copy() for array in given]
    out = store(np.full(conv_shapes(row.direction, problem.spec)[1], np.nan, "f4"))
    out = out if row.direction == "weight_grad" else lie(out)
    row.run(*given, problem.spec, np.full(row.workspace(problem), 0xFF, np.uint8), out)
    for array, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(array, copy)  # inputs are not written to
    got = np.ascontiguousarray(out)
    return from_halves(got, kind) if kind in HALVES else got


def on_channels_last(row: Variant, problem: Problem, make: Any = integers) -> tuple[np.ndarray, np.ndarray]:
    """What the row writes in the problem's layout, and the definition; of halves both as float32."""
    rng, kind = np.random.default_rng(9), problem.dtype
    arrays = [make(rng, shape, "float32") for shape in conv_shapes(row.direction, problem.spec)[0]]
    want = conv_definition(row.direction, problem.spec, *(array.astype(np.float64) for array in arrays))
    got = run_as_stored(row, problem, arrays)
    return (got, from_halves(halves(want.astype("f4"), kind), kind)) if kind in HALVES else (got, want)


def check_as_stored(row: Variant, problem: Problem) -> bool:
    """The exact sums of integers, rounded once; and sums of floats inside γ, halves rounded once more."""
    np.testing.assert_array_equal(*on_channels_last(row, problem))
    rng, spec, kind = np.random.default_rng(4), problem.spec, problem.dtype
    shapes, _, terms = conv_shapes(row.direction, spec)
    arrays = [floats(rng, shape, "float32") for shape in shapes]
    if kind in HALVES:
        arrays = [from_halves(halves(array, kind), kind) for array in arrays]
    got, wide = run_as_stored(row, problem, arrays), [array.astype(np.float64) for array in arrays]
    want = conv_definition(row.direction, spec, *wide)
    magnitude = conv_definition(row.direction, spec._replace(activation=0), *map(np.abs, wide))
    if kind not in HALVES:
        assert_within(got, want, magnitude, terms)
        return True
    unit, least = UNITS[kind]
    error = gamma(terms, np.dtype("f4")) * magnitude
    assert (np.abs(got - want) <= error + unit * (np.abs(want) + error) + least).all()
    return True
