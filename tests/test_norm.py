"""Batch normalisation: kernel rows against the definition, the operation and the layer against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convkern as ck
from convkern import nn, ops
from convkern.kernels import norm, simd
from convkern.kernels.norm import cpu_planes
from convkern.kernels.norm import reference as norm_reference
from convkern.kernels.spec import NormSpec

from .bounds import assert_within, floats, integers
from .test_kernels import DTYPES, cpu_rows, row_id, run

# Whole wide tiles, single vectors, tails of one, planes smaller than a vector, many parts, one pixel, no image.
SPECS = [
    NormSpec(n, c, pixels, activation, residual)
    for n, c, pixels in [(3, 4, 64), (2, 3, 81), (5, 2, 1), (1, 7, 4), (33, 2, 1024), (2, 1, 20000), (40, 3, 500)]
    for activation in (0, 1)
    for residual in (0, 1)
]


KEPT = {"cpu": "float64", "cuda": "float32"}  # what sums and statistics of channels are kept in


def check_norm(row, spec: NormSpec, dtype: str, make=floats) -> bool:
    rng = np.random.default_rng(7)
    shape = (spec.n, spec.c, spec.pixels)
    x, gy, y = (make(rng, shape, dtype) for _ in range(3))
    wide = x.astype(np.float64)
    affine = make(rng, (5 if row.direction == "input_grad" else 3, spec.c), dtype)
    if row.direction == "statistics":
        return check_statistics(row, spec._replace(activation=0, residual=0), x)
    center, scale, shift, *_ = affine[:, None, :, None].astype(np.float64)
    magnitude = (np.abs(wide) + np.abs(center)) * np.abs(scale) + np.abs(shift)
    if row.direction == "forward":
        residual = y if spec.residual else y[:0]
        out = np.empty(shape, dtype)
        if not run("norm", row, spec, dtype, x, residual, affine, out=(out,)):
            return False
        want = norm_reference.forward(wide, residual.astype(np.float64), affine.astype(np.float64), spec)
        assert_within(out, want, magnitude + spec.residual * np.abs(y), 4)
        return True
    if row.direction == "input_grad":
        spec = spec._replace(residual=0)
        out = np.empty(shape, dtype)
        if not run("norm", row, spec, dtype, x, gy, affine, out=(out,)):
            return False
        high = affine.astype(np.float64)
        slope, offset = np.abs(high[3:, None, :, None])
        size = np.abs(gy) * np.abs(scale) + (np.abs(wide) + np.abs(center)) * slope + offset
        assert_within(out, norm_reference.input_grad(wide, gy.astype(np.float64), high, spec), size, 5)
        return True
    masked = bool(spec.activation and spec.residual)
    result = y if masked else y[:0]
    out, g = np.empty((2, spec.c), KEPT[row.device]), np.empty(shape if masked else (0, *shape[1:]), dtype)
    if not run("norm", row, spec, dtype, x, gy, result, affine, out=(out, g)):
        return False
    high = [a.astype(np.float64) for a in (x, gy, result, affine)]
    want, want_g = norm_reference.sums(*high, spec)
    np.testing.assert_array_equal(g, want_g)
    sizes = np.stack([np.abs(high[1]).sum((0, 2)), (np.abs(high[1]) * (np.abs(wide) + np.abs(center))).sum((0, 2))])
    assert_within_dtype(out, want, sizes, max(spec.n * spec.pixels, 1) + 2, dtype)
    return True


def assert_within_dtype(got, want, magnitude, terms, dtype):
    """The bound of sums that were taken in ``dtype``, whatever they are kept in."""
    from .bounds import gamma

    assert (np.abs(got - want) <= 2 * gamma(terms, np.dtype(dtype)) * magnitude).all()


def check_statistics(row, spec: NormSpec, x: np.ndarray) -> bool:
    """Around the mean of a first image squares are at most var + (largest distance of an image's mean)²."""
    out = np.empty((2, spec.c), KEPT[row.device])
    if spec.n == 0 or not run("norm", row, spec, x.dtype.name, x, out=(out,)):
        return False
    wide = x.astype(np.float64)
    want = norm_reference.statistics(wide, spec)
    means = wide.mean(2)
    apart = np.abs(means - want[0]).max(0)
    terms = min(spec.n * spec.pixels, cpu_planes.PART + spec.pixels) + 4
    assert_within_dtype(out[0], want[0], np.abs(wide).mean((0, 2)) + np.abs(means).max(0), terms, x.dtype)
    assert_within_dtype(out[1], want[1], 3 * (want[1] + apart**2), terms, x.dtype)
    return True


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", cpu_rows(norm.VARIANTS), ids=row_id)
def test_norm_rows(row, dtype):
    for spec in SPECS:
        # With a ReLU inside, whole numbers: nothing is rounded, so that what it lets through is beyond doubt.
        assert check_norm(row, spec, dtype, make=integers)
        assert spec.activation or check_norm(row, spec, dtype)


@given(
    spec=st.builds(
        NormSpec, st.integers(0, 5), st.integers(1, 6), st.integers(1, 300), st.integers(0, 1), st.integers(0, 1)
    ),
    dtype=st.sampled_from(DTYPES),
)
def test_norm_rows_on_generated_shapes(spec, dtype):
    for row in cpu_rows(norm.VARIANTS):
        check_norm(row, spec, dtype, make=integers)


_FUSED = pytest.mark.skipif(not simd.HAS_FMA, reason="a product below the normal numbers is lost before it is added")


@pytest.mark.parametrize(
    ("mean", "std"),
    [(1e4, 1.0), (-1e6, 3.0), (1e-17, 1e-15), pytest.param(1e-20, 1e-18, marks=_FUSED), (0.0, 1e12)],
)
def test_statistics_far_from_zero(mean, std):
    """What rounding did to x itself is the only error that a large mean may bring."""
    rng = np.random.default_rng(0)
    x = (mean + std * rng.standard_normal((40, 3, 31, 33))).astype(np.float32)
    exact = x.astype(np.float64)
    axes, column = (0, 2, 3), (1, 3, 1, 1)
    rm, rv = np.zeros(3), np.zeros(3)
    y = ops.batch_norm(x, rm, rv, training=True, momentum=1.0, eps=0.0)
    np.testing.assert_allclose(rm, exact.mean(axes), rtol=1e-6, atol=1e-6 * std)
    np.testing.assert_allclose(rv, exact.var(axes, ddof=1), rtol=1e-5)
    want = (exact - exact.mean(axes).reshape(column)) / exact.std(axes).reshape(column)
    np.testing.assert_allclose(y, want, atol=3e-5)


def test_an_outlying_first_image_does_not_spoil_the_variance():
    x = np.random.default_rng(0).standard_normal((32, 1, 16, 16)).astype(np.float32)
    x[0] += 1e5
    rv = np.zeros(1)
    ops.batch_norm(x, np.zeros(1), rv, training=True, momentum=1.0)
    np.testing.assert_allclose(rv, x.astype(np.float64).var(ddof=1), rtol=1e-5)


def test_any_number_of_threads_gives_the_same_bits():
    rng = np.random.default_rng(0)
    x, r, g = (rng.standard_normal((9, 5, 30, 31)).astype(np.float32) for _ in range(3))
    w, b = rng.standard_normal((2, 5)).astype(np.float32)
    runs, before = [], ck.num_threads()
    try:
        for threads in (1, 2, 4):
            ck.set_num_threads(threads)
            leaves = [ck.tensor(a, requires_grad=True) for a in (x, w, b, r)]
            y = ops.batch_norm(leaves[0], None, None, *leaves[1:3], True, residual=leaves[3], activation="relu")
            y.backward(g)
            runs.append([y.data, *(leaf.grad.data for leaf in leaves)])
    finally:
        ck.set_num_threads(before)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


# --- the operation


@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (4, 3, 1, 2), (2, 20, 16, 16), (5, 4), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_as_in_pytorch(shape, activation, residual, training):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    arrays = [3 * rng.standard_normal(shape) + 1, *rng.standard_normal((2, shape[1])), rng.standard_normal(shape)]
    gy, running = rng.standard_normal(shape), rng.random((2, shape[1])) + 0.5
    mine = [ck.tensor(a, requires_grad=True) for a in arrays]
    kept = running.copy()
    options = dict(residual=mine[3] if residual else None, activation=activation)
    y = ops.batch_norm(mine[0], kept[0], kept[1], *mine[1:3], training, 0.2, 1e-4, **options)
    y.backward(gy)

    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    means, variances = torch.tensor(running[0]), torch.tensor(running[1])
    z = torch.nn.functional.batch_norm(theirs[0], means, variances, *theirs[1:3], training, 0.2, 1e-4)
    z = z + theirs[3] if residual else z
    z = z.relu() if activation else z
    z.backward(torch.tensor(gy))

    pairs = [(y.data, z.detach()), (kept[0], means), (kept[1], variances)]
    pairs += [(m.grad.data, t.grad) for m, t in zip(mine[: 4 if residual else 3], theirs, strict=False)]
    for got, want in pairs:
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-8, atol=1e-8 * float(want.abs().max()))


def test_the_fused_relu_blocks_what_the_relu_blocks():
    """Backward finds the sign of the result again from x: to the last bit as forward had it."""
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        x, gy = (rng.standard_normal((4, 3, 37, 37)).astype(dtype) for _ in range(2))
        x[0, 0, 0, :2] = np.inf, np.nan
        grads = []
        for fused in (True, False):
            t = ck.tensor(x, requires_grad=True)
            y = ops.batch_norm(t, np.zeros(3, dtype), np.ones(3, dtype), activation="relu" if fused else None)
            y = y if fused else ops.relu(y)
            y.backward(gy)
            grads.append((y.data, t.grad.data))
        for a, b in zip(*grads, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradcheck(training, activation):
    rng = np.random.default_rng(2)
    x, r = rng.standard_normal((2, 3, 2, 4, 5))
    w, b = rng.standard_normal((2, 2))
    running = np.zeros(2), np.ones(2)

    def function(x, w, b, r):
        used = (None, None) if training else running
        return ops.batch_norm(x, *used, w, b, training, residual=r, activation=activation)

    assert ck.gradcheck(function, (x, w, b, r))
    assert ck.gradcheck(lambda x: function(x, None, None, None), (x,))

    def slope(x, w, b, r):
        (function(x, w, b, r) ** 2).sum().backward(create_graph=True)
        return x.grad + r.grad * w.grad.sum() * b.grad.sum()

    assert ck.gradcheck(slope, (x, w, b, r))


def test_memory_formats_and_arrays():
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 3)).astype(np.float32)
    running = np.zeros(5, np.float32), np.ones(5, np.float32)
    y = ops.batch_norm(x, *running)
    assert type(y) is np.ndarray
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    z = ops.batch_norm(last, *running)
    assert z.strides == last.strides
    np.testing.assert_array_equal(y, z)
    frozen = x.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(ops.batch_norm(frozen, *running), y)
    assert ops.batch_norm(x[:0], *running).shape == (0, 5, 4, 3)


def test_refusals():
    x = np.zeros((2, 3, 4, 4), np.float32)
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    training = dict(training=True)
    for error, message, arguments, options in [
        (ValueError, r"x must have axes \(N, C, …\), got shape \(3,\)", (x[0, :, 0, 0], mean, var), {}),
        (ValueError, r"weight must have shape \(3,\), got \(2,\)", (x, mean, var, mean[:2]), {}),
        (ValueError, r"running_var must have shape \(3,\), got \(1,\)", (x, mean, var[:1]), {}),
        (ValueError, r"running_mean is missing", (x, None, var), {}),
        (ValueError, r"running_var is missing", (x, mean, None), training),
        (TypeError, r"running_mean must be floating, got int64", (x, mean.astype(np.int64), var), {}),
        (ValueError, r"residual must have x's shape .* got \(1, 3, 4, 4\)", (x, mean, var), dict(residual=x[:1])),
        (TypeError, r"arrays must have one dtype", (x, mean, var, mean.astype(np.float64)), {}),
        (TypeError, r"x must be float32 or float64, got int64", (x.astype(np.int64), mean, var), {}),
        (ValueError, r"more than one value in a channel, got x of shape \(1, 3\)", (x[:1, :, 0, 0], mean, var), training),
        (ValueError, r"momentum must be at least 0 and at most 1, got 1.5", (x, mean, var), dict(momentum=1.5, **training)),
        (TypeError, r"momentum must be a number, got None", (x, mean, var), dict(momentum=None, **training)),
        (ValueError, r"eps must be at least 0, got -1", (x, mean, var), dict(eps=-1)),
        (ValueError, r"activation must be None or 'relu', got 'tanh'", (x, mean, var), dict(activation="tanh")),
        (ValueError, r"precision must be", (x, mean, var), dict(precision="low")),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            ops.batch_norm(*arguments, **options)
    mean.flags.writeable = False
    with pytest.raises(ValueError, match="running_mean is read-only"):
        ops.batch_norm(x, mean, var, training=True)


# --- the layer


@pytest.mark.parametrize(
    "options",
    [{}, dict(momentum=None), dict(eps=0.1, momentum=0.7), dict(affine=False), dict(track_running_stats=False)],
    ids=str,
)
def test_layer_as_in_pytorch(options):
    torch = pytest.importorskip("torch")
    mine, theirs = nn.BatchNorm2d(4, **options).to(np.float64), torch.nn.BatchNorm2d(4, **options).double()
    assert sorted(mine.state_dict()) == sorted(theirs.state_dict())
    rng = np.random.default_rng(0)
    for mode in (True, True, False, True, False):
        mine.train(mode)
        theirs.train(mode)
        x = 2 * rng.standard_normal((3, 4, 5, 6)) + 1
        np.testing.assert_allclose(
            mine(ck.tensor(x)).data, theirs(torch.tensor(x)).detach().numpy(), rtol=1e-10, atol=1e-10
        )
        for name, value in theirs.state_dict().items():
            np.testing.assert_allclose(mine.state_dict()[name], value.numpy(), rtol=1e-10)
    other = nn.BatchNorm2d(4, **options)
    other.load_state_dict(mine.state_dict())
    for name, value in mine.state_dict().items():
        np.testing.assert_allclose(other.state_dict()[name], value, rtol=1e-6)


def test_layer_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"BatchNorm2d: x must have shape \(N, 4, H, W\), got \(2, 3, 5, 5\)"):
        nn.BatchNorm2d(4)(np.zeros((2, 3, 5, 5), np.float32))
    with pytest.raises(ValueError, match="num_features must be at least 1"):
        nn.BatchNorm2d(0)
    assert repr(nn.BatchNorm2d(4)) == "BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"


def test_sequential_fuses_it_with_a_relu():
    rng = np.random.default_rng(0)
    x = ck.tensor(rng.standard_normal((2, 3, 5, 5)).astype(np.float32), requires_grad=True)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    fused = model(x)
    assert fused.grad_fn.name == "batch_norm"
    handle = model[0].register_forward_hook(lambda module, args, y: None)
    plain = model(x)
    assert plain.grad_fn.name == "relu"
    handle.remove()
    np.testing.assert_array_equal(fused.data, plain.data)
