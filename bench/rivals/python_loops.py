"""Plain Python: the definition as nested loops over lists, which Python indexes faster than NumPy's items."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cases import Case, ConvCase
from .rival import Inputs, Rival

LIMIT = 20_000_000  # multiply-adds: a few seconds

Nested = Any  # lists of lists of lists of lists of floats


def _zeros(a: int, b: int, c: int, d: int) -> Nested:
    return [[[[0.0] * d for _ in range(c)] for _ in range(b)] for _ in range(a)]


def forward(x: Nested, w: Nested, gy: Nested, case: ConvCase) -> Nested:
    (height, width), (sh, sw), (dh, dw) = case.size, case.stride, case.dilation
    (top, _), (left, _) = case.padding
    out_height, out_width = case.spec().out
    cg, kg = case.c // case.groups, case.k // case.groups
    y = _zeros(case.n, case.k, out_height, out_width)
    for n in range(case.n):
        for k in range(case.k):
            for p in range(out_height):
                for q in range(out_width):
                    total = 0.0
                    for c in range(cg):
                        for r in range(case.kernel[0]):
                            h = p * sh - top + r * dh
                            if 0 <= h < height:
                                for s in range(case.kernel[1]):
                                    v = q * sw - left + s * dw
                                    if 0 <= v < width:
                                        total += x[n][k // kg * cg + c][h][v] * w[k][c][r][s]
                    y[n][k][p][q] = total
    return y


def input_grad(x: Nested, w: Nested, gy: Nested, case: ConvCase) -> Nested:
    (height, width), (sh, sw), (dh, dw) = case.size, case.stride, case.dilation
    (top, _), (left, _) = case.padding
    out_height, out_width = case.spec().out
    cg, kg = case.c // case.groups, case.k // case.groups
    gx = _zeros(case.n, case.c, height, width)
    for n in range(case.n):
        for k in range(case.k):
            for p in range(out_height):
                for q in range(out_width):
                    for c in range(cg):
                        for r in range(case.kernel[0]):
                            h = p * sh - top + r * dh
                            if 0 <= h < height:
                                for s in range(case.kernel[1]):
                                    v = q * sw - left + s * dw
                                    if 0 <= v < width:
                                        gx[n][k // kg * cg + c][h][v] += gy[n][k][p][q] * w[k][c][r][s]
    return gx


def weight_grad(x: Nested, w: Nested, gy: Nested, case: ConvCase) -> Nested:
    (height, width), (sh, sw), (dh, dw) = case.size, case.stride, case.dilation
    (top, _), (left, _) = case.padding
    out_height, out_width = case.spec().out
    cg, kg = case.c // case.groups, case.k // case.groups
    gw = _zeros(case.k, cg, *case.kernel)
    for k in range(case.k):
        for c in range(cg):
            for r in range(case.kernel[0]):
                for s in range(case.kernel[1]):
                    total = 0.0
                    for n in range(case.n):
                        for p in range(out_height):
                            h = p * sh - top + r * dh
                            if 0 <= h < height:
                                for q in range(out_width):
                                    v = q * sw - left + s * dw
                                    if 0 <= v < width:
                                        total += x[n][k // kg * cg + c][h][v] * gy[n][k][p][q]
                    gw[k][c][r][s] = total
    return gw


def _lists(inputs: Inputs) -> Inputs:
    return Inputs(*(array.tolist() for array in inputs))


def _limit(case: Case, direction: str) -> str:
    assert isinstance(case, ConvCase)
    if case.macs <= LIMIT:
        return ""
    return f"{case.macs:,} multiply-adds are too many for Python loops, which take up to {LIMIT:,}"


PYTHON = Rival(
    "python",
    "the definition in plain Python loops over lists",
    {("conv", "forward"): forward, ("conv", "input_grad"): input_grad, ("conv", "weight_grad"): weight_grad},
    native=_lists,
    array=lambda nested: np.array(nested, np.float32),
    limit=_limit,
)
