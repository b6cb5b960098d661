"""1x1 convolution without padding or groups: the pointwise kernels, which need no strips; a stride is a grid of pixels."""

from __future__ import annotations

import numpy as np

from ..pointwise import cpu_panels, cpu_weight
from ..pointwise.grid import strided, whole
from ..spec import ConvSpec
from ..variant import Problem, cpu_only


def refuses(problem: Problem) -> str:
    """Takes 1x1 kernels that meet pixels of the input only."""
    spec = problem.spec
    if (spec.kernel, spec.padding, spec.groups) != ((1, 1), ((0, 0), (0, 0)), 1):
        return "takes 1x1 kernels without padding and groups"
    return cpu_only(problem)


def _layout(direction: str, spec: ConvSpec, itemsize: int) -> cpu_panels._Layout:
    x_grid, y_grid = strided(spec), whole(spec.out[0] * spec.out[1])
    if direction == "forward":
        return cpu_panels.layout(spec.n, spec.c, spec.k, x_grid, y_grid, spec.activation, itemsize)
    return cpu_panels.layout(spec.n, spec.k, spec.c, y_grid, x_grid, 0, itemsize)


def _weight_layout(spec: ConvSpec, itemsize: int) -> cpu_weight._Layout:
    return cpu_weight.layout(spec.n, spec.c, spec.k, strided(spec), itemsize)


def workspace_bytes(problem: Problem) -> int:
    """As the pointwise kernel."""
    itemsize = problem.itemsize
    if problem.direction == "weight_grad":
        return cpu_weight.room_bytes(_weight_layout(problem.spec, itemsize), itemsize)
    return cpu_panels.room_bytes(_layout(problem.direction, problem.spec, itemsize), itemsize)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k] = bias[k] + sum over c of w[k, c] · x[n, c]."""
    cpu_panels.run(_layout("forward", spec, x.itemsize), x, w, bias, (1, spec.c), workspace, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over k of w[k, c] · gy[n, k]."""
    plan = _layout("input_grad", spec, gy.itemsize)
    cpu_panels.run(plan, gy, w, np.empty(0, out.dtype), (spec.c, 1), workspace, out)


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, c] = sum over n, p, q of gy[n, k] · x[n, c]."""
    cpu_weight.run(_weight_layout(spec, x.itemsize), x, gy, workspace, out)
