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
    for heading in ("ms", "GFLOP/s", "of\npeak", "of\nroofline", *(_heading(name) for name in names)):
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    last = None
    for record in records:
        if last not in (None, record["case"]):
            table.add_section()
        ours, found = record["times"][report.OURS], report.ratios(record)
        shares = _shares(result, record, ours, record["row"])
        speed = (f"{ours['median'] * 1e3:.3f}", f"{ours['gflops']:.1f}", *shares)
        figures = (*speed, *(_ratio(found.get(name)) for name in names))
        table.add_row("" if record["case"] == last else record["case"], record["direction"], record["row"], *figures)
        last = record["case"]
    for (cases, direction), section in report.sections(records).items():
        table.add_section()
        summary = report.summarise(section)
        for label, field in (("geometric mean", "mean"), ("worst case", "worst")):
            shown = [_ratio(getattr(summary[name], field) if name in summary else None) for name in names]
            style = "bold" if field == "mean" else None
            table.add_row(f"{cases}: {label}", direction, "", "", "", "", "", *shown, style=style)
    return table


def build_rows(result: dict[str, Any]) -> Table | None:
    """A table with a line for each kernel row that was timed by itself; None where none was."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left", title="rows by themselves")
    for heading in ("case", "direction", "row"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ms", "GFLOP/s", "of\npeak", "of\nroofline"):
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for record in result["records"]:
        for name, timing in record["times"].items():
            if name.startswith(report.ROW):
                row = name.removeprefix(report.ROW)
                speed = (f"{timing['median'] * 1e3:.3f}", f"{timing['gflops']:.1f}")
                table.add_row(record["case"], record["direction"], row, *speed, *_shares(result, record, timing, row))
    return table if table.row_count else None


def _shares(result: dict[str, Any], record: dict[str, Any], timing: dict[str, Any], row: str) -> tuple[str, str]:
    """A speed as percentages of the peak and of the roofline, starred where a row multiplies less than is counted."""
    star = "*" if report.is_inexact(record, row) else ""
    peak = timing["gflops"] / result["calibration"]["peak_gflops"]
    return f"{peak:.0%}{star}", f"{timing['share']:.0%}{star}"


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader is to be told in words: the factor over plain Python, and the shapes that fall off a cliff."""
    lines = []
    loops = [record for record in result["records"] if "python" in record["times"]]
    if loops:
        best = max(loops, key=lambda record: record["times"]["python"]["ratio"])
        factor, where = best["times"]["python"]["ratio"], f"{best['case']} {best['direction']}"
        lines.append(f"plain Python loops take up to {factor:,.0f} times as long ({where})")
    drawn = [record for record in result["records"] if record["table"] == "random"]
    if any(report.better_ratio(record) is not None for record in drawn):
        fallen = report.cliffs(drawn)
        layout = "PyTorch's better layout"
        lines.append(f"random shapes below {report.CLIFF} of {layout}: {len(fallen)} of {len(drawn)} measurements")
        for ratio, record in fallen:
            shape = ", ".join(f"{name}={value}" for name, value in record["shape"].items())
            lines.append(f"  {ratio:.2f}  {record['case']} {record['direction']} ({record['row']}): {shape}")
    return lines


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the table, on a console of rich or to standard output; there figures are not cut off at the terminal's width."""
    tables = (build(result), build_rows(result))
    from rich.console import Console

    console = console or Console(width=_WIDEST)
    for table in filter(None, tables):
        console.print(table)
    for line in notes(result):
        console.print(line, markup=False, highlight=False)


def _title(result: dict[str, Any]) -> str:
    host = result["host"]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items() if version)
    settings = result["settings"]
    strict = ", precision='strict'" if settings["precision"] == "strict" else ""
    lines = [f"{host['cpu']}, {host['threads']} threads, {settings['dtype']}{strict}, {host['date']}", versions]
    lines.append(machine(result))
    if (host["load"] or 0) > host["cores"] / 4:
        lines.append(f"the machine was busy (load {host['load']} on {host['cores']} cores): do not trust these figures")
    if not result["complete"]:
        lines.append("stopped early: not every case was measured")
    return "\n".join(lines)


def machine(result: dict[str, Any]) -> str:
    """The calibration in a line."""
    found = result["calibration"]
    levels = [f"{level['name']} {max(level['read_gbs'], level['copy_gbs']):.0f} GB/s" for level in found["levels"]]
    one = f" ({found['peak_gflops_one_thread']:.0f} on one thread)" if found["threads"] > 1 else ""
    return f"peak {found['peak_gflops']:.0f} GFLOP/s{one}; {', '.join(levels)}"


def _caption(result: dict[str, Any], names: list[str]) -> str:
    lines = [
        "ms and GFLOP/s are convkern's, medians; a rival's column is its time over convkern's: above 1 convkern is faster.",
        "GFLOP/s count the definition's arithmetic. of peak: of the multiply-adds that were measured to be possible;",
        "of roofline: of what is possible with the bytes that the case has to move at least.",
        "Means and worst cases are over the cases that a rival ran; - where it runs none.",
    ]
    if any(report.is_inexact(record, record["row"]) for record in result["records"]):
        lines.append("*: the row multiplies less than the definition does, so that its percentages may exceed 100.")
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
