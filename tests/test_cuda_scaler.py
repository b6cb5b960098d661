"""Scaled losses on a GPU: overflows found, steps skipped and the scale adjusted there; kernels against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

import convkern as ck
from convkern import amp, nn, optim
from convkern.kernels.update import reference

from . import fake_cupy
from .fake_device import memory
from .gpu import TARGETS, interpreted, needs_compiler
from .test_cuda_memory import error_of
from .test_optim import kernel_rows

pytestmark = needs_compiler


@pytest.fixture
def cupy():
    with fake_cupy.installed() as module:
        yield module


# --- the kernels


@pytest.mark.parametrize("target", TARGETS)
def test_gradients_are_divided_and_overflows_found(target):
    """Sizes around a chunk; an infinity or NaN anywhere, or made by the product."""
    from convkern.kernels.update import cuda_chunks, cuda_scale

    rng = np.random.default_rng(1)
    sizes = (1, 0, 17, cuda_chunks.CHUNK, cuda_chunks.CHUNK + 1)
    scale = np.array([2.0**4, 2.0**-4], "f4")
    with interpreted(target):
        for row, place, bad in [(None, 0, 0)] + [
            (row, place, bad)
            for row, place in ((0, 0), (2, 16), (3, 255), (4, -1))
            for bad in (np.inf, -np.inf, np.nan)
        ]:
            gradients = [rng.standard_normal(size).astype("f4") for size in sizes]
            if row is not None:
                gradients[row][place] = bad
            outs, found = [np.full(size, 7, "f4") for size in sizes], np.full(1, 5, "f4")
            rows = cuda_chunks.Uploaded(list(zip(gradients, outs, strict=True)))
            cuda_scale.unscale(rows, scale, np.full(rows.jobs, np.nan, "f4"), found)
            assert found[0] == (row is not None)
            for gradient, out in zip(gradients, outs, strict=True):
                np.testing.assert_array_equal(out, gradient * scale[1])
        gradients, outs = [np.array([3e38], "f4")], [np.zeros(1, "f4")]
        rows = cuda_chunks.Uploaded(list(zip(gradients, outs, strict=True)))
        for factor, want in ((2.0, 1), (1.0, 0)):
            cuda_scale.unscale(rows, np.array([1 / factor, factor], "f4"), np.zeros(rows.jobs, "f4"), found)
            assert found[0] == want


@pytest.mark.parametrize("target", TARGETS)
def test_many_findings_are_put_together(target):
    from convkern.kernels.update import cuda_scale

    with interpreted(target):
        for count in (0, 1, 255, 256, 1000):
            for place in {0, count // 2, count - 1} if count else ():
                findings, found = np.zeros(count, "f4"), np.full(1, 5, "f4")
                findings[place] = 1
                cuda_scale._COLLECT(1, findings, found, count)
                assert found[0] == 1
            found = np.full(1, 5, "f4")
            cuda_scale._COLLECT(1, np.zeros(count, "f4"), found, count)
            assert found[0] == 0


KERNELS = {  # arrays of a row, numbers of step t, and those that a GPU counts with
    "sgd": (3, lambda t: (0.1, 0.9, 0.01, 1.0 if t == 1 else 0.7, 0), (0.1, 0.9, 0.01, 1.0, 0, 0.7)),
    "adam": (
        4,
        lambda t: (0.1 / (1 - 0.9**t), 1 / math.sqrt(1 - 0.999**t), 1e-8, 0.01, 0.1, 0.999, 1 - 0.999, 1.0),
        (0, 0, 1e-8, 0.01, 0.1, 0.999, 1 - 0.999, 1.0, 0.1, math.log(0.9), math.log(0.999)),
    ),
    "adagrad": (3, lambda t: (0.1 / (1 + (t - 1) * 0.3), 0.01, 1e-8), (0, 0.01, 1e-8, 0.1, 0.3)),
    "rmsprop": (5, lambda t: (0.1, 0.9, 0.1, 1e-3, 0.01, 0.9), (0.1, 0.9, 0.1, 1e-3, 0.01, 0.9)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_steps_that_a_gpu_counts(name, target):
    """By the definition at the step's number, also the first and one far on; nothing at all where the flag is set."""
    from convkern.kernels.update import cuda_chunks

    count, numbers_at, counted = KERNELS[name]
    kernel = getattr(cuda_chunks, f"{name}_unless")
    with interpreted(target):
        for made in (0, 1, 2999):
            rows = [row[:count] for row in kernel_rows("f4", count, cuda_chunks.CHUNK)[1:5]]
            for row in rows:
                row[2] += 5 * (name == "rmsprop")  # the mean square is above the squared mean
            steps = [np.full((), made, "f4") for _ in rows]
            given = rows if name == "rmsprop" else [[*row, step] for row, step in zip(rows, steps, strict=True)]
            numbers = np.array([counted] * len(rows), "f4")
            before = [[array.copy() for array in row] for row in given], numbers.copy()
            kernel(given, numbers, np.ones(1, "f4"))
            for row, old in zip(given, before[0], strict=True):
                for array, value in zip(row, old, strict=True):
                    np.testing.assert_array_equal(array, value)
            np.testing.assert_array_equal(numbers, before[1])
            kernel(given, numbers, np.zeros(1, "f4"))
            if name != "rmsprop":
                assert [float(step) for step in steps] == [made + 1] * len(rows)
            for row, old in zip(rows, before[0], strict=True):
                want = [array.astype("f8") for array in old[:count]]
                getattr(reference, name)(*want, numbers_at(made + 1))
                for got, exact in zip(row, want, strict=True):
                    np.testing.assert_allclose(got, exact, rtol=0, atol=40 * np.finfo("f4").eps)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.99), (0.5, 0.9999)])
def test_adams_corrections_cancel_nothing(betas):
    """As exact as a float32 can tell, from the first step to one where they are over."""
    from convkern.kernels.update import cuda_chunks

    logarithms = [math.log(beta) if beta else -math.inf for beta in betas]
    with interpreted("sm_80"):
        for t in (1, 2, 10, 1000, 100_000):
            w = [np.ones(1, "f4") for _ in range(4)]
            numbers = np.array([(0, 0, 1, 0, 1, 0, 1, 1, 0.5, *logarithms)], "f4")
            cuda_chunks.adam_unless([(*w, np.full((), t - 1, "f4"))], numbers, np.zeros(1, "f4"))
            want = 0.5 / (1 - betas[0] ** t), 1 / math.sqrt(1 - betas[1] ** t)
            np.testing.assert_allclose(numbers[0, :2], want, rtol=5e-7)


# --- GradScaler


def scalers(cupy, **options):
    """The same scaler twice, one whose scale lives on the device."""
    here, there = amp.GradScaler("cpu", **options), amp.GradScaler("cuda", **options)
    there.on_device()
    return here, there


@pytest.mark.parametrize("interval", [1, 3, 2000])
def test_the_scale_on_the_device_is_that_of_the_host(interval, cupy):
    """Over sixty steps, a quarter of which overflow; and its limits."""
    rng = np.random.default_rng(6)
    for options in (
        {},
        dict(init_scale=2.0**126),
        dict(init_scale=2.0**-120, backoff_factor=0.01),
        dict(growth_factor=1.7),
    ):
        here, there = scalers(cupy, growth_interval=interval, **options)
        params = [
            ck.Tensor(np.ones(3, "f4"), requires_grad=True),
            ck.Tensor(cupy.array(np.ones(3, "f4")), requires_grad=True),
        ]
        optimizers = [optim.SGD([p], lr=0.1) for p in params]
        for turn in range(60 if not options else 12):
            gradient = np.array([1.0, rng.choice([np.inf, np.nan]) if rng.random() < 0.25 else 2.0, 3.0], "f4")
            params[0].grad, params[1].grad = ck.Tensor(gradient), ck.Tensor(cupy.array(gradient))
            for scaler, optimizer in zip((here, there), optimizers, strict=True):
                if turn % 3 == 0:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
            assert there.state_dict() == here.state_dict()
            np.testing.assert_allclose(params[1].data.get(), params[0].data, rtol=1e-6)


def test_one_overflow_backs_off_for_all(cupy):
    """Two optimizers, one of which is skipped; it has no state then."""
    p, q = (ck.Tensor(cupy.array(np.ones(2, "f4")), requires_grad=True) for _ in range(2))
    adam, sgd, scaler = optim.Adam([p]), optim.SGD([q], lr=1.0), amp.GradScaler("cuda", init_scale=8.0)
    p.grad, q.grad = (ck.Tensor(cupy.array(np.array(g, "f4"))) for g in ([np.inf, 1], [4, 4]))
    scaler.step(adam)
    scaler.step(sgd)
    scaler.update()
    np.testing.assert_array_equal(p.data.get(), [1, 1])
    assert adam.state_dict()["state"] == {}
    np.testing.assert_array_equal(q.data.get(), [0.5, 0.5])
    assert scaler.get_scale() == 4
    here = ck.Tensor(np.ones(2, "f4"), requires_grad=True)  # another on the CPU, where the host knows
    here.grad, p.grad = ck.Tensor(np.array([np.nan, 1], "f4")), ck.Tensor(cupy.array(np.ones(2, "f4")))
    other = optim.SGD([here])
    scaler.step(other)
    scaler.step(adam)
    scaler.update()
    np.testing.assert_array_equal(here.data, 1)
    assert adam.state_dict()["state"][0]["step"] == 1
    assert scaler.get_scale() == 2


def test_states_travel(cupy):
    """A scaler's state and scale may be set while graphs know where it lies."""
    _, scaler = scalers(cupy, init_scale=8.0)
    factor = scaler.on_device().factor
    scaler.update(32.0)
    assert factor.item() == scaler.get_scale() == 32
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0, "_growth_tracker": 7})
    assert factor.item() == 2
    assert scaler.state_dict()["_growth_tracker"] == 7
    loss = ck.Tensor(cupy.array(np.array(3.0, "f4")), requires_grad=True)
    assert scaler.scale(loss).item() == 6
    assert [array.item() for array in scaler.scale([loss.data])] == [6]


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=1e-3),
    "plain sgd": lambda p: optim.SGD(p, lr=0.1),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.2),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
}
OVERFLOWS = (0, 1, 4, 5)  # the first steps too: a state begins with the first step that is made


class Training:
    """Steps of a parameter and of one that gets its first gradient later, on either device."""

    def __init__(self, name: str, move) -> None:
        self.move = move
        self.parameters = [ck.Tensor(move(np.linspace(-1, 1, 5).astype("f4")), requires_grad=True) for _ in range(2)]
        self.optimizer = OPTIMIZERS[name](self.parameters)
        self.scaler = amp.GradScaler("cuda" if move is not np.array else "cpu", init_scale=4.0, growth_interval=2)

    def step(self, number: int, scaled: bool = True) -> None:
        rng = np.random.default_rng(number)
        for i, p in enumerate(self.parameters):
            gradient = rng.standard_normal(5).astype("f4")
            if scaled and number in OVERFLOWS:
                gradient[2] = np.inf
            p.grad = ck.Tensor(self.move(gradient)) if number >= 3 * i else None
        if scaled:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    def values(self) -> list[np.ndarray]:
        return [np.asarray(p.data if isinstance(p.data, np.ndarray) else p.data.get()) for p in self.parameters]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_on_the_device_are_those_of_the_cpu(name, cupy):
    """Skipped ones leave parameters and state as they are, bit for bit; the others agree with the CPU's, as do the counts."""
    here, there = Training(name, np.array), Training(name, cupy.array)
    for number in range(8):
        before = [value.copy() for value in there.values()], there.optimizer.state_dict()["state"]
        here.step(number)
        there.step(number)
        state = there.optimizer.state_dict()["state"]
        if number in OVERFLOWS:
            for got, want in zip(there.values(), before[0], strict=True):
                np.testing.assert_array_equal(got, want)
            for position, values in before[1].items():
                for key, value in values.items():
                    np.testing.assert_array_equal(state[position][key], value)
        for got, want in zip(there.values(), here.values(), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        for position, values in here.optimizer.state_dict()["state"].items():
            for key, value in values.items():
                np.testing.assert_allclose(state[position][key], value, rtol=1e-5, atol=1e-6)
        assert there.scaler.state_dict() == here.scaler.state_dict()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scaled_and_plain_steps_follow_each_other(name, cupy):
    """The count goes to the host and back; a state from the device goes on in an optimizer on the CPU."""
    here, there = Training(name, np.array), Training(name, cupy.array)
    for number in range(9):
        for run in (here, there):
            run.step(number, scaled=number % 3 != 2)
        for got, want in zip(there.values(), here.values(), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    other = Training(name, np.array)
    for p, value in zip(other.parameters, there.values(), strict=True):
        p.data[...] = value
    other.optimizer.load_state_dict(there.optimizer.state_dict())
    for run in (here, other):
        run.step(10, scaled=False)
    for got, want in zip(other.values(), here.values(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_optimizers_of_ones_own_are_asked_by_the_host(cupy):
    """A step, kernel or row of a subclass runs as it is written, and not where gradients overflowed."""
    made = []

    class OwnStep(optim.SGD):
        def step(self, closure=None):
            made.append("step")
            return super().step(closure)

    class OwnKernel(optim.Adam):
        def kernel(self, rows, numbers):
            made.append("kernel")
            super().kernel(rows, numbers)

    class OwnRow(optim.Adagrad):
        def row(self, w, state, group):
            made.append("row")
            return super().row(w, state, group)

    for kind in (OwnStep, OwnKernel, OwnRow):
        p = nn.Parameter(cupy.array(np.ones(2, "f4")))
        optimizer, scaler = kind([p], lr=0.5), amp.GradScaler("cuda", init_scale=2.0)
        for gradient in ([np.nan, 1], [2, 4]):
            p.grad = ck.Tensor(cupy.array(np.array(gradient, "f4")))
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 1
        assert (p.data.get() < 1).all()
    assert made == ["step", "kernel", "row"]


def test_memory_that_runs_out_leaves_everything_as_it_was(cupy):
    run = Training("adam", cupy.array)
    run.step(3)
    before = [value.copy() for value in run.values()], run.optimizer.state_dict()["state"], run.scaler.state_dict()
    for number in range(40):
        for p in run.parameters:
            p.grad = ck.Tensor(cupy.array(np.ones(5, "f4")))
        memory.fails = lambda n, at=memory.taken + number: n >= at
        error = error_of(lambda: run.scaler.step(run.optimizer))
        memory.fails = lambda n: False
        if error is None:
            break
        assert type(error) is ck.device.OutOfDeviceMemory
        for got, want in zip(run.values(), before[0], strict=True):
            np.testing.assert_array_equal(got, want)
        for position, values in run.optimizer.state_dict()["state"].items():
            for key, value in values.items():
                np.testing.assert_array_equal(before[1][position][key], value)
        assert not run.scaler._stepped
        run.scaler._found.clear()  # the gradients above are new ones
    else:
        pytest.fail("a step has no end")
    assert number > 4


def test_gradients_are_all_divided_or_none(cupy):
    """A scaler that failed half way does not divide some gradients twice."""
    parameters = [nn.Parameter(cupy.ones(2, "f4")) for _ in range(3)]
    optimizer, scaler = optim.SGD(parameters, lr=0.5), amp.GradScaler("cuda", init_scale=4.0)
    for p in parameters:
        p.grad = ck.Tensor(cupy.ones(2, "f4"))
    for count in (4, 1, 0):  # the scale and two gradients, then one, then none
        last = memory.taken + count
        memory.fails = lambda number: number >= last  # noqa: B023
        with pytest.raises(ck.device.OutOfDeviceMemory):
            scaler.step(optimizer)
        assert [p.grad.data.get().tolist() for p in parameters] == [[1.0, 1.0]] * 3
    memory.fails = lambda number: False
    scaler.unscale_(optimizer)
    assert [p.grad.data.get().tolist() for p in parameters] == [[0.25, 0.25]] * 3
