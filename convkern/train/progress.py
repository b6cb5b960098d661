"""What a person sees while a run goes on: a live bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from .checkpoint import Position

COMPILING = "compiling kernels (first run only)"
_PLAIN_INTERVAL = 10.0  # seconds between two plain lines within an epoch


class Progress:
    """Shows nothing: the base of both displays, and what a quiet run uses.

    Parameters
    ----------
    epochs : int
        Of the whole run.
    steps : int
        Of an epoch.
    """

    def __init__(self, epochs: int, steps: int) -> None:
        self.epochs = epochs
        self.steps = steps

    def say(self, text: str) -> None:
        """Print a line."""

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Report every kernel that is compiled inside this context."""
        yield

    def open(self, position: Position) -> None:
        """Begin, or go on from a position."""

    def step(self, position: Position) -> None:
        """A training step has ended."""

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch has ended with these metrics."""
        self.say(
            f"epoch {record['epoch']:>{len(str(self.epochs))}}/{self.epochs}  "
            f"loss {record['train_loss']:.4f}  accuracy {record['train_accuracy']:6.1%}  "
            f"test loss {record['test_loss']:.4f}  test accuracy {record['test_accuracy']:6.1%}  "
            f"{record['images_per_second']:,.0f} images/s  idle {record['idle_share']:.1%}"
        )

    def close(self) -> None:
        """End the display; called once, also after an error."""

    def _watch(self, show: Any) -> AbstractContextManager[Any]:
        """Call ``show(done, name, phase)`` before and after every compilation; phase is "start" or "done"."""
        from ..kernels import compiler

        count = 0

        def callback(name: str, phase: str) -> None:
            nonlocal count
            count += phase == "done"
            show(count, name, phase)

        return compiler.watch(callback)


class PlainProgress(Progress):
    """One line for each thing worth saying, for logs and pipes."""

    def __init__(self, epochs: int, steps: int) -> None:
        super().__init__(epochs, steps)
        self._said = time.monotonic()

    def say(self, text: str) -> None:
        print(text, flush=True)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        announced = False

        def show(count: int, name: str, phase: str) -> None:
            nonlocal announced
            if not announced:
                self.say(COMPILING)
                announced = True
            if phase == "done":
                self.say(f"  {count:2d} {name}")

        with self._watch(show):
            yield

    def open(self, position: Position) -> None:
        self._said = time.monotonic()

    def step(self, position: Position) -> None:
        now = time.monotonic()
        if now - self._said >= _PLAIN_INTERVAL:
            self._said = now
            self.say(
                f"epoch {position.epoch + 1}/{self.epochs}  step {position.step}/{self.steps}  {_figures(position)}"
            )

    def epoch(self, record: dict[str, Any]) -> None:
        self._said = time.monotonic()
        super().epoch(record)


class RichProgress(Progress):
    """A bar over the whole run with loss, accuracy, images/s and time left."""

    def __init__(self, epochs: int, steps: int) -> None:
        super().__init__(epochs, steps)
        from rich.console import Console

        self._console = Console(highlight=False)
        self._bar: Any = None
        self._task: Any = None

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        from rich.progress import Progress as Bar
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        bar = Bar(*columns, console=self._console, transient=True)
        task = bar.add_task(COMPILING, total=None)
        announced = False

        def show(count: int, name: str, phase: str) -> None:
            nonlocal announced
            if not announced:
                self.say(COMPILING)
                bar.start()
                announced = True
            bar.update(task, description=f"{count} done, {'now' if phase == 'start' else 'last'} {name}")

        try:
            with self._watch(show):
                yield
        finally:
            bar.stop()

    def open(self, position: Position) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(
            "", total=self.epochs * self.steps, completed=self._done(position), epoch=self._label(position), figures=""
        )
        self._bar.start()

    def step(self, position: Position) -> None:
        self._bar.update(
            self._task, completed=self._done(position), epoch=self._label(position), figures=_figures(position)
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _done(self, position: Position) -> int:
        return position.epoch * self.steps + position.step

    def _label(self, position: Position) -> str:
        return f"{min(position.epoch + 1, self.epochs)}/{self.epochs}"


def _figures(position: Position) -> str:
    if position.seen == 0:
        return ""
    speed = position.seen / position.seconds if position.seconds > 0 else 0.0
    return (
        f"loss {position.loss_sum / position.seen:.4f}  accuracy {position.correct / position.seen:6.1%}  "
        f"{speed:,.0f} images/s  idle {position.waited / max(position.seconds, 1e-9):.1%}"
    )


def choose(epochs: int, steps: int, quiet: bool = False) -> Progress:
    """The display that suits where the output goes.

    Parameters
    ----------
    epochs, steps : int
        Epochs of the run, steps of an epoch.
    quiet : bool
        Show nothing.
    """
    if quiet:
        return Progress(epochs, steps)
    return RichProgress(epochs, steps) if sys.stdout.isatty() else PlainProgress(epochs, steps)
