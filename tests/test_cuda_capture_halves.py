"""Captured training steps in float16, whose losses are scaled: replays against eager steps, bit for bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from convkern import amp, capture, nn, optim
from convkern.kernels.update import cuda_chunks
from convkern.scale import DeviceScale

from . import fake_cupy
from .gpu import needs_compiler


@pytest.fixture
def cupy():
    with fake_cupy.installed() as module:
        yield module


def layer() -> nn.Sequential:
    with nn.init.seeded(1):
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


class HalfRun:
    """A layer in training in float16, its loss scaled; the scale doubles after every step, so that some overflow."""

    def __init__(self, cupy) -> None:
        self.cupy, self.model = cupy, layer().to("cuda")
        self.optimizer = optim.Adam(self.model.parameters(), lr=0.01)
        self.scaler = amp.GradScaler("cuda", init_scale=2.0**16, growth_interval=1)
        self.captured: capture.CapturedStep | None = None
        self.found: list[object] = []

    def loss(self, images, labels):
        with amp.autocast("cuda"):
            return nn.functional.cross_entropy(self.model(images), labels)

    def step(self, number: int, captured: bool) -> None:
        rng = np.random.default_rng(number)
        images = self.cupy.array(rng.standard_normal((2, 1, 4, 4)).astype("f4"))
        labels = self.cupy.array(rng.integers(0, 3, 2))
        if captured:
            self.captured = self.captured or capture.CapturedStep(
                self.model, self.loss, self.optimizer, images, labels, scaler=self.scaler
            )
            loss = self.captured.forward(images, labels)
            self.captured.backward()
            self.captured.update()
        else:
            self.optimizer.zero_grad()
            loss = self.loss(images, labels)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.look(loss)

    def look(self, loss) -> None:
        state = self.optimizer.state_dict()["state"]
        self.found += [loss.item(), self.scaler.state_dict(), state[0]["step"]]
        self.found += [p.data.get().tolist() for p in self.model.parameters()]
        self.found += [np.asarray(state[0][key]).tolist() for key in ("exp_avg", "exp_avg_sq")]


def trained_in_halves(cupy, captured: bool) -> HalfRun:
    run = HalfRun(cupy)
    with capture.own_stream():
        for number in range(7):
            run.step(number, captured and number > 0)
    return run


@needs_compiler
@pytest.mark.usefixtures("any_size_on_tensor_cores")
def test_captured_steps_in_float16_skip_what_overflows_as_eager_ones_do(cupy, monkeypatch):
    """Losses, scale, parameters and optimizer state; three of the captured steps overflow and three do not."""
    want, run = trained_in_halves(cupy, False), trained_in_halves(cupy, True)
    assert run.found == want.found
    made = want.found[2::7]  # Adam's count of the steps that were made
    assert made[0] == 1
    assert [b - a for a, b in itertools.pairwise(made)].count(0) == 3
    for owner, name, broken in (
        (DeviceScale, "adjust", lambda scale, *rest: None),
        (optim.Adam, "kernel_unless", unguarded),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            assert trained_in_halves(cupy, True).found != want.found, name


def unguarded(adam: optim.Adam, rows, numbers, found) -> None:
    """A step that is made whatever was found."""
    adam.always = found.copy()
    adam.always.fill(0)
    cuda_chunks.adam_unless(rows, numbers, adam.always)


@needs_compiler
def test_a_scaler_is_updated_after_every_captured_step(cupy):
    run = HalfRun(cupy)
    with capture.own_stream():
        run.step(0, False)
        run.step(1, True)
        run.captured.backward()
        run.captured.update()
        before = [p.data.get() for p in run.model.parameters()]
        with pytest.raises(RuntimeError, match=r"step\(\) has already been called since the last update\(\)"):
            run.captured.update()
        for p, value in zip(run.model.parameters(), before, strict=True):
            np.testing.assert_array_equal(p.data.get(), value)
        with pytest.raises(TypeError, match="scaler must be a GradScaler or None, got float"):
            capture.CapturedStep(run.model, run.loss, run.optimizer, None, None, scaler=2.0)


@needs_compiler
@pytest.mark.usefixtures("any_size_on_tensor_cores")
def test_the_host_reads_nothing_back(cupy, monkeypatch):
    """Neither in a captured step and the update of the scale, nor in eager ones; overflows among them."""

    def reads(array):
        raise AssertionError("the host reads from the device")

    for captured in (False, True):
        run = HalfRun(cupy)
        run.look = lambda loss: None
        with capture.own_stream():
            run.step(0, False)
            run.step(1, captured)
            with monkeypatch.context() as patch:
                patch.setattr(fake_cupy.ndarray, "get", reads)
                for number in range(2, 5):
                    run.step(number, captured)
        state = run.optimizer.state_dict()["state"]
        assert {values["step"] for values in state.values()} == {3}


@needs_compiler
def test_an_optimizer_whose_kernels_look_at_no_flag_is_not_captured_with_a_scaler(cupy):
    class Mine(optim.Adam):
        def kernel(self, rows, numbers):
            super().kernel(rows, numbers)

    run = HalfRun(cupy)
    run.optimizer = Mine(run.model.parameters(), lr=0.01)
    with capture.own_stream():
        run.step(0, False)  # where the host reads the flag
        with pytest.raises(RuntimeError, match="Mine cannot be captured with a scaler: its kernels look at no flag"):
            run.step(1, True)
