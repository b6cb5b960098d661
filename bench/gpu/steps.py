"""Stage steps: whole training steps (forward, loss, backward, SGD with momentum) beside PyTorch's, eager and compiled.

Times are those that a user waits, the host's included: several steps, then a wait for the device. Ours are measured eager and
captured, that is with its launches replayed as CUDA graphs.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import convkern as ck

from ...blas import own_products
from ...capture import CapturedStep
from ..rivals import networks
from . import stage
from .ceilings import allow_tf32
from .contenders import DEVICE

LR, MOMENTUM = 1e-3, 0.9
TURNS = 5
TURN_SECONDS = 0.2
COMPILE_SECONDS = 25.0  # what must be left for a compiled network to be tried
AGREEMENT = {"float32": 1e-3, "float16": 5e-2}  # of the first two losses

Step = Callable[[], Any]  # gives the loss, on the device


class Network(NamedTuple):
    """One training step that is measured."""

    name: str
    batch: int
    image: tuple[int, int, int]
    classes: int = 10


NETWORKS = (
    Network("lenet5", 128, (1, 28, 28)),
    Network("vgg16_cifar", 256, (3, 32, 32)),
    Network("resnet18_cifar", 256, (3, 32, 32)),
    Network("resnet50", 64, (3, 224, 224), 1000),
)
PRECISIONS = ("float32", "float16")  # float16 by autocast


def twin(network: Network) -> Any:
    """PyTorch's model with the weights of ours, on the device."""
    import torch

    ours = list(ck.models.build(network.name).parameters())
    model = getattr(networks, network.name)()
    theirs = list(model.parameters())
    if [tuple(p.shape) for p in theirs] != [tuple(p.shape) for p in ours]:
        raise ValueError(f"{network.name}: PyTorch's model has other parameters than ours")
    with torch.no_grad():
        for parameter, mine in zip(theirs, ours, strict=True):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(mine.data)))
    return model.to(DEVICE)


def our_step(network: Network, x: np.ndarray, labels: np.ndarray, precision: str, captured: bool = False) -> Step:
    """Ours; losses in float16 are not scaled, which costs and saves nothing worth mentioning.

    With ``captured`` the first step is eager, which makes the optimizer's state, the second is captured, and all from then
    on are replayed; each copies its batch in, as in training.
    """
    import cupy

    model = ck.models.build(network.name).to("cuda")
    optimizer = ck.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    images, classes = cupy.asarray(x), cupy.asarray(labels)

    def forward(images: Any, classes: Any) -> Any:
        with ck.amp.autocast("cuda", enabled=precision == "float16"):
            return ck.nn.functional.cross_entropy(model(images), classes)

    def eager() -> Any:
        optimizer.zero_grad()
        loss = forward(images, classes)
        loss.backward()
        optimizer.step()
        return loss

    if not captured:
        return eager
    cupy.cuda.Device().synchronize()  # the model and the batch are there before another stream reads them
    stream = cupy.cuda.Stream(non_blocking=True)
    made: list[CapturedStep | None] = []

    def step() -> Any:
        with stream, own_products():
            if not made:
                made.append(None)
                return eager()
            replay = made[0]
            if replay is None:
                replay = made[0] = CapturedStep(model, forward, optimizer, images, classes)
            loss = replay.forward(images, classes)
            replay.backward()
            replay.update()
            return loss

    return step


def torch_step(
    network: Network, x: np.ndarray, labels: np.ndarray, precision: str, last: bool, compiled: bool = False
) -> Step:
    """PyTorch's, in NCHW or channels-last, eager or by torch.compile."""
    import torch

    model, images, classes = twin(network), torch.from_numpy(x).to(DEVICE), torch.from_numpy(labels).to(DEVICE)
    if last:
        model, images = (thing.to(memory_format=torch.channels_last) for thing in (model, images))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    forward = torch.compile(model) if compiled else model
    half = precision == "float16"

    def step() -> Any:
        allow_tf32(False)
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16) if half else nullcontext():
            loss = torch.nn.functional.cross_entropy(forward(images), classes)
        loss.backward()
        optimizer.step()
        return loss

    return step


def first_losses(step: Step) -> list[float]:
    """Before the first step, and after it."""
    losses = []
    for _ in range(2):
        loss = step()
        wait()  # for a stream of the step's own, which the default one does not wait for
        losses.append(float(loss.item()))
    return losses


def wait() -> None:
    import torch

    torch.cuda.synchronize()


def seconds_of(step: Step, count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        step()
    wait()
    return (time.perf_counter() - started) / count


def interleave(steps: dict[str, Step]) -> dict[str, float]:
    """Median seconds of a step of each."""
    counts, samples = {}, {name: list[float]() for name in steps}
    for name, step in steps.items():
        seconds_of(step, 2)
        counts[name] = max(1, min(50, round(TURN_SECONDS / seconds_of(step, 2))))
    for _ in range(TURNS):
        for name, step in steps.items():
            samples[name].append(seconds_of(step, counts[name]))
    return {name: statistics.median(found) for name, found in samples.items()}


def agreeing(losses: dict[str, list[float]]) -> str:
    """Why two contenders do not take the same step; "" where all do."""
    (first, want), *rest = losses.items()
    for name, got in rest:
        bound = max(AGREEMENT["float16" if "float16" in both else "float32"] for both in (name, first))
        if not np.allclose(got, want, rtol=bound, atol=0):
            return f"{name} has losses {got}, {first} {want}"
    return ""


def contest(network: Network, precision: str, report: stage.Report, compiled: bool) -> dict[str, Any]:
    """All contenders that exist over one network; with ``compiled`` ours beside PyTorch's compiled network alone."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((network.batch, *network.image), np.float32)
    labels = rng.integers(0, network.classes, network.batch)
    makers: dict[str, Callable[[], Step]] = {
        f"ours {precision}": partial(our_step, network, x, labels, precision),
        f"ours captured {precision}": partial(our_step, network, x, labels, precision, captured=True),
    }
    for layout, last in (("nchw", False), ("channels_last", True)):
        if not compiled or last == (precision == "float16"):
            name = f"torch{' compiled' if compiled else ''} {precision} {layout}"
            makers[name] = partial(torch_step, network, x, labels, precision, last, compiled)
    steps, losses = {}, {}
    for name, make in makers.items():
        what = f"{network.name} {name}"
        step = report.attempt(what, make)
        found = None if step is None else report.attempt(what, partial(first_losses, step))
        if found is not None:
            steps[name], losses[name] = step, found
    if wrong := agreeing(losses) if losses else "nothing ran":
        report.fail(f"{network.name}: {wrong}")
    told = {"network": network.name, "batch": network.batch, "precision": precision}
    return {**told, "losses": losses, "seconds": interleave(steps)}


def judge(entry: dict[str, Any]) -> dict[str, Any]:
    """Add PyTorch's time over ours, eager and captured, layout by layout."""
    seconds = entry["seconds"]

    def ratios(mine: str) -> dict[str, float]:
        return {
            name: value / seconds[f"{mine} {precision}"]
            for name, value in seconds.items()
            for precision in PRECISIONS
            if name.startswith("torch") and precision in name and f"{mine} {precision}" in seconds
        }

    return {**entry, "ratios": ratios("ours"), "captured_ratios": ratios("ours captured")}


def work(report: stage.Report) -> None:
    import cupy
    import torch

    torch.backends.cudnn.benchmark = True
    report.begin(eager=[], compiled=[], left_out=[])
    rounds = itertools.product(((False, 6.0), (True, COMPILE_SECONDS)), NETWORKS, PRECISIONS)
    for (compiled, needed), network, precision in rounds:
        kind = "compiled" if compiled else "eager"
        what = f"{network.name} {kind} {precision}"
        if report.left < needed:
            report.add("left_out", what)
            continue
        entry = report.once(what, partial(contest, network, precision, report, compiled))
        if entry is not None:
            report.add(kind, judge(entry))
            print(what, entry["seconds"], flush=True)
        gc.collect()  # models and graphs, before the next ones come
        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()


if __name__ == "__main__":
    stage.run("steps", work, patience=100)
