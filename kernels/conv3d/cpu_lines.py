"""Three-dimensional convolution with kernels of one pixel in height and width.

A plane then is a line of H·W pixels, and the convolution a two-dimensional one over (T, H·W), with kernel (U, 1): the same
memory under another shape, so nothing is copied. 1x1x1 kernels are among them, and the second half of (2+1)D blocks.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..spec import Conv3dSpec, ConvSpec
from ..variant import Problem, Variant, cpu_only
from .cpu_frames import row_for


def refuses(problem: Problem) -> str:
    """Takes what this file's idea needs."""
    spec = problem.spec
    if spec.kernel[1:] != (1, 1) or spec.stride[1:] != (1, 1) or spec.padding[1:] != ((0, 0), (0, 0)):
        return "takes kernels of one pixel in height and width, with stride 1 and no padding there"
    return cpu_only(problem)


def _lines(spec: Conv3dSpec) -> ConvSpec:
    pixels = spec.size[1] * spec.size[2]
    one = (spec.kernel[0], 1), (spec.stride[0], 1), (spec.padding[0], (0, 0)), (spec.dilation[0], 1)
    channels = (spec.n, spec.c, spec.k, spec.groups)
    return ConvSpec(*channels, (spec.size[0], pixels), *one, (spec.out[0], pixels), spec.activation)


@lru_cache(maxsize=1024)
def _work(spec: Conv3dSpec, direction: str, dtype: str) -> tuple[ConvSpec, Variant]:
    flat = _lines(spec)
    return flat, row_for(Problem("conv", direction, "cpu", dtype, "default", flat), True)


def workspace_bytes(problem: Problem) -> int:
    """What the two-dimensional row needs."""
    flat, row = _work(problem.spec, problem.direction, problem.dtype)
    return row.workspace(Problem("conv", problem.direction, "cpu", problem.dtype, "default", flat))


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, spec: Conv3dSpec, workspace: np.ndarray, out: np.ndarray
) -> None:
    """The convolution with bias and activation."""
    flat, row = _work(spec, "forward", out.dtype.name)
    inputs = x.reshape(flat.x_shape), w.reshape(flat.w_shape)
    row.run(*inputs, bias, flat, workspace, out.reshape(flat.y_shape))


def input_grad(gy: np.ndarray, w: np.ndarray, spec: Conv3dSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Gradient with respect to x."""
    flat, row = _work(spec, "input_grad", out.dtype.name)
    row.run(gy.reshape(flat.y_shape), w.reshape(flat.w_shape), flat, workspace, out.reshape(flat.x_shape))


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: Conv3dSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Gradient with respect to w."""
    flat, row = _work(spec, "weight_grad", out.dtype.name)
    row.run(x.reshape(flat.x_shape), gy.reshape(flat.y_shape), flat, workspace, out.reshape(flat.w_shape))
