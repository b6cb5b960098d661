"""Running out of device memory: every allocation of a training step fails in turn, and nothing is left half done."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import convkern as ck
from convkern import nn, optim
from convkern.device import OutOfDeviceMemory
from convkern.kernels.cuda import launch

from . import fake_cupy, fake_device
from .gpu import needs_compiler

MESSAGE = r"out of memory on the GPU: [\d,]+ bytes asked for, 1,048,576 of 1,073,741,824 are free"


@pytest.fixture
def cupy():
    with fake_cupy.installed() as module:
        yield module


@pytest.fixture
def memory(cupy, monkeypatch):
    """The device's memory, whose allocations a test lets fail. Kernels do not run: what they compute is not looked at."""
    monkeypatch.setattr(launch, "launcher", lambda kernel, blocks, args: None)
    made = fake_device.Memory()
    monkeypatch.setattr(fake_device, "memory", made)
    monkeypatch.setattr(cupy, "get_default_memory_pool", lambda: made)
    return made


def network() -> nn.Sequential:
    with nn.init.seeded(1):
        return nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5),
            nn.Linear(8, 3),
        )  # fmt: skip


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: optim.Adam(p, lr=0.01),
}


def snapshot(model: nn.Module, optimizer: optim.Optimizer) -> Any:
    return copy.deepcopy(([p.data.get() for p in model.parameters()], optimizer.state_dict()))


def assert_same(got: Any, want: Any) -> None:
    for a, b in zip(got[0], want[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert got[1]["state"].keys() == want[1]["state"].keys()
    for position, values in want[1]["state"].items():
        for key, value in values.items():
            np.testing.assert_array_equal(got[1]["state"][position][key], value)


@needs_compiler
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_allocation_of_a_step_may_fail(name, first, cupy, memory):
    """Forward, backward and optimizer; the error has the bytes, parameters and state are as before, nothing is kept."""
    model = network().to("cuda")
    optimizer = OPTIMIZERS[name](model.parameters())
    x, labels, loss = cupy.zeros((2, 1, 4, 4), "f4"), cupy.array([0, 2]), nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x), labels).backward()
        optimizer.step()

    if not first:
        step()
    optimizer.zero_grad()
    failures = used = 0
    places = set()
    for number in range(1000):
        gc.collect()
        before, used = snapshot(model, optimizer), memory.used
        memory.fails = lambda n, at=memory.taken + number: n >= at
        error = error_of(step)
        memory.fails = lambda n: False
        if error is None:
            break
        assert type(error) is OutOfDeviceMemory
        assert error.asked >= 0
        assert error.total == 1 << 30
        places.update(functions(error))
        failures += 1
        del error
        optimizer.zero_grad()
        gc.collect()
        assert memory.used == used, f"allocation {number} left {memory.used - used} bytes"
        assert_same(snapshot(model, optimizer), before)
    else:
        pytest.fail("a step has no end")
    assert failures > 30
    assert {"forward", "backward", "step"} <= places
    assert [v.get("step", 1) for v in optimizer.state.values()] == [2 - first if name == "adam" else 1] * 6


def error_of(step: Callable[[], None]) -> MemoryError | None:
    try:
        step()
    except MemoryError as error:
        return error
    return None


def functions(error: BaseException) -> list[str]:
    """Those that an error, or what it was raised from, came through."""
    found = []
    for one in filter(None, (error, error.__cause__)):
        trace = one.__traceback__
        while trace is not None:
            found.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
    return found


def test_the_error_names_the_layer_and_the_bytes(cupy, memory):
    model, x = network().to("cuda"), cupy.zeros((2, 1, 4, 4), "f4")
    memory.fails = lambda number: True
    with pytest.raises(OutOfDeviceMemory, match=rf"^0 \(Conv2d\(.*\)\) was given \(2, 1, 4, 4\): {MESSAGE}$") as caught:
        model(x)
    assert caught.value.asked == 2 * 2 * 4 * 4 * 4


def test_memory_that_the_pool_keeps_is_given_back_first(cupy, memory):
    """The second try is after the pool was emptied, and the only one."""
    failing = memory.taken
    memory.fails = lambda number: number == failing
    assert ck.device.empty((3,), "f4").shape == (3,)
    assert (memory.given_back, memory.taken) == (1, failing + 2)
    memory.fails = lambda number: True
    with pytest.raises(OutOfDeviceMemory, match=f"^{MESSAGE}$"):
        ck.device.empty((3,), "f4")
    assert (memory.given_back, memory.taken) == (2, failing + 4)


def test_numpys_own_error_stays(monkeypatch):
    layer = nn.Linear(2, 3)
    error = MemoryError("Unable to allocate")
    monkeypatch.setattr(layer, "forward", lambda x: (_ for _ in ()).throw(error))
    with pytest.raises(MemoryError, match=r"^Unable to allocate$") as caught:
        layer(np.zeros((1, 2), "f4"))
    assert caught.value is error


def test_the_command_tells_it_in_one_line(monkeypatch, capsys):
    from convkern import cli, train

    def fails(*args: Any, **options: Any) -> None:
        raise OutOfDeviceMemory(5, 6, 7)

    monkeypatch.setattr(train, "train", fails)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "convkern: out of memory on the GPU: 5 bytes asked for, 6 of 7 are free\n"
