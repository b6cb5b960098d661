"""A result as a picture: one panel per direction, bars per layer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ..files import require, write_atomic
from . import report

# Told apart by people who see colours differently, and in grey.
_COLOURS = {
    report.OURS: "#2a6f97",
    report.BETTER: "#e07a5f",
    "torch": "#e9a58f",
    "torch-channels-last": "#b5543b",
    "numpy": "#a3b18a",
    "numba-parallel": "#8d99ae",
    "numba": "#bfc6d4",
    "python": "#444444",
}
_DEFAULT = (report.OURS, report.BETTER, "numpy", "numba-parallel")
_ROOFLINE = "#222222"
_DPI = 130


def bars(result: dict[str, Any], path: Path, rivals: tuple[str, ...] = _DEFAULT) -> None:
    """Draw GFLOP/s per layer with the roofline above the bars, a panel per direction, and write a PNG.

    Parameters
    ----------
    result : dict
        As :func:`convkern.bench.report.load` gives it.
    path : Path
        PNG to write.
    rivals : tuple of str
        Whose bars to draw, those that the result lacks left out. "torch-better" is PyTorch's better layout.

    Raises
    ------
    ValueError
        If the result has no record.
    ModuleNotFoundError
        If matplotlib is not installed.
    """
    require("matplotlib")
    from matplotlib.figure import Figure

    records = result["records"]
    if not records:
        raise ValueError("the result has no record to draw")
    panels = report.sections(records)
    most = max(len(panel) for panel in panels.values())
    figure = Figure(figsize=(max(6.0, 1.2 + 0.62 * most), 1.0 + 2.9 * len(panels)), layout="constrained")
    for place, ((cases, direction), panel) in enumerate(panels.items()):
        axes = figure.add_subplot(len(panels), 1, place + 1)
        _panel(axes, panel, rivals)
        axes.set_title(f"{cases}: {direction.replace('_', ' ')}", loc="left", fontsize=10)
    handles = {label: bar for axes in figure.axes for bar, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, frameon=False, ncols=len(handles), loc="outside lower center", fontsize=8)
    host = result["host"]
    figure.suptitle(f"{host['cpu']}, {host['threads']} threads, {result['settings']['dtype']}: medians", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def _panel(axes: Any, records: list[dict[str, Any]], rivals: tuple[str, ...]) -> None:
    drawn = [name for name in rivals if any(_speed(record, name) is not None for record in records)]
    width = 0.8 / max(1, len(drawn))
    for i, name in enumerate(drawn):
        speeds = [(place, _speed(record, name)) for place, record in enumerate(records)]
        there = [(place, speed) for place, speed in speeds if speed is not None]
        places = [place - 0.4 + (i + 0.5) * width for place, _ in there]
        axes.bar(places, [speed for _, speed in there], width, label=name, color=_COLOURS.get(name))
    for place, record in enumerate(records):  # a row that multiplies less may stand above it
        limit = record["roofline"]["gflops"]
        label = "roofline" if place == 0 else None
        axes.plot([place - 0.45, place + 0.45], [limit, limit], color=_ROOFLINE, linewidth=1.5, label=label)
    axes.set_xticks(range(len(records)), [record["case"] for record in records], rotation=40, ha="right", fontsize=8)
    axes.set_ylabel("GFLOP/s")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _speed(record: dict[str, Any], name: str) -> float | None:
    times = record["times"]
    if name == report.BETTER:
        found = [times[torch]["gflops"] for torch in report.TORCH if torch in times]
        return max(found) if len(found) == len(report.TORCH) else None
    return times[name]["gflops"] if name in times else None
