"""Pointwise convolution of few pixels, or of many weights: see conv/cpu_patches.py. A patch is one pixel."""

from __future__ import annotations

import numpy as np

from ..conv import cpu_patches
from ..spec import PointwiseSpec
from ..variant import Problem
from .grid import as_convolution


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: PointwiseSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """y[n, k, l] = bias[k] + sum over c of w[k, c] · x[n, c, l]."""
    cpu_patches.forward(x, w, bias, as_convolution(spec), workspace, out)


def input_grad(gy: np.ndarray, w: np.ndarray, spec: PointwiseSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gx[n, c, l] = sum over k of w[k, c] · gy[n, k, l]."""
    cpu_patches.input_grad(gy, w, as_convolution(spec), workspace, out)


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: PointwiseSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, c] = sum over n, l of gy[n, k, l] · x[n, c, l]."""
    cpu_patches.weight_grad(x, gy, as_convolution(spec), workspace, out)


def workspace_bytes(problem: Problem) -> int:
    """As the convolution's."""
    return cpu_patches.workspace_bytes(problem._replace(spec=as_convolution(problem.spec)))


def other_is_slower(problem: Problem) -> str:
    """That this row is expected to be faster than the one whose table entry asks; "" if it is not."""
    from ..conv import costs

    return costs.slower("pointwise", problem._replace(operation="conv", spec=as_convolution(problem.spec)))
