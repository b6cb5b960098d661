"""The row that spreads output gradients over the input, also where the plan would prefer another row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convkern.bench.cases import CONVS
from convkern.kernels import conv
from convkern.kernels.conv import cpu_channels, cpu_spread
from convkern.kernels.variant import Problem, cpu_only

from .bounds import integers
from .test_kernels import DTYPES, check_conv, conv_specs
from .test_kernels_channels import MANY, spec_of

(ROW,) = (row for row in conv.VARIANTS if row.name == "spread")
ANY = ROW._replace(refuses=cpu_only)


@pytest.fixture(autouse=True)
def fresh_plans():
    """Work that was planned with changed constants must not outlive its test."""
    cpu_spread.gradient_work.cache_clear()
    yield
    cpu_spread.gradient_work.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
def test_on_the_case_table(dtype):
    for case in CONVS:
        assert check_conv(ANY, case.spec(), dtype)


@given(spec=conv_specs(), dtype=st.sampled_from(DTYPES))
def test_exact_on_generated_shapes(spec, dtype):
    assert check_conv(ANY, spec, dtype, make=integers, exact=True)


@pytest.mark.parametrize("tile", [*cpu_channels.TILES[::5], (3, 5, 1), (2, 1, 2)], ids=str)
def test_every_kind_of_tile(tile, monkeypatch):
    def choose(n, outer, widths, *rest):
        return cpu_channels.Tile(min(tile[0], n), min(tile[1], *widths), tile[2])

    monkeypatch.setattr(cpu_spread, "choose_tile", choose)
    for spec in MANY:
        assert check_conv(ANY, spec, "float32", make=integers, exact=True)


def test_the_plan_takes_it_for_outputs_much_smaller_than_the_input():
    small, same = (
        spec_of(2, 64, 96, (19, 19), (5, 5), stride=(3, 3)),
        spec_of(2, 64, 2, (19, 19), (3, 3), padding=((1, 1), (1, 1))),
    )
    huge = spec_of(1, 40, 16, (600, 600), (2, 2))
    assert not ROW.slower(Problem("conv", "input_grad", "cpu", "float32", "default", small))
    assert "times the" in ROW.slower(Problem("conv", "input_grad", "cpu", "float32", "default", same))
    assert "second-level cache" in ROW.refuses(Problem("conv", "input_grad", "cpu", "float32", "default", huge))
