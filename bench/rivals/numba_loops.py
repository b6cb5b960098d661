"""Plain Numba: the definition's loops as a course would compile them, serial and parallel.

The parallel form shares the outermost loop, whose jobs write apart from each other; fastmath lets the compiler
vectorise sums where it can.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numba
import numpy as np
from numba import prange

import convkern as ck

from ..cases import ConvCase
from .rival import Function, Rival


def _forward(x, w, y, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    cg, kg = x.shape[1] // groups, w.shape[0] // groups
    for job in prange(y.shape[0] * y.shape[1]):
        n, k = job // y.shape[1], job % y.shape[1]
        for p in range(y.shape[2]):
            for q in range(y.shape[3]):
                total = np.float32(0)
                for c in range(cg):
                    for r in range(w.shape[2]):
                        h = p * stride[0] - padding[0] + r * dilation[0]
                        if 0 <= h < x.shape[2]:
                            for s in range(w.shape[3]):
                                v = q * stride[1] - padding[1] + s * dilation[1]
                                if 0 <= v < x.shape[3]:
                                    total += x[n, k // kg * cg + c, h, v] * w[k, c, r, s]
                y[n, k, p, q] = total


def _input_grad(gy, w, gx, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    cg, kg = gx.shape[1] // groups, w.shape[0] // groups
    for job in prange(gx.shape[0] * gx.shape[1]):
        n, channel = job // gx.shape[1], job % gx.shape[1]
        group, c = channel // cg, channel % cg
        gx[n, channel] = 0
        for k in range(group * kg, (group + 1) * kg):
            for p in range(gy.shape[2]):
                for q in range(gy.shape[3]):
                    for r in range(w.shape[2]):
                        h = p * stride[0] - padding[0] + r * dilation[0]
                        if 0 <= h < gx.shape[2]:
                            for s in range(w.shape[3]):
                                v = q * stride[1] - padding[1] + s * dilation[1]
                                if 0 <= v < gx.shape[3]:
                                    gx[n, channel, h, v] += gy[n, k, p, q] * w[k, c, r, s]


def _weight_grad(x, gy, gw, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    cg, kg = gw.shape[1], gw.shape[0] // groups
    for job in prange(gw.shape[0] * cg):
        k, c = job // cg, job % cg
        for r in range(gw.shape[2]):
            for s in range(gw.shape[3]):
                total = np.float32(0)
                for n in range(x.shape[0]):
                    for p in range(gy.shape[2]):
                        h = p * stride[0] - padding[0] + r * dilation[0]
                        if 0 <= h < x.shape[2]:
                            for q in range(gy.shape[3]):
                                v = q * stride[1] - padding[1] + s * dilation[1]
                                if 0 <= v < x.shape[3]:
                                    total += x[n, k // kg * cg + c, h, v] * gy[n, k, p, q]
                gw[k, c, r, s] = total


@cache
def _compiled(body: Callable[..., None], parallel: bool) -> Any:
    return numba.njit(parallel=parallel, fastmath=True)(body)


def _run(body: Callable[..., None], parallel: bool, out_shape: Any, a: Any, b: Any, case: ConvCase) -> np.ndarray:
    if parallel:  # as many threads as convkern takes, where Numba was started with that many
        numba.set_num_threads(min(ck.num_threads(), numba.config.NUMBA_NUM_THREADS))
    out = np.empty(out_shape, np.float32)
    (top, _), (left, _) = case.padding
    _compiled(body, parallel)(a, b, out, case.stride, (top, left), case.dilation, case.groups)
    return out


def forward(parallel: bool, x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: ConvCase) -> np.ndarray:
    return _run(_forward, parallel, gy.shape, x, w, case)


def input_grad(parallel: bool, x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: ConvCase) -> np.ndarray:
    return _run(_input_grad, parallel, x.shape, gy, w, case)


def weight_grad(parallel: bool, x: np.ndarray, w: np.ndarray, gy: np.ndarray, case: ConvCase) -> np.ndarray:
    return _run(_weight_grad, parallel, w.shape, x, gy, case)


def _functions(parallel: bool) -> dict[tuple[str, str], Function]:
    return {("conv", f.__name__): partial(f, parallel) for f in (forward, input_grad, weight_grad)}


SERIAL = Rival("numba", "the definition's loops under numba.njit", _functions(False))
PARALLEL = Rival("numba-parallel", "the same with parallel=True and prange", _functions(True))
