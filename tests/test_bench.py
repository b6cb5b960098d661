"""The benchmarks' shape table is legal, and every rival in them computes the definition."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convkern import plan
from convkern.bench import cases, report, rivals
from convkern.bench.cases import ConvCase, PointwiseCase, PoolCase
from convkern.bench.rivals import pytorch
from convkern.kernels.conv import reference as conv_reference
from convkern.kernels.pointwise import reference as pointwise_reference
from convkern.kernels.pool import reference as pool_reference
from convkern.kernels.spec import ConvSpec
from convkern.ops.convolution import conv_spec
from convkern.ops.pooling import pool_spec

from .bounds import assert_within

ROOT = Path(__file__).parents[1]


def named(name: str) -> cases.Case:
    (case,) = cases.select([name])
    return case


# --- the table


def test_names_are_unique():
    assert [name for name, count in Counter(case.name for case in cases.ALL).items() if count > 1] == []


@pytest.mark.parametrize("case", cases.ALL, ids=str)
def test_cases_are_what_the_public_functions_accept(case):
    if isinstance(case, ConvCase):
        spec = case.spec()
        options = (case.stride, case.padding, case.dilation, case.groups)
        assert spec == conv_spec("conv2d", spec.x_shape, spec.w_shape, *options)
        assert case.flops == 2 * case.macs > 0
    elif isinstance(case, PoolCase):
        window = (case.kernel, case.stride, case.padding, case.dilation, case.ceil_mode)
        spec = case.spec()
        assert spec == pool_spec("max_pool2d", spec.x_shape, *window, case.count_include_pad, case.divisor)
    else:
        assert case.spec().pixels == case.size[0] * case.size[1]
        assert case.macs == case.n * case.c * case.k * case.size[0] * case.size[1]


def test_layers_have_the_sizes_of_their_networks():
    assert len(cases.LAYERS) == 23
    outs = {
        "lenet-2": 10,
        "alexnet-1": 55,
        "resnet-stem": 112,
        "resnet-down-1x1": 28,
        "depthwise-down": 14,
        "vgg-2": 32,
    }
    assert {name: named(name).spec().out for name in outs} == {name: (out, out) for name, out in outs.items()}
    assert named("vgg-2").macs == 32 * 64 * 32 * 32 * 64 * 9
    assert named("resnext-3x3").macs == 16 * 128 * 56 * 56 * 4 * 9
    assert named("depthwise").macs == 16 * 192 * 28 * 28 * 9


def test_small_cases_stay_awkward_and_small():
    specs = [case.spec() for case in cases.CONVS]
    assert max(case.macs for case in cases.CONVS if not case.name.startswith("blocks-")) < 40_000
    assert max(spec.multiply_adds for spec in specs) < 4_000_000
    assert {7, 8, 9, 15, 16, 17, 31, 33} <= {spec.size[1] for spec in specs}
    assert set(range(1, 8)) <= {spec.k for spec in specs}
    assert {(2, 2), (3, 3), (3, 1), (1, 3)} <= {spec.stride for spec in specs}
    assert any(case.symmetric_padding is None for case in cases.CONVS)
    assert any(spec.out == (1, 1) and spec.size == spec.kernel for spec in specs)
    assert any(min(spec.stride) > max(spec.kernel) for spec in specs)
    assert any(spec.padding[0][0] > spec.kernel[0] for spec in specs)
    assert any(spec.groups == spec.c == spec.k > 1 for spec in specs)
    assert any(max(spec.dilation) > 1 and max(spec.stride) > 1 for spec in specs)
    assert any(case.ceil_mode and case.spec().out != replace(case, ceil_mode=False).spec().out for case in cases.POOLS)


def test_random_cases_reach_everywhere_and_stay_the_same():
    specs = [case.spec() for case in cases.RANDOM]
    assert len(specs) == len(set(specs)) == 150
    assert {spec.stride[axis] for spec in specs for axis in range(2)} == {1, 2, 3}
    assert {spec.dilation[axis] for spec in specs for axis in range(2)} == {1, 2}
    assert min(spec.n for spec in specs) == 1
    assert max(spec.n for spec in specs) > 56
    for few in (
        [spec for spec in specs if spec.c % 2 and spec.k % 2],
        [spec for spec in specs if spec.kernel[0] != spec.kernel[1]],
        [spec for spec in specs if spec.size[0] != spec.size[1]],
        [spec for spec in specs if spec.stride[0] != spec.stride[1]],
        [spec for spec in specs if 1 < spec.groups < spec.c],
        [spec for spec in specs if spec.groups == spec.c > 1],
        [spec for spec in specs if spec.padding == ((0, 0), (0, 0))],
    ):
        assert len(few) >= 7
    # A sweep in three directions must end in minutes even at a tenth of a small CPU's speed.
    assert sum(spec.multiply_adds for spec in specs) < 10e9
    # The first one, written down: other draws would make old results incomparable.
    assert specs[0] == ConvSpec(
        3, 73, 146, 73, (82, 9), (7, 7), (1, 1), ((3, 3), (0, 0)), (1, 1), (82, 3)
    )  # fmt: skip


def test_select_takes_groups_names_and_patterns_each_case_once():
    assert cases.select(["lenet-1", "quick"])[0].name == "lenet-1"
    assert len({case.name for case in cases.select(["quick", "lenet-1"])}) == len(cases.GROUPS["quick"])
    assert {case.name for case in cases.select(["vgg-*"])} == {"vgg-1", "vgg-2"}
    assert cases.select(["width-1*"]) == tuple(case for case in cases.CONVS if case.name.startswith("width-1"))
    with pytest.raises(ValueError, match=r"cases must be quick, loops, layers, .*like lenet-1.*; got 'lenet1'"):
        cases.select(["lenet1"])


def test_the_table_imports_nothing_heavy():
    heavy = ("numba", "torch", "rich", "typer", "matplotlib")
    code = f"import sys, convkern.bench.cases; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


# --- the rivals


def definition(case: cases.Case, direction: str, inputs: rivals.Inputs) -> tuple[np.ndarray, int]:
    """What the reference makes of float64 inputs, and the number of terms in its longest sum."""
    spec = case.spec()
    x, w, gy = inputs
    if isinstance(case, PoolCase):
        window = math.prod(spec.kernel)
        if direction == "max_forward":
            return pool_reference.max_forward(x, spec)[0], 1
        arrays = {"max_backward": (gy, w), "avg_forward": (x,), "avg_backward": (gy,)}[direction]
        return getattr(pool_reference, direction)(*arrays, spec), window + 2
    if isinstance(case, PointwiseCase):
        pixels = case.n * spec.pixels
        terms = {"forward": case.c, "input_grad": case.k, "weight_grad": pixels}[direction]
        flat = (x.reshape(case.n, case.c, -1), gy.reshape(case.n, case.k, -1))
        arrays = {"forward": (flat[0], w, None), "input_grad": (flat[1], w), "weight_grad": flat}[direction]
        result = getattr(pointwise_reference, direction)(*arrays, spec)
        return result.reshape(*result.shape[:2], *case.size) if result.ndim == 3 else result, terms
    taps = math.prod(spec.kernel)
    terms = {"forward": spec.c * taps, "input_grad": spec.k * taps, "weight_grad": case.n * math.prod(spec.out)}
    arrays = {"forward": (x, w, None), "input_grad": (gy, w), "weight_grad": (x, gy)}[direction]
    return getattr(conv_reference, direction)(*arrays, spec), terms[direction]


CHECKED = ("everything", "padding-asymmetric-stride-2", "pointwise-wide", "pool-ceil-counted-out", "pool-divisor")


def contests() -> list:
    """Every rival in every direction that it has, whatever the operation."""
    known = {(r.name, direction): r for r in rivals.RIVALS for _, direction in r.functions}
    return [pytest.param(rival, direction, id=f"{name}-{direction}") for (name, direction), rival in known.items()]


@pytest.mark.parametrize(("rival", "direction"), contests())
def test_every_rival_computes_the_definition(rival, direction):
    if rival.name in report.TORCH:
        pytest.importorskip("torch")
    chosen = [case for case in map(named, CHECKED) if not rival.refuses(case, direction)]
    assert len(chosen) >= 2
    for case in chosen:
        check_rival(rival, case, direction)


def check_rival(rival: rivals.Rival, case: cases.Case, direction: str) -> None:
    inputs = rivals.make_inputs(case, seed=1)
    wide = rivals.Inputs(*(array if array.dtype.kind == "i" else array.astype(np.float64) for array in inputs))
    want, terms = definition(case, direction, wide)
    magnitude, _ = definition(case, direction, rivals.Inputs(*map(np.abs, wide)))
    got = rival.array(rival.call(case, direction, inputs)())
    assert got.dtype == np.float32
    if direction == "max_forward":
        np.testing.assert_array_equal(got, want)
    else:
        assert_within(got, want, magnitude, terms)


@pytest.mark.parametrize("name", [*CHECKED, "plain", "pool-dilation"])
def test_every_row_computes_the_definition(name):
    case = named(name)
    for direction in case.directions:
        rows = {row.name: row for row in rivals.rows(case, direction)}
        assert rows, f"no row takes {case} {direction}"
        for row in plan.rows(case.operation, direction):
            # Rows that trade accuracy state a bound of their own, tested with the kernels.
            if row.accuracy == "exact" and f"row:{row.name}" in rows:
                check_rival(rows[f"row:{row.name}"], case, direction)


def test_every_rival_takes_the_cases_it_exists_for():
    conv = named("lenet-1-image")
    refused = {rival.name: rival.refuses(conv, "forward") for rival in rivals.RIVALS if not rival.missing()}
    assert set(refused.values()) == {""}


def test_python_loops_refuse_big_cases():
    python = next(rival for rival in rivals.RIVALS if rival.name == "python")
    case = named("vgg-2")
    assert python.refuses(named("loops-3x3"), "forward") == ""
    with pytest.raises(ValueError, match=r"python cannot run vgg-2 forward: 1,207,959,552 multiply-adds are too many"):
        python.call(case, "forward", rivals.Inputs(None, None, None))
    with pytest.raises(ValueError, match=r"python cannot run pool-plain max_forward: python has no pool max_forward"):
        python.call(named("pool-plain"), "max_forward", rivals.Inputs(None, None, None))


def test_missing_pytorch_is_left_out_or_named(monkeypatch):
    monkeypatch.setattr(pytorch, "find_spec", lambda name: None)
    names = [rival.name for rival in rivals.select(["*"])]
    assert names == ["convkern", "numba-parallel", "numba", "numpy", "python"]
    with pytest.raises(ModuleNotFoundError, match=r"rival torch: PyTorch is not installed \(pip install torch\)"):
        rivals.select(["torch"])
    with pytest.raises(ValueError, match=r"rivals must be among convkern, torch, .*; got 'tensorflow'"):
        rivals.select(["tensorflow"])
    assert [rival.name for rival in rivals.select(["numpy"])] == ["convkern", "numpy"]


def test_rivals_that_disagree_are_not_compared():
    right = np.ones((2, 3), np.float32)
    rivals.check_agreement({"a": right, "b": right * np.float32(1.0005)}, "case")
    for wrong in (right * np.float32(1.002), np.where(right > 0, np.nan, right)):
        with pytest.raises(rivals.Disagreement, match=r"vgg-1 forward: b and a differ by .*, results reach 1"):
            rivals.check_agreement({"a": right, "b": wrong}, "vgg-1 forward")
    with pytest.raises(rivals.Disagreement, match=r"b gives shape \(3, 2\), a gives \(2, 3\)"):
        rivals.check_agreement({"a": right, "b": right.T}, "case")
