"""Weight gradient of the pointwise convolution: the row of conv/cpu_tiled_weight.py, where a 1x1 kernel is one plain shift.

Pixels have no neighbours here, so a plane of L pixels is folded into rows of any length that divides L; shorter rows make
strips that fit the cache.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..conv import cpu_tiled_weight
from ..spec import ConvSpec, PointwiseSpec
from ..variant import Problem

WIDTH = 256  # longest row


@lru_cache(maxsize=1024)
def folded(spec: PointwiseSpec) -> ConvSpec:
    """The same problem as a convolution of a folded plane."""
    width = next(w for w in range(min(WIDTH, max(spec.pixels, 1)), 0, -1) if spec.pixels % w == 0)
    size = (spec.pixels // width, width)
    return ConvSpec(
        spec.n, spec.c, spec.k, 1, size, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), size, spec.activation
    )  # fmt: skip


def weight_grad(x: np.ndarray, gy: np.ndarray, spec: PointwiseSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """gw[k, c] = sum over n, l of gy[n, k, l] · x[n, c, l]."""
    cpu_tiled_weight.weight_grad(x, gy, folded(spec), workspace, out)


def workspace_bytes(problem: Problem) -> int:
    """As the convolution's row."""
    return cpu_tiled_weight.workspace_bytes(problem._replace(spec=folded(problem.spec)))
