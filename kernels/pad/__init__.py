"""Padding: the table of its rows."""

from __future__ import annotations

from ..variant import Variant, cpu_only, no_workspace
from . import cpu_rows

VARIANTS = (
    Variant("rows", "forward", "cpu", cpu_only, cpu_rows.forward, no_workspace),
    Variant("rows", "backward", "cpu", cpu_only, cpu_rows.backward, no_workspace),
)
