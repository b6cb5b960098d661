"""The plain float32 convolution on channels-last images: against the definition, interpreted, and inside whole steps."""

from __future__ import annotations

import numpy as np
import pytest

import convkern as ck
from convkern import plan
from convkern.kernels.cuda.tiles import product_of, product_parts
from convkern.kernels.variant import Problem

from . import fake_cupy
from .bounds import floats
from .cuda_checks import on_channels_last
from .gpu import TARGETS, cuda_rows, interpreted, needs_compiler
from .test_cuda_channels_last import CASES, conversions, last
from .test_cuda_rows import EDGES, ONE, PARTED, conv
from .test_kernels import row_id

pytestmark = needs_compiler

ROWS = [
    row
    for row in cuda_rows("conv")
    if row.name == "direct" and row.direction in ("forward", "forward_residual", "input_grad", "weight_grad")
]
# Around the edges of tiles and slices of 8 terms; groups, strides, dilation, uneven padding; one pixel, many images.
SPECS = [
    *EDGES[1:3], *EDGES[4:5], conv(2, 32, (5, 6), 16, (3, 2), (2, 1), ((1, 0), (0, 1)), (1, 2), groups=2),
    conv(1, 17, (4, 33), 9, (1, 1)), conv(3, 5, (5, 4), 129, (3, 3), (2, 3), ((1, 2), (0, 2))),
    conv(2, 4, (3, 3), 6, (3, 3)),
]  # fmt: skip


def asked(row, spec) -> Problem:
    return Problem("conv", row.direction, "cuda", "float32", "default", spec, "channels_last")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_images_are_read_and_written_as_they_lie(row, target):
    """Whole numbers: what is computed is exact."""
    with interpreted(target):
        for spec in SPECS:
            if row.direction.startswith("forward"):
                spec = spec._replace(activation=spec.k % 2)
            np.testing.assert_array_equal(*on_channels_last(row, asked(row, spec)))


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_sums_in_parts_are_joined_in_their_layout(row):
    """Bias, residual and ReLU come once, to the channel that they belong to."""
    direction = row.direction.removesuffix("_residual")
    spec = PARTED[f"conv {direction}"] if direction != "weight_grad" else conv(5, 9, (23, 29), 8, (3, 3), padding=ONE)
    spec = spec._replace(groups=1)
    assert product_parts(row.direction, product_of(row.direction, spec)) > 1
    with interpreted("sm_80"):
        np.testing.assert_array_equal(*on_channels_last(row, asked(row, spec)))


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_rounding_is_that_of_nchw_in_another_order(row):
    spec = conv(2, 20, (6, 7), 12, (3, 3), padding=ONE)
    with interpreted("sm_80"):
        got, want = on_channels_last(row, asked(row, spec), make=floats)
    terms = {"weight_grad": 2 * 6 * 7, "input_grad": 12 * 9}.get(row.direction, 20 * 9)
    scale = np.abs(want).max()
    assert np.abs(got - want).max() <= terms * np.finfo("f4").eps * scale * 30


def test_few_channels_a_group_are_left_to_rows_over_nchw():
    for row in ROWS:
        assert row.refuses(asked(row, conv(2, 16, (5, 5), 16, (3, 3), groups=2))) == ""
        for spec in (conv(2, 8, (5, 5), 16, (3, 3), groups=2), conv(2, 6, (5, 5), 6, (3, 3), groups=6)):
            assert row.refuses(asked(row, spec)) == "takes NCHW, not channels_last"
            assert row.refuses(asked(row, spec)._replace(layout="nchw")) == ""


@pytest.mark.parametrize("name", CASES)
def test_a_step_in_float32_converts_nothing_but_a_flatten(name, monkeypatch):
    case, rng = CASES[name], np.random.default_rng(8)
    x, labels = rng.standard_normal(case.shape).astype("f4"), rng.integers(0, 5, case.shape[0])

    def step(lay) -> tuple[float, list[np.ndarray]]:
        model = case.make().to("cuda")
        loss = ck.nn.functional.cross_entropy(model(lay), labels_there)
        loss.backward()
        return loss.item(), [p.grad.data.get() for p in model.parameters()]

    with fake_cupy.installed() as cupy:
        labels_there = cupy.array(labels)
        want, gradients = step(cupy.array(x))
        given = last(cupy.array(x))
        with conversions(monkeypatch) as seen, plan.traced() as rows:
            got, mine = step(given)
    assert tuple(seen.copied) == case.allowed
    products = [row.name for problem, row in rows if problem.operation == "conv" and problem.layout == "channels_last"]
    assert set(products) == {"direct"}
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for ours, theirs in zip(mine, gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())
