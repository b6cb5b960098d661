"""The rows with vectors of images, also where the plan would prefer another row, with every tile and kind of strip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convkern.bench.cases import CONVS
from convkern.kernels import conv
from convkern.kernels.conv import cpu_images, cpu_images_weight
from convkern.kernels.variant import cpu_only

from .bounds import integers
from .test_kernels import DTYPES, check_conv, conv_specs, row_id

ROWS = [row._replace(refuses=cpu_only) for row in conv.VARIANTS if row.name == "images"]
CACHES = (cpu_images.forward_work, cpu_images.gradient_work, cpu_images_weight.weight_work)


@pytest.fixture(autouse=True)
def fresh_plans():
    """Work that was planned with changed constants must not outlive its test."""
    for cache in CACHES:
        cache.cache_clear()
    yield
    for cache in CACHES:
        cache.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_on_the_case_table(row, dtype):
    for number, case in enumerate(CONVS):
        assert check_conv(row, case.spec()._replace(n=(1, 8, 9, 16, 19, 33)[number % 6]), dtype)


@given(spec=conv_specs(), n=st.integers(1, 35), dtype=st.sampled_from(DTYPES))
def test_exact_on_generated_shapes(spec, n, dtype):
    for row in ROWS:
        assert check_conv(row, spec._replace(n=n), dtype, make=integers, exact=True)


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_in_strips_of_a_row(row, monkeypatch):
    """No budget at all: every strip is one row of results, and the filters of a weight gradient are cut too."""
    monkeypatch.setattr(cpu_images, "SCRATCH_BYTES", 0)
    monkeypatch.setattr(cpu_images_weight, "SCRATCH_BYTES", 0)
    monkeypatch.setattr(cpu_images_weight, "SUM_BYTES", 0)
    for number, case in enumerate(CONVS):
        assert check_conv(row, case.spec()._replace(n=(17, 5)[number % 2]), "float32", make=integers, exact=True)


@pytest.mark.parametrize("tile", cpu_images.TILES, ids=lambda tile: f"{tile[0]}x{tile[1]}")
@pytest.mark.parametrize("row", [row for row in ROWS if row.direction != "weight_grad"], ids=row_id)
def test_every_tile(row, tile, monkeypatch):
    monkeypatch.setattr(cpu_images, "_choose_tile", lambda *_: tile)
    for case in CONVS[:: len(CONVS) // 12]:
        groups = case.spec().groups
        spec = case.spec()._replace(n=9, c=13 * groups, k=13 * groups)  # no tile is higher
        widths = (spec.out[1], -(-spec.size[1] // spec.stride[1]) - 1)  # of results, and of a class of input pixels
        if tile[1] <= min(widths):
            assert check_conv(row, spec, "float32", make=integers, exact=True)
