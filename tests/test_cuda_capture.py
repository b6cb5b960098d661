"""Captured training steps: replays of a recording graph against eager steps, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

import convkern as ck
from convkern import amp, capture, nn, optim
from convkern.blas import own_products, product

from . import fake_cupy
from .gpu import needs_compiler

pytestmark = needs_compiler


@pytest.fixture
def cupy():
    with fake_cupy.installed() as module:
        yield module


def network() -> nn.Sequential:
    """All that may change from step to step: running statistics and their counter, two kinds of noise."""
    with nn.init.seeded(2):
        return nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.3), nn.Flatten(),
            nn.GaussianNoise(0.1), nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3),
        )  # fmt: skip


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=1e-3),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.01),
}
STEPS = 5


class Run:
    """A model in training on made-up batches, with a rate that changes at every step."""

    def __init__(self, name: str, cupy) -> None:
        self.cupy, self.model = cupy, network().to("cuda")
        self.optimizer = OPTIMIZERS[name](self.model.parameters())
        self.schedule = optim.lr_scheduler.ExponentialLR(self.optimizer, 0.7)
        self.captured: capture.CapturedStep | None = None
        self.losses: list[float] = []

    def loss(self, images, labels):
        return nn.functional.cross_entropy(self.model(images), labels)

    def batch(self, number: int, count: int = 2):
        rng = np.random.default_rng(number)
        return self.cupy.array(rng.standard_normal((count, 1, 4, 4)).astype("f4")), self.cupy.array(
            rng.integers(0, 3, count)
        )

    def step(self, number: int, captured: bool, count: int = 2, seed: int = 5) -> None:
        images, labels = self.batch(number, count)
        ck.random.seed_noise(seed, number)
        if captured and self.captured is None:
            self.captured = capture.CapturedStep(self.model, self.loss, self.optimizer, images, labels)
        if captured:
            loss = self.captured.forward(images, labels)
            self.losses.append(loss.item())
            self.captured.backward()
            self.captured.update()
        else:
            self.optimizer.zero_grad()
            loss = self.loss(images, labels)
            self.losses.append(loss.item())
            loss.backward()
            self.optimizer.step()
        self.schedule.step()

    def state(self) -> dict[str, np.ndarray]:
        found = {**self.model.state_dict()}
        for position, values in self.optimizer.state_dict()["state"].items():
            found.update({f"{position}.{key}": np.asarray(value) for key, value in values.items()})
        for name, p in self.model.named_parameters():
            found[f"gradient of {name}"] = p.grad.data.get()
        return found

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Run)
        mine, theirs = self.state(), other.state()
        return (
            self.losses == other.losses
            and mine.keys() == theirs.keys()
            and all(np.array_equal(value, theirs[name]) for name, value in mine.items())
        )

    __hash__ = None


def eager(name: str, cupy) -> Run:
    run = Run(name, cupy)
    with capture.own_stream():
        for number in range(STEPS):
            run.step(number, captured=False)
    return run


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replayed_steps_are_eager_steps(name, cupy):
    """Losses, parameters, statistics, optimizer state and gradients of every replay, the learning rate falling."""
    want, run = eager(name, cupy), Run(name, cupy)
    with capture.own_stream():
        for number in range(STEPS):
            run.step(number, captured=number > 0)
    assert len(set(want.losses)) == STEPS
    assert run == want


def test_eager_steps_in_between(cupy):
    """Also of another size: gradients and the pool's memory change hands, the graph's own memory does not."""
    runs = [Run("adam", cupy) for _ in range(2)]
    with capture.own_stream():
        for number in range(STEPS):
            for run, captured in zip(runs, (False, True), strict=True):
                small = number == 2
                run.step(number, captured and number > 0 and not small, count=1 + (not small))
                rubbish = [cupy.full((k,), 7.0, "f4") for k in range(1, 60)]
                del rubbish
    assert runs[0] == runs[1]


def test_what_changes_is_not_frozen(cupy):
    """The comparison is not blind: a rate, a correction or a draw that stayed would show."""
    want = eager("adam", cupy)
    for broken in ("rate", "numbers", "noise", "batch"):
        run = Run("adam", cupy)
        with capture.own_stream():
            for number in range(STEPS):
                run.step(number, number > 0)
                if run.captured is not None and broken == "numbers":
                    run.captured._numbers.set = lambda numbers: None
                if run.captured is not None and broken == "noise":
                    run.captured._draws.clear()
                if broken == "rate":
                    run.optimizer.param_groups[0]["lr"] = 0.01
                if run.captured is not None and broken == "batch":
                    run.captured._inputs[0] = run.captured._inputs[0].copy()
        assert run != want, broken


def test_memory_that_a_graph_needs_stays(cupy):
    """The fake's graph notices memory that was given back: with the default pool the activations are."""
    run = Run("sgd", cupy)
    with capture.own_stream():
        run.step(0, False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cupy.cuda, "using_allocator", lambda malloc: fake_cupy.using_allocator(Default().malloc))
            with pytest.raises(AssertionError, match="the graph reaches memory that was given back"):
                run.step(1, True)


class Default(fake_cupy.MemoryPool):
    """Forgotten at once, as the default pool forgets what is in an array."""


def refusal(cupy, model: nn.Module, forward=None, optimizer=None, warm: bool = True) -> str:
    """What stands against the capture of a step; the stream and the optimizer go on afterwards."""
    model = model.to("cuda")
    optimizer = optimizer or optim.Adam(model.parameters(), lr=0.01)
    images, labels = cupy.array(np.ones((2, 1, 4, 4), "f4")), cupy.array([0, 2])
    forward = forward or (lambda images, labels: nn.functional.cross_entropy(model(images), labels))

    def step() -> None:
        optimizer.zero_grad()
        forward(images, labels).backward()
        optimizer.step()

    with capture.own_stream():
        if warm:
            step()
        with pytest.raises(RuntimeError) as caught:
            capture.CapturedStep(model, forward, optimizer, images, labels)
        step()
    assert optimizer.state[0]["step"] == 1 + warm
    return str(caught.value)


def small(*more: nn.Module) -> nn.Sequential:
    with nn.init.seeded(1):
        return nn.Sequential(*more, nn.Flatten(), nn.Linear(16, 3))


def test_what_cannot_be_captured_is_named(cupy):
    scaler = amp.GradScaler("cuda", init_scale=4.0)
    model = small()

    def scaled(images, labels):
        return scaler.scale(nn.functional.cross_entropy(model(images), labels))

    def stepping(images, labels):
        loss = nn.functional.cross_entropy(model(images), labels)
        if ck.device.capturing():
            optim.SGD(model.parameters(), lr=0.0).step()
        return loss

    def looking(images, labels):
        loss = nn.functional.cross_entropy(model(images), labels)
        return loss if loss.item() < 1e9 else loss * 0

    def smoothed(images, labels):
        return nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)

    def stacks(images, labels):
        product = ck.ops.matmul(images, images)
        return nn.functional.cross_entropy(model(images), labels) + product.sum() * 0

    start = "this training step cannot be captured into a CUDA graph: "
    assert refusal(cupy, model, scaled).startswith(f"{start}GradScaler.scale cannot be captured: the scale changes")
    assert refusal(cupy, model, stepping).startswith(f"{start}SGD.step cannot be captured: its numbers change")
    assert "not permitted when stream is capturing" in refusal(cupy, model, looking)
    assert "not permitted when stream is capturing" in refusal(cupy, model, smoothed)
    assert "a matrix product of shapes (2, 1, 4, 4) and (2, 1, 4, 4) in float32" in refusal(cupy, model, stacks)
    counting = small(nn.BatchNorm2d(1, momentum=None))
    assert "BatchNorm2d with momentum=None cannot be captured" in refusal(cupy, counting)
    assert "make a step before the captured one" in refusal(cupy, small(), warm=False)


def test_optimizers_with_a_step_of_their_own_are_refused(cupy):
    class Mine(optim.Adam):
        def step(self, closure=None):
            return super().step(closure)

    model = small().to("cuda")
    assert refusal(cupy, model, None, Mine(model.parameters())).startswith("Mine cannot be captured: it has a step()")


def test_the_default_stream_is_refused(cupy):
    run = Run("adam", cupy)
    with own_products():
        run.step(0, False)
        with pytest.raises(RuntimeError, match="default"):
            run.step(1, True)


def test_what_moved_is_noticed(cupy):
    run = Run("adam", cupy)
    with capture.own_stream():
        run.step(0, False)
        run.step(1, True)
        before = run.state()
        images, labels = run.batch(2, 1)
        with pytest.raises(ValueError, match=r"images must be of shape \(2, 1, 4, 4\) and float32, as captured, got \(1,"):
            run.captured.forward(images, labels)
        run.optimizer.state[0]["exp_avg"] = run.optimizer.state[0]["exp_avg"].copy()
        run.captured.backward()
        with pytest.raises(RuntimeError, match="optimizer's state have moved"):
            run.captured.update()
        after = run.state()
        assert all(np.array_equal(after[k], v) for k, v in before.items() if not k.startswith("gradient"))
        weight = run.model[0].weight
        weight.data = weight.data.copy()
        with pytest.raises(RuntimeError, match="parameters or buffers have moved"):
            run.captured.forward(*run.batch(2))


@pytest.mark.parametrize("shape", [(3, 5, 4), (1, 1, 1), (17, 33, 9)])
def test_products_of_our_own(shape, cupy):
    """Plain and transposed operands on both sides."""
    m, inner, n = shape
    rng = np.random.default_rng(4)
    a, b = (rng.integers(-4, 5, size).astype("f4") for size in ((m, inner), (inner, n)))
    with own_products():
        for left in (cupy.array(a), cupy.array(np.ascontiguousarray(a.T)).T):
            for right in (cupy.array(b), cupy.array(np.ascontiguousarray(b.T)).T):
                np.testing.assert_array_equal(product(left, right).get(), a @ b)
