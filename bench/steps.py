"""Whole training steps (forward, loss, backward, optimizer) beside the same network in PyTorch, in both of its layouts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import convkern as ck

from ..files import require
from . import host, report
from .measure import interleave
from .report import BETTER, TORCH
from .rivals import networks
from .rivals.rival import Disagreement

KIND = "convkern step benchmark"
FORMAT = 1
LR, MOMENTUM = 0.01, 0.9
AGREEMENT = 1e-3  # of the loss, before and after the first step
SECONDS_EACH = 12.0  # for one network, all rivals together

Step = Callable[[], float]


class Network(NamedTuple):
    """One training step that is measured."""

    name: str  # in convkern.models, and in the rivals' networks
    batch: int
    image: tuple[int, int, int]  # (C, H, W)
    repeat: int  # steps in a call: as in a training loop, where caches and threads are warm

    @property
    def title(self) -> str:
        return f"{self.name} batch {self.batch}"


NETWORKS = (
    Network("lenet5", 128, (1, 28, 28), 10),
    Network("vgg16_cifar", 32, (3, 32, 32), 1),
    Network("resnet18_cifar", 32, (3, 32, 32), 1),
)


def select(names: Sequence[str]) -> list[Network]:
    """The networks of these names; all for "*".

    Raises
    ------
    ValueError
        Naming the known networks.
    """
    if list(names) == ["*"]:
        return list(NETWORKS)
    known = {network.name: network for network in NETWORKS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"networks must be among {', '.join(known)}, got {', '.join(unknown)}")
    return [known[name] for name in names]


def batch(network: Network, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images (N, C, H, W) and labels (N,)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((network.batch, *network.image), np.float32), rng.integers(0, 10, network.batch)


def our_step(network: Network, x: np.ndarray, labels: np.ndarray) -> Step:
    """A training step of convkern on fresh weights; gives the loss before it."""
    model = ck.models.build(network.name)
    optimizer = ck.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

    def step() -> float:
        optimizer.zero_grad()
        loss = ck.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def torch_step(network: Network, x: np.ndarray, labels: np.ndarray, channels_last: bool) -> Step:
    """The same from the same weights in PyTorch."""
    require("torch")
    import torch

    torch.set_num_threads(ck.num_threads())
    model = getattr(networks, network.name)()
    state = ck.models.build(network.name).state_dict()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    images, classes = torch.from_numpy(x), torch.from_numpy(labels)
    if channels_last:
        model, images = (thing.to(memory_format=torch.channels_last) for thing in (model, images))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), classes)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def contest(network: Network, *, rounds: int, seconds: float, seed: int) -> dict[str, Any]:
    """Measure one network.

    Raises
    ------
    Disagreement
        If the losses before or after the first step differ: it would not be the same step.
    """
    x, labels = batch(network, seed)
    steps = {report.OURS: our_step(network, x, labels)}
    for name, channels_last in zip(TORCH, (False, True), strict=True):
        steps[name] = torch_step(network, x, labels, channels_last)
    losses = {name: [step(), step()] for name, step in steps.items()}
    for name, found in losses.items():
        if not np.allclose(found, losses[report.OURS], rtol=AGREEMENT, atol=0):
            raise Disagreement(f"{network.title}: {name} has losses {found}, convkern {losses[report.OURS]}")

    def some(step: Step) -> Callable[[], None]:
        def call() -> None:
            for _ in range(network.repeat):
                step()

        return call

    timings = interleave({name: [some(step)] for name, step in steps.items()}, rounds, seconds)
    medians = {name: timing.median / network.repeat for name, timing in timings.items()}
    ratios = {name: median / medians[report.OURS] for name, median in medians.items()}
    return {
        "network": network.name,
        "batch": network.batch,
        "image": list(network.image),
        "losses": losses[report.OURS],
        "seconds": medians,
        "ratios": {**ratios, BETTER: min(ratios[name] for name in TORCH)},
        "samples": {name: [s / network.repeat for s in timing.samples] for name, timing in timings.items()},
    }


def run(
    chosen: Sequence[Network],
    *,
    rounds: int = 15,
    seconds: float | None = None,
    seed: int = 0,
    tell: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> dict[str, Any]:
    """Measure training steps.

    Parameters
    ----------
    chosen : sequence of Network
        See :func:`select`.
    rounds : int
        Most turns of a rival.
    seconds : float, optional
        Time for everything, warming up left out.
    seed : int
        Of the images and labels.
    tell : callable
        ``tell(what, done, of)`` is called before each network.

    Returns
    -------
    dict
        The result, ready for :func:`convkern.bench.report.save`.
    """
    each = SECONDS_EACH if seconds is None else seconds / len(chosen)
    records = []
    for done, network in enumerate(chosen):
        tell(network.title, done, len(chosen))
        records.append(contest(network, rounds=rounds, seconds=each, seed=seed))
    settings = {"rounds": rounds, "seconds_each": each, "seed": seed, "lr": LR, "momentum": MOMENTUM}
    return {"kind": KIND, "format": FORMAT, "host": host.facts(), "settings": settings, "steps": records}


def load(path: Path) -> dict[str, Any] | None:
    """A result of this benchmark; None for a file that is another benchmark's or cannot be read as JSON."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("kind") == KIND else None


def show(result: dict[str, Any]) -> None:
    """Print a table: milliseconds a step, and PyTorch's time over ours."""
    require("rich")
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    facts = result["host"]
    title = f"training steps, {facts['cpu']}, {facts['threads']} threads, float32, {facts['date']}"
    table = Table(box=SIMPLE, title=title, title_justify="left")
    table.add_column("network")
    for heading in ("convkern ms", "torch ms", "channels-last ms", "torch", "channels-last", "better"):
        table.add_column(heading, justify="right")
    for record in result["steps"]:
        times = (f"{record['seconds'][name] * 1e3:.2f}" for name in (report.OURS, *TORCH))
        ratios = (f"{record['ratios'][name]:.2f}" for name in (*TORCH, BETTER))
        table.add_row(f"{record['network']} batch {record['batch']}", *times, *ratios)
    Console(width=120).print(table)
