"""Schedules, clipping and averages of weights against PyTorch's over twenty steps and more."""

import json

import numpy as np
import pytest

import convkern as ck
from convkern import nn, optim
from convkern.optim import lr_scheduler, swa_utils

from .steps import assert_near

torch = pytest.importorskip("torch")

SCHEDULES = [
    ("StepLR", (3,), {}),
    ("StepLR", (), dict(step_size=7, gamma=0.5)),
    ("MultiStepLR", ([2, 5, 6],), {}),
    ("MultiStepLR", ([4], 0.3), {}),
    ("ExponentialLR", (0.9,), {}),
    ("LinearLR", (), {}),
    ("LinearLR", (0.01, 0.9, 8), {}),
    ("ConstantLR", (0.2, 4), {}),
    ("CosineAnnealingLR", (20,), {}),
    ("CosineAnnealingLR", (6, 0.01), {}),
    ("CosineAnnealingWarmRestarts", (4,), {}),
    ("CosineAnnealingWarmRestarts", (3, 2, 0.01), {}),
    ("OneCycleLR", (0.3, 30), {}),
    ("OneCycleLR", (0.3,), dict(epochs=5, steps_per_epoch=5, anneal_strategy="linear", div_factor=4.0)),
    ("OneCycleLR", ([0.3, 0.5], 27), dict(three_phase=True, base_momentum=[0.5, 0.6], max_momentum=0.7)),
    ("OneCycleLR", (0.3, 40, None, None, 0.0), dict(cycle_momentum=False, final_div_factor=10.0)),
]


def pair(kind="SGD", **options):
    """Two groups of parameters with rates of their own, here and in PyTorch."""
    made = []
    for module, make in ((optim, nn.Parameter), (torch.optim, lambda a: torch.nn.Parameter(torch.tensor(a)))):
        groups = [{"params": [make(np.ones(3))]}, {"params": [make(np.full(2, 2.0))], "lr": 0.05}]
        made.append(getattr(module, kind)(groups, lr=0.2, **options))
    return made


def advance(ours, theirs, step):
    """One step along the same gradients; the parameters stay together."""
    rng = np.random.default_rng(step)
    for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
        g = rng.standard_normal(a["params"][0].shape)
        a["params"][0].grad, b["params"][0].grad = ck.Tensor(g), torch.tensor(g)
    ours.step()
    theirs.step()
    for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert_near(a["params"][0].data, b["params"][0].detach().numpy(), f"parameters at step {step}")


def assert_same_options(ours, theirs, step):
    for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
        for option in {"lr", "momentum", "betas"} & set(a):
            assert a[option] == pytest.approx(b[option], rel=1e-8, abs=1e-15), f"{option} at step {step}"


@pytest.mark.parametrize(("kind", "options"), [("SGD", dict(momentum=0.9)), ("Adam", {})], ids=["SGD", "Adam"])
@pytest.mark.parametrize(("name", "arguments", "more"), SCHEDULES, ids=str)
def test_schedules(name, arguments, more, kind, options):
    ours, theirs = pair(kind, **options)
    mine = getattr(lr_scheduler, name)(ours, *arguments, **more)
    other = getattr(torch.optim.lr_scheduler, name)(theirs, *arguments, **more)
    assert_same_options(ours, theirs, -1)
    for step in range(25):
        advance(ours, theirs, step)
        if name == "OneCycleLR" and step == mine.total_steps - 1:
            break
        mine.step()
        other.step()
        assert_same_options(ours, theirs, step)
        assert mine.get_last_lr() == pytest.approx(other.get_last_lr(), rel=1e-8)
        assert mine.last_epoch == other.last_epoch


def test_functions():
    ours, theirs = pair()
    functions = [lambda epoch: 0.95**epoch, lambda epoch: 1 / (1 + epoch)]
    mine, other = lr_scheduler.LambdaLR(ours, functions), torch.optim.lr_scheduler.LambdaLR(theirs, functions)
    for step in range(20):
        advance(ours, theirs, step)
        mine.step()
        other.step()
        assert_same_options(ours, theirs, step)
    assert "lr_lambdas" not in mine.state_dict()


def test_a_warm_up_before_a_cosine():
    ours, theirs = pair(momentum=0.9)
    made = []
    for module, optimizer in ((lr_scheduler, ours), (torch.optim.lr_scheduler, theirs)):
        members = [
            module.LinearLR(optimizer, 0.1, total_iters=5),
            module.CosineAnnealingLR(optimizer, 10, 0.01),
            module.ExponentialLR(optimizer, 0.5),
        ]
        made.append(module.SequentialLR(optimizer, members, milestones=[5, 15]))
    for step in range(25):
        assert_same_options(ours, theirs, step)
        advance(ours, theirs, step)
        for schedule in made:
            schedule.step()


def test_a_cycle_within_a_sequence_moves_the_momentum():
    ours, _ = pair(momentum=0.9)
    alone, _ = pair(momentum=0.9)
    cycle = lr_scheduler.OneCycleLR(alone, 0.3, 10)
    members = [lr_scheduler.OneCycleLR(ours, 0.3, 10)]
    members.insert(0, lr_scheduler.SequentialLR(ours, [lr_scheduler.ConstantLR(ours)], []))
    schedule = lr_scheduler.SequentialLR(ours, members, milestones=[4])
    for step in range(12):
        if step >= 4:
            assert ours.param_groups[0]["momentum"] == alone.param_groups[0]["momentum"]
            assert ours.param_groups[0]["lr"] == alone.param_groups[0]["lr"]
            cycle.step()
        schedule.step()


def test_restarts_within_an_epoch():
    ours, theirs = pair()
    mine = lr_scheduler.CosineAnnealingWarmRestarts(ours, 3, 2)
    other = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(theirs, 3, 2)
    for epoch in np.arange(0, 12, 0.3):
        mine.step(float(epoch))
        other.step(float(epoch))
        assert_same_options(ours, theirs, epoch)
        assert mine.last_epoch == other.last_epoch


@pytest.mark.parametrize(
    "options",
    [
        dict(patience=2),
        dict(patience=0, factor=0.5, cooldown=2, min_lr=[0.03, 0.01]),
        dict(mode="max", patience=1, threshold=0.2),
        dict(patience=1, threshold=0.3, threshold_mode="abs", eps=0.01),
        dict(mode="max", patience=1, threshold=0.3, threshold_mode="abs"),
    ],
    ids=str,
)
def test_plateau(options):
    ours, theirs = pair()
    mine = lr_scheduler.ReduceLROnPlateau(ours, **options)
    other = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
    rng = np.random.default_rng(0)
    rates = set()
    for step in range(30):
        metric = float("nan") if step == 12 else float(np.round(3 * rng.standard_normal(), 1) - 0.1 * step)
        advance(ours, theirs, step)
        mine.step(ck.tensor([metric]) if step % 2 else metric)
        other.step(np.float32(metric) if step % 2 else metric)
        assert_same_options(ours, theirs, step)
        rates.add(mine.get_last_lr()[0])
    assert len(rates) > 1


@pytest.mark.parametrize(("name", "arguments", "more"), SCHEDULES, ids=str)
def test_state_goes_on(name, arguments, more):
    """Saved as JSON at step 7 and loaded into other objects, a schedule goes on as the first one does."""

    def make():
        ours, _ = pair(momentum=0.9)
        return ours, getattr(lr_scheduler, name)(ours, *arguments, **more)

    first, straight = make()
    for _ in range(7):
        straight.step()
    state = json.loads(json.dumps([first.state_dict(), straight.state_dict()]))
    second, resumed = make()
    second.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    for _ in range(10):
        assert second.param_groups[0]["lr"] == first.param_groups[0]["lr"]
        assert second.param_groups[1].get("momentum") == first.param_groups[1].get("momentum")
        straight.step()
        resumed.step()


def test_last_epoch_goes_on():
    ours, theirs = pair()
    for optimizer, module in ((ours, lr_scheduler), (theirs, torch.optim.lr_scheduler)):
        for group in optimizer.param_groups:
            group["initial_lr"] = 4 * group["lr"]
        module.StepLR(optimizer, 3, 0.5, last_epoch=6)
    assert ours.param_groups[0]["lr"] == pytest.approx(4 * 0.2 * 0.25)
    twin, _ = pair()
    with pytest.raises(ValueError, match="last_epoch=6 needs 'initial_lr' in parameter group 0"):
        lr_scheduler.StepLR(twin, 3, last_epoch=6)


def test_an_optimizer_state_with_and_without_a_schedule():
    (ours, _), (other, _) = pair(), pair()
    lr_scheduler.StepLR(ours, 2)
    other.load_state_dict(ours.state_dict())
    assert other.param_groups[0]["initial_lr"] == 0.2
    plain, _ = pair()
    ours.load_state_dict(plain.state_dict())
    assert ours.param_groups[0]["initial_lr"] == 0.2


SGD = optim.SGD([nn.Parameter(np.ones(2))], lr=0.1)
L = lr_scheduler
NONSENSE = {
    "no optimizer": (lambda: L.StepLR("sgd", 3), TypeError, "StepLR: optimizer must be an Optimizer, got str"),
    "step_size 0": (lambda: L.StepLR(SGD, 0), ValueError, "StepLR: step_size must be at least 1, got 0"),
    "step_size 1.5": (lambda: L.StepLR(SGD, 1.5), TypeError, r"StepLR: step_size must be an int, got 1\.5"),
    "gamma": (lambda: L.ExponentialLR(SGD, -0.5), ValueError, r"ExponentialLR: gamma must be at least 0, got -0\.5"),
    "gamma NaN": (lambda: L.ExponentialLR(SGD, np.nan), ValueError, "ExponentialLR: gamma must be at least 0, got nan"),
    "milestones": (lambda: L.MultiStepLR(SGD, [5, 3]), ValueError, r"milestones must increase, got \[5, 3\]"),
    "milestone": (lambda: L.MultiStepLR(SGD, 5), TypeError, "milestones must be a list of ints, got 5"),
    "T_max": (lambda: L.CosineAnnealingLR(SGD, -1), ValueError, "CosineAnnealingLR: T_max must be at least 1, got -1"),
    "eta_min": (lambda: L.CosineAnnealingLR(SGD, 5, "0"), TypeError, "eta_min must be a number, got '0'"),
    "T_mult": (lambda: L.CosineAnnealingWarmRestarts(SGD, 2, 0), ValueError, "T_mult must be at least 1, got 0"),
    "epoch": (lambda: L.CosineAnnealingWarmRestarts(SGD, 2).step(-1), ValueError, "epoch must be at least 0, got -1"),
    "start_factor": (lambda: L.LinearLR(SGD, 0), ValueError, "LinearLR: start_factor must be above 0, got 0"),
    "end_factor": (lambda: L.LinearLR(SGD, 0.5, 2), ValueError, "end_factor must be at least 0 and at most 1, got 2"),
    "factor": (lambda: L.ConstantLR(SGD, 2), ValueError, "factor must be at least 0 and at most 1, got 2"),
    "total_steps": (lambda: L.OneCycleLR(SGD, 0.1), ValueError, "total_steps must be given, or epochs and steps_per_epoch"),
    "epochs": (lambda: L.OneCycleLR(SGD, 0.1, epochs=0, steps_per_epoch=3), ValueError, "epochs must be at least 1, got 0"),
    "pct_start": (lambda: L.OneCycleLR(SGD, 0.1, 10, pct_start=30), ValueError,
        "pct_start must be at least 0 and at most 1, got 30"),
    "three phases": (lambda: L.OneCycleLR(SGD, 0.1, 10, pct_start=0.6, three_phase=True), ValueError,
        r"pct_start must be at least 0 and at most 0\.5, got 0\.6"),
    "anneal_strategy": (lambda: L.OneCycleLR(SGD, 0.1, 10, anneal_strategy="sin"), ValueError,
        "anneal_strategy must be 'cos' or 'linear', got 'sin'"),
    "max_lr": (lambda: L.OneCycleLR(SGD, [0.1, 0.2], 10), ValueError, "max_lr must be a number, or one for each of 1 groups"),
    "max_lr 0": (lambda: L.OneCycleLR(SGD, 0, 10), ValueError, "max_lr must be above 0, got 0"),
    "cycle_momentum": (lambda: L.OneCycleLR(optim.Adagrad([nn.Parameter(np.ones(2))]), 0.1, 10), ValueError,
        "cycle_momentum needs an optimizer with momentum or betas; pass cycle_momentum=False"),
    "lambda": (lambda: L.LambdaLR(SGD, [abs, abs]), ValueError, "a function, or one for each of 1 groups"),
    "lambda 2": (lambda: L.LambdaLR(SGD, 0.5), ValueError, r"lr_lambda must be a function, .* got 0\.5"),
    "members": (lambda: L.SequentialLR(SGD, [0.1], []), TypeError, r"schedulers\[0\] must be an LRScheduler, got float"),
    "member of another": (lambda: L.SequentialLR(SGD, [L.StepLR(pair()[0], 2)], []), ValueError,
        r"schedulers\[0\] belongs to another optimizer"),
    "too few milestones": (lambda: L.SequentialLR(SGD, [L.StepLR(SGD, 2)] * 2, []), ValueError,
        "milestones must be one fewer than the 2 schedulers, got 0"),
    "mode": (lambda: L.ReduceLROnPlateau(SGD, "low"), ValueError, "mode must be 'min' or 'max', got 'low'"),
    "threshold_mode": (lambda: L.ReduceLROnPlateau(SGD, threshold_mode="x"), ValueError, "'rel' or 'abs', got 'x'"),
    "factor of a plateau": (lambda: L.ReduceLROnPlateau(SGD, factor=1.0), ValueError, r"factor must be below 1, got 1\.0"),
    "patience": (lambda: L.ReduceLROnPlateau(SGD, patience=-1), ValueError, "patience must be at least 0, got -1"),
    "min_lr": (lambda: L.ReduceLROnPlateau(SGD, min_lr=[0, 0]), ValueError, "min_lr must be a number, or one for each of 1"),
    "state": (lambda: L.StepLR(SGD, 2).load_state_dict(L.ExponentialLR(SGD, 1).state_dict()), ValueError,
        r"StepLR: the state has \['base_lrs', 'gamma', 'last_epoch'\], expected"),
    "groups of a state": (lambda: L.StepLR(SGD, 2).load_state_dict(L.StepLR(pair()[0], 2).state_dict()), ValueError,
        "StepLR: the state has 2 groups, expected 1"),
    "state of a plateau": (lambda: L.ReduceLROnPlateau(SGD).load_state_dict({}), ValueError, r"the state has \[\], expected"),
    "decay": (lambda: swa_utils.get_ema_avg_fn(1.5), ValueError, "decay must be at least 0 and at most 1, got 1.5"),
    "averaged": (lambda: swa_utils.AveragedModel(np.ones(2)), TypeError, "model must be a Module, got ndarray"),
    "both functions": (lambda: swa_utils.AveragedModel(nn.Linear(1, 1), None, max, max), ValueError,
        "avg_fn and multi_avg_fn must not both be given"),
    "another model": (lambda: swa_utils.AveragedModel(nn.Linear(1, 1)).update_parameters(nn.Linear(1, 2)), ValueError,
        "update_parameters: the model has other parameters than the one that is averaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense(name):
    call, error, message = NONSENSE[name]
    with pytest.raises(error, match=message):
        call()


def test_a_cycle_ends():
    schedule = lr_scheduler.OneCycleLR(pair(momentum=0.9)[0], 0.1, 3)
    for _ in range(3):
        schedule.step()
    with pytest.raises(ValueError, match="step 4 of 3, the cycle has ended"):
        schedule.step()


# --- clipping


def gradients(dtype=np.float64, scale=1.0):
    rng = np.random.default_rng(3)
    return [scale * rng.standard_normal(shape).astype(dtype) for shape in ((3, 4), (5,), (), (2, 0))]


@pytest.mark.parametrize("norm_type", [2.0, 1, 3.5, float("inf")])
@pytest.mark.parametrize("max_norm", [0.0, 0.7, 1e6])
def test_clipping_by_norm(norm_type, max_norm):
    mine = [nn.Parameter(np.zeros_like(g)) for g in gradients()]
    theirs = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in gradients()]
    for p, q, g in zip(mine, theirs, gradients(), strict=True):
        p.grad, q.grad = ck.Tensor(g), torch.tensor(g)
    mine.insert(0, nn.Parameter(np.zeros(3)))  # without a gradient
    arrays = [p.grad.data for p in mine[1:]]
    norm = nn.utils.clip_grad_norm_(iter(mine), max_norm, norm_type)
    other = torch.nn.utils.clip_grad_norm_(theirs[:3], max_norm, norm_type)
    assert norm.item() == pytest.approx(other.item(), rel=1e-12)
    for p, q, array in zip(mine[1:], theirs[:3], arrays, strict=False):
        assert p.grad.data is array
        assert_near(p.grad.data, q.grad.numpy(), "gradient")


def test_clipping_by_value_and_of_one():
    for limit in (0.0, 0.5, 10.0):
        p, q = nn.Parameter(np.zeros((3, 4))), torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
        g = gradients()[0]
        g[0, 0] = np.nan
        p.grad, q.grad = ck.Tensor(g.copy()), torch.tensor(g)
        nn.utils.clip_grad_value_(p, limit)
        torch.nn.utils.clip_grad_value_(q, limit)
        np.testing.assert_array_equal(p.grad.data, q.grad.numpy())
    p.grad = ck.Tensor(np.full((3, 4), 2.0))
    assert nn.utils.clip_grad_norm_(p, 1.0).item() == pytest.approx(np.sqrt(48))
    assert nn.utils.clip_grad_norm_([], 1.0).item() == 0


def test_clipping_of_what_is_not_finite():
    p = nn.Parameter(np.zeros(3, np.float32))
    p.grad = ck.Tensor(np.array([1, np.nan, 2], np.float32))
    with pytest.raises(RuntimeError, match="the norm of the gradients is nan"):
        nn.utils.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    np.testing.assert_array_equal(p.grad.data, [1, np.nan, 2])
    assert np.isnan(nn.utils.clip_grad_norm_(p, 1.0, float("inf")).item())
    p.grad = ck.Tensor(np.array([1e30, 1e30, 0], np.float32))  # whose squares overflow float32
    assert nn.utils.clip_grad_norm_(p, 1.0).item() == pytest.approx(2**0.5 * 1e30, rel=1e-6)
    assert np.abs(p.grad.data).max() == pytest.approx(0.5**0.5, rel=1e-5)


# --- averages


def build(module, **options):
    return module.Sequential(module.Linear(3, 4), module.BatchNorm1d(4), module.Tanh(), module.Linear(4, 2))


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("kind", ["mean", "avg_fn", "multi_avg_fn"])
def test_averages_of_weights(kind, use_buffers):
    """Training, clipping and averaging over twenty steps."""
    functions = {"mean": {}, "avg_fn": "get_ema_avg_fn", "multi_avg_fn": "get_ema_multi_avg_fn"}[kind]
    mine, theirs = build(nn).to(np.float64), build(torch.nn).double()
    mine.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    averages = []
    for module, model in ((swa_utils, mine), (torch.optim.swa_utils, theirs)):
        options = {kind: getattr(module, functions)(0.9)} if functions else {}
        averages.append(module.AveragedModel(model, use_buffers=use_buffers, **options))
    ours, other = optim.SGD(mine.parameters(), lr=0.1), torch.optim.SGD(theirs.parameters(), lr=0.1)
    for step in range(20):
        x = np.random.default_rng(step).standard_normal((6, 3))
        for model, optimizer, take, utils in (
            (mine, ours, ck.tensor, nn.utils),
            (theirs, other, torch.tensor, torch.nn.utils),
        ):
            optimizer.zero_grad()
            (model(take(x)) ** 2).mean().backward()
            utils.clip_grad_norm_(model.parameters(), 0.3)
            utils.clip_grad_value_(model.parameters(), 0.1)
            optimizer.step()
        averages[0].update_parameters(mine)
        averages[1].update_parameters(theirs)
        state, expected = averages[0].state_dict(), averages[1].state_dict()
        assert sorted(state) == sorted(expected)
        for name, value in expected.items():
            if name != "module.1.num_batches_tracked":  # a count, of which PyTorch makes an average
                assert_near(state[name], value.numpy(), f"{name} at step {step}")
    assert int(averages[0].n_averaged) == 20
    for average in averages:
        average.eval()
    assert_near(averages[0](ck.tensor(x)).data, averages[1](torch.tensor(x)).detach().numpy(), "result")
