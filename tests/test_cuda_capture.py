"""Captured training steps: replays of a recording graph against eager steps, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest

import convkern as ck
from convkern import amp, capture, nn, optim
from convkern import train as training
from convkern.blas import own_products, product
from convkern.kernels.cuda import launch
from convkern.train import checkpoint, loop

from . import fake_cupy, fake_device
from .gpu import needs_compiler
from .test_train import write_data

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


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if name not in ("sgd", "adam") else ()) for name in OPTIMIZERS]
)
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
            patch.setattr(cupy.cuda, "using_allocator", lambda malloc: fake_device.using_allocator(Default().malloc))
            with pytest.raises(AssertionError, match="the graph reaches memory that was given back"):
                run.step(1, True)


class Default(fake_device.MemoryPool):
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

    average = optim.swa_utils.AveragedModel(model)

    def averaging(images, labels):
        if ck.device.capturing():
            average.update_parameters(model)
        return nn.functional.cross_entropy(model(images), labels)

    def smoothed(images, labels):
        return nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)

    def stacks(images, labels):
        product = ck.ops.matmul(images, images)
        return nn.functional.cross_entropy(model(images), labels) + product.sum() * 0

    start = "this training step cannot be captured into a CUDA graph: "
    scale = refusal(cupy, model, scaled)
    assert scale.startswith(f"{start}GradScaler.scale cannot be captured: the scale changes")
    assert scale.endswith("give CapturedStep the scaler, as scaler=")
    assert refusal(cupy, model, averaging).startswith(f"{start}AveragedModel.update_parameters cannot be captured: its")
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


def test_debugging_blames_the_part_that_failed(cupy, monkeypatch):
    run = Run("adam", cupy)
    with capture.own_stream():
        run.step(0, False)
        run.step(1, True)
        waits = []
        monkeypatch.setattr(launch, "DEBUG", True)
        monkeypatch.setattr(fake_device.Stream, "synchronize", lambda stream: waits.append(1))
        run.step(2, True)
        assert len(waits) == 3

        def fails(stream):
            raise OSError("an illegal memory access was encountered")

        monkeypatch.setattr(fake_device.Stream, "synchronize", fails)
        with pytest.raises(RuntimeError, match=r"^the captured backward pass failed: an illegal memory access"):
            run.captured.backward()
        monkeypatch.undo()


def test_what_moved_is_noticed(cupy):
    run = Run("adam", cupy)
    with capture.own_stream():
        run.step(0, False)
        run.step(1, True)
        before = run.state()
        images, labels = run.batch(2, 1)
        with pytest.raises(
            ValueError, match=r"images must be of shape \(2, 1, 4, 4\) and float32, as captured, got \(1,"
        ):
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


# --- the training loop


def tiny(facts) -> nn.Sequential:
    with nn.init.seeded(1):
        return nn.Sequential(
            nn.AvgPool2d(4), nn.Conv2d(1, 2, 3, stride=2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
            nn.Linear(18, 10),
        )  # fmt: skip


@pytest.fixture
def run_of(cupy, tmp_path, monkeypatch):
    """Training of a tiny model on ten images in batches of four: its weights, its metrics, and which steps were replayed."""
    pytest.importorskip("safetensors")
    write_data(tmp_path, 10, 4)
    monkeypatch.setattr(loop, "build_model", tiny)
    monkeypatch.setattr(loop.Trainer, "_draw", lambda self, history: 0.0)
    replays = []
    forward = capture.CapturedStep.forward
    monkeypatch.setattr(
        capture.CapturedStep, "forward", lambda self, *batch: replays.append(len(batch[1])) or forward(self, *batch)
    )

    def run(name: str, **options):
        replays.clear()
        config = training.Config(
            data="mnist", data_dir=str(tmp_path), epochs=2, batch_size=4, device="cuda", capture=True,
            out=str(tmp_path / name), **options,
        )  # fmt: skip
        done = training.train(config, quiet=True)
        lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
        facts = [{key: line[key] for key in ("train_loss", "train_accuracy", "test_loss", "lr")} for line in lines]
        saved = checkpoint.load(done.folder / checkpoint.LAST)
        return {**saved.weights, **saved.average}, facts, list(replays)

    return run


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"optimizer": "adam", "clip_norm": 0.5, "ema": 0.9}, id="adam"),
        pytest.param({"optimizer": "sgd", "schedule": "one-cycle", "lr": 0.05}, id="sgd", marks=pytest.mark.full),
    ],
)
def test_a_captured_run_is_the_eager_run(options, run_of, monkeypatch):
    """A schedule, noise, clipping, averages; the first step and each epoch's last, smaller batch run eagerly."""
    weights, metrics, replays = run_of("captured", **options)
    monkeypatch.setattr(loop.Trainer, "_captured_step", lambda self, x, labels: None)
    want_weights, want_metrics, none = run_of("eager", **options)
    assert (replays, none) == ([4, 4, 4], [])
    assert metrics == want_metrics
    assert weights.keys() == want_weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(value, want_weights[name], err_msg=name)


def test_capture_needs_a_gpu_and_says_what_it_cannot_take():
    with pytest.raises(ValueError, match=r"capture=True needs device='cuda': .*, got device='cpu'"):
        training.Config(capture=True, device="cpu")
    with pytest.raises(ValueError, match=r"capture=True needs device='cuda': .*, got device='auto'"):
        training.train(training.Config(capture=True))
    with pytest.raises(ValueError, match=r"capture=True needs label_smoothing=0: .*, got 0.1"):
        training.Config(capture=True, device="cuda", label_smoothing=0.1)
    with pytest.raises(TypeError, match="capture must be True or False, got 1"):
        training.Config(capture=1, device="cuda")


def test_the_command_takes_it(capsys):
    from convkern import cli

    assert cli.main(["train", "--capture", "--device", "cpu"]) == 2
    assert "convkern: capture=True needs device='cuda'" in capsys.readouterr().err


def test_memory_that_runs_out_in_a_run_is_told(run_of, monkeypatch):
    """In the loss, which is no layer: the loop tells the bytes as layers do."""
    from convkern.device import OutOfDeviceMemory

    def fails(self, logits, labels):
        raise fake_device.OutOfMemoryError("Out of memory allocating 1,234 bytes (allocated so far: 5 bytes).")

    monkeypatch.setattr(loop.Trainer, "warm_up", lambda self, progress: None)
    monkeypatch.setattr(loop.Trainer, "_loss", fails)
    with pytest.raises(OutOfDeviceMemory, match="1,234 bytes asked for, 1,048,576 of"):
        run_of("failing")
