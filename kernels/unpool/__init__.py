"""Unpooling: the table of its rows."""

from __future__ import annotations

from ..variant import Variant, cpu_only, no_workspace
from . import cpu_planes

VARIANTS = (
    Variant("planes", "forward", "cpu", cpu_only, cpu_planes.forward, no_workspace),
    Variant("planes", "backward", "cpu", cpu_only, cpu_planes.backward, no_workspace),
)
