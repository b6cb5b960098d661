"""The rows with vectors of channels, also where the plan would prefer another row, with every kind of tile and block."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convkern.bench.cases import CONVS
from convkern.kernels import conv
from convkern.kernels.conv import cpu_channels, cpu_channels_weight
from convkern.kernels.spec import ConvSpec, output_size
from convkern.kernels.variant import Problem, cpu_only

from .bounds import integers
from .test_kernels import DTYPES, check_conv, conv_specs, row_id

ROWS = [row._replace(refuses=cpu_only) for row in conv.VARIANTS if row.name == "channels"]
CACHES = (cpu_channels._forward_work, cpu_channels._gradient_work, cpu_channels_weight._work)


def spec_of(n, c, k, size, kernel, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1) -> ConvSpec:
    out = tuple(output_size(size[i], kernel[i], stride[i], padding[i], dilation[i]) for i in range(2))
    return ConvSpec(n, c, k, groups, size, kernel, stride, padding, dilation, out)


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
    for case in CONVS:
        assert check_conv(row, case.spec(), dtype)


@given(spec=conv_specs(), dtype=st.sampled_from(DTYPES))
def test_exact_on_generated_shapes(spec, dtype):
    for row in ROWS:
        assert check_conv(row, spec, dtype, make=integers, exact=True)


MANY = [
    spec_of(3, 5, 37, (9, 11), (3, 3), padding=((1, 1), (1, 1))),
    spec_of(2, 3, 48, (13, 30), (2, 5), stride=(2, 1), padding=((0, 1), (2, 0))),
    spec_of(5, 20, 33, (7, 7), (3, 3), stride=(2, 2), padding=((1, 1), (1, 1))),
    spec_of(2, 34, 70, (8, 17), (1, 4), stride=(1, 3), dilation=(1, 2)),
    spec_of(7, 40, 18, (4, 2), (2, 2), padding=((1, 1), (1, 1)), groups=2),
    spec_of(3, 18, 20, (6, 40), (1, 17), padding=((0, 0), (8, 8))),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_many_channels(row, dtype):
    """Several blocks of channels with an odd last one, tails of rows, images and vectors."""
    for spec in MANY:
        assert check_conv(row, spec, dtype, make=integers, exact=True)
        assert check_conv(row, spec, dtype)


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_tiny_blocks(row, monkeypatch):
    """Every loop over strips, images, blocks and parts has several turns and an odd last one."""
    monkeypatch.setattr(cpu_channels, "STRIP_BYTES", 900)
    monkeypatch.setattr(cpu_channels, "JOBS", 50)
    monkeypatch.setattr(cpu_channels_weight, "STRIP_BYTES", 1500)
    monkeypatch.setattr(cpu_channels_weight, "SUM_BYTES", 3000)
    monkeypatch.setattr(cpu_channels_weight, "FILTERS", 16)
    monkeypatch.setattr(cpu_channels_weight, "JOBS", 50)
    monkeypatch.setattr(cpu_channels_weight, "PART", 20)
    for spec in [case.spec() for case in CONVS] + MANY:
        assert check_conv(row, spec._replace(n=spec.n + 4), "float32", make=integers, exact=True)


@pytest.mark.parametrize("row", ROWS[:2], ids=row_id)
@pytest.mark.parametrize("tile", [*cpu_channels.TILES[::5], (3, 5, 1)], ids=str)
def test_every_kind_of_tile(row, tile, monkeypatch):
    def choose(n, outer, widths, *rest):
        images, width, columns = tile
        return cpu_channels.Tile(min(images, n), min(width, *widths), columns)

    monkeypatch.setattr(cpu_channels, "choose_tile", choose)
    for spec in MANY:
        assert check_conv(row, spec, "float32", make=integers, exact=True)


@pytest.mark.parametrize("tile", [(1, 1), (3, 1), (2, 2), (1, 3)])
def test_every_kind_of_weight_tile(tile, monkeypatch):
    def choose(kg, groups, width, lanes):
        return cpu_channels_weight.Tile(tile[0], width, tile[1])

    monkeypatch.setattr(cpu_channels_weight, "_choose_tile", choose)
    for spec in MANY:
        assert check_conv(ROWS[2], spec, "float32", make=integers, exact=True)


def test_the_plan_takes_them_for_many_channels_only():
    few = spec_of(4, 3, 4, (28, 28), (3, 3))
    many = spec_of(4, 64, 64, (14, 14), (3, 3), padding=((1, 1), (1, 1)))
    for row in conv.VARIANTS:
        if row.name == "channels":
            assert "tiled" not in row.slower(Problem("conv", row.direction, "cpu", "float32", "default", many))
            assert "row's time" in row.slower(Problem("conv", row.direction, "cpu", "float32", "default", few))
