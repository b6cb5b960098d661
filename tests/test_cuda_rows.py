"""Every CUDA row against the definition: the PTX that Numba emits for it, in the interpreter."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkern.bench.cases import CONVS, POINTWISE
from convkern.kernels.conv import reference as conv_reference
from convkern.kernels.cuda.tiles import product_of, product_parts
from convkern.kernels.elementwise import reference as elementwise_reference
from convkern.kernels.residual import with_residual
from convkern.kernels.spec import ChannelSpec, ConvSpec, ElementwiseSpec, PointwiseSpec, PoolSpec, output_size
from convkern.kernels.variant import Problem, Variant, cpu_only, no_workspace

from .bounds import assert_within, floats, integers
from .gpu import NUMPY, TABLES, TARGETS, any_target, cuda_rows, interpreted, needs_compiler
from .test_kernels import check_conv, check_pointwise, check_pool, cuda_pool_specs, row_id, run

KERNELS = Path(__file__).parents[1] / "kernels"


def conv(n, c, size, k, kernel, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1) -> ConvSpec:
    out = tuple(output_size(size[i], kernel[i], stride[i], padding[i], dilation[i]) for i in range(2))
    return ConvSpec(n, c, k, groups, size, kernel, stride, padding, dilation, out)  # type: ignore[arg-type]


ONE = ((1, 1), (1, 1))
# Around the edges of the tiles (8 x 256, 32 x 128, 128 x 128, slices of 8), and every kind of geometry.
EDGES = [
    conv(1, 1, (1, 1), 1, (1, 1)),
    conv(1, 9, (3, 43), 9, (3, 3), padding=ONE),
    conv(3, 5, (7, 13), 33, (3, 2), (2, 1), ((2, 0), (0, 1)), (1, 2)),
    conv(2, 12, (9, 8), 10, (2, 3), (3, 2), ((0, 1), (2, 2)), (2, 1), groups=2),
    conv(1, 200, (2, 5), 250, (1, 1)),
    conv(2, 6, (17, 17), 6, (3, 3), (2, 2), ONE, groups=6),
]
# Every unrolled kernel, strips of 4 rows and what is left of them, several filters a channel, and what loops over its taps.
DEPTHWISE_EDGES = [
    EDGES[5],
    conv(5, 3, (9, 7), 3, (3, 3), padding=ONE, groups=3),
    conv(2, 3, (8, 12), 6, (3, 3), padding=((2, 0), (0, 3)), groups=3),
    conv(3, 2, (8, 11), 2, (5, 5), (2, 2), ((3, 1), (3, 0)), groups=2),  # backward a second strip for one row
    conv(1, 1, (12, 13), 6, (5, 5), padding=((2, 2), (2, 2))),
    conv(2, 2, (7, 9), 2, (7, 7), padding=((3, 3), (3, 3)), groups=2),
    conv(6, 4, (7, 10), 8, (3, 4), (3, 2), ((2, 1), (0, 4)), (2, 1), groups=4),
    conv(2, 2, (3, 4), 2, (3, 3), (2, 2), ((3, 3), (4, 4)), groups=2),
]
# Few channels a group: results around multiples of 4, strips, strides.
TILED_EDGES = [
    conv(3, 12, (7, 10), 20, (3, 3), padding=((2, 0), (0, 3)), groups=4),
    conv(2, 4, (9, 12), 4, (3, 3), padding=ONE),
    conv(1, 16, (1, 1), 16, (3, 3), padding=ONE),
    conv(2, 3, (11, 8), 7, (3, 3), (2, 2), ONE),
    conv(1, 10, (5, 6), 10, (3, 3), (2, 2), ((0, 2), (1, 2)), groups=2),
]
# The same channels-last: units of four results around eight of them, and several in a group.
TILED_LAST = [
    conv(3, 36, (7, 10), 45, (3, 3), padding=((2, 0), (0, 3)), groups=9),
    conv(2, 33, (9, 19), 33, (3, 3), padding=ONE, groups=11),
    conv(1, 32, (1, 1), 32, (3, 3), padding=ONE, groups=8),
    conv(2, 30, (11, 8), 70, (3, 3), (2, 2), ONE, groups=10),
    conv(1, 32, (5, 6), 32, (3, 3), (2, 2), ((0, 2), (1, 2)), groups=2),
]


def edges(row: Variant) -> list[ConvSpec]:
    """The shapes that a row has to take."""
    if row.name == "tiled":
        return TILED_EDGES[: 3 if row.direction == "input_grad" else None]
    return DEPTHWISE_EDGES if row.name == "depthwise" else EDGES


def long(row: Variant) -> ConvSpec:
    """Enough pixels for parts of the gradients' sums."""
    few = row.name in ("depthwise", "tiled")
    spec = conv(7 if few else 5, 3, (23, 29), 4, (3, 3), padding=ONE)
    return spec._replace(k=3, groups=3) if row.name == "depthwise" else spec


def both_targets(operation: str) -> list[Any]:
    """Rows with the targets they are tried for; those of halves differ in little else than the kind, so one each."""
    only = {"float16": "sm_80", "bfloat16": "sm_90a"}
    return [
        pytest.param(row, target, id=f"{row_id(row)}-{target}")
        for row in any_target(operation)
        for target in TARGETS
        if only.get(row.accuracy, target) == target
    ]


@needs_compiler
@pytest.mark.parametrize(("row", "target"), both_targets("conv"))
def test_conv_rows_at_tile_edges(row, target):
    with interpreted(target):
        for spec in edges(row):
            if row.direction.startswith("forward"):
                spec = spec._replace(activation=spec.k % 2)
            assert check_conv(row, spec, "float32")
        assert check_conv(row, edges(row)[1], "float32", make=integers, exact=True)


@needs_compiler
@pytest.mark.full
@pytest.mark.parametrize("row", any_target("conv"), ids=row_id)
def test_conv_rows_on_the_case_table(row):
    with interpreted("sm_80"):
        ran = [check_conv(row, case.spec(), "float32") for case in CONVS]
    assert (any if row.name in ("depthwise", "tiled") else all)(ran)


@needs_compiler
@pytest.mark.parametrize("row", any_target("conv"), ids=row_id)
def test_conv_rows_take_an_empty_batch_and_cut_long_sums(row):
    """No images; then so many pixels that the gradients' sums are cut into parts."""
    many = long(row)
    with interpreted("sm_80"):
        for spec in (many._replace(n=0), many):
            assert check_conv(row, spec, "float32", make=integers, exact=True)
    if row.direction.endswith(("weight_grad", "bias_grad")):
        problem = Problem("conv", row.direction, "cuda", "float32", "default", many)
        assert row.workspace(problem) > 4 * np.prod(many.w_shape if row.direction == "weight_grad" else many.k)


# Few results of many terms, in each operation and direction.
PARTED = {
    "conv forward": conv(2, 260, (5, 5), 20, (3, 3), (2, 2), ONE, groups=2)._replace(activation=1),
    "conv input_grad": conv(2, 20, (5, 5), 260, (3, 3), (2, 2), ONE, groups=2),
    "pointwise forward": PointwiseSpec(2, 1030, 9, 7, 1),
    "pointwise input_grad": PointwiseSpec(2, 9, 1030, 7),
}
FLOAT32 = [
    pytest.param(operation, row, id=f"{operation}-{row_id(row)}")
    for operation in ("conv", "pointwise")
    for row in any_target(operation)
    if row.name in ("direct", "blocked") and row.direction in ("forward", "forward_residual", "input_grad")
]


@needs_compiler
@pytest.mark.parametrize(("operation", "row"), FLOAT32)
def test_sums_cut_into_parts_are_finished_once(operation, row):
    """Bias, residual and ReLU come after the last part; the scratch is that of the parts."""
    direction = row.direction.removesuffix("_residual")
    spec = PARTED[f"{operation} {direction}"]
    problem = Problem(operation, row.direction, "cuda", "float32", "default", spec)
    product = product_of(row.direction, spec)
    assert product_parts(row.direction, product) == 2
    assert row.workspace(problem) == 2 * 4 * product.groups * product.rows * product.columns
    assert row.workspace(problem._replace(spec=spec._replace(n=5000))) == 0
    check = check_conv if operation == "conv" else check_pointwise
    with interpreted("sm_80") as executed:
        assert check(row, spec, "float32", make=integers, exact=True)
        assert check(row, spec, "float32")
    assert executed


@needs_compiler
@pytest.mark.parametrize("row", [r for r in any_target("conv") if r.direction.startswith("forward")], ids=row_id)
def test_conv_forward_passes_nan_and_infinity_on_and_may_have_no_bias(row):
    spec = edges(row)[1]._replace(activation=1)
    x, w = np.ones(spec.x_shape, "float32"), np.ones(spec.w_shape, "float32")
    x[0, 0, 0, 0], x[-1, -1, -1, -1] = np.nan, np.inf
    y, residual = np.empty(spec.y_shape, "float32"), np.full(spec.y_shape, -20, "float32")
    residual[0, 0, 1, 4:7] = np.nan, -np.inf, np.inf
    residual[0, -1, -1, -1] = -np.inf  # beside the infinity of x
    residuals = [residual] if row.direction == "forward_residual" else []
    with interpreted("sm_80"):
        assert run("conv", row, spec, "float32", x, w, np.empty(0, "float32"), *residuals, out=(y,))
    wide = [array.astype(np.float64) for array in (x, w, *residuals)]
    with np.errstate(invalid="ignore"):  # infinities of both signs
        want = getattr(conv_reference, row.direction)(*wide[:2], None, *wide[2:], spec)
    np.testing.assert_array_equal(y, want)


@needs_compiler
@pytest.mark.parametrize(("row", "target"), both_targets("pointwise"))
def test_pointwise_rows(row, target):
    with interpreted(target):
        for n, c, k, pixels in ((0, 2, 3, 4), (1, 1, 1, 1), (3, 9, 8, 43), (2, 8, 33, 65), (1, 200, 250, 3)):
            spec = PointwiseSpec(n, c, k, pixels, int(row.direction.startswith("forward") and k % 2))
            assert check_pointwise(row, spec, "float32")
            assert check_pointwise(row, spec, "float32", make=integers, exact=True)


@needs_compiler
@pytest.mark.full
@pytest.mark.parametrize("row", any_target("pointwise"), ids=row_id)
def test_pointwise_rows_on_the_case_table(row):
    with interpreted("sm_80"):
        assert all(check_pointwise(row, case.spec(), "float32") for case in POINTWISE)


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", cuda_rows("pool"), ids=row_id)
def test_pool_rows_on_the_case_table(row, target):
    with interpreted(target):
        ran = [check_pool(row, spec, "float32") for spec in cuda_pool_specs(row)]
    assert all(ran)


NONE = ((0, 0), (0, 0))
# One channel beyond a warp, few channels, one; windows that overlap, hang over the end, cover everything.
LAST_POOLS = [
    PoolSpec(2, 33, (5, 4), (3, 3), (2, 2), ONE, (1, 1), (3, 2), 0),
    PoolSpec(3, 5, (6, 9), (2, 3), (2, 3), NONE, (1, 1), (3, 3)),
    PoolSpec(2, 1, (4, 4), (2, 2), (1, 1), NONE, (1, 1), (3, 3)),
    PoolSpec(5, 70, (3, 2), (3, 2), (3, 2), NONE, (1, 1), (1, 1), 1, 4),
]


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", cuda_rows("pool"), ids=row_id)
def test_pool_rows_on_channels_last(row, target):
    """Where channels lie side by side; the sums of a channel in one part and in several."""
    with interpreted(target):
        if row.direction == "avg_relu_bias_backward":
            specs = [*cuda_pool_specs(row), LAST_POOLS[1], LAST_POOLS[3], LAST_POOLS[1]._replace(n=28, c=34)]
            specs.append(LAST_POOLS[0]._replace(size=(1, 1), kernel=(1, 1), stride=(1, 1), padding=NONE, out=(1, 1)))
        else:
            specs = LAST_POOLS + cuda_pool_specs(row)
        for spec in specs:
            assert check_pool(row, spec, "float32", "channels_last")
        assert check_pool(row, specs[-1], "float32")


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [0, 1, 255, 257, 1000])
@pytest.mark.parametrize("row", [r for r in cuda_rows("elementwise") if r.name == "chunks"], ids=row_id)
def test_elementwise_rows(row, size, target):
    rng = np.random.default_rng(6)
    arrays = [floats(rng, (size,), "float32") for _ in range(1 if row.direction in ("relu", "erf") else 2)]
    for array in arrays:
        array[rng.integers(0, max(size, 1), size // 5)] = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0], size // 5)
    out = np.empty(size, "float32")
    with interpreted(target):
        assert run("elementwise", row, ElementwiseSpec(size), "float32", *arrays, out=(out,))
    rounding = 4 * np.finfo("f4").eps if row.direction == "erf" else 0  # NVIDIA: "at most 2 units in the last place"
    np.testing.assert_allclose(out, getattr(elementwise_reference, row.direction)(*arrays), rtol=rounding, atol=0)


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(0, 2, 3), (1, 1, 1), (3, 5, 100), (6, 3, 700), (3, 2, 1), (0, 2, 1), (211, 34, 1)])
def test_relu_bias_grad(shape, target):
    (row,) = (row for row in cuda_rows("elementwise") if row.direction == "relu_bias_grad")
    rng, spec = np.random.default_rng(7), ChannelSpec(*shape)
    gy, y = floats(rng, shape, "float32"), floats(rng, shape, "float32")
    out, sums = np.empty(shape, "float32"), np.empty(shape[1], "float32")
    with interpreted(target):
        assert run("elementwise", row, spec, "float32", gy, y, out=(out, sums))
    want, want_sums = elementwise_reference.relu_bias_grad(gy.astype(np.float64), y.astype(np.float64), spec)
    np.testing.assert_array_equal(out, want)
    assert_within(sums, want_sums, np.abs(want).sum(axis=(0, 2)), max(1, shape[0] * shape[2]))


# --- twins


def functions(path: Path) -> dict[str, list[str]]:
    """The public functions of a file and the names of their parameters."""
    return {
        node.name: [argument.arg for argument in node.args.args]
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not node.decorator_list
    }


SCALER = KERNELS / "update" / "cuda_scale.py"  # on the CPU the scaler is NumPy's
TWINS = sorted(set(KERNELS.glob("*/cuda_*.py")) - {SCALER})


@pytest.mark.parametrize("path", TWINS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_twins_have_the_same_names_and_signatures(path):
    """Every public function of cuda_NAME.py is one of cpu_NAME.py, with the same parameters in the same order; what has no
    such twin, as tensor cores, is held to the plainest one. What NumPy does on the CPU has the names of its definition."""
    if path.parent.name in NUMPY or path.name == "cuda_channels.py":
        assert set(functions(path)) <= set(functions(path.with_name("reference.py")))
        return
    twin_path = path.with_name(path.name.replace("cuda_", "cpu_"))
    plain = {"pointwise": "cpu_blocked.py"}.get(path.parent.name, "cpu_direct.py")
    twin = functions(twin_path if twin_path.exists() else path.with_name(plain))
    if "forward" in twin:  # on the CPU, the rows with a residual are made of those without
        made = with_residual(Variant("", "forward", "cpu", cpu_only, print, no_workspace)).run
        twin["forward_residual"] = list(inspect.signature(made).parameters)
    mine = functions(path)
    assert mine
    if path.parent.name == "update":  # a step that is left out where an overflow was found
        twin |= {f"{name}_unless": [*parameters, "found"] for name, parameters in twin.items()}
    assert {name: twin.get(name) for name in mine} == mine


@pytest.mark.parametrize("operation", TABLES)
def test_every_cuda_row_has_a_cpu_row_of_its_name(operation):
    table = import_module(f"convkern.kernels.{operation}").VARIANTS
    cpu = {(row.name, row.direction) for row in table if row.device == "cpu"}
    for row in cuda_rows(operation):
        assert (row.name, row.direction) in cpu or row.accuracy != "exact" or operation in NUMPY
        path = KERNELS / (row.run.__module__.removeprefix("convkern.kernels.").replace(".", "/") + ".py")
        assert row.run.__name__ in functions(path)


@pytest.mark.parametrize("operation", TABLES)
def test_every_cpu_direction_has_a_cuda_row(operation):
    table = import_module(f"convkern.kernels.{operation}").VARIANTS
    assert {row.direction for row in cuda_rows(operation)} == {row.direction for row in table}


def test_cuda_rows_say_why_they_refuse():
    (row,) = (row for row in cuda_rows("conv") if (row.name, row.direction) == ("direct", "forward"))
    spec = EDGES[1]
    problem = Problem("conv", "forward", "cuda", "float32", "default", spec)
    assert row.refuses(problem) == ""
    assert row.refuses(problem._replace(device="cpu")) == "runs on CUDA devices only"
    assert row.refuses(problem._replace(dtype="float64")) == "takes float32, not float64"
    huge = spec._replace(n=2**31)
    assert row.refuses(problem._replace(spec=huge)) == "takes arrays of fewer than 2**31 elements"
    for other in (PointwiseSpec(2**20, 2**10, 2, 2), ElementwiseSpec(2**31), ChannelSpec(2**20, 2**10, 2)):
        assert "2**31" in row.refuses(problem._replace(spec=other))
    assert inspect.isfunction(row.run)
    (tensor,) = (row for row in cuda_rows("conv") if (row.name, row.direction) == ("tensor", "forward"))
    assert tensor.refuses(problem) == "rounds to TF32, which only precision='tf32' allows"
    assert tensor.refuses(problem._replace(precision="tf32")) == ""
