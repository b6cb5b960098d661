"""Linear layers of small batches: the table of their rows. Larger products are left to BLAS, see convkern/ops/linear.py."""

from __future__ import annotations

from ..variant import Variant, cpu_only, no_workspace
from . import cpu_tiles

VARIANTS = (
    Variant("tiles", "forward", "cpu", cpu_only, cpu_tiles.forward, no_workspace),
    Variant("tiles", "input_grad", "cpu", cpu_only, cpu_tiles.input_grad, no_workspace),
    Variant("tiles", "weight_grad", "cpu", cpu_only, cpu_tiles.weight_grad, no_workspace),
)
