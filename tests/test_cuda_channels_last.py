"""Channels-last images on the device: operations give their layout back, and whole steps convert nothing but what is listed.

A conversion is a copy of images into another order in memory: by CuPy, or by the kernel that turns operands, whose only
work here is that of the filters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

import convkern as ck
from convkern import capture, nn, ops, plan
from convkern.kernels.cuda import costs, launch
from convkern.models.resnet import BasicBlock
from convkern.ops import norm
from convkern.plan import HALVES

from . import fake_cupy
from .gpu import needs_compiler

pytestmark = needs_compiler


@pytest.fixture
def cupy():
    with fake_cupy.installed() as module:
        yield module


def last(x: Any) -> Any:
    """The same values, channels-last."""
    library = np if isinstance(x, np.ndarray) else ck.device.library(x)
    return ck.device.from_last(library.ascontiguousarray(ck.device.to_last(x)))


class Seen(NamedTuple):
    """What was converted: the shapes that CuPy brought into another order, and the arrays that kernels turned."""

    copied: list[tuple[int, ...]]
    turned: list[np.ndarray]


def order(array: Any) -> list[int]:
    """The axes in the order of memory, outermost first; those of length 1 lie anywhere."""
    return sorted((axis for axis in range(array.ndim) if array.shape[axis] > 1), key=lambda axis: -array.strides[axis])


@contextmanager
def conversions(monkeypatch: Any) -> Iterator[Seen]:
    """What of three and more axes is brought into another order inside the block."""
    seen = Seen([], [])
    compute, reshape, run = fake_cupy._computed, fake_cupy.ndarray.reshape, launch.launcher

    def computed(inputs: Any, how: Any) -> Any:
        made = compute(inputs, how)
        for result in fake_cupy._arrays_in(made):
            for given in fake_cupy._arrays_in(inputs):
                if given.shape == result.shape and given.ndim > 2 and order(given) != order(result):
                    seen.copied.append(given.shape)
        return made

    def reshaped(array: Any, *shape: Any) -> Any:
        made = reshape(array, *shape)
        if array.ndim > 2 and not np.may_share_memory(made.host, array.host):
            seen.copied.append(array.shape)
        return made

    def launcher(kernel: Any, blocks: int, args: Any) -> None:
        if "from-float32" in kernel.name and "spread" not in kernel.name:
            seen.turned.append(args[0].host)
        run(kernel, blocks, args)

    with monkeypatch.context() as patch:
        patch.setattr(fake_cupy, "_computed", computed)
        patch.setattr(fake_cupy.ndarray, "reshape", reshaped)
        patch.setattr(launch, "launcher", launcher)
        yield seen


# --- whole steps


class ResNetLike(nn.Module):
    """A stem with max pooling, a plain shortcut, one with a convolution in it, one without parameters, global pooling."""

    def __init__(self) -> None:
        super().__init__()
        with nn.init.seeded(4):
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
                BasicBlock(8, 8), BasicBlock(8, 10, 2), BasicBlock(10, 12, 2, project=False),
            )  # fmt: skip
            self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(ops.flatten(ops.adaptive_avg_pool2d(self.body(x), 1), 1))


def vgg_like() -> nn.Sequential:
    """Bias and ReLU in the convolution, batch norm, both poolings, dropout, uneven adaptive pooling, a flatten of pixels."""
    with nn.init.seeded(5):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 9, 3, padding=1, bias=False),
            nn.BatchNorm2d(9), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(9, 8, 3, padding=1), nn.GELU(), nn.Dropout(0.0),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
        )  # fmt: skip


class GoogLeNetLike(nn.Module):
    """Branches whose channels are put together: with and without ReLU, one of them pooled; a local response norm."""

    def __init__(self) -> None:
        super().__init__()
        with nn.init.seeded(6):
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.LocalResponseNorm(3))
            self.one, self.three = nn.Conv2d(8, 5, 1), nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU())
            self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 4, 1), nn.LeakyReLU())
            self.join, self.head = nn.Conv2d(15, 8, 2, 2), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = self.join(ops.concatenate([self.one(x), self.three(x), self.pooled(x)], 1)) * 0.5 + 1
        return self.head(ops.flatten(ops.adaptive_avg_pool2d(x.sigmoid(), 1), 1))


def step(model: nn.Module, x: Any, labels: Any, kind: str) -> float:
    """Forward and backward with the products in ``kind``."""
    with ck.amp.autocast("cuda", kind):
        loss = nn.functional.cross_entropy(model(x), labels)
    loss.backward()
    return loss.item()


class Case(NamedTuple):
    """A model, its images, and what may be brought into another order: a flatten's pixels before the linear layer, and
    their gradient after it."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    allowed: tuple[tuple[int, ...], ...] = ()


CASES = {
    "resnet": Case(ResNetLike, (2, 3, 12, 10)),
    "resnet to one pixel": Case(ResNetLike, (2, 3, 4, 4)),
    "vgg": Case(vgg_like, (2, 3, 12, 12), ((2, 8, 2, 2), (2, 2, 2, 8))),
    "googlenet": Case(GoogLeNetLike, (2, 3, 8, 8)),
}


def of_a_step(name: str, kind: str, cupy: Any, monkeypatch: Any) -> tuple[Seen, list[Any]]:
    """What a channels-last step converted and ran, once its loss and gradients are found to be those of NCHW."""
    case, rng = CASES[name], np.random.default_rng(8)
    x, labels = rng.standard_normal(case.shape).astype("f4"), cupy.array(rng.integers(0, 5, case.shape[0]))
    plain, model = case.make().to("cuda"), case.make().to("cuda")
    monkeypatch.setattr(
        costs, "slower", lambda row, rivals, problem: ""
    )  # NCHW is rounded too, however tiny a layer is
    want, given = step(plain, cupy.array(x), labels, kind), last(cupy.array(x))
    with conversions(monkeypatch) as seen, plan.traced() as rows:
        got = step(model, given, labels, kind)
    parameters = [p.data.host for p in model.parameters()]
    turned = [array for array in seen.turned if not any(np.may_share_memory(array, p) for p in parameters)]
    np.testing.assert_allclose(got, want, rtol=1e-3)
    for (parameter, theirs), ours in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        scale = np.abs(theirs.grad.data.get()).max()
        np.testing.assert_allclose(ours.grad.data.get(), theirs.grad.data.get(), atol=2e-2 * scale, err_msg=parameter)
    return Seen(seen.copied, turned), rows


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("name", CASES)
def test_a_step_converts_nothing_but_a_flatten(name, kind, cupy, monkeypatch):
    """Losses and gradients are those of NCHW. An image of one pixel lies both ways, so it may be rounded as either."""
    seen, rows = of_a_step(name, kind, cupy, monkeypatch)
    assert tuple(seen.copied) == CASES[name].allowed
    pixels = 2 * np.array([10, 12])  # images of one pixel
    assert {array.size for array in seen.turned} <= (set(pixels) if name == "resnet to one pixel" else set())
    for problem, row in rows:
        if problem.operation in ("conv", "pool") and problem.direction != "bias_grad":
            assert problem.layout == "channels_last" or problem.spec.size == (1, 1) or name == "resnet to one pixel"
        assert problem.operation != "norm" or problem.spec.pixels == 1
        assert row.device == "cuda"


def test_a_conversion_would_show(cupy, monkeypatch):
    """Batch norm over NCHW has to convert what convolutions give, there and back."""
    monkeypatch.setattr(norm, "_last", lambda x: False)
    seen, _ = of_a_step("resnet", "bfloat16", cupy, monkeypatch)
    assert len(seen.copied) > 2 * 8


def test_a_captured_step_is_the_eager_one_and_converts_as_little(cupy, monkeypatch):
    """The batch's layout is that of the graph's inputs, into which other batches are copied."""
    case, rng = CASES["vgg"], np.random.default_rng(9)
    batches = [
        (last(cupy.array(rng.standard_normal(case.shape).astype("f4"))), cupy.array(rng.integers(0, 5, 2)))
        for _ in range(2)
    ]

    def forward(model: nn.Module, x: Any, labels: Any) -> Any:
        with ck.amp.autocast("cuda", "bfloat16"):
            return nn.functional.cross_entropy(model(x), labels)

    def trained(captured: bool) -> tuple[list[float], dict[str, np.ndarray]]:
        model, losses = case.make().to("cuda"), []
        optimizer, replay = ck.optim.SGD(model.parameters(), lr=0.1), None
        with capture.own_stream():
            for x, labels in (batches[0], *batches):
                if captured and losses:
                    replay = replay or capture.CapturedStep(model, partial(forward, model), optimizer, x, labels)
                    losses.append(replay.forward(x, labels).item())
                    replay.backward()
                    replay.update()
                else:
                    optimizer.zero_grad()
                    loss = forward(model, x, labels)
                    losses.append(loss.item())
                    loss.backward()
                    optimizer.step()
        return losses, model.state_dict()

    with conversions(monkeypatch) as eager:
        want, wanted = trained(False)
    with conversions(monkeypatch) as seen:
        losses, state = trained(True)
    assert losses == want
    for key, value in wanted.items():
        np.testing.assert_array_equal(state[key], value, err_msg=key)
    assert eager.copied == [*case.allowed] * 3
    assert seen.copied == [*case.allowed] * 2  # an eager step and the captured one


# --- operations


RNG = np.random.default_rng(3)
X, OTHER, SMALL = (RNG.integers(-4, 5, shape).astype("f4") for shape in ((2, 5, 6, 7), (2, 5, 6, 7), (5,)))
OPERATIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda x, o, c: ops.relu(x), "sigmoid": lambda x, o, c: x.sigmoid() + x.tanh(),
    "max_pool2d": lambda x, o, c: ck.max_pool2d(x, 3, 2, 1), "avg_pool2d": lambda x, o, c: ck.avg_pool2d(x, 2, 1),
    "max_pool2d of the ReLU": lambda x, o, c: ck.max_pool2d(ops.relu(x), 2),
    "adaptive_avg_pool2d": lambda x, o, c: ops.adaptive_avg_pool2d(x, (4, 5)),
    "adaptive_max_pool2d": lambda x, o, c: ops.adaptive_max_pool2d(x, (4, 5)),
    "batch_norm": lambda x, o, c: ops.batch_norm(x, None, None, c, c, True),
    "batch_norm with a residual": lambda x, o, c: ops.batch_norm(
        x, None, None, c, c, True, residual=o, activation="relu"
    ),
    "batch_norm of evaluation": lambda x, o, c: ops.batch_norm(x, c.detach(), (c * c).detach(), activation="relu"),
    "add": lambda x, o, c: x + o, "broadcast": lambda x, o, c: x * c.reshape(1, 5, 1, 1) - o / 3,
    "concatenate": lambda x, o, c: ops.concatenate([x, o], 1) * ops.concatenate([o, x], -3),
    "concatenate images": lambda x, o, c: ops.concatenate([x, o * 2], 0),
    "index": lambda x, o, c: ops.concatenate([x[:, :, ::2, ::2], o[:, :, 1::2, :4]], 1),
    "slices": lambda x, o, c: ops.concatenate(
        [
            ck.max_pool2d(x[:, 1:3], 2), ops.relu(o[:, 1:, ::2, :6:2])[:, :2],
            ops.batch_norm(x[:, :2, ::2, 1:4], None, None, training=True),
        ], 0
    ),
    "where": lambda x, o, c: ops.where(o.data > 0, x, o), "clamp": lambda x, o, c: ops.clamp(x, -1, 2) + ops.relu6(o),
    "activations": lambda x, o, c: ops.elu(x) + ops.gelu(o) + ops.hardswish(x) + ops.logsigmoid(o) + ops.leaky_relu(x),
    "gelu": lambda x, o, c: ops.gelu(x, "tanh") + ops.prelu(o, c), "powers": lambda x, o, c: (x * x + 1).sqrt() + o**2,
    "local_response_norm": lambda x, o, c: ops.local_response_norm(x, 3, 0.1),
}  # fmt: skip


@pytest.mark.parametrize("mixed", [False, True], ids=["alike", "mixed"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_results_and_gradients_lie_as_x_does(name, mixed, cupy):
    """The values are those of NCHW; ``mixed``: the other image and the gradient are NCHW, which are laid out to x."""
    function = OPERATIONS[name]

    def run(lay: Callable[..., Any], lay_other: Callable[..., Any]) -> list[Any]:
        x, other, channels = (ck.tensor(cupy.array(a), requires_grad=True) for a in (X, OTHER, SMALL + 6))
        x = ck.tensor(lay(x.data), requires_grad=True) * 1
        x.retain_grad()
        other = ck.tensor(lay_other(other.data), requires_grad=True)
        y = function(x, other, channels)
        gy = cupy.array(np.random.default_rng(1).integers(-3, 4, y.shape).astype("f4"))
        y.backward(lay_other(gy))
        return [y.data, *(t.grad.data for t in (x, other, channels) if t.grad is not None)]

    wanted, got = run(lambda a: a, lambda a: a), run(last, (lambda a: a) if mixed else last)
    for want, value in zip(wanted, got, strict=True):
        np.testing.assert_allclose(value.get(), want.get(), rtol=1e-5, atol=1e-5)
    y, gx = got[:2]
    assert ck.device.is_channels_last(y)
    assert ck.device.is_channels_last(gx) or mixed


SECOND = (
    "relu", "sigmoid", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "concatenate", "batch_norm",
    "batch_norm with a residual", "broadcast", "index", "activations", "slices", "local_response_norm",
)  # fmt: skip


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_are_those_of_nchw(name, cupy):
    def run(lay: Callable[..., Any]) -> list[np.ndarray]:
        leaves = [
            ck.Tensor(a, requires_grad=True)
            for a in (lay(cupy.array(X)), lay(cupy.array(OTHER)), cupy.array(SMALL + 6))
        ]
        y = OPERATIONS[name](*leaves)
        (y * y * y).sum().backward(create_graph=True)
        first = [t.grad for t in leaves if t.grad is not None]
        for t in leaves:
            t.grad = None
        sum((g * g).sum() for g in first).backward()
        return [v.data.get() for v in (*first, *(t.grad for t in leaves if t.grad is not None))]

    for ours, theirs in zip(run(last), run(lambda a: a), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_indices_lie_as_x_does_and_mean_the_same(cupy):
    want = ck.max_pool2d(X, 3, 2, 1, return_indices=True)
    got = ck.max_pool2d(last(cupy.array(X)), 3, 2, 1, return_indices=True)
    for ours, theirs in zip(got, want, strict=True):
        assert ck.device.is_channels_last(ours)
        np.testing.assert_array_equal(ours.get(), theirs)
    out = cupy.empty(want[0].shape, "f4")
    assert ck.max_pool2d(last(cupy.array(X)), 3, 2, 1, out=out) is out
    np.testing.assert_array_equal(out.get(), want[0])


def test_the_folded_gradient_of_a_pooling_lies_as_the_convolutions_result(cupy):
    """Average pooling, the ReLU before it and the bias before that go back in one pass."""
    rng = np.random.default_rng(5)
    x, w, b = (rng.integers(-2, 3, shape).astype("f4") for shape in ((2, 3, 6, 6), (4, 3, 3, 3), (4,)))

    def run(lay: Callable[..., Any]) -> tuple[list[Any], list[Any]]:
        parts = [ck.tensor(lay(cupy.array(x)))] + [ck.tensor(cupy.array(a), requires_grad=True) for a in (w, b)]
        with plan.traced() as rows:
            y = ck.conv2d(*parts, padding=1, activation="relu", precision="bfloat16")
            (ck.avg_pool2d(y, 2) * 4).sum().backward()
        return [p.grad.data.get() for p in parts[1:] if p.grad is not None], rows

    (want, _), (got, rows) = run(lambda a: a), run(last)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [p.layout for p, _ in rows if p.direction == "avg_relu_bias_backward"] == ["channels_last"]


def test_dropout_draws_in_the_order_of_memory(cupy):
    ck.random.seed_noise(1, 2)
    x = ck.tensor(last(cupy.ones((2, 5, 6, 7), "f4")), requires_grad=True)
    y = nn.functional.dropout(x, 0.5)
    assert ck.device.is_channels_last(y.data)
    assert set(np.unique(y.data.get())) == {0.0, 2.0}
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.data.get(), y.data.get())
    assert ck.device.is_channels_last(ops.gaussian_noise(x.data, 0.5))
    assert ck.device.is_channels_last(nn.functional.dropout2d(x, 0.5).data)


def test_moving_to_the_device_keeps_the_layout(cupy):
    moved = ck.tensor(last(X)).to("cuda")
    assert ck.device.is_channels_last(moved.data)
    np.testing.assert_array_equal(moved.data.get(), X)
