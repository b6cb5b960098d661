"""A result as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..files import require
from . import report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDEST = 1000  # columns; more than any table takes


def build(result: dict[str, Any]) -> Table:
    """A table with a line per case and direction: convkern's time and speed, and each rival's time over convkern's.

    Parameters
    ----------
    result : dict
        As :func:`convkern.bench.report.load` gives it.

    Raises
    ------
    ModuleNotFoundError
        If rich is not installed.
    """
    require("rich")
    from rich.box import SIMPLE
    from rich.table import Table

    records = result["records"]
    names = report.columns(records)
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left")
    table.title, table.caption = _title(result), _caption(result, names)
    table.add_column("case", no_wrap=True)
    table.add_column("direction", no_wrap=True)
    table.add_column("row", no_wrap=True)
    for heading in ("ms", "GFLOP/s", *(_heading(name) for name in names)):
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    last = None
    for record in records:
        if last not in (None, record["case"]):
            table.add_section()
        ours, found = record["times"][report.OURS], report.ratios(record)
        figures = (f"{ours['median'] * 1e3:.3f}", f"{ours['gflops']:.1f}", *(_ratio(found.get(name)) for name in names))
        table.add_row("" if record["case"] == last else record["case"], record["direction"], record["row"], *figures)
        last = record["case"]
    for (cases, direction), section in report.sections(records).items():
        table.add_section()
        summary = report.summarise(section)
        for label, field in (("geometric mean", "mean"), ("worst case", "worst")):
            shown = [_ratio(getattr(summary[name], field) if name in summary else None) for name in names]
            style = "bold" if field == "mean" else None
            table.add_row(f"{cases}: {label}", direction, "", "", "", *shown, style=style)
    return table


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the table, on a console of rich or to standard output; there figures are not cut off at the terminal's width."""
    table = build(result)
    from rich.console import Console

    (console or Console(width=_WIDEST)).print(table)


def _title(result: dict[str, Any]) -> str:
    host = result["host"]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items() if version)
    lines = [f"{host['cpu']}, {host['threads']} threads, {result['settings']['dtype']}, {host['date']}", versions]
    if (host["load"] or 0) > host["cores"] / 4:
        lines.append(f"the machine was busy (load {host['load']} on {host['cores']} cores): do not trust these figures")
    if not result["complete"]:
        lines.append("stopped early: not every case was measured")
    return "\n".join(lines)


def _caption(result: dict[str, Any], names: list[str]) -> str:
    lines = [
        "ms and GFLOP/s are convkern's, medians; a rival's column is its time over convkern's: above 1 convkern is faster.",
        "Means and worst cases are over the cases that a rival ran; - where it runs none.",
    ]
    lines += [f"{name}: {about}" for name, about in result["rivals"].items() if name in names]
    if report.BETTER in names:
        lines.append(f"{report.BETTER}: the faster of PyTorch's two layouts, case by case")
    return "\n".join(lines)


def _heading(name: str) -> str:
    """A rival's name broken into short lines."""
    return name.replace("-", "-\n").replace(":", ":\n")


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
