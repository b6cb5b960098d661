"""Stage rows: every row over the table of layers at N = 64 beside PyTorch (cuDNN), and its share of the ceilings."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from ..cases import GRADIENTS, LAYERS, ConvCase
from . import contenders, stage
from .clock import copies_for, interleave

BATCH = 64
ROUNDS = (("float32", "tf32", "float16"), ("bfloat16",))  # if time runs out, it is for the last
RESIDUAL = ("resnet18-56", "resnet18-14", "resnet-expand")  # that networks add something to
RESERVE = 4.0  # seconds that a layer may take


def ceilings(folder: Path) -> dict[str, Any]:
    """What the stage of that name found; empty where it did not run."""
    path = folder / "ceilings.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def contest(
    case: ConvCase, direction: str, precisions: tuple[str, ...], arrays: contenders.Arrays, report: stage.Report
) -> dict[str, Any]:
    """Seconds of all contenders; one that disagrees is a failure and is not timed."""
    one = arrays.get("float32", "nchw")[0]
    contenders.allow_tf32(False)
    want = contenders.THEIRS[direction](one["x"], one["w"], one["gy"], case)
    timed, apart = {}, {}
    for precision in precisions:
        for make in (contenders.torch_contenders, contenders.our_contenders):
            for contender in make(case, direction, precision, arrays):
                key = f"{contender.name} {precision} {contender.layout}"
                what = f"{case.name} {direction} {key}"
                found = report.attempt(what, partial(_apart, contender, want))
                if found is None:
                    continue
                apart[key] = found
                if apart[key] > contenders.AGREEMENT[precision]:
                    report.fail(f"{case.name} {direction} {key} is off by {apart[key]:.2g} of the largest value")
                    continue
                timed[key] = contender.calls
    return {"case": case.name, "direction": direction, "seconds": interleave(timed), "apart": apart}


def _apart(contender: contenders.Contender, want: Any) -> float:
    return contenders.disagreement(contender.result(), want)


def judge(entry: dict[str, Any], case: ConvCase, found: dict[str, Any]) -> dict[str, Any]:
    """Add what the times mean: PyTorch's time over ours in the same layout and at its best, and shares of the ceilings."""
    spec, seconds = case.spec(), entry["seconds"]
    arrays = [spec.x_shape, spec.w_shape, spec.y_shape] + [spec.y_shape] * (entry["direction"] == "forward_residual")
    numbers = sum(map(math.prod, arrays))
    peaks, bandwidth = found.get("matrix_peak") or {}, (found.get("bandwidth") or {}).get("copy")
    ratios: dict[str, Any] = {}
    shares: dict[str, Any] = {}
    for key, value in seconds.items():
        name, precision, layout = key.rsplit(" ", 2)
        rivals = {
            at: seconds[f"torch {precision} {at}"] for at in contenders.LAYOUTS if f"torch {precision} {at}" in seconds
        }
        if name != "torch" and rivals:
            ratios[key] = {"torch": rivals.get(layout, math.nan) / value, "better": min(rivals.values()) / value}
        nbytes = numbers * (2 if precision in ("float16", "bfloat16") else 4)
        shares[key] = {
            "matrix": case.flops / value / peaks[precision] if peaks.get(precision) else None,
            "copy": nbytes / value / bandwidth if bandwidth else None,
        }
    return {**entry, "flops": case.flops, "ratios": ratios, "shares": shares}


def means(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Geometric means of PyTorch's better time over our best row's, by direction and precision."""
    best: dict[str, list[float]] = {}
    for entry in entries:
        by_precision: dict[str, float] = {}
        for key, ratio in entry["ratios"].items():
            precision = key.rsplit(" ", 2)[1]
            by_precision[precision] = max(by_precision.get(precision, 0.0), ratio["better"])
        for precision, value in by_precision.items():
            best.setdefault(f"{entry['direction']} {precision}", []).append(value)
    return {key: math.exp(sum(map(math.log, values)) / len(values)) for key, values in best.items()}


def measure(
    case: ConvCase, precisions: tuple[str, ...], cache: int, found: dict[str, Any], report: stage.Report
) -> None:
    """All directions of one layer."""
    spec = case.spec()
    nbytes = 2 * sum(map(math.prod, (spec.x_shape, spec.y_shape)))  # of halves
    directions = (*GRADIENTS, *(["forward_residual"] if case.name in RESIDUAL else []))
    units = {f"{case.name} {direction} in {', '.join(precisions)}": direction for direction in directions}
    if all(unit in report.data["done"] for unit in units):
        return
    arrays = contenders.Arrays(case, copies_for(nbytes, cache))
    for unit, direction in units.items():
        entry = report.once(unit, partial(contest, case, direction, precisions, arrays, report))
        if entry is not None:
            report.add("entries", judge(entry, case, found))
            print(unit, {key: f"{seconds * 1e3:.3f} ms" for key, seconds in entry["seconds"].items()}, flush=True)


def work(report: stage.Report) -> None:
    import cupy
    import torch

    torch.backends.cudnn.benchmark = True
    cache = int(cupy.cuda.runtime.getDeviceProperties(0)["l2CacheSize"])
    found = ceilings(report.path.parent)
    report.begin(batch=BATCH, entries=[], left_out=[])
    for precisions in ROUNDS:
        for layer in LAYERS:
            case = dataclasses.replace(layer, n=BATCH)
            if report.left < RESERVE:
                report.add("left_out", f"{case.name} in {', '.join(precisions)}")
                continue
            report.attempt(case.name, partial(measure, case, precisions, cache, found, report))
            torch.cuda.empty_cache()
            cupy.get_default_memory_pool().free_all_blocks()
    report.found(means=means(report.data["entries"]))


if __name__ == "__main__":
    stage.run("rows", work)
