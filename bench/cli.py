"""The command ``convkern bench``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cases import GROUPS, select

if TYPE_CHECKING:
    from collections.abc import Callable

_INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C
_GROUPS = ", ".join(GROUPS)


def bench_command(
    cases: Annotated[
        str, typer.Option(help=f"Comma-separated: {_GROUPS}, names of cases, or patterns like 'vgg-*'.")
    ] = "quick",
    everything: Annotated[
        bool,
        typer.Option("--all", help="Same as --cases loops,layers,pools,pointwise: takes long."),
    ] = False,
    directions: Annotated[
        str, typer.Option(help="Comma-separated: forward, input_grad, weight_grad, backward, or patterns.")
    ] = "*",
    rivals: Annotated[
        str,
        typer.Option(
            help="Comma-separated: torch, torch-channels-last, numba-parallel, numba, numpy, python, or patterns; "
            "convkern always takes part."
        ),
    ] = "*",
    rows: Annotated[
        bool, typer.Option("--rows", help="Also time every kernel row that takes a case, chosen or not.")
    ] = False,
    precision: Annotated[
        str, typer.Option(help="default, or strict: only rows that sum in the arrays' dtype.")
    ] = "default",
    steps: Annotated[
        str | None,
        typer.Option(
            help="Measure whole training steps beside PyTorch instead: '*', or comma-separated names of networks.",
            metavar="NETWORKS",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Most turns of each rival on a case.", min=1)] = 15,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Time for everything, compiling and warming up left out.", show_default="2 a case and direction"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the inputs.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write.", show_default="runs/bench-TIME.json", metavar="FILE")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the result to this PNG.", metavar="FILE")] = None,
    show: Annotated[
        Path | None, typer.Option(help="Measure nothing: print (and plot) this earlier result.", metavar="FILE")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table instead.")] = False,
) -> None:
    """Measure convkern's kernels beside PyTorch, NumPy, plain Numba and plain Python."""
    from . import markdown as pages
    from . import plot as plots
    from . import report, table

    if steps is not None or show is not None:
        from . import steps as training

        if steps is not None or training.load(show):  # type: ignore[arg-type]
            _steps(steps, rounds=rounds, seconds=seconds, seed=seed, out=out, show=show)
            return
    if show is not None:
        result = report.load(show)
    else:
        chosen = select(_words("loops,layers,pools,pointwise" if everything else cases))
        limits: dict[str, Any] = dict(rounds=rounds, seconds=seconds, seed=seed, precision=precision)
        result = _measure(chosen, rivals, directions=_words(directions), with_rows=rows, **limits)
        out = out or Path("runs") / f"bench-{time.strftime('%Y%m%d-%H%M%S')}.json"
        report.save(result, out)
    if markdown:
        typer.echo(pages.render(result), nl=False)
    else:
        table.show(result)
    if plot is not None:
        plots.bars(result, plot)
        typer.echo(f"plot {plot}", err=markdown)
    if show is None:
        typer.echo(f"result {out}", err=markdown)
        if not result["complete"]:
            raise typer.Exit(_INTERRUPTED)


def _steps(names: str | None, *, out: Path | None, show: Path | None, **options: Any) -> None:
    """Measure training steps and save the result, or show an earlier one."""
    from . import report
    from . import steps as training

    if names is None:
        assert show is not None
        training.show(training.load(show) or {})
        return
    with _progress() as tell:
        result = training.run(training.select(_words(names)), tell=tell, **options)
    out = out or Path("runs") / f"steps-{time.strftime('%Y%m%d-%H%M%S')}.json"
    report.save(result, out)
    training.show(result)
    typer.echo(f"result {out}")


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    return [word for word in words if word]


def _measure(chosen: Any, rivals: str, **options: Any) -> dict[str, Any]:
    # Here and not above: these import numba, which other commands and --help do without.
    from . import measure
    from .rivals import select as select_rivals

    taking_part = select_rivals(_words(rivals))
    with _progress() as tell:
        return measure.run(chosen, taking_part, report=tell, **options)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error that names the case, and the kernel while one is compiled."""
    from ..files import require

    require("rich")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..kernels.compiler import watch

    fields = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*fields, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)
        current = ""

        def tell(what: str, done: int, of: int) -> None:
            nonlocal current
            current = what
            progress.update(task, description=what, completed=done, total=of)

        def compiling(kernel: str, phase: str) -> None:
            doing = f"{current} (compiling {kernel})" if phase == "start" else current
            progress.update(task, description=doing)

        with watch(compiling):
            yield tell
