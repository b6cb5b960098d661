"""Resizing: the table of its rows."""

from __future__ import annotations

from ..variant import Variant, cpu_only, no_workspace
from . import cpu_separable

VARIANTS = (
    Variant("separable", "forward", "cpu", cpu_only, cpu_separable.forward, no_workspace),
    Variant("separable", "backward", "cpu", cpu_only, cpu_separable.backward, no_workspace),
)
