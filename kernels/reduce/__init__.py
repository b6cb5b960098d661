"""Sums over all axes but some neighbouring ones: the table of its rows. On the CPU they are NumPy's."""

from __future__ import annotations

from ..cuda import row as cuda_row
from ..cuda.tiles import channel_bytes

VARIANTS = (cuda_row("planes", "sum", "reduce.cuda_planes.sum", channel_bytes),)
