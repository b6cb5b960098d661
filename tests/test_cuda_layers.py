"""CUDA rows of batch norm, adaptive pooling, cross-entropy, sums and optimizers against their definitions, interpreted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from convkern.kernels.adaptive import reference as adaptive_reference
from convkern.kernels.entropy.spec import EntropySpec
from convkern.kernels.norm import reference as norm_reference
from convkern.kernels.spec import AdaptiveSpec, ChannelSpec, NormSpec

from .bounds import integers
from .cuda_checks import check_entropy, check_sum
from .gpu import TARGETS, cuda_rows, interpreted, needs_compiler
from .test_kernels import row_id, run
from .test_norm import SPECS, check_norm
from .test_optim import UPDATES, check_update
from .test_pool3d import ADAPTIVE, check

# One element, planes around a block, sums in several parts (of 1024 elements and more), a last part that is short.
NORMS = [(1, 2, 3), (1, 1, 257), (3, 4, 64), (5, 2, 1), (7, 3, 500)]
# Channels side by side: lines of 1 to 32 threads, one channel beyond a group of 32, parts of which the last one is short.
NORMS += [(70, 1, 1), (1, 3, 1), (70, 33, 1), (200, 33, 1), (1100, 3, 1)]


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", cuda_rows("norm"), ids=row_id)
def test_norm_rows(row, target):
    with interpreted(target):
        for shape in NORMS:
            for activation, residual in ((0, 0), (0, 1), (1, 0), (1, 1)):
                spec = NormSpec(*shape, activation, residual)
                # With a ReLU inside, whole numbers: nothing is rounded, so that what it lets through is beyond doubt.
                assert check_norm(row, spec, "float32", make=integers)
                assert activation or check_norm(row, spec, "float32")


@needs_compiler
@pytest.mark.full
@pytest.mark.parametrize("row", cuda_rows("norm"), ids=row_id)
def test_norm_rows_on_the_case_table(row):
    with interpreted("sm_80"):
        for spec in SPECS:
            assert check_norm(row, spec, "float32", make=integers)


@needs_compiler
@pytest.mark.parametrize(("mean", "std"), [(1e4, 1.0), (-1e6, 3.0), (0.0, 1e12)])
def test_statistics_far_from_zero(mean, std):
    """What rounding did to x itself is the only error that a large mean may bring."""
    x = np.random.default_rng(3).normal(mean, std, (9, 2, 300)).astype("f4")
    spec = NormSpec(9, 2, 300)
    (row,) = (row for row in cuda_rows("norm") if row.direction == "statistics")
    out = np.empty((2, 2), "f4")
    with interpreted("sm_80"):
        assert run("norm", row, spec, "float32", x, out=(out,))
    want = norm_reference.statistics(x.astype(np.float64), spec)
    np.testing.assert_allclose(out[0], want[0], rtol=3e-7, atol=1e-6 * std)
    np.testing.assert_allclose(out[1], want[1], rtol=3e-5)


@needs_compiler
def test_statistics_far_from_zero_of_channels_side_by_side():
    """As above; and one channel's numbers are not another's."""
    rng = np.random.default_rng(3)
    means = np.array([1e4, -1e6, 0, 1, 3e5] * 7)
    x = rng.normal(means, np.abs(means) / 1e5 + 1, (700, 35)).astype("f4")[:, :, None]
    spec = NormSpec(700, 35, 1)
    (row,) = (row for row in cuda_rows("norm") if row.direction == "statistics")
    out = np.empty((2, 35), "f4")
    with interpreted("sm_80"):
        assert run("norm", row, spec, "float32", x, out=(out,))
    want = norm_reference.statistics(x.astype(np.float64), spec)
    np.testing.assert_allclose(out[0], want[0], rtol=3e-7, atol=1e-6)
    np.testing.assert_allclose(out[1], want[1], rtol=3e-5)


@needs_compiler
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_of_what_is_not_finite(value):
    x = np.zeros((2, 2, 5), "f4")
    x[1, 0, 3] = value
    (row,) = (row for row in cuda_rows("norm") if row.direction == "statistics")
    out = np.empty((2, 2), "f4")
    with interpreted("sm_80"):
        assert run("norm", row, NormSpec(2, 2, 5), "float32", x, out=(out,))
    assert np.isnan(out[1, 0])
    np.testing.assert_array_equal(out[:, 1], 0)


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
def test_channels_between_the_passes(target):
    """With and without weight, bias and running statistics; in training and out of it; more channels than a block."""
    from convkern.kernels.norm import cuda_channels

    rng = np.random.default_rng(5)
    with interpreted(target):
        for c, given in ((3, True), (130, False), (1, True)):
            mean, variance, weight, bias, r1, r2 = rng.uniform(0.5, 2, (6, c)).astype("f4")
            wide = [a.astype(np.float64) for a in (mean, variance, weight, bias, r1, r2)]
            weights, running = ((weight, bias), (r1, r2)) if given else ((None, None), ())
            wanted = (wide[2:4], wide[4:]) if given else ((None, None), ())
            inverse, affine = np.empty(c, "f4"), np.empty((3, c), "f4")
            cuda_channels.affine(mean, variance, *weights, running, 9, 0.1, 1e-5, inverse, affine)
            want = norm_reference.affine(*wide[:2], *wanted[0], wanted[1], 9, 0.1, 1e-5)
            for got, exact in zip((inverse, affine, *running), (*want[:2], *want[2]), strict=True):
                np.testing.assert_allclose(got, exact, rtol=1e-6)
            sums = rng.uniform(-2, 2, (2, c)).astype("f4")
            out, gw, gb = np.empty((5, c), "f4"), np.empty(c, "f4"), np.empty(c, "f4")
            cuda_channels.slopes(sums, inverse, affine, 9, given, out, gw, gb)
            exact = norm_reference.slopes(*(a.astype(np.float64) for a in (sums, inverse, affine)), 9, given)
            for got, value in zip((out, gw, gb), exact, strict=True):
                np.testing.assert_allclose(got, value, rtol=2e-6)


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", cuda_rows("adaptive"), ids=row_id)
def test_adaptive_rows(row, target):
    uneven = AdaptiveSpec(3, 2, (3, 11, 13), (2, 5, 17))
    with interpreted(target):
        for spec in (*ADAPTIVE.values(), uneven, uneven._replace(n=0)):
            widest = math.prod(-(-a // b) + 1 + -(-b // a) for a, b in zip(spec.size, spec.out, strict=True))
            assert check("adaptive", adaptive_reference, row, spec, "float32", widest)


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", cuda_rows("adaptive"), ids=row_id)
def test_adaptive_rows_on_channels_last(row, target):
    with interpreted(target):
        for spec in (AdaptiveSpec(2, 35, (1, 5, 7), (1, 3, 9)), AdaptiveSpec(3, 2, (3, 11, 4), (2, 5, 4))):
            widest = math.prod(-(-a // b) + 1 + -(-b // a) for a, b in zip(spec.size, spec.out, strict=True))
            assert check("adaptive", adaptive_reference, row, spec, "float32", widest, "channels_last")


@needs_compiler
def test_adaptive_max_orders_equals_nan_and_infinities():
    spec, rng = AdaptiveSpec(2, 2, (2, 5, 7), (1, 3, 2)), np.random.default_rng(7)
    (row,) = (row for row in cuda_rows("adaptive") if row.direction == "max_forward")
    with interpreted("sm_80"):
        for choice in ([-np.inf], [-np.inf, np.nan], [np.inf, 0.0, -0.0, -1.0, np.nan]):
            x = rng.choice(choice, spec.x_shape).astype("f4")
            y, indices = np.empty(spec.y_shape, "f4"), np.empty(spec.y_shape, np.int64)
            assert run("adaptive", row, spec, "float32", x, out=(indices, y))
            want, winners = adaptive_reference.max_forward(x, spec)
            np.testing.assert_array_equal(y, want)
            np.testing.assert_array_equal(indices, winners)


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", cuda_rows("entropy"), ids=row_id)
def test_entropy_rows(row, target):
    """Nothing, one class, images without pixels, several blocks; labels that do not count and one that is no class."""
    shapes = [(0, 3, 1), (1, 1, 1), (3, 10, 1), (130, 7, 1), (2, 5, 131), (1, 300, 2)]
    with interpreted(target):
        for shape in shapes:
            assert check_entropy(row, EntropySpec(*shape, -100))
        assert check_entropy(row, EntropySpec(4, 10, 3, -1), wrong=False)


@needs_compiler
def test_entropy_of_large_and_infinite_logits():
    (row,) = (row for row in cuda_rows("entropy") if row.direction == "forward")
    x = np.array([[1e4, -1e4, 0], [-np.inf, 2, 2], [np.nan, 0, 0], [88, 88, 88]], "f4")[:, :, None]
    losses, logs, out = np.empty((4, 1), "f4"), np.empty((4, 1), "f4"), np.empty(2, "f4")
    with interpreted("sm_80"):
        labels = np.array([[1], [1], [0], [2]])
        assert run("entropy", row, EntropySpec(4, 3, 1, -100), "float32", x, labels, out=(losses, logs, out))
    np.testing.assert_allclose(losses[:, 0], [2e4, np.log(2), np.nan, np.log(3)], rtol=1e-5)


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
def test_sums(target):
    (row,) = cuda_rows("reduce")
    with interpreted(target):
        for shape in ((0, 2, 3), (1, 1, 1), (3, 5, 1), (1, 7, 300), (1, 1, 5000), (6, 3, 700), (0, 2, 1), (211, 34, 1)):
            assert check_sum(row, ChannelSpec(*shape))


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", UPDATES)
def test_update_kernels(name, target):
    from convkern.kernels.update import cuda_chunks

    with interpreted(target):
        check_update(cuda_chunks, name, "float32")
