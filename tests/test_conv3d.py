"""Rows of three-dimensional convolution against the definition, and the definition against PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convkern import plan
from convkern.kernels import conv3d
from convkern.kernels.conv import costs, winograd_reference
from convkern.kernels.conv3d import cpu_frames, reference
from convkern.kernels.spec import Conv3dSpec, ConvSpec, output_size
from convkern.kernels.variant import Problem, Variant

from .bounds import assert_within, floats, integers
from .test_kernels import DTYPES, cpu_rows, row_id, run


def spec3d(n, c, k, groups, size, kernel, stride=(1, 1, 1), padding=((0, 0),) * 3, dilation=(1, 1, 1)) -> Conv3dSpec:
    out = tuple(output_size(size[i], kernel[i], stride[i], padding[i], dilation[i]) for i in range(3))
    return Conv3dSpec(n, c, k, groups, size, kernel, stride, padding, dilation, out)


SAME = ((1, 1),) * 3
CASES = {
    "plain": spec3d(2, 3, 4, 1, (5, 6, 7), (3, 3, 3)),
    "video": spec3d(1, 3, 8, 1, (6, 12, 11), (3, 3, 3), padding=SAME),
    "one frame out": spec3d(2, 2, 3, 1, (4, 5, 5), (4, 2, 3)),
    "stride": spec3d(2, 3, 5, 1, (7, 8, 9), (3, 3, 2), (2, 2, 3), SAME),
    "asymmetric": spec3d(1, 2, 3, 1, (4, 5, 6), (2, 3, 3), padding=((2, 0), (0, 1), (3, 1))),
    "dilation": spec3d(1, 2, 3, 1, (8, 7, 9), (3, 2, 3), padding=SAME, dilation=(3, 2, 1)),
    "groups": spec3d(2, 6, 4, 2, (4, 5, 6), (2, 3, 3), padding=SAME),
    "depthwise": spec3d(2, 3, 6, 3, (5, 6, 6), (3, 3, 3), padding=SAME),
    "depthwise, wide": spec3d(2, 2, 2, 2, (3, 4, 41), (2, 3, 2), (2, 1, 1), ((1, 0), (2, 0), (0, 3)), (2, 1, 1)),
    "depthwise, a vector and more": spec3d(1, 3, 3, 3, (4, 5, 17), (3, 5, 3), padding=((1, 1), (2, 2), (1, 1))),
    "depthwise, stride": spec3d(1, 3, 3, 3, (4, 7, 9), (3, 3, 3), (1, 2, 2), SAME),
    "1x1x1": spec3d(2, 5, 7, 1, (3, 4, 5), (1, 1, 1)),
    "1x1x1, groups": spec3d(2, 4, 6, 2, (3, 4, 5), (1, 1, 1)),
    "time only": spec3d(2, 3, 4, 1, (7, 3, 4), (3, 1, 1), (2, 1, 1), ((1, 0), (0, 0), (0, 0)), (2, 1, 1)),
    "space only": spec3d(2, 3, 4, 1, (4, 6, 6), (1, 3, 3), padding=((0, 0), (1, 1), (1, 1))),
    "frames of padding": spec3d(1, 2, 2, 1, (1, 4, 4), (3, 3, 3), padding=((2, 2), (1, 1), (1, 1))),
    "winograd's": spec3d(2, 16, 16, 1, (2, 16, 16), (3, 3, 3), padding=SAME),
}


def shapes_of(direction: str, spec: Conv3dSpec) -> tuple[list[tuple[int, ...]], tuple[int, ...], int]:
    """Shapes of the inputs and of the result, and the number of terms of its sums."""
    taps = math.prod(spec.kernel)
    if direction == "forward":
        return [spec.x_shape, spec.w_shape, (spec.k,)], spec.y_shape, spec.c // spec.groups * taps + 1
    if direction == "input_grad":
        return [spec.y_shape, spec.w_shape], spec.x_shape, spec.k // spec.groups * taps
    return [spec.x_shape, spec.y_shape], spec.w_shape, max(spec.n * math.prod(spec.out), 1)


def unfolded(x: np.ndarray, spec: Conv3dSpec) -> np.ndarray:
    """(N, C, T, H, W) -> (N·O, C·U, H, W), the frames that each output frame sees, zeros before and after x."""
    frames = np.zeros((spec.n, spec.out[0], spec.c, spec.kernel[0], *spec.size[1:]))
    for o in range(spec.out[0]):
        for u in range(spec.kernel[0]):
            t = o * spec.stride[0] - spec.padding[0][0] + u * spec.dilation[0]
            if 0 <= t < spec.size[0]:
                frames[:, o, :, u] = x[:, :, t]
    return frames.reshape(-1, spec.c * spec.kernel[0], *spec.size[1:])


def winograd_magnitude(direction: str, spec: Conv3dSpec, *wide: np.ndarray) -> np.ndarray:
    """The magnitudes of Winograd's bound, of the two-dimensional convolution over frames."""
    window = (spec.size[1:], spec.kernel[1:], spec.stride[1:], spec.padding[1:], spec.dilation[1:], spec.out[1:])
    flat = ConvSpec(spec.n * spec.out[0], spec.c * spec.kernel[0], spec.k, spec.groups, *window)
    swapped = lambda y: y.swapaxes(1, 2).reshape(flat.y_shape)  # noqa: E731
    definition = getattr(winograd_reference, direction)
    if direction == "forward":
        y = definition(unfolded(wide[0], spec), wide[1].reshape(flat.w_shape), flat, magnitude=True)
        y = y.reshape(spec.n, spec.out[0], *flat.y_shape[1:]).swapaxes(1, 2)
        return y + np.abs(wide[2])[:, None, None, None]
    if direction == "weight_grad":
        return definition(unfolded(wide[0], spec), swapped(wide[1]), flat, magnitude=True).reshape(spec.w_shape)
    frames = definition(swapped(wide[0]), wide[1].reshape(flat.w_shape), flat, magnitude=True)
    frames = frames.reshape(spec.n, spec.out[0], spec.c, spec.kernel[0], *spec.size[1:])
    gx = np.zeros(spec.x_shape)
    for o in range(spec.out[0]):
        for u in range(spec.kernel[0]):
            t = o * spec.stride[0] - spec.padding[0][0] + u * spec.dilation[0]
            if 0 <= t < spec.size[0]:
                gx[:, :, t] += frames[:, o, :, u]
    return gx


def check(row: Variant, spec: Conv3dSpec, dtype: str, make=floats, exact: bool = False) -> bool:
    rng = np.random.default_rng(1)
    shapes, result, terms = shapes_of(row.direction, spec)
    arrays, out = [make(rng, shape, dtype) for shape in shapes], np.empty(result, dtype)
    if not run("conv3d", row, spec, dtype, *arrays, out=(out,)):
        return False
    definition = getattr(reference, row.direction)
    wide = [a.astype(np.float64) for a in arrays]
    want = definition(*wide, spec)
    if exact:
        np.testing.assert_array_equal(out, want)
    elif row.accuracy == "winograd":
        assert_within(out, want, winograd_magnitude(row.direction, spec, *wide), terms + winograd_reference.TERMS)
    else:
        assert_within(out, want, definition(*map(np.abs, wide), spec._replace(activation=0)), terms)
    return True


@pytest.fixture
def winograd_preferred(monkeypatch):
    """Frames go to Winograd's row wherever it can take them, also where another one is expected to be faster."""
    monkeypatch.setattr(costs, "cycles", lambda row, *case: 1 if row == "winograd" else 2)
    cpu_frames.work.cache_clear()
    yield
    cpu_frames.work.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", cpu_rows(conv3d.VARIANTS), ids=row_id)
def test_rows_on_the_case_table(row, dtype, winograd_preferred):
    ran = [check(row, spec, dtype) for spec in CASES.values()]
    assert any(ran)
    assert all(ran) or row.name != "frames"


@pytest.mark.parametrize("row", [r for r in conv3d.VARIANTS if r.accuracy == "exact"], ids=row_id)
def test_rows_are_exact_on_integers(row):
    for spec in CASES.values():
        check(row, spec, "float32", make=integers, exact=True)
        if row.direction == "forward":
            check(row, spec._replace(activation=1), "float32", make=integers, exact=True)


@pytest.fixture
def tiny_blocks(monkeypatch):
    """Blocks of few frames, so that images lie in several of them."""
    monkeypatch.setattr(cpu_frames, "BYTES", 4000)
    cpu_frames.work.cache_clear()
    yield
    cpu_frames.work.cache_clear()


@pytest.mark.parametrize("row", cpu_rows(conv3d.VARIANTS), ids=row_id)
def test_rows_in_tiny_blocks(row, tiny_blocks):
    for spec in CASES.values():
        check(row, spec, "float32")
    made = cpu_frames.work(CASES["plain"], "forward", "float32", True)
    assert made.frames < CASES["plain"].n * CASES["plain"].out[0]


@st.composite
def specs(draw) -> Conv3dSpec:
    triple = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(3))  # noqa: E731
    groups, kernel, stride, dilation = draw(st.integers(1, 2)), triple(1, 3), triple(1, 2), triple(1, 2)
    padding = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(3))
    size = tuple(
        max(1, dilation[i] * (kernel[i] - 1) + 1 - sum(padding[i])) + draw(st.integers(0, 4)) for i in range(3)
    )
    c, k = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    return spec3d(draw(st.integers(0, 2)), c, k, groups, size, kernel, stride, padding, dilation)


@settings(max_examples=40)  # the definition takes its time
@given(spec=specs(), dtype=st.sampled_from(DTYPES))
def test_rows_on_generated_shapes(spec, dtype):
    for row in cpu_rows(conv3d.VARIANTS):
        exact = row.accuracy == "exact"
        check(row, spec, dtype, make=integers if exact else floats, exact=exact)


def test_rows_are_the_same_for_any_number_of_threads(threads):
    for row in cpu_rows(conv3d.VARIANTS):
        spec = CASES["winograd's"]
        shapes, result, _ = shapes_of(row.direction, spec)
        arrays = [floats(np.random.default_rng(2), shape, "float32") for shape in shapes]
        outs = []
        for number in (1, 2, 3):
            threads(number)
            outs.append(np.zeros(result, "float32"))
            assert run("conv3d", row, spec, "float32", *arrays, out=(outs[-1],)) or row.name in ("lines", "depthwise")
        assert all(o.tobytes() == outs[0].tobytes() for o in outs)


@pytest.mark.parametrize("name", CASES)
def test_the_definition_is_pytorchs(name):
    torch = pytest.importorskip("torch")
    spec = CASES[name]
    rng = np.random.default_rng(3)
    x, w, bias, gy = (integers(rng, s, np.float64) for s in (spec.x_shape, spec.w_shape, (spec.k,), spec.y_shape))
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, w, bias))
    around = [side for sides in reversed(spec.padding) for side in sides]
    padded = torch.nn.functional.pad(tx, around)
    ty = torch.nn.functional.conv3d(padded, tw, tb, spec.stride, 0, spec.dilation, spec.groups)
    ty.backward(torch.tensor(gy))
    np.testing.assert_array_equal(reference.forward(x, w, bias, spec), ty.detach().numpy())
    np.testing.assert_array_equal(reference.input_grad(gy, w, spec), tx.grad.numpy())
    np.testing.assert_array_equal(reference.weight_grad(x, gy, spec), tw.grad.numpy())


def test_the_plan_takes_winograd_where_the_frames_do_and_strict_forbids_it():
    spec = CASES["winograd's"]
    problem = Problem("conv3d", "forward", "cpu", "float32", "default", spec)
    assert plan.plan(problem).name == "winograd"
    assert plan.plan(problem._replace(precision="strict")).name == "frames"
    assert plan.plan(problem._replace(spec=CASES["1x1x1"])).name == "lines"


def test_a_missing_cuda_row_is_named():
    problem = Problem("conv3d", "forward", "cuda", "float32", "default", CASES["plain"])
    with pytest.raises(
        NotImplementedError, match=r"no row for conv3d\.forward cuda .*'frames': 'runs on the CPU only'"
    ):
        plan.plan(problem)
