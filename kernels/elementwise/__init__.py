"""Elementwise operations: the table of their rows, tried in this order."""

from __future__ import annotations

from ..variant import Variant, cpu_only, no_workspace
from . import cpu_chunks, cpu_planes

VARIANTS = (
    Variant("chunks", "add", "cpu", cpu_only, cpu_chunks.add, no_workspace, tunables={"CHUNK": 16384}),
    Variant("chunks", "relu", "cpu", cpu_only, cpu_chunks.relu, no_workspace, tunables={"CHUNK": 16384}),
    Variant("chunks", "relu_grad", "cpu", cpu_only, cpu_chunks.relu_grad, no_workspace, tunables={"CHUNK": 16384}),
    Variant("chunks", "erf", "cpu", cpu_only, cpu_chunks.erf, no_workspace, tunables={"CHUNK": 16384}),
    Variant(
        "planes", "relu_bias_grad", "cpu", cpu_only, cpu_planes.relu_bias_grad, cpu_planes.workspace_bytes,
        tunables={"BLOCK": cpu_planes.BLOCK},
    ),
)  # fmt: skip
