"""1x1 convolution without stride, padding or groups: the pointwise kernel, which needs no strips."""

from __future__ import annotations

import numpy as np

from ..pointwise import cpu_panels
from ..spec import ConvSpec, PointwiseSpec
from ..variant import Problem, cpu_only


def _flat(spec: ConvSpec) -> PointwiseSpec:
    return PointwiseSpec(spec.n, spec.c, spec.k, spec.size[0] * spec.size[1], spec.activation)


def refuses(problem: Problem) -> str:
    """Takes 1x1 kernels that meet every pixel once."""
    spec = problem.spec
    if (spec.kernel, spec.stride, spec.padding, spec.groups) != ((1, 1), (1, 1), ((0, 0), (0, 0)), 1):
        return "takes 1x1 kernels without stride, padding and groups"
    return cpu_only(problem)


def workspace_bytes(problem: Problem) -> int:
    """As the pointwise kernel."""
    return cpu_panels.workspace_bytes(problem._replace(spec=_flat(problem.spec)))


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k] = bias[k] + sum over c of w[k, c] · x[n, c]."""
    cpu_panels.forward(x, w, bias, _flat(spec), workspace, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: ConvSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c] = sum over k of w[k, c] · gy[n, k]."""
    cpu_panels.input_grad(gy, w, _flat(spec), workspace, out)
