"""Whole networks on the device: a stand-in for CuPy whose launches run in the interpreter, against the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import convkern as ck
from convkern import nn, ops, optim, plan
from convkern import train as training
from convkern.models.resnet import BasicBlock
from convkern.plan import HALVES
from convkern.train import checkpoint, evaluation

from . import fake_cupy
from .gpu import needs_compiler
from .test_train import write_data

pytestmark = needs_compiler


@pytest.fixture
def cupy():
    with fake_cupy.installed() as module:
        yield module


def tiny_lenet() -> nn.Sequential:
    """LeNet-5's layers over 12x12 pixels, with few channels."""
    with nn.init.seeded(3):
        return nn.Sequential(
            nn.Conv2d(1, 3, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 5),
        )  # fmt: skip


class TinyResNet(nn.Module):
    """A stem, a block with a plain shortcut, one with a convolution in it, global pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        with nn.init.seeded(4):
            self.body = nn.Sequential(
                nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), BasicBlock(4, 4), BasicBlock(4, 6, 2)
            )  # fmt: skip
            self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(ops.flatten(ops.adaptive_avg_pool2d(self.body(x), 1), 1))


def tiny_vgg() -> nn.Sequential:
    """Convolution, batch norm, max pooling, uneven adaptive pooling, GELU, and a dropout that drops nothing."""
    with nn.init.seeded(5):
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(16, 7), nn.GELU(), nn.Dropout(0.0), nn.Linear(7, 5),
        )  # fmt: skip


MODELS = {
    "lenet": (tiny_lenet, (2, 1, 12, 12)),
    "resnet": (TinyResNet, (3, 2, 6, 5)),
    "vgg": (tiny_vgg, (3, 2, 6, 7)),
}
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: optim.Adam(p, lr=1e-2),
    "adamw": lambda p: optim.AdamW(p, lr=1e-2),
    "rmsprop": lambda p: optim.RMSprop(p, lr=1e-3),
}


def batch(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(8)
    return rng.standard_normal(shape).astype("f4"), rng.integers(0, 5, shape[0])


def train(model: nn.Module, optimizer: optim.optimizer.Optimizer, x, labels, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "optimizer"), [("lenet", "sgd"), ("lenet", "adam"), ("resnet", "sgd"), ("vgg", "adamw")]
)
def test_training_on_the_device_is_training_on_the_cpu(name, optimizer, cupy):
    """Two steps: losses, every gradient, parameter and running statistic. Nothing of a step leaves the device."""
    make, shape = MODELS[name]
    x, labels = batch(shape)
    here, there = make(), make().to("cuda")
    assert {p.device for p in there.parameters()} == {"cuda"}
    wanted = train(here, OPTIMIZERS[optimizer](here.parameters()), x, labels, 2)
    with plan.traced() as rows:
        got = train(there, OPTIMIZERS[optimizer](there.parameters()), cupy.array(x), cupy.array(labels), 2)
    assert {row.device for _, row in rows} == {"cuda"}
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    for (parameter, want), moved in zip(here.named_parameters(), there.parameters(), strict=True):
        assert type(moved.data) is type(moved.grad.data) is cupy.ndarray
        scale = np.abs(want.grad.data).max()
        np.testing.assert_allclose(
            moved.grad.data.get(), want.grad.data, rtol=1e-4, atol=1e-4 * scale, err_msg=parameter
        )
    state = there.state_dict()
    for key, value in here.state_dict().items():
        np.testing.assert_allclose(state[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


def mixed_step(model, optimizer, scaler, x, labels, kind) -> float:
    optimizer.zero_grad()
    with ck.amp.autocast(ck.device.of(x), kind):
        loss = nn.functional.cross_entropy(model(x), labels)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.item()


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.usefixtures("any_size_on_tensor_cores")
def test_mixed_precision_on_the_device_is_that_of_the_cpu(kind, cupy):
    """Two steps on rows of halves with a scaled loss, then one whose gradients overflow: it is skipped."""
    make, shape = MODELS["lenet"]
    x, labels = batch(shape)
    results = {}
    for device in ("cpu", "cuda"):
        model = make().to(device)
        there = (x, labels) if device == "cpu" else (cupy.array(x), cupy.array(labels))
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        scaler = ck.amp.GradScaler(device, init_scale=2.0**10, enabled=kind == "float16")
        with plan.traced() as rows:
            losses = [mixed_step(model, optimizer, scaler, *there, kind) for _ in range(2)]
        products = {row.name for problem, row in rows if problem.operation == "conv" and row.direction != "bias_grad"}
        # The first layer has one channel and six filters: that row is exact, and takes such layers in any precision.
        assert (products == {kind, "depthwise"}) == (device == "cuda")
        assert {p.dtype for p in model.parameters()} == {np.dtype(np.float32)}  # master weights
        state = {key: value.copy() for key, value in model.state_dict().items()}
        if kind == "float16":
            scaler.update(2.0**40)
            mixed_step(model, optimizer, scaler, *there, kind)
            assert scaler.get_scale() == 2.0**39
            for key, value in model.state_dict().items():
                np.testing.assert_array_equal(value, state[key], err_msg=key)
        results[device] = losses, state
    (got, state), (want, want_state) = results["cuda"], results["cpu"]
    bound = {"float16": 2e-3, "bfloat16": 2e-2}[kind]
    np.testing.assert_allclose(got, want, rtol=bound)
    for key, value in want_state.items():
        np.testing.assert_allclose(state[key], value, atol=bound * np.abs(value).max(), err_msg=key)


def test_a_shortcut_without_parameters_stays_on_the_device(cupy):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype("f4")
    shortcut = BasicBlock(3, 5, stride=2, project=False).shortcut
    y = shortcut(ck.Tensor(cupy.array(x)))
    assert isinstance(y.data, cupy.ndarray)
    np.testing.assert_array_equal(cupy.asnumpy(y.data), shortcut(ck.Tensor(x)).data)


def test_a_broken_row_is_noticed(cupy, monkeypatch):
    """The comparison is not blind: an offset that the kernel forgets shows in the losses."""
    from convkern.kernels.norm import cuda_planes

    make, shape = MODELS["resnet"]
    x, labels = batch(shape)
    wanted = train(make(), optim.SGD([nn.Parameter(np.zeros(1))]), x, labels, 1)
    good = cuda_planes.forward
    monkeypatch.setattr(cuda_planes, "forward", lambda x, r, affine, *rest: good(x, r, affine * 1.01, *rest))
    got = train(make().to("cuda"), optim.SGD([nn.Parameter(np.zeros(1))]), cupy.array(x), cupy.array(labels), 1)
    assert abs(got[0] - wanted[0]) > 1e-4 * wanted[0]


def test_evaluation_and_moving_back(cupy):
    make, shape = MODELS["resnet"]
    x, labels = batch(shape)
    model = make()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, x, labels, 1)
    want = model.eval()(x).detach().numpy()
    with ck.no_grad():
        got = model.to("cuda")(cupy.array(x))
    np.testing.assert_allclose(got.cpu().numpy(), want, rtol=1e-4, atol=1e-5)
    # The optimizer's state follows the parameters, there and back.
    train(model.train(), optimizer, cupy.array(x), cupy.array(labels), 1)
    assert type(optimizer.state[0]["momentum_buffer"]) is cupy.ndarray
    train(model.to("cpu"), optimizer, x, labels, 1)
    assert type(optimizer.state[0]["momentum_buffer"]) is np.ndarray
    assert type(model.body[1].running_mean) is np.ndarray


def test_states_are_numpys_and_load_anywhere(cupy):
    make, shape = MODELS["lenet"]
    x, labels = batch(shape)
    model = make().cuda()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, cupy.array(x), cupy.array(labels), 1)
    weights, state = model.state_dict(), optimizer.state_dict()
    assert all(type(a) is np.ndarray for a in weights.values())
    assert {type(v) for values in state["state"].values() for v in values.values()} == {np.ndarray, int}
    on_cpu = make()
    on_cpu.load_state_dict(weights)
    again = OPTIMIZERS["adam"](on_cpu.parameters())
    again.load_state_dict(state)
    back = make().to("cuda")
    back.load_state_dict(on_cpu.state_dict())
    resumed = OPTIMIZERS["adam"](back.parameters())
    resumed.load_state_dict(state)
    want = train(model, optimizer, cupy.array(x), cupy.array(labels), 1)
    assert train(back, resumed, cupy.array(x), cupy.array(labels), 1) == want
    np.testing.assert_allclose(train(on_cpu, again, x, labels, 1), want, rtol=1e-4)
    for name, value in back.state_dict().items():
        np.testing.assert_array_equal(value, model.state_dict()[name])


# --- Tensors


def test_tensors_move_and_their_gradients_come_back(cupy):
    x = ck.tensor(np.arange(6.0, dtype="f4").reshape(2, 3), requires_grad=True)
    y = (x.cuda() * 3).cpu()
    assert (x.device, x.cuda().device, y.device) == ("cpu", "cuda", "cpu")
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.full((2, 3), 3))
    there = x.detach().to("cuda")
    assert there.to("cuda") is there
    assert repr(there) == repr(x.detach())
    assert (there.sum().item(), float(there[1, 2]), len(there)) == (15.0, 5.0, 2)
    for how in (there.numpy, lambda: np.asarray(there)):
        with pytest.raises(TypeError, match=r"this Tensor lives on cuda: \.cpu\(\) moves it first"):
            how()


ELEMENTWISE = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "broadcast": lambda a, b: a * b[0] + b[:, :1], "numbers": lambda a, b: 2 * a - b / np.float32(3) + np.array(1, "f4"),
    "pow": lambda a, b: a**2 + b**3, "exp": lambda a, b: a.exp() + b.sigmoid() + b.tanh(),
    "sqrt": lambda a, b: (a * a + b * b).sqrt(),
    "log": lambda a, b: (b * b + 1).log() + ops.abs(a), "relu": lambda a, b: (a - b).relu(), "matmul": lambda a, b: a @ b.T,
    "sums": lambda a, b: a.sum(0) + b.sum(1, keepdim=True) + a.mean() + b.max(),
    "sum of inner axes": lambda a, b: (a.reshape(2, 2, 3) * b.reshape(2, 2, 3)).sum(1),
    "softmax": lambda a, b: a.softmax(1) * b.log_softmax(0), "where": lambda a, b: ops.where(a.data > 0, a, b),
    "clamp": lambda a, b: ops.clamp(a, -1, 1) * b, "gelu": lambda a, b: ops.gelu(a) + ops.gelu(b, "tanh"),
    "index": lambda a, b: a[1:, ::2] + b[2], "concatenate": lambda a, b: ops.concatenate([a, b.T.transpose(0, 1)], 1),
    "more": lambda a, b: ops.leaky_relu(a) + ops.elu(b) + ops.silu(a) + ops.hardswish(b) + ops.relu6(a) + ops.logsigmoid(b),
    "losses": lambda a, b: ops.mse_loss(a, b) + ops.smooth_l1_loss(a, b) + ops.l1_loss(a, b),
}  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_operations_and_their_derivatives(name, cupy):
    """The value, the gradient, and the gradient of the gradient where there is one that is not 0."""
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal((4, 3)).astype("f4") for _ in range(2)]
    if name == "index":
        arrays[1] = rng.standard_normal((4, 2)).astype("f4")

    def run(place):
        a, b = (ck.tensor(v, requires_grad=True) for v in (ck.device.moved(v, place) for v in arrays))
        y = ELEMENTWISE[name](a, b)
        (y * y).sum().backward(create_graph=True)
        first = [t.grad.cpu().detach().numpy() for t in (a, b)]
        loss = (a.grad * a.grad).sum() + (b.grad * b.grad).sum()
        a.grad = b.grad = None
        loss.backward()
        assert {v.device for v in (y, loss, a.grad, b.grad)} == {place}
        return [y.cpu().detach().numpy(), *first, *(t.grad.cpu().detach().numpy() for t in (a, b))]

    for got, want in zip(run("cuda"), run("cpu"), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "options", [{}, {"ignore_index": 1}, {"label_smoothing": 0.2}, {"weight": True, "ignore_index": 2}]
)
def test_cross_entropy_with_every_option(options, reduction, cupy):
    rng = np.random.default_rng(3)
    for shape in ((4, 3), (2, 3, 5), (3,)):
        logits = rng.standard_normal(shape).astype("f4")
        labels = np.arange(logits.size // 3).reshape(shape[:1] * (len(shape) > 1) + shape[2:]) % 3
        weight = np.array([0.5, 2, 1], "f4")

        def run(place, logits=logits, labels=labels, weight=weight):
            x = ck.tensor(ck.device.moved(logits, place), requires_grad=True)
            more = {**options, "weight": ck.device.moved(weight, place)} if "weight" in options else options
            there = ck.device.moved(labels, place)
            loss = nn.functional.cross_entropy(x, there, reduction=reduction, **more)
            (loss * loss).sum().backward(create_graph=True)
            first = x.grad.cpu().detach().numpy()
            plain = ck.tensor(x.data, requires_grad=True)
            nn.functional.cross_entropy(plain, there, reduction=reduction, **more).sum().backward()
            (x.grad * x.grad).sum().backward()
            return [v.cpu().detach().numpy() for v in (loss, plain.grad, x.grad)] + [first]

        for got, want in zip(run("cuda"), run("cpu"), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


BATCH_NORMS = {
    "plain": dict(training=True), "affine": dict(training=True, affine=True), "evaluation": dict(affine=True, tracked=True),
    "running": dict(training=True, tracked=True), "relu": dict(training=True, affine=True, activation="relu"),
    "residual": dict(training=True, affine=True, tracked=True, activation="relu", residual=True),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_batch_norm_with_every_option(name, cupy):
    rng = np.random.default_rng(6)
    x, residual = (rng.standard_normal((3, 2, 4, 5)).astype("f4") for _ in range(2))
    channels = rng.uniform(0.5, 2, (4, 2)).astype("f4")

    def run(place):
        options = dict(BATCH_NORMS[name])
        parts = [ck.tensor(ck.device.moved(a, place), requires_grad=True) for a in (x, residual, *channels[:2])]
        running = [ck.device.moved(a.copy(), place) for a in channels[2:]]
        running = running if options.pop("tracked", False) else [None, None]
        given = parts[2:] if options.pop("affine", False) else [None, None]
        added = parts[1] if options.pop("residual", False) else None
        y = ops.batch_norm(parts[0], *running, *given, **options, residual=added)
        (y * y * y).sum().backward()
        grads = [p.grad.data for p in parts if p.grad is not None]
        return [ck.device.moved(a, "cpu") for a in (y.data, *grads, *(r for r in running if r is not None))]

    for got, want in zip(run("cuda"), run("cpu"), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_labels_that_are_no_class_give_nan(cupy):
    x = ck.tensor(cupy.zeros((2, 3), "f4"), requires_grad=True)
    loss = nn.functional.cross_entropy(x, cupy.array([0, 3]))
    loss.backward()
    assert np.isnan(loss.item())
    np.testing.assert_array_equal(np.isnan(x.grad.data.get()), [[False] * 3, [True] * 3])


def test_dropout_draws_on_the_device_by_seed_and_step(cupy):
    x = ck.tensor(cupy.ones((4, 50), "f4"), requires_grad=True)

    def drawn(seed, step):
        ck.random.seed_noise(seed, step)
        return [nn.functional.dropout(x, 0.5) for _ in range(2)]

    first, second = drawn(1, 2)
    assert type(first.data) is cupy.ndarray
    assert set(np.unique(first.data.get())) == {0.0, 2.0}
    assert (first.data.get() != second.data.get()).any()
    np.testing.assert_array_equal(drawn(1, 2)[1].data.get(), second.data.get())
    assert (drawn(1, 3)[0].data.get() != first.data.get()).any()
    first.sum().backward()
    np.testing.assert_array_equal(x.grad.data.get(), first.data.get())


def test_own_functions_take_device_arrays(cupy):
    class Half(ck.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 0.5, x * 2

        @staticmethod
        def backward(ctx, gy, unused):
            assert unused.device == "cuda"
            return gy * 0.5

    x = ck.tensor(cupy.ones(3, "f4"), requires_grad=True)
    Half.apply(x)[0].sum().backward()
    np.testing.assert_array_equal(x.grad.data.get(), [0.5, 0.5, 0.5])


def test_nothing_mixes(cupy):
    here, there = ck.tensor(np.ones((2, 2), "f4")), ck.tensor(cupy.ones((2, 2), "f4"))
    layer, norm = nn.Linear(2, 2), nn.BatchNorm2d(2)
    for call in (
        lambda: here + there, lambda: there @ here, lambda: layer(there), lambda: ops.concatenate([here, there]),
        lambda: nn.functional.cross_entropy(there, np.array([0, 1])), lambda: norm(there.reshape(1, 2, 2, 1)),
        lambda: there.copy_(here), lambda: there.__setitem__(0, here[0]), lambda: ops.mse_loss(here, there),
        lambda: (there.requires_grad_() * 1).sum().backward(np.ones((), "f4")),
        lambda: there[np.array([0, 1])], lambda: here[:, cupy.array([0, 1])], lambda: there[ck.Tensor(np.array([0, 1]))],
    ):  # fmt: skip
        with pytest.raises(
            TypeError, match=r"arrays must live on one device, got .*(cuda \(CuPy\).*cpu \(NumPy\)|cpu.*cuda)"
        ):
            call()
    parameter = nn.Parameter(cupy.ones(2, "f4"))
    parameter.grad = ck.Tensor(np.ones(2, "f4"))
    with pytest.raises(TypeError, match=r"SGD: arrays must live on one device, got a parameter on cuda"):
        optim.SGD([parameter]).step()
    double = nn.Parameter(cupy.ones(2, "f8"))
    double.grad = ck.Tensor(cupy.ones(2, "f8"))
    with pytest.raises(NotImplementedError, match="Adam: parameters on a GPU must be float32, got float64"):
        optim.Adam([double]).step()


# --- the command


@pytest.mark.full
def test_a_run_on_the_device_is_the_run_on_the_cpu(cupy, tmp_path):
    """Data, training loop, checkpoints, pictures; the run's folder is evaluated on the CPU."""
    write_data(tmp_path, 4, 4)
    options = dict(data="mnist", data_dir=str(tmp_path), epochs=1, batch_size=4, optimizer="sgd", lr=0.01)
    runs = {
        place: training.train(training.Config(**options, device=place, out=str(tmp_path / place)), quiet=True)
        for place in ("cpu", "cuda")
    }
    weights = {place: checkpoint.load(done.folder / checkpoint.LAST).weights for place, done in runs.items()}
    start = evaluation.build_model(checkpoint.load(runs["cpu"].folder / "last.safetensors").facts)
    for name, value in start.state_dict().items():
        moved = weights["cpu"][name] - value
        np.testing.assert_allclose(weights["cuda"][name] - value, moved, rtol=1e-3, atol=1e-3 * np.abs(moved).max())
    assert training.evaluate(runs["cuda"].folder).accuracy == runs["cuda"].best_accuracy


def test_the_missing_piece_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setattr(ck.device, "gpu", lambda: ("", "the CUDA driver reports no device"))
    message = "^device 'cuda' cannot be used: the CUDA driver reports no device$"
    for call in (
        lambda: tiny_lenet().to("cuda"),
        lambda: ck.tensor([1.0]).cuda(),
        lambda: training.train(training.Config(device="cuda")),
    ):
        with pytest.raises(ValueError, match=message):
            call()
