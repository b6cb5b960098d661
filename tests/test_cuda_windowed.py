"""What the CUDA rows by windows in registers have in common: the weight gradients of depthwise layers and few channels."""

from __future__ import annotations

import numpy as np
import pytest

from convkern.kernels.conv import cuda_depthwise, cuda_tiled_weight, tiled_grid
from convkern.kernels.spec import ConvSpec
from convkern.kernels.variant import Problem

from .bounds import integers
from .cuda_checks import run_as_stored
from .gpu import cuda_rows, interpreted, needs_compiler
from .test_cuda_rows import DEPTHWISE_EDGES, TILED_EDGES, conv
from .test_kernels import conv_definition

ROWS = {row.name: row for row in cuda_rows("conv") if row.direction == "weight_grad"}


def parts_of(name: str, spec: ConvSpec, last: bool) -> int:
    if name == "depthwise":
        return cuda_depthwise._weight_work(spec, "float32", last)[2]
    grid = cuda_tiled_weight._grid(spec)
    return -(-grid.terms // grid.chunk)


@pytest.fixture
def cut(monkeypatch):
    """Into how many parts sums are cut."""
    caches = cuda_depthwise._weight_work, cuda_tiled_weight._grid

    def change(parts: int) -> None:
        monkeypatch.setattr(cuda_depthwise, "depthwise_parts", lambda spec, last: parts)
        monkeypatch.setattr(tiled_grid, "window_parts", lambda blocks, pixels: parts)
        for cache in caches:
            cache.cache_clear()

    yield change
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


CUT = [
    *(
        ("depthwise", layout, spec)
        for layout in ("nchw", "channels_last")
        for spec in (*DEPTHWISE_EDGES[:4], DEPTHWISE_EDGES[6])
    ),
    *(("tiled", "nchw", spec) for spec in (TILED_EDGES[0], TILED_EDGES[3])),
]


@needs_compiler
@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize(("name", "layout", "spec"), CUT)
def test_the_weight_gradients_sums_are_cut_anywhere(name, layout, spec, parts, cut):
    """Parts that begin and end inside of rows."""
    cut(parts)
    assert 1 < parts_of(name, spec, layout != "nchw") <= parts
    x, gy = (
        integers(np.random.default_rng(seed), shape, "f4") for seed, shape in enumerate((spec.x_shape, spec.y_shape))
    )
    row, problem = ROWS[name], Problem("conv", "weight_grad", "cuda", "float32", "default", spec, layout)
    row = row._replace(workspace=lambda problem: 4 * parts * np.prod(spec.w_shape))
    with interpreted("sm_90a"):
        got = run_as_stored(row, problem, [x, gy])
    np.testing.assert_array_equal(got, conv_definition("weight_grad", spec, x, gy))


@needs_compiler
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(("name", "layout"), [("depthwise", "nchw"), ("depthwise", "channels_last"), ("tiled", "nchw")])
def test_what_is_no_pixel_of_gy_meets_no_infinity(name, layout, step):
    """The rows of a strip below the last one would meet the last row of x by other taps than those above do."""
    outer = 5 if name == "tiled" else 2
    spec = conv(
        1,
        2,
        (7, 3),
        outer,
        (3, 3),
        (step, step),
        ((0, 1 if step == 1 else 0), (0, 0)),
        groups=1 if name == "tiled" else 2,
    )
    x, gy = np.ones(spec.x_shape, "f4"), np.ones(spec.y_shape, "f4")
    x[0, 0, -1, 1] = np.inf
    want = conv_definition("weight_grad", spec, x.astype("f8"), gy.astype("f8"))
    with interpreted("sm_80"):
        got = run_as_stored(
            ROWS[name], Problem("conv", "weight_grad", "cuda", "float32", "default", spec, layout), [x, gy]
        )
    np.testing.assert_array_equal(got, want)
    assert 0 < np.isinf(want[:, 0]).sum() < 3 * outer
