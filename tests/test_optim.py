"""Optimizers against PyTorch in float64, parameter groups, and state that continues bit for bit."""

import copy

import numpy as np
import pytest

import convkern as ck
from convkern import nn, ops, optim
from convkern.kernels.update import cpu_chunks
from convkern.kernels.update import reference as update_reference


def parameters(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [nn.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in ((3, 4), (4,), ())]


def gradients(step, dtype=np.float64):
    """Gradients that differ from step to step and are zero for the third parameter at first."""
    rng = np.random.default_rng(1000 + step)
    made = [rng.standard_normal(shape).astype(dtype) * 10.0 ** rng.integers(-3, 3) for shape in ((3, 4), (4,), ())]
    return [*made[:2], made[2] * (step > 3)]


def advance(optimizer, params, steps, dtype=np.float64):
    for step in steps:
        for p, g in zip(params, gradients(step, dtype), strict=True):
            p.grad = ck.Tensor(np.asarray(g, dtype))
        optimizer.step()


OPTIONS = [
    (optim.SGD, dict(lr=0.1)),
    (optim.SGD, dict(lr=0.1, momentum=0.9)),
    (optim.SGD, dict(lr=0.05, weight_decay=0.1)),
    (optim.SGD, dict(lr=0.05, momentum=0.5, weight_decay=0.1)),
    (optim.SGD, dict(lr=0)),
    (optim.SGD, dict(lr=0.05, momentum=0.9, dampening=0.3, weight_decay=0.1)),
    (optim.SGD, dict(lr=0.05, momentum=0.9, nesterov=True)),
    (optim.SGD, dict(lr=0.05, momentum=0.5, weight_decay=0.1, nesterov=True)),
    (optim.Adam, dict()),
    (optim.Adam, dict(lr=0.1, betas=(0.8, 0.9), eps=1e-3)),
    (optim.Adam, dict(lr=0.01, weight_decay=0.1)),
    (optim.Adam, dict(lr=0.01, betas=(0.0, 0.5))),
    (optim.AdamW, dict()),
    (optim.AdamW, dict(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.5)),
    (optim.AdamW, dict(lr=0.1, weight_decay=0.0)),
    (optim.Adagrad, dict()),
    (optim.Adagrad, dict(lr=0.5, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.2, eps=1e-3)),
    (optim.RMSprop, dict()),
    (optim.RMSprop, dict(lr=0.1, alpha=0.5, eps=1e-3, weight_decay=0.1)),
    (optim.RMSprop, dict(lr=0.1, momentum=0.9)),
    (optim.RMSprop, dict(lr=0.1, alpha=0.9, centered=True, eps=1e-2)),
    (optim.RMSprop, dict(lr=0.1, alpha=0.9, centered=True, momentum=0.5, weight_decay=0.1, eps=1e-2)),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_twenty_steps_as_in_pytorch(kind, options):
    torch = pytest.importorskip("torch")
    mine = parameters()
    other = [torch.nn.Parameter(torch.tensor(p.data)) for p in mine]
    start = [p.data.copy() for p in mine]
    ours, theirs = kind(mine, **options), getattr(torch.optim, kind.__name__)(other, **options)
    for step in range(20):
        advance(ours, mine, [step])
        for p, g in zip(other, gradients(step), strict=True):
            p.grad = torch.tensor(g)
        theirs.step()
        for p, q in zip(mine, other, strict=True):
            np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-10, atol=1e-10)
    assert options.get("lr") == 0 or all((p.data != before).any() for p, before in zip(mine, start, strict=True))


def test_first_steps_by_hand():
    w = nn.Parameter(np.array([1.0, -2.0]))
    sgd = optim.SGD([w], lr=0.5, momentum=0.9, weight_decay=0.1)
    w.grad = ck.Tensor(np.array([2.0, 4.0]))
    sgd.step()
    np.testing.assert_allclose(w.data, [1 - 0.5 * 2.1, -2 - 0.5 * 3.8], rtol=1e-15)
    v = np.array([2.1, 3.8]) * 0.9 + np.array([2.0, 4.0]) + 0.1 * w.data
    expected = w.data - 0.5 * v
    sgd.step()
    np.testing.assert_allclose(w.data, expected, rtol=1e-15)

    w = nn.Parameter(np.array([1.0, -2.0]))
    adam = optim.Adam([w], lr=0.5, eps=0.0)
    w.grad = ck.Tensor(np.array([2.0, -4.0]))
    adam.step()
    np.testing.assert_allclose(w.data, [0.5, -1.5], rtol=1e-12)  # lr times the sign of the gradient


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_float32_stays_float32_and_near(kind, options):
    low, high = parameters(np.float32), parameters(np.float64)
    for p, q in zip(low, high, strict=True):
        q.data = p.data.astype(np.float64)
    ours, exact = kind(low, **options), kind(high, **options)
    advance(ours, low, range(20), np.float32)
    for step in range(20):
        for p, g in zip(high, gradients(step, np.float32), strict=True):
            p.grad = ck.Tensor(np.asarray(g, np.float64))
        exact.step()
    for p, q in zip(low, high, strict=True):
        assert p.dtype == np.float32
        np.testing.assert_allclose(p.data, q.data, rtol=1e-3, atol=1e-3)
    for values in ours.state_dict()["state"].values():
        assert all(v.dtype == np.float32 for v in values.values() if isinstance(v, np.ndarray))


# --- groups


def test_parameter_groups():
    a, b, c = parameters()
    optimizer = optim.SGD([{"params": [a], "lr": 0.1}, {"params": iter([b, c]), "momentum": 0.9}], lr=0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.5]
    assert [g["momentum"] for g in optimizer.param_groups] == [0.0, 0.9]
    before = [p.data.copy() for p in (a, b)]
    a.grad, b.grad = ck.Tensor(np.ones((3, 4))), ck.Tensor(np.ones(4))
    for _ in range(2):
        optimizer.step()
    np.testing.assert_allclose(a.data, before[0] - 0.1 * 2, rtol=1e-14)
    np.testing.assert_allclose(b.data, before[1] - 0.5 * (1 + 1.9), rtol=1e-14)


def test_groups_that_come_later_and_groups_of_options_as_in_pytorch():
    torch = pytest.importorskip("torch")
    mine = parameters()
    other = [torch.nn.Parameter(torch.tensor(p.data)) for p in mine]
    made = []
    for module, (a, b, c) in ((optim, mine), (torch.optim, other)):
        made.append(module.AdamW([{"params": [a], "lr": 0.1, "weight_decay": 0.5}, {"params": b}], lr=0.01))
        made[-1].add_param_group({"params": [c], "betas": (0.5, 0.6)})
    for step in range(20):
        advance(made[0], mine, [step])
        for p, g in zip(other, gradients(step), strict=True):
            p.grad = torch.tensor(g)
        made[1].step()
    for p, q in zip(mine, other, strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"AdamW: params holds the same Tensor twice, shape \(4,\)"):
        made[0].add_param_group({"params": [mine[1]]})


def test_step_calls_a_closure_and_zero_grad_can_fill():
    (a, *_) = parameters()
    optimizer = optim.SGD([a], lr=0.5)
    before = a.data.copy()

    def closure():
        optimizer.zero_grad(set_to_none=False)
        loss = (a * a).sum()
        loss.backward()
        return loss

    for _ in range(2):
        loss = optimizer.step(closure)
    assert loss.item() == 0  # a - 0.5 · 2a
    assert (before != 0).all()
    optimizer.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(a.grad.data, np.zeros_like(before))


def test_a_changed_learning_rate_is_used():
    (a, *_) = parameters()
    optimizer = optim.SGD([a], lr=0.1)
    optimizer.param_groups[0]["lr"] = 2.0
    before = a.data.copy()
    a.grad = ck.Tensor(np.ones((3, 4)))
    optimizer.step()
    np.testing.assert_allclose(a.data, before - 2, rtol=1e-14)


def test_parameters_without_gradient_are_left_alone():
    params = parameters()
    optimizer = optim.Adam(params, lr=0.1, weight_decay=1.0)
    before = [p.data.copy() for p in params]
    params[1].grad = ck.Tensor(np.ones(4))
    optimizer.step()
    np.testing.assert_array_equal(params[0].data, before[0])
    np.testing.assert_array_equal(params[2].data, before[2])
    assert (params[1].data != before[1]).all()
    assert list(optimizer.state_dict()["state"]) == [1]
    optimizer.zero_grad()
    assert params[1].grad is None


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_step_writes_in_place_and_leaves_the_gradients_alone(kind, options):
    params = parameters()
    arrays, versions = [p.data for p in params], [p.version.count for p in params]
    optimizer = kind(params, **options)
    for step in range(3):
        advance(optimizer, params, [step])
        for p, g in zip(params, gradients(step), strict=True):
            np.testing.assert_array_equal(p.grad.data, g)
    for p, array, version in zip(params, arrays, versions, strict=True):
        assert p.data is array
        assert p.version.count == version + 3
        assert p.is_leaf


# --- state


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_state_continues_bit_for_bit(kind, options, dtype):
    straight = parameters(dtype)
    advance(kind(straight, **options), straight, range(20), dtype)

    first = parameters(dtype)
    optimizer = kind(first, **options)
    advance(optimizer, first, range(8), dtype)
    state = optimizer.state_dict()
    weights = [p.data.copy() for p in first]
    advance(optimizer, first, range(8, 11), dtype)  # what was saved does not move along

    second = [nn.Parameter(w) for w in weights]
    resumed = kind(second, lr=123.0)  # options come from the state
    resumed.load_state_dict(copy.deepcopy(state))
    advance(resumed, second, range(8, 20), dtype)
    for p, q in zip(straight, second, strict=True):
        np.testing.assert_array_equal(p.data, q.data)


def test_state_dict_format():
    params = parameters()
    sgd = optim.SGD([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}], lr=0.1, momentum=0.9)
    advance(sgd, params, [0])
    state = sgd.state_dict()
    assert state["param_groups"] == [
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "params": [0]},
        {"lr": 0.5, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "params": [1, 2]},
    ]
    assert set(state["state"]) == {0, 1, 2}
    np.testing.assert_array_equal(state["state"][0]["momentum_buffer"], gradients(0)[0])
    adam = optim.Adam(params)
    advance(adam, params, [0, 1])
    entry = adam.state_dict()["state"][2]
    assert set(entry) == {"step", "exp_avg", "exp_avg_sq"}
    assert entry["step"] == 2


def test_loading_copies():
    params = parameters()
    sgd = optim.SGD(params, lr=0.1, momentum=0.9)
    advance(sgd, params, [0])
    state = sgd.state_dict()
    twin = optim.SGD(params, lr=0.1)
    twin.load_state_dict(state)
    state["state"][0]["momentum_buffer"][:] = 99
    state["param_groups"][0]["lr"] = 99
    assert twin.param_groups[0]["lr"] == 0.1
    assert (twin.state_dict()["state"][0]["momentum_buffer"] != 99).all()
    assert all(p is q for p, q in zip(twin.param_groups[0]["params"], params, strict=True))


def test_load_state_dict_names_what_does_not_fit():
    params = [nn.Parameter(np.ones(2)), nn.Parameter(np.ones((2, 3)))]
    adam = optim.Adam(params)
    params[1].grad = ck.Tensor(np.ones((2, 3)))
    adam.step()
    state = adam.state_dict()
    group, entry = state["param_groups"][0], state["state"][1]
    bad = {
        r"Adam: the state has parameter groups of \[1\] parameters, expected \[2\]": {
            **state,
            "param_groups": [{**group, "params": [0]}],
        },
        r"Adam: the state has options \['params', 'rate'\], expected \['betas',": {
            **state,
            "param_groups": [{"params": [0, 1], "rate": 1}],
        },
        r"Adam: lr must be at least 0, got -1": {**state, "param_groups": [{**group, "lr": -1}]},
        r"Adam: the state is for parameter 2, there are 2": {**state, "state": {2: {"step": 1}}},
        r"Adam: exp_avg of parameter 1 has shape \(3, 2\), expected \(2, 3\)": {
            **state,
            "state": {1: {**entry, "exp_avg": np.ones((3, 2))}},
        },
        r"Adam: the state lacks param_groups, it has \['state'\]": {"state": {}},
    }
    for message, wrong in bad.items():
        with pytest.raises(ValueError, match=message):
            adam.load_state_dict(wrong)
    after = adam.state_dict()
    assert after["param_groups"] == state["param_groups"]
    np.testing.assert_array_equal(after["state"][1]["exp_avg"], entry["exp_avg"])


def test_a_variance_that_rounding_makes_negative():
    """The same gradient again and again: mean square and squared mean meet."""
    w = nn.Parameter(np.ones(50, np.float32))
    optimizer = optim.RMSprop([w], lr=1e-9, alpha=0.5, centered=True, eps=1e-3)
    w.grad = ck.Tensor(np.linspace(0.1, 3, 50, dtype=np.float32))
    for _ in range(60):
        optimizer.step()
    state = optimizer.state[0]
    assert (state["square_avg"] < state["grad_avg"] ** 2).any()
    assert np.isfinite(w.data).all()


# --- learning


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: optim.Adam(p, lr=0.05),
        lambda p: optim.AdamW(p, lr=0.05),
        lambda p: optim.Adagrad(p, lr=0.1),
        lambda p: optim.RMSprop(p, lr=0.02),
    ],
    ids=["SGD", "Nesterov", "Adam", "AdamW", "Adagrad", "RMSprop"],
)
def test_a_small_network_learns(make):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 1, 6, 6)).astype(np.float32)
    labels = (x[:, 0, :3].sum((1, 2)) > x[:, 0, 3:].sum((1, 2))).astype(int)
    with nn.init.seeded(1):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    optimizer = make(model.parameters())
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = ops.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    assert (model(x).argmax(1) == labels).mean() > 0.9


def test_frozen_parameters_stay():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    before = model.state_dict()
    optimizer = optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    ops.cross_entropy(model(np.ones((2, 3), np.float32)), np.array([0, 1])).backward()
    optimizer.step()
    after = model.state_dict()
    np.testing.assert_array_equal(after["0.weight"], before["0.weight"])
    assert (after["1.weight"] != before["1.weight"]).any()


# --- the kernels


def kernel_rows(dtype, count, chunk, seed=0):
    """Parameters of sizes around a vector and a chunk, each with ``count`` arrays."""
    rng = np.random.default_rng(seed)
    sizes = (1, 15, 17, chunk, 1, chunk + 1, 2 * chunk - 3)
    return [[rng.random(size).astype(dtype) + 0.5 for _ in range(count)] for size in sizes]


UPDATES = ["sgd", "plain sgd", "nesterov sgd", "adam", "adagrad", "rmsprop", "plain rmsprop"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", UPDATES)
def test_kernels_against_the_definition(name, dtype):
    check_update(cpu_chunks, name, dtype)


def check_update(module, name, dtype):
    kernel = name.split()[-1]
    count = {"plain sgd": 2, "plain rmsprop": 3}.get(name, {"sgd": 3, "adam": 4, "adagrad": 3, "rmsprop": 5}[kernel])
    rows = kernel_rows(dtype, count, module.CHUNK)
    options = {
        "sgd": lambda i: (0.9 if count == 3 else 0.0, 0.1 * (i % 2), 0.7, name.startswith("nesterov")),
        "adam": lambda i: (1.5, 1e-3, 0.1, 0.1, 0.9, 0.1, 0.95),
        "adagrad": lambda i: (0.1 * (i % 2), 1e-3),
        "rmsprop": lambda i: (0.9, 0.1, 1e-3, 0.1 * (i % 2), 0.9 if count == 5 else 0.0),
    }
    numbers = [(0.1 + 0.01 * i, *options[kernel](i)) for i in range(len(rows))]
    if name == "rmsprop":
        for row in rows:
            row[2] += 5  # the mean square is above the squared mean
    gradients_before = [row[1].copy() for row in rows]
    expected = [[a.astype(np.float64) for a in row] for row in rows]
    used = np.array(numbers, dtype)
    if name.startswith("plain"):
        missing = [None] * (1 if kernel == "sgd" else 2)
        rows, expected = [[*row, *missing] for row in rows], [[*row, *missing] for row in expected]
    getattr(module, kernel)(rows, used)
    for row, want, line, gradient in zip(rows, expected, used.astype(np.float64), gradients_before, strict=True):
        getattr(update_reference, kernel)(*want, tuple(line))
        np.testing.assert_array_equal(row[1], gradient)
        for got, exact in zip(row, want, strict=True):
            if got is not None:  # a dozen operations on numbers near 1
                np.testing.assert_allclose(got, exact, rtol=0, atol=20 * np.finfo(dtype).eps)


def test_parameters_and_state_in_any_order_of_memory():
    turned = nn.Parameter(np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    plain = nn.Parameter(np.arange(6.0).reshape(2, 3))
    optimizers = [optim.SGD([p], lr=0.1, momentum=0.9) for p in (turned, plain)]
    array = turned.data
    for step in range(3):
        for p, optimizer in zip((turned, plain), optimizers, strict=True):
            p.grad = ck.Tensor(np.asfortranarray(np.full((2, 3), step + np.arange(3.0))))
            optimizer.step()
            state = optimizer.state[0]
            state["momentum_buffer"] = np.asfortranarray(state["momentum_buffer"].astype(np.float32)).astype(np.float64)
    assert turned.data is array
    np.testing.assert_array_equal(turned.data, plain.data)
