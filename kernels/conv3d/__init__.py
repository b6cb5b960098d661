"""Three-dimensional convolution: the table of its rows, tried in this order."""

from __future__ import annotations

from ..variant import Variant, cpu_only, no_workspace
from . import cpu_depthwise, cpu_frames, cpu_lines


def _rows(direction: str) -> tuple[Variant, ...]:
    lines, exact, fast = (getattr(m, direction) for m in (cpu_lines, cpu_frames.EXACT, cpu_frames.ANY))
    refuses_winograd, needed = cpu_frames.refuses_winograd, cpu_frames.workspace_bytes
    tunables = {"BYTES": cpu_frames.BYTES}
    return (
        Variant("lines", direction, "cpu", cpu_lines.refuses, lines, cpu_lines.workspace_bytes),
        Variant(
            "winograd",
            direction,
            "cpu",
            refuses_winograd,
            fast,
            needed(False),
            "winograd",
            tunables,
            operations=cpu_frames.operations,
        ),
        Variant("frames", direction, "cpu", cpu_only, exact, needed(True), tunables=tunables),
    )


VARIANTS = (
    # Of the gradients the rows over frames are fast enough: 2 to 3 times as fast as PyTorch (Zen 5).
    Variant("depthwise", "forward", "cpu", cpu_depthwise.refuses, cpu_depthwise.forward, no_workspace),
    *_rows("forward"),
    *_rows("input_grad"),
    *_rows("weight_grad"),
)
