"""Every differentiable operation against numerical gradients in float64: first derivatives and second ones."""

import numpy as np
import pytest

import convkern as ck
from convkern import ops
from convkern.random import seed_noise

from . import gradcheck_windows


def values(*shape, seed=0):
    """Normal numbers, none of them near 0, where a kink would spoil a difference."""
    x = np.random.default_rng(seed).standard_normal(shape)
    return x + np.copysign(0.2, x)


def distinct(*shape, seed=0):
    """Numbers far apart in random order: no maximum changes hands within the step of a difference."""
    n = int(np.prod(shape))
    return np.random.default_rng(seed).permutation(n).reshape(shape) / 4 + 0.1


def positive(*shape, seed=0):
    return np.abs(values(*shape, seed=seed)) + 0.5


def seeded(fn):
    """The same noise at every call."""

    def function(*inputs):
        seed_noise(5)
        return fn(*inputs)

    return function


LABELS = np.array([1, 0, 3])
PIXELS, PIXEL_LABELS = values(2, 4, 3), np.array([[0, 3, 1], [1, -1, 2]])
WEIGHT, IGNORE = np.array([1.0, 0.5, 2.0, 0.3]), dict(ignore_index=-1)
BETWEEN = np.array([[0.2, 0.9, 0.4], [0.6, 0.7, 0.1]])
X = values(2, 4, 5, 6)  # (N, C, H, W)
W = values(6, 2, 3, 2, seed=1)  # (K, C/groups, R, S)
CONV = dict(stride=(2, 1), padding=((1, 0), (2, 1)), dilation=(1, 2), groups=2)
GY = values(2, 6, 2, 7, seed=2)  # (N, K, P, Q)

# name in convkern.ops -> [(what is special, function of the inputs, inputs)]
CASES = {
    "add": [
        ("plain", ops.add, (values(2, 3), values(2, 3, seed=1))),
        ("broadcast", ops.add, (values(2, 1, 3), values(4, 1, seed=1))),
        ("number", lambda x: 2.5 + x, (values(3),)),
        ("itself", lambda x: x + x, (values(3),)),
    ],
    "sub": [
        ("broadcast", ops.sub, (values(3), values(2, 3, seed=1))),
        ("number", lambda x: 1 - x, (values(3),)),
    ],
    "mul": [
        ("broadcast", ops.mul, (values(2, 3), values(2, 1, seed=1))),
        ("itself", lambda x: x * x, (values(3),)),
        ("scalar", ops.mul, (values(), values(2, 2, seed=1))),
        ("number", lambda x: x * 3, (values(3),)),
    ],
    "div": [
        ("broadcast", ops.div, (values(2, 3), values(3, seed=1))),
        ("numerator", lambda x: x / 3, (values(3),)),
        ("denominator", lambda x: 2 / x, (values(3),)),
        ("itself", lambda x: x / x, (values(3),)),
    ],
    "neg": [("plain", ops.neg, (values(2, 3),))],
    "pow": [
        ("cube", lambda x: x**3, (values(2, 3),)),
        ("square", lambda x: x**2, (values(2, 3),)),
        ("first", lambda x: x**1, (values(3),)),
        ("zeroth", lambda x: x**0, (values(3),)),
        ("fraction", lambda x: x**0.5, (positive(3),)),
        ("negative", lambda x: x**-2, (values(3),)),
    ],
    "exp": [("plain", ops.exp, (values(2, 3),))],
    "log": [("plain", ops.log, (positive(2, 3),))],
    "sqrt": [("plain", ops.sqrt, (positive(2, 3),))],
    "relu": [("plain", ops.relu, (values(4, 5),))],
    "sigmoid": [("plain", ops.sigmoid, (values(2, 3),))],
    "tanh": [("plain", ops.tanh, (values(2, 3),))],
    "softmax": [
        ("last", lambda x: ops.softmax(x, -1), (values(2, 4),)),
        ("channels", lambda x: ops.softmax(x, 1), (values(2, 3, 2, 1),)),
    ],
    "log_softmax": [
        ("last", lambda x: ops.log_softmax(x, -1), (values(2, 4),)),
        ("first", lambda x: ops.log_softmax(x, 0), (values(3, 2),)),
    ],
    "sum": [
        ("all", ops.sum, (values(2, 3),)),
        ("axis", lambda x: ops.sum(x, 1), (values(2, 3, 2),)),
        ("axes kept", lambda x: ops.sum(x, (0, -1), True), (values(2, 3, 2),)),
    ],
    "mean": [
        ("all", ops.mean, (values(2, 3),)),
        ("axes", lambda x: ops.mean(x, (0, 2)), (values(2, 3, 2),)),
        ("kept", lambda x: ops.mean(x, 1, keepdim=True), (values(2, 3),)),
    ],
    "max": [
        ("all", ops.max, (distinct(2, 3),)),
        ("axis", lambda x: ops.max(x, 1), (distinct(2, 3, 2),)),
        ("axes kept", lambda x: ops.max(x, (0, 2), True), (distinct(2, 3, 2),)),
    ],
    "reshape": [("plain", lambda x: ops.reshape(x, (3, -1)), (values(2, 6),))],
    "flatten": [("middle", lambda x: ops.flatten(x, 1, 2), (values(2, 3, 2, 2),))],
    "transpose": [
        ("reversed", ops.transpose, (values(2, 3, 4),)),
        ("permuted", lambda x: ops.transpose(x, (1, -1, 0)), (values(2, 3, 4),)),
    ],
    "expand": [("plain", lambda x: ops.expand(x, (4, 2, 3)), (values(2, 1),))],
    "sum_to": [("plain", lambda x: ops.sum_to(x, (2, 1)), (values(4, 2, 3),))],
    "cast": [("there and back", lambda x: ops.cast(ops.cast(x, np.float64), np.float64), (values(3),))],
    "clone": [("plain", ops.clone, (values(2, 3),))],
    "getitem": [
        ("basic", lambda x: x[1:, None, ::-2], (values(3, 4),)),
        ("number", lambda x: x[-1], (values(3, 4),)),
        ("repeated", lambda x: x[np.array([0, 2, 0, 0])], (values(3, 2),)),
        ("mask", lambda x: x[np.array([True, False, True])], (values(3, 2),)),
        ("mixed", lambda x: x[..., [1, 1, 0], :], (values(2, 3, 2),)),
    ],
    "concatenate": [
        ("first", lambda x, y: ops.concatenate([x, y, x]), (values(2, 3), values(1, 3, seed=1))),
        ("last", lambda x, y: ops.concatenate((x, y), dim=-1), (values(2, 3), values(2, 1, seed=1))),
    ],
    "matmul": [
        ("matrices", ops.matmul, (values(2, 3), values(3, 4, seed=1))),
        ("stacks", ops.matmul, (values(2, 1, 2, 3), values(3, 3, 2, seed=1))),
        ("vectors", ops.matmul, (values(3), values(3, seed=1))),
        ("vector, matrix", ops.matmul, (values(3), values(2, 3, 2, seed=1))),
        ("matrix, vector", ops.matmul, (values(2, 2, 3), values(3, seed=1))),
    ],
    "linear": [
        ("bias", ops.linear, (values(2, 3), values(4, 3, seed=1), values(4, seed=2))),
        ("no bias", ops.linear, (values(2, 2, 3), values(4, 3, seed=1))),
        ("vector", ops.linear, (values(3), values(2, 3, seed=1), values(2, seed=2))),
    ],
    "cross_entropy": [
        *(
            (reduction, lambda x, r=reduction: ops.cross_entropy(x, LABELS, reduction=r), (values(3, 4),))
            for reduction in ("mean", "sum", "none")
        ),
        ("everything", lambda x: ops.cross_entropy(x, PIXEL_LABELS, WEIGHT, **IGNORE, label_smoothing=0.2), (PIXELS,)),
        (
            "probabilities",
            lambda x, t: ops.cross_entropy(x, t, WEIGHT, label_smoothing=0.2, reduction="none"),
            (PIXELS, positive(2, 4, 3)),
        ),
        ("one", lambda x: ops.cross_entropy(x, np.array(2)), (values(4),)),
    ],
    "nll_loss": [
        ("mean", lambda x: ops.nll_loss(x, LABELS), (values(3, 4),)),
        ("everything", lambda x: ops.nll_loss(x, PIXEL_LABELS, WEIGHT, **IGNORE, reduction="none"), (PIXELS,)),
    ],
    **{
        name: [
            (
                reduction,
                lambda x, t, n=name, r=reduction: getattr(ops, n)(x, t, reduction=r),
                (PIXELS, 3 * values(2, 4, 3)),
            )
            for reduction in ("mean", "sum", "none")
        ]
        for name in ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss")
    },
    "binary_cross_entropy": [
        ("plain", ops.binary_cross_entropy, (BETWEEN, BETWEEN[::-1].copy())),
        ("weight", lambda x, w: ops.binary_cross_entropy(x, BETWEEN[::-1], w, reduction="sum"), (BETWEEN, positive(3))),
    ],
    "binary_cross_entropy_with_logits": [
        ("plain", ops.binary_cross_entropy_with_logits, (values(2, 3), BETWEEN)),
        (
            "weights",
            lambda x, w, p: ops.binary_cross_entropy_with_logits(x, BETWEEN, w, pos_weight=p, reduction="none"),
            (values(2, 3), positive(2, 1), positive(3, seed=1)),
        ),
    ],
    "abs": [("plain", ops.abs, (values(2, 3),))],
    "move": [
        ("where it is", lambda x: ops.move(x, "cpu") * x, (values(2, 3),))
    ],  # the way to a GPU: test_cuda_training
    "clamp": [
        ("both", lambda x: ops.clamp(x, -0.5, 0.6), (values(3, 4),)),
        ("below", lambda x: ops.clamp(x, 0.1), (values(3, 4),)),
        ("above", lambda x: ops.clamp(x, max=0.1), (values(3, 4),)),
    ],
    "where": [
        ("broadcast", lambda a, b: ops.where(values(3, 1) > 0, a, b), (values(2), values(3, 2, seed=1))),
        ("number", lambda a: ops.where(values(3) > 0, a, 2.0), (values(3),)),
    ],
    "erf": [("plain", ops.erf, (values(2, 3),))],
    "relu6": [("plain", lambda x: ops.relu6(4 * x), (values(4, 5),))],
    "leaky_relu": [("plain", lambda x: ops.leaky_relu(x, 0.2), (values(4, 5),))],
    "prelu": [
        ("one", ops.prelu, (values(4, 5), values(1))),
        ("channels", ops.prelu, (values(2, 3, 4), values(3, seed=1))),
        ("vector", ops.prelu, (values(4), values(1))),
    ],
    "elu": [("plain", lambda x: ops.elu(x, 1.3), (values(4, 5),))],
    "selu": [("plain", ops.selu, (values(4, 5),))],
    "silu": [("plain", ops.silu, (values(4, 5),))],
    "gelu": [("exact", ops.gelu, (values(4, 5),)), ("tanh", lambda x: ops.gelu(x, "tanh"), (values(4, 5),))],
    "hardswish": [("plain", lambda x: ops.hardswish(3 * x), (values(4, 5),))],
    "logsigmoid": [("plain", ops.logsigmoid, (values(4, 5),))],
    "layer_norm": [
        ("affine", lambda x, w, b: ops.layer_norm(x, (3, 2), w, b), (values(2, 3, 2), *values(2, 3, 2, seed=1))),
        ("one value", lambda x, b: ops.layer_norm(x, 1, None, b), (values(3, 1), values(1, seed=1))),
    ],
    "group_norm": [("affine", lambda x, w, b: ops.group_norm(x, 2, w, b), (values(2, 4, 3), *values(2, 4, seed=1)))],
    "instance_norm": [
        ("affine", lambda x, w, b: ops.instance_norm(x, None, None, w, b), (values(2, 3, 4), *values(2, 3, seed=1))),
        ("evaluation", lambda x: ops.instance_norm(x, np.zeros(3), np.ones(3), None, None, False), (values(2, 3, 4),)),
    ],
    "local_response_norm": [
        ("odd", lambda x: ops.local_response_norm(x, 3, 0.5), (values(2, 4, 3),)),
        ("even", lambda x: ops.local_response_norm(x, 4, 0.5, 0.6, 2.0), (values(1, 5, 2),)),
        ("wide", lambda x: ops.local_response_norm(x, 9, 0.5), (values(2, 3, 2),)),
    ],
    "dropout": [("plain", seeded(lambda x: ops.dropout(x, 0.4)), (values(4, 5),))],
    "dropout2d": [("plain", seeded(lambda x: ops.dropout2d(x, 0.4)), (values(4, 5, 2),))],
    "gaussian_noise": [("plain", seeded(lambda x: ops.gaussian_noise(x, 0.4)), (values(4, 5),))],
    "conv2d": [
        ("bias", lambda x, w, b: ops.conv2d(x, w, b, **CONV), (X, W, values(6, seed=3))),
        ("unbatched", lambda x, w: ops.conv2d(x, w, padding=1), (values(2, 3, 4), values(3, 2, 2, 3, seed=1))),
        ("same", lambda x, w: ops.conv2d(x, w, padding="same"), (values(1, 1, 4, 5), values(2, 1, 2, 4, seed=1))),
        (
            "relu",
            lambda x, w, b: ops.conv2d(x, w, b, activation="relu"),
            (values(1, 2, 4, 4), values(3, 2, 3, 3, seed=1), values(3, seed=2)),
        ),
        ("residual", lambda x, w, r: ops.conv2d(x, w, **CONV, residual=r), (X, W, GY)),
        (
            "residual and relu",
            lambda x, w, b, r: ops.conv2d(x, w, b, residual=r, activation="relu"),
            (values(1, 2, 4, 4), values(3, 2, 3, 3, seed=1), values(3, seed=2), values(1, 3, 2, 2, seed=3)),
        ),
        (
            "residual is the input",
            lambda x, w: ops.conv2d(x, w, padding=1, residual=x, activation="relu"),
            (values(2, 3, 4), values(2, 2, 3, 3, seed=1)),
        ),
    ],
    "conv2d_input_grad": [
        ("options", lambda gy, w: ops.conv2d_input_grad(gy, w, X.shape, **CONV), (GY, W)),
        (
            "unbatched",
            lambda gy, w: ops.conv2d_input_grad(gy, w, (2, 4, 4), stride=2),
            (values(3, 2, 2), values(3, 2, 2, 2, seed=1)),
        ),
    ],
    "conv2d_weight_grad": [
        ("options", lambda x, gy: ops.conv2d_weight_grad(x, gy, (3, 2), **CONV), (X, GY)),
        (
            "unbatched",
            lambda x, gy: ops.conv2d_weight_grad(x, gy, 2, stride=2),
            (values(2, 4, 4), values(3, 2, 2, seed=1)),
        ),
    ],
    "bias_grad": [
        ("batch", ops.bias_grad, (values(2, 3, 2, 2),)),
        ("unbatched", ops.bias_grad, (values(3, 2, 2),)),
    ],
    "pointwise": [
        ("bias", ops.pointwise, (values(2, 3, 2, 2), values(4, 3, seed=1), values(4, seed=2))),
        ("four axes", ops.pointwise, (values(3, 2, 2), values(4, 3, 1, 1, seed=1))),
        (
            "relu",
            lambda x, w: ops.pointwise(x, w, activation="relu"),
            (values(2, 3, 2, 2), values(4, 3, 1, 1, seed=1)),
        ),
        (
            "residual and relu",
            lambda x, w, b, r: ops.pointwise(x, w, b, residual=r, activation="relu"),
            (values(2, 3, 2, 2), values(4, 3, seed=1), values(4, seed=2), values(2, 4, 2, 2, seed=3)),
        ),
    ],
    "pointwise_input_grad": [
        ("matrix", ops.pointwise_input_grad, (values(2, 4, 2, 2), values(4, 3, seed=1))),
        ("four axes", ops.pointwise_input_grad, (values(4, 2, 2), values(4, 3, 1, 1, seed=1))),
    ],
    "pointwise_weight_grad": [
        ("batch", ops.pointwise_weight_grad, (values(2, 3, 2, 2), values(2, 4, 2, 2, seed=1))),
        ("unbatched", ops.pointwise_weight_grad, (values(3, 2, 2), values(4, 2, 2, seed=1))),
    ],
    "max_pool2d": [
        ("plain", lambda x: ops.max_pool2d(x, 2), (distinct(2, 2, 4, 4),)),
        (
            "overlapping",
            lambda x: ops.max_pool2d(x, (3, 2), stride=1, padding=((1, 0), (1, 1)), dilation=(1, 2), ceil_mode=True),
            (distinct(1, 2, 5, 4),),
        ),
        ("unbatched, with indices", lambda x: ops.max_pool2d(x, 2, return_indices=True), (distinct(2, 4, 5),)),
    ],
    "batch_norm": [
        ("training", lambda x, w, b: ops.batch_norm(x, None, None, w, b, True), (X, *values(2, 4, seed=1))),
        ("evaluation", lambda x: ops.batch_norm(x, np.zeros(4), np.ones(4)), (X,)),
    ],
    "avg_pool2d": [
        ("plain", lambda x: ops.avg_pool2d(x, 2), (values(2, 2, 4, 4),)),
        ("overlapping", lambda x: ops.avg_pool2d(x, 3, 2, 1, True, False), (values(2, 5, 6),)),
        ("divisor", lambda x: ops.avg_pool2d(x, 2, 1, divisor_override=3), (values(1, 1, 3, 3),)),
    ],
    **gradcheck_windows.CASES,
}
ALL = [
    pytest.param(fn, inputs, id=f"{name}-{what}".replace(" ", "-"))
    for name, cases in CASES.items()
    for what, fn, inputs in cases
]


def test_no_operation_is_forgotten():
    assert set(CASES) == set(ops.__all__)
    assert all(CASES.values())


def gradient_of(fn):
    """The gradients of a weighted sum of fn's squared outputs, joined into one vector that can be differentiated."""

    def gradient(*inputs):
        y = fn(*inputs)
        y = y[0] if isinstance(y, tuple) else y
        (y * y * values(*y.shape, seed=9)).sum().backward(create_graph=True)
        return ops.concatenate([x.grad.reshape(-1) for x in inputs])

    return gradient


@pytest.mark.parametrize(("fn", "inputs"), ALL)
def test_first_derivative(fn, inputs):
    result = ck.gradcheck(fn, inputs, atol=1e-7, rtol=1e-6)
    assert result, result


@pytest.mark.parametrize(("fn", "inputs"), ALL)
def test_second_derivative(fn, inputs):
    result = ck.gradcheck(gradient_of(fn), inputs, atol=1e-6, rtol=1e-5)
    assert result, result


# --- gradcheck itself


class WrongSquare(ck.Function):
    """x² whose derivative is wrong in one element."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.data**2

    @staticmethod
    def backward(ctx, gy):
        (x,) = ctx.saved_tensors
        off = np.ones(x.shape)
        off[1, 0] = 1.01
        return gy * 2 * x * off


def test_gradcheck_finds_where_the_derivative_is_wrong():
    a, x = values(2), np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    result = ck.gradcheck(lambda a, x: a.sum() * WrongSquare.apply(x), (a, x))
    assert not result
    assert not result.ok
    assert (result.input, result.index) == (1, (1, 0))
    assert result.analytic == pytest.approx(1.01 * result.numerical, rel=1e-6)
    assert result.error == pytest.approx(abs(result.analytic - result.numerical))


def test_gradcheck_finds_a_missing_and_a_non_finite_derivative():
    missing = ck.gradcheck(lambda x: x * 2 + x.detach(), (values(2),))
    assert not missing
    assert missing.error == pytest.approx(abs(missing.numerical - missing.analytic))
    assert not ck.gradcheck(lambda x, y: x * 1.0, (values(2), values(2, seed=1))).error > 1e-6  # y: 0 is right
    nan = ck.gradcheck(lambda x: x * np.array([1.0, np.nan]), (values(2),))
    assert not nan
    assert nan.index == (0,)  # the weighted sum is NaN wherever one steps


def test_gradcheck_reports_agreement_and_leaves_its_inputs_alone():
    x = values(2, 3)
    before = x.copy()
    t = ck.Tensor(values(3, seed=1), requires_grad=True)
    result = ck.gradcheck(lambda x, t: (x * t).tanh(), (x, t))
    assert result
    assert result.ok
    assert 0 <= result.error < 1e-7
    np.testing.assert_array_equal(x, before)
    assert t.grad is None


def test_gradcheck_needs_float64():
    with pytest.raises(TypeError, match=r"inputs\[1\] must be float64, got float32"):
        ck.gradcheck(ops.add, (values(2), values(2).astype(np.float32)))
