"""Padding: rows against the definition, the definition and the operation against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convkern as ck
from convkern import plan
from convkern.kernels import pad
from convkern.kernels.pad import reference
from convkern.kernels.spec import PadSpec
from convkern.kernels.variant import Problem
from convkern.nn import functional as F

from .bounds import floats, integers
from .test_kernels import DTYPES, cpu_rows, run
from .test_ops import compare, functional, normal

MODES = ("constant", "reflect", "replicate", "circular")


def check(spec: PadSpec, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, gy = floats(rng, spec.x_shape, dtype), integers(rng, spec.y_shape, dtype)
    for row in cpu_rows(pad.VARIANTS):
        given, want = (x, reference.forward) if row.direction == "forward" else (gy, reference.backward)
        out = np.empty(spec.y_shape if row.direction == "forward" else spec.x_shape, dtype)
        assert run("pad", row, spec, dtype, given, out=(out,))
        np.testing.assert_array_equal(out, want(given, spec))


@st.composite
def specs(draw) -> PadSpec:
    mode = draw(st.sampled_from(MODES))
    size = tuple(draw(st.integers(1, 6)) for _ in range(3))
    most = {"reflect": [n - 1 for n in size], "circular": size}.get(mode, (9, 9, 9))
    low = -2 if mode == "constant" else 0
    sides = []
    for n, limit in zip(size, most, strict=True):
        before, after = draw(st.integers(low, limit)), draw(st.integers(low, limit))
        sides.append((before, after) if n + before + after > 0 and min(before, after) >= -n else (0, 0))
    return PadSpec(draw(st.integers(0, 3)), size, tuple(sides), mode, draw(st.sampled_from([0.0, 2.5])))


@given(spec=specs(), dtype=st.sampled_from(DTYPES))
def test_rows_on_generated_shapes(spec, dtype):
    check(spec, dtype)


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_several_jobs(mode, monkeypatch):
    from convkern.kernels.pad import cpu_rows as rows

    monkeypatch.setattr(rows, "PIXELS", 100)
    check(PadSpec(7, (2, 5, 40), ((1, 0), (2, 3), (4, 1)), mode), "float32")


CASES = [
    ((2, 3, 7), (2, 3)),
    ((2, 3, 5, 7), (2, 3)),
    ((2, 3, 5, 7), (1, 2, 0, 4)),
    ((3, 5, 7), (1, 2, 3, 4)),
    ((2, 3, 4, 5, 6), (1, 2, 3, 0, 2, 1)),
    ((2, 4, 5, 6), (1, 2, 3, 0, 2, 1)),
    ((2, 3, 5, 7), (0, 0, 0, 0)),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "sides"), CASES, ids=str)
def test_pad_is_pytorchs(shape, sides, mode):
    if mode != "constant" and len(shape) - len(sides) // 2 not in (1, 2):
        pytest.skip("PyTorch pads the last axes of (N, C, …) or (C, …) only")
    torch_pad = functional().pad
    compare(lambda x: F.pad(x, sides, mode), lambda x: torch_pad(x, sides, mode), normal(*shape))


@pytest.mark.parametrize("sides", [(-1, 2), (-2, -1), (1, -3, -1, 2), (3, 0, -2, 0, 1, -1)], ids=str)
def test_pad_with_a_constant_cuts_off_too(sides):
    torch_pad = functional().pad
    compare(
        lambda x: F.pad(x, sides, value=-1.5), lambda x: torch_pad(x, sides, value=-1.5), normal(2, 3, 4, 5, 6)
    )  # fmt: skip


def test_whole_planes_come_around():
    x = normal(1, 1, 3, 4)
    np.testing.assert_array_equal(F.pad(x, (4, 4, 3, 3), "circular"), np.tile(x, (1, 1, 3, 3)))


def test_a_missing_cuda_row_is_named():
    problem = Problem("pad", "backward", "cuda", "float32", "default", PadSpec(1, (1, 2, 2), ((0, 0),) * 3, "reflect"))
    with pytest.raises(NotImplementedError, match=r"no row for pad\.backward cuda .*'rows': 'runs on the CPU only'"):
        plan.plan(problem)


X = np.zeros((2, 3, 4, 5), np.float32)
ERRORS = {
    "mode": (lambda: F.pad(X, (1, 1), "zeros"), ValueError, "mode must be one of constant, .* got 'zeros'"),
    "value": (lambda: F.pad(X, (1, 1), "reflect", 1.0), ValueError, r"mode 'reflect' takes no value, got 1\.0"),
    "odd": (lambda: F.pad(X, (1, 1, 1)), ValueError, r"pad must be 2, 4 or 6 ints, two an axis of x \(2, 3, 4, 5\)"),
    "float": (lambda: F.pad(X, (1, 1.0)), TypeError, r"pad must be an int, got 1\.0"),
    "reflect": (lambda: F.pad(X, (5, 0), "reflect"), ValueError,
        r"mode 'reflect' takes at most 4 along axis 3 of x \(2, 3, 4, 5\), got \(5, 0\)"),
    "circular": (lambda: F.pad(X, (0, 0, 5, 0), "circular"), ValueError, "takes at most 4 along axis 2"),
    "negative": (lambda: F.pad(X, (-1, 0), "replicate"), ValueError, "pad must be at least 0, got -1"),
    "nothing left": (lambda: F.pad(X, (-3, -2)), ValueError, r"\(-3, -2\) leaves nothing of axis 3"),
    "integers": (lambda: F.pad(X.astype(int), (1, 1)), TypeError, "pad: x must be float32 or float64, got int64"),
    "mode of a layer": (lambda: ck.nn.Conv1d(1, 1, 3, padding_mode="mirror"), ValueError,
        "Conv1d: padding_mode must be one of zeros, reflect, replicate, circular, got 'mirror'"),
    "too small for a layer": (lambda: ck.nn.Conv2d(3, 1, 11, padding=5, padding_mode="reflect")(X), ValueError,
        r"mode 'reflect' takes at most 3 along axis 2 of x \(2, 3, 4, 5\), got \(5, 5\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
