"""Pooling to a given size: the table of its rows."""

from __future__ import annotations

from ..cuda import either_layout
from ..cuda import row as cuda_row
from ..variant import Variant, cpu_only, no_workspace
from . import cpu_windows

VARIANTS = (
    Variant("windows", "max_forward", "cpu", cpu_only, cpu_windows.max_forward, no_workspace),
    Variant("windows", "max_backward", "cpu", cpu_only, cpu_windows.max_backward, no_workspace),
    Variant("windows", "avg_forward", "cpu", cpu_only, cpu_windows.avg_forward, no_workspace),
    Variant("windows", "avg_backward", "cpu", cpu_only, cpu_windows.avg_backward, no_workspace),
    cuda_row("windows", "max_forward", "adaptive.cuda_windows.max_forward", refuses=either_layout),
    cuda_row("windows", "max_backward", "adaptive.cuda_windows.max_backward", refuses=either_layout),
    cuda_row("windows", "avg_forward", "adaptive.cuda_windows.avg_forward", refuses=either_layout),
    cuda_row("windows", "avg_backward", "adaptive.cuda_windows.avg_backward", refuses=either_layout),
)
