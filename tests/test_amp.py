"""Mixed precision: what is rounded, what is not, and the scale of losses beside PyTorch's."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import convkern as ck
from convkern import amp, nn, plan
from convkern.ops import halves as ops_halves
from convkern.plan import HALVES

from .bounds import from_halves, gamma, halves

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(11)
X, W, B = (RNG.standard_normal(shape).astype("f4") for shape in ((2, 4, 7, 9), (6, 4, 3, 3), (6,)))
W1, WL = RNG.standard_normal((5, 4)).astype("f4"), RNG.standard_normal((8, 9)).astype("f4")


def near(array: np.ndarray, kind: str) -> np.ndarray:
    return from_halves(halves(array, kind), kind)


@pytest.mark.parametrize("kind", HALVES)
def test_rounding_is_numpys_and_torchs(kind):
    x = (RNG.standard_normal(4000) * 10.0 ** RNG.uniform(-44, 38, 4000)).astype("f4")
    x[:8] = np.nan, np.inf, -np.inf, 0.0, -0.0, 65519, 65520, 3.4e38
    x[8:12] = 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8  # ties
    want = torch.from_numpy(x).to(getattr(torch, kind)).to(torch.float32).numpy()
    got = ops_halves.rounded(x, kind)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got[3:5]), [False, True])
    assert ops_halves.rounded(x[12:].astype("f8"), kind).dtype == np.float64


CALLS = {
    "conv2d": (lambda x, w: ck.conv2d(x, w, B, padding=1, activation="relu"), X, W),
    "conv1d": (lambda x, w: ck.conv1d(x, w), X[:, :, 0], W[:, :, 0]),
    "conv3d": (lambda x, w: ck.conv3d(x, w), X[:, :, None], W[:, :, None]),
    "conv_transpose2d": (lambda x, w: ck.conv_transpose2d(x, w, stride=2), X, W[:4]),
    "pointwise": (lambda x, w: ck.pointwise(x, w), X, W1),
    "linear": (lambda x, w: nn.functional.linear(x, w), X, WL),
}


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("name", CALLS)
def test_products_take_halves_forward_and_backward(name, kind):
    """As the plain functions of rounded operands, and gradients of the rounded gradient."""
    function, x, w = CALLS[name]
    with amp.autocast("cpu", kind):
        array = function(x, w)
        xt, wt = ck.tensor(x, requires_grad=True), ck.tensor(w, requires_grad=True)
        y = function(xt, wt)
    np.testing.assert_array_equal(array, function(near(x, kind), near(w, kind)))
    np.testing.assert_array_equal(y.data, array)
    assert array.dtype == np.float32
    assert np.any(array != function(x, w))
    gy = RNG.standard_normal(y.shape).astype("f4")
    y.backward(ck.tensor(gy))
    xr, wr = ck.tensor(near(x, kind), requires_grad=True), ck.tensor(near(w, kind), requires_grad=True)
    function(xr, wr).backward(ck.tensor(near(gy, kind)))
    for mine, plain in ((xt.grad, xr.grad), (wt.grad, wr.grad)):
        np.testing.assert_array_equal(mine.data, plain.data)


def test_precisions_of_a_call_win():
    plain = ck.conv2d(X, W, precision="strict")
    with amp.autocast("cpu", "float16"):
        np.testing.assert_array_equal(ck.conv2d(X, W, precision="strict"), plain)
        np.testing.assert_array_equal(ck.pointwise(X, W1, precision="strict"), ck.pointwise(X, W1, precision="strict"))
        rough = ck.conv2d(X, W, precision="bfloat16")
        with plan.traced() as rows:
            ck.conv2d(X, W, precision="strict")
    assert [(problem.precision, row.accuracy) for problem, row in rows] == [("strict", "exact")]
    np.testing.assert_array_equal(rough, ck.conv2d(near(X, "bfloat16"), near(W, "bfloat16")))
    with pytest.raises(
        ValueError, match="precision must be 'default', 'strict', 'tf32', 'float16' or 'bfloat16', got 'half'"
    ):
        ck.conv2d(X, W, precision="half")


def test_strict_refuses_every_row_of_reduced_precision():
    from convkern.kernels.conv import VARIANTS
    from convkern.kernels.spec import ConvSpec
    from convkern.kernels.variant import Problem

    spec = ConvSpec(1, 8, 8, 1, (4, 4), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), (4, 4))
    reduced = [row for row in VARIANTS if row.accuracy in plan.REDUCED]
    assert len(reduced) >= 9
    for row in reduced:
        for dtype in ("float32", *HALVES):
            problem = Problem("conv", row.direction, "cuda", dtype, "strict", spec)
            assert plan.refusal(row, problem) == f"trades accuracy ({row.accuracy}), which precision='strict' forbids"


def test_the_plan_says_what_the_cpu_computes():
    explanation = ck.explain(ck.conv2d, X, W, precision="float16")
    assert "computed in float32 of operands rounded to float16" in str(explanation)
    assert "rounded" not in str(ck.explain(ck.conv2d, X, W))


def test_everything_else_stays_float32():
    """Norms, losses and reductions of the same arrays are the same bits inside."""
    labels = np.array([1, 0])
    functions = [
        lambda: nn.functional.softmax(X, 1), lambda: nn.functional.cross_entropy(X[:, :, 0, 0], labels),
        lambda: nn.functional.relu(X), lambda: ck.max_pool2d(X, 2), lambda: ck.Tensor(X).sum().data,
        lambda: nn.BatchNorm2d(4)(ck.Tensor(X)).data,
    ]  # fmt: skip
    plain = [function() for function in functions]
    with amp.autocast("cpu", "bfloat16"):
        for function, want in zip(functions, plain, strict=True):
            np.testing.assert_array_equal(function(), want)
        wide = ck.conv2d(X.astype("f8"), W.astype("f8"))
    np.testing.assert_array_equal(wide, ck.conv2d(X.astype("f8"), W.astype("f8")))


def test_autocast_nests_decorates_and_belongs_to_its_thread():
    assert not amp.is_autocast_enabled("cpu")
    assert amp.get_autocast_dtype("cpu") == "bfloat16"
    assert amp.get_autocast_dtype("cuda") == "float16"
    seen = []
    with amp.autocast("cpu", np.float16):
        assert amp.get_autocast_dtype("cpu") == "float16"
        assert not amp.is_autocast_enabled("cuda")
        with amp.autocast("cpu", enabled=False):
            np.testing.assert_array_equal(ck.conv2d(X, W), ck.conv2d(X, W, precision="default"))
            assert not amp.is_autocast_enabled("cpu")
        assert amp.is_autocast_enabled("cpu")
        thread = threading.Thread(target=lambda: seen.append(amp.is_autocast_enabled("cpu")))
        thread.start()
        thread.join()
    assert seen == [False]
    assert not amp.is_autocast_enabled("cpu")

    @amp.autocast("cpu", "float16")
    def inside(x):
        """Said."""
        return amp.get_autocast_dtype("cpu"), ck.conv2d(x, W)

    assert inside.__doc__ == "Said."
    assert inside(X)[0] == "float16"
    with amp.autocast("cuda"):  # arrays on the other device
        np.testing.assert_array_equal(ck.conv2d(X, W), ck.conv2d(X, W))
    for bad, message in (
        (("tpu",), "device_type must be 'cpu' or 'cuda', got 'tpu'"),
        (("cpu", "float64"), "got 'float64'"),
    ):
        with pytest.raises(ValueError, match=message):
            amp.autocast(*bad)
    with pytest.raises(TypeError, match="enabled must be a bool, got 1"):
        amp.autocast("cpu", enabled=1)


# --- GradScaler


class Patterns:
    """The same parameter here and in PyTorch, with gradients that overflow where told."""

    def __init__(self, **options):
        self.mine, self.theirs = ck.tensor(np.ones(3, "f4"), requires_grad=True), torch.ones(3, requires_grad=True)
        self.optimizers = ck.optim.SGD([self.mine], lr=0.1), torch.optim.SGD([self.theirs], lr=0.1)
        self.scalers = amp.GradScaler("cpu", **options), torch.amp.GradScaler("cpu", **options)
        self.scalers[1].scale(torch.zeros(1))  # theirs is made by the first loss

    def step(self, bad: float | None, unscale: bool = False) -> None:
        mine, theirs = self.scalers
        values = np.array([1.0, 2.0, 3.0], "f4")
        with np.errstate(over="ignore"):
            gradient = values * np.float32(mine.get_scale())
        if bad is not None:
            gradient[1] = bad
        self.mine.grad, self.theirs.grad = ck.Tensor(gradient.copy()), torch.from_numpy(gradient.copy())
        for scaler, optimizer in zip(self.scalers, self.optimizers, strict=True):
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert mine.state_dict() == theirs.state_dict()
        np.testing.assert_array_equal(self.mine.data, self.theirs.detach().numpy())


@pytest.mark.parametrize("interval", [1, 3, 2000])
def test_the_scale_follows_pytorchs(interval):
    patterns = Patterns(growth_interval=interval)
    rng = np.random.default_rng(6)
    for turn in range(60):
        patterns.step(rng.choice([np.inf, -np.inf, np.nan]) if rng.random() < 0.25 else None, unscale=turn % 3 == 0)
    assert patterns.scalers[0].get_scale() != 2.0**16


def test_the_scale_stays_finite_and_may_shrink_without_end():
    patterns = Patterns(init_scale=2.0**126, growth_interval=1)
    for _ in range(4):
        patterns.step(None)
    assert np.isfinite(patterns.scalers[0].get_scale())
    patterns = Patterns(init_scale=2.0**-140, backoff_factor=0.01)
    for _ in range(6):
        patterns.step(np.inf)
    assert patterns.scalers[0].get_scale() == 0


def test_defaults_and_state_are_pytorchs():
    mine, theirs = amp.GradScaler(), torch.amp.GradScaler("cpu")
    assert mine.state_dict() == theirs.state_dict()
    other = amp.GradScaler("cpu", init_scale=4.0, growth_interval=7)
    other.load_state_dict({**theirs.state_dict(), "_growth_tracker": 5})
    assert other.state_dict() == {**theirs.state_dict(), "_growth_tracker": 5}
    before = other.state_dict()
    for wrong, message in (({"scale": 2.0}, "lacks _growth_tracker"), ({**before, "growth_factor": 0.5}, "above 1")):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(wrong)
        assert other.state_dict() == before


def test_a_skipped_step_changes_nothing_and_one_overflow_backs_off_for_all():
    p, q = (ck.tensor(np.ones(2, "f4"), requires_grad=True) for _ in range(2))
    adam, sgd, scaler = ck.optim.Adam([p]), ck.optim.SGD([q], lr=1.0), amp.GradScaler("cpu", init_scale=8.0)
    p.grad, q.grad = ck.Tensor(np.array([np.inf, 1], "f4")), ck.Tensor(np.full(2, 4, "f4"))
    assert scaler.step(adam) is None
    scaler.step(sgd)
    scaler.update()
    np.testing.assert_array_equal(p.data, 1)
    assert adam.state == {}
    np.testing.assert_array_equal(q.data, 0.5)
    assert scaler.get_scale() == 4


def test_misuse_of_the_scaler():
    p = ck.tensor(np.ones(2, "f4"), requires_grad=True)
    sgd, scaler = ck.optim.SGD([p]), amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match=r"update\(\) without a step"):
        scaler.update()
    p.grad = ck.Tensor(np.ones(2, "f4"))
    scaler.unscale_(sgd)
    with pytest.raises(RuntimeError, match="already been called on this optimizer"):
        scaler.unscale_(sgd)
    with pytest.raises(RuntimeError, match="no closure"):
        scaler.step(sgd, closure=lambda: None)
    scaler.step(sgd)
    with pytest.raises(RuntimeError, match="already been called since the last"):
        scaler.step(sgd)
    with pytest.raises(RuntimeError, match="after step"):
        scaler.unscale_(sgd)
    scaler.update(32.0)
    assert scaler.get_scale() == 32
    for options, message in (
        (dict(init_scale=0), "init_scale must be a finite number above 0, got 0"),
        (dict(growth_factor=1.0), "growth_factor must be above 1"),
        (dict(backoff_factor=1.0), "backoff_factor must be between 0 and 1"),
        (dict(growth_interval=0), "growth_interval must be an int of at least 1"),
        (dict(device="tpu"), "device must be 'cpu' or 'cuda'"),
    ):
        with pytest.raises(ValueError, match=message):
            amp.GradScaler(**options)


def test_a_disabled_scaler_stands_aside():
    p = ck.tensor(np.ones(2, "f4"), requires_grad=True)
    sgd, scaler = ck.optim.SGD([p], lr=1.0), amp.GradScaler("cpu", enabled=False)
    loss = (p * p).sum()
    assert scaler.scale(loss) is loss
    loss.backward()
    scaler.unscale_(sgd)
    scaler.step(sgd)
    scaler.update()
    np.testing.assert_array_equal(p.data, -1)
    assert scaler.state_dict() == {}
    assert scaler.get_scale() == 1


def small_network(seed: int) -> nn.Module:
    with nn.init.seeded(seed):
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


@pytest.mark.parametrize("kind", HALVES)
def test_a_network_trains_in_halves_as_in_float32(kind):
    rng = np.random.default_rng(13)
    x, labels = rng.standard_normal((24, 1, 6, 6)).astype("f4"), rng.integers(0, 3, 24)
    losses: dict[bool, list[float]] = {}
    for enabled in (False, True):
        model = small_network(2)
        optimizer = ck.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scaler = amp.GradScaler("cpu", growth_interval=4, enabled=enabled and kind == "float16")
        losses[enabled] = []
        for _ in range(12):
            optimizer.zero_grad()
            with amp.autocast("cpu", kind, enabled=enabled):
                loss = nn.functional.cross_entropy(model(ck.Tensor(x)), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses[enabled].append(float(loss.data))
    assert losses[True][-1] < 0.3 * losses[True][0]
    assert losses[True] != losses[False]
    np.testing.assert_allclose(losses[True], losses[False], rtol=0.1, atol=0.02)
    assert scaler.get_scale() == (2.0**19 if kind == "float16" else 1)


def test_training_in_float16_needs_the_scale_and_keeps_master_weights():
    """A loss so small that its gradients vanish in float16: without the scale nothing moves, with it all of it does."""
    rng = np.random.default_rng(12)
    x, labels = rng.standard_normal((8, 1, 6, 6)).astype("f4"), rng.integers(0, 3, 8)
    model = small_network(1)
    start = [p.data.copy() for p in model.parameters()]

    def gradients(kind, scale):
        for p, data in zip(model.parameters(), start, strict=True):
            p.data, p.grad = data.copy(), None
        scaler = amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        optimizer = ck.optim.SGD(model.parameters(), lr=0.0)
        with amp.autocast("cpu", kind or "float16", enabled=kind is not None):
            loss = nn.functional.cross_entropy(model(ck.Tensor(x)), labels) * 1e-7
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        assert all(p.dtype == p.grad.dtype == np.float32 for p in model.parameters())
        return [p.grad.data for p in model.parameters()]

    plain, vanished, scaled = gradients(None, 1), gradients("float16", 1), gradients("float16", 2.0**16)
    assert np.any(plain[0] != 0)
    assert np.all(vanished[0] == 0)
    for got, want in zip(scaled, plain, strict=True):
        np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())


def test_an_overflow_of_float16_is_found():
    """A gradient beyond 65504 becomes infinite on its way back."""
    x, w = ck.tensor(X, requires_grad=True), ck.tensor(W, requires_grad=True)
    sgd, scaler = ck.optim.SGD([w], lr=1.0), amp.GradScaler("cpu", init_scale=2.0**17)
    with amp.autocast("cpu", "float16"):
        loss = ck.conv2d(x, w).sum()
    scaler.scale(loss).backward()
    assert not np.isfinite(w.grad.data).all()
    scaler.step(sgd)
    scaler.update()
    np.testing.assert_array_equal(w.data, W)
    assert scaler.get_scale() == 2.0**16


def test_the_bound_of_halves_holds_beside_torch_autocast():
    """Both multiply the same halves; PyTorch rounds its result to bfloat16 as well."""
    with torch.autocast("cpu", torch.bfloat16):
        theirs = torch.conv2d(torch.from_numpy(X), torch.from_numpy(W)).float().numpy()
    with amp.autocast("cpu"):
        mine = ck.conv2d(X, W)
    terms = W[0].size
    magnitude = ck.conv2d(np.abs(near(X, "bfloat16")), np.abs(near(W, "bfloat16")), precision="strict")
    bound = 2.0**-8 * np.abs(mine) + (2.0**-8 + 2 * gamma(terms, np.dtype("f4"))) * magnitude * 1.01
    assert np.all(np.abs(mine - theirs) <= bound)
