"""A result as a Markdown table, for a README: a line per layer, three directions beside each other."""

from __future__ import annotations

import itertools
import re
from typing import Any

from . import report
from .table import machine

_BLOCK = re.compile(r"<!-- table of (\S+) -->\n(.*?)<!-- end of table -->", re.DOTALL)


def render(result: dict[str, Any]) -> str:
    """The table, with the machine above it and the means below.

    Parameters
    ----------
    result : dict
        As :func:`convkern.bench.report.load` gives it.

    Raises
    ------
    ValueError
        If no record was measured beside PyTorch.
    """
    records = [record for record in result["records"] if report.better_ratio(record) is not None]
    if not records:
        raise ValueError("the result has no record beside PyTorch's, so there is no table to make of it")
    directions = list(dict.fromkeys(record["direction"] for record in records))
    head = "".join(f" {direction.replace('_', ' ')} | of roofline | torch | torch NCHW |" for direction in directions)
    lines = [_about(result), "", f"| layer | {head.strip()}", "|---|" + "---:|" * 4 * len(directions)]
    by_case: dict[str, dict[str, dict[str, Any]]] = {}
    for record in records:
        by_case.setdefault(record["case"], {})[record["direction"]] = record
    for name, found in by_case.items():
        cells = [_cells(found.get(direction)) for direction in directions]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    tables = list(dict.fromkeys(record["table"] for record in records))
    for table, (name, field) in itertools.product(tables, (("geometric mean", "mean"), ("worst", "worst"))):
        mine = [record for record in records if record["table"] == table]
        cells = [_summary([r for r in mine if r["direction"] == direction], field) for direction in directions]
        label = name if len(tables) == 1 else f"{table}: {name}"
        lines.append(f"| **{label}** {' '.join(cells)} |")
    return "\n".join(lines) + "\n"


def embedded(text: str) -> dict[str, str]:
    """The tables in a text, by the result file that each names: what stands between
    ``<!-- table of FILE -->`` and ``<!-- end of table -->``."""
    return dict(_BLOCK.findall(text))


def _about(result: dict[str, Any]) -> str:
    host, settings = result["host"], result["settings"]
    strict = ", `precision='strict'`" if settings["precision"] == "strict" else ""
    return (
        f"{host['cpu']}, {host['threads']} threads, {settings['dtype']}{strict}, PyTorch {host['versions']['torch']}: "
        f"{machine(result)}. Times in ms, medians; *torch* is PyTorch's time over ours in the better of its two layouts, "
        "*torch NCHW* in the same layout: above 1 convkern is faster. A star marks a row that multiplies less than the "
        "definition, whose arithmetic is counted."
    )


def _cells(record: dict[str, Any] | None) -> str:
    if record is None:
        return "- | - | - | -"
    ours, star = record["times"][report.OURS], "\\*" if report.is_inexact(record, record["row"]) else ""
    better, same = report.better_ratio(record), report.ratios(record).get(report.TORCH[0])
    return f"{ours['median'] * 1e3:.3f} | {ours['share']:.0%}{star} | {better:.2f} | {_ratio(same)}"


def _summary(records: list[dict[str, Any]], field: str) -> str:
    summary = report.summarise(records)
    found = [summary.get(name) for name in (report.BETTER, report.TORCH[0])]
    return "| | | " + " | ".join(_ratio(getattr(one, field) if one else None) for one in found)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
