"""The row that multiplies whole patches, also where the plan would prefer another row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convkern.bench.cases import CONVS
from convkern.kernels import conv
from convkern.kernels.conv import cpu_patches
from convkern.kernels.variant import Problem

from .bounds import integers
from .test_kernels import DTYPES, check_conv, conv_specs
from .test_kernels_channels import MANY, spec_of

ROWS = [row for row in conv.VARIANTS if row.name == "patches"]
DIRECTIONS = pytest.mark.parametrize("row", ROWS, ids=[row.direction for row in ROWS])


@pytest.fixture(autouse=True)
def fresh_plans():
    """Work that was planned with changed constants must not outlive its test."""
    cpu_patches.patch_work.cache_clear()
    yield
    cpu_patches.patch_work.cache_clear()


@DIRECTIONS
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_the_case_table(row, dtype):
    for case in CONVS:
        assert check_conv(row, case.spec(), dtype)


@DIRECTIONS
@given(spec=conv_specs(), dtype=st.sampled_from(DTYPES))
def test_exact_on_generated_shapes(row, spec, dtype):
    assert check_conv(row, spec, dtype, make=integers, exact=True)


LARGE = [
    spec_of(1, 150, 70, (4, 4), (3, 3), padding=((1, 1), (1, 1))),  # a strip and a rest, more filters than terms
    spec_of(5, 130, 67, (3, 5), (1, 17), padding=((0, 0), (8, 8))),  # taps wider than a vector, three strips
    spec_of(3, 2050, 5, (1, 1), (1, 1)),  # three pixels
    spec_of(1, 66, 130, (8, 9), (4, 2), dilation=(1, 3), groups=2),
]


@DIRECTIONS
@pytest.mark.parametrize("spec", LARGE, ids=lambda spec: f"{spec.c}-{spec.k}")
def test_strips_and_terms(row, spec):
    assert check_conv(row, spec, "float32", make=integers, exact=True)


@DIRECTIONS
@pytest.mark.parametrize("pixels", [1, 5, 7])
def test_chunks_that_end_within_images(row, pixels, monkeypatch):
    for spec in (*MANY, *LARGE):
        cpu_patches.patch_work.cache_clear()
        monkeypatch.undo()
        whole = cpu_patches.patch_work(spec, 4)

        assert whole.layout.room == whole.pixels
        cpu_patches.patch_work.cache_clear()
        monkeypatch.setattr(cpu_patches, "CHUNK_BYTES", int(whole.patches * 4 / whole.pixels) * pixels)
        assert len(cpu_patches.patch_work(spec, 4).chunks) > 1 or whole.pixels <= pixels
        assert check_conv(row, spec, "float32", make=integers, exact=True)


@DIRECTIONS
def test_the_plan_takes_it_for_few_pixels_and_many_weights(row):
    few, many = (spec_of(n, 256, 256, (size, size), (3, 3), padding=((1, 1), (1, 1))) for n, size in ((1, 3), (16, 28)))
    assert not row.slower(Problem("conv", row.direction, "cpu", "float32", "strict", few))
    assert "times the" in row.slower(Problem("conv", row.direction, "cpu", "float32", "strict", many))
