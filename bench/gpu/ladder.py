"""Stage ladder: the kernels of ``notebooks/03_from_naive_to_tensor_cores.ipynb`` over the notebook's layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from ..cases import LAYERS, ConvCase
from . import contenders, rungs, stage
from .clock import copies_for, interleave
from .rows import BATCH, ceilings

CASE = "resnet18-28"


def layer_of(case: ConvCase) -> rungs.Layer:
    return rungs.Layer(case.n, *case.size, case.c, case.k)


def the_case() -> ConvCase:
    return dataclasses.replace(next(layer for layer in LAYERS if layer.name == CASE), n=BATCH)


def call_of(name: str, one: dict[str, Any], layer: rungs.Layer) -> tuple[Callable[[], Any], Any]:
    """A rung's call over PyTorch's channels-last x and its w, and the tensor (N, H, W, K) that it writes."""
    import torch

    y = torch.empty((layer.n, layer.height, layer.width, layer.k), device=contenders.DEVICE)
    x, w = one["x"].permute(0, 2, 3, 1).contiguous(), one["w"].permute(2, 3, 1, 0).contiguous()
    arrays = [contenders.ours(tensor) for tensor in (x, w, y)]
    return partial(rungs.kernel(name), rungs.RUNGS[name].blocks(layer), *arrays, layer), y


def measure(name: str, case: ConvCase, arrays: contenders.Arrays, peaks: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one rung, and its share of the matrix peak that was measured.

    Raises
    ------
    ValueError
        If its result is not PyTorch's.
    """
    precision, layer = rungs.RUNGS[name].precision, layer_of(case)
    made = [call_of(name, one, layer) for one in arrays.get("float32", "channels_last")]
    one = arrays.get("float32", "nchw")[0]
    contenders.allow_tf32(False)
    want = contenders.pytorch.forward(one["x"], one["w"], None, case)
    call, y = made[0]
    call()
    apart = contenders.disagreement(y.permute(0, 3, 1, 2), want)
    if apart > contenders.AGREEMENT[precision]:
        raise ValueError(f"the result is off by {apart:.2g} of the largest value")
    seconds = interleave({name: [call for call, _ in made]})[name]
    peak = peaks.get(precision)
    share = case.flops / seconds / peak if peak else None
    return {"rung": name, "precision": precision, "seconds": seconds, "apart": apart, "matrix_share": share}


def work(report: stage.Report) -> None:
    import cupy

    case = the_case()
    cache = int(cupy.cuda.runtime.getDeviceProperties(0)["l2CacheSize"])
    spec = case.spec()
    arrays = contenders.Arrays(case, copies_for(4 * sum(map(math.prod, (spec.x_shape, spec.y_shape))), cache))
    peaks = ceilings(report.path.parent).get("matrix_peak") or {}
    report.begin(case=case.name, batch=case.n, direction="forward", flops=case.flops, entries=[])
    for name in rungs.RUNGS:
        entry = report.once(name, partial(measure, name, case, arrays, peaks))
        if entry is not None:
            report.add("entries", entry)


if __name__ == "__main__":
    stage.run("ladder", work, patience=20)
