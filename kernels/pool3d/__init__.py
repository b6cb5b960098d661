"""Pooling of volumes, and what else the two-dimensional table has no rows for: the table of its rows."""

from __future__ import annotations

import numpy as np

from ..spec import Pool3dSpec
from ..unpool import cpu_planes
from ..variant import Variant, cpu_only, no_workspace
from . import cpu_windows


def max_backward(gy: np.ndarray, indices: np.ndarray, spec: Pool3dSpec, workspace: np.ndarray, out: np.ndarray) -> None:
    """Each output gradient goes to the pixel that won its window."""
    cpu_planes.scatter_add(gy, indices, spec.n * spec.c, out)


VARIANTS = (
    Variant("windows", "max_forward", "cpu", cpu_only, cpu_windows.max_forward, no_workspace),
    Variant("windows", "max_backward", "cpu", cpu_only, max_backward, no_workspace),
    Variant("windows", "avg_forward", "cpu", cpu_only, cpu_windows.avg_forward, no_workspace),
    Variant("windows", "avg_backward", "cpu", cpu_only, cpu_windows.avg_backward, no_workspace),
    Variant("windows", "lp_forward", "cpu", cpu_only, cpu_windows.lp_forward, no_workspace),
    Variant("windows", "lp_backward", "cpu", cpu_only, cpu_windows.lp_backward, no_workspace),
)
