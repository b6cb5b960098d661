"""The scale of losses on a GPU: gradients divided by it, overflows found, the scale adjusted; the host need not wait.

The scale lives as float32 (2,): itself, and what gradients are multiplied by to take it out again. An overflow is a number
other than 0 in ``found``, float32 (1,), as in PyTorch.

Source: Micikevicius et al., "Mixed precision training", 2018, section 3.2; torch.amp.GradScaler.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cuda import LARGEST
from ..cuda.kernel import CudaKernel
from ..cuda.language import cuda, float32, floats_at, inlined, int32, int64, thread, uint32
from .cuda_chunks import THREADS, Uploaded, _range_of, _row_of

GROUPS = 16  # of threads, whose findings one thread each puts together
FINITE = float(np.finfo(np.float32).max)


@inlined
def _any_of_block(bad):
    """For the first thread: whether a number is not 0 in any thread of the block."""
    me = uint32(cuda.threadIdx.x)
    threads, groups = cuda.shared.array(THREADS, float32), cuda.shared.array(GROUPS, float32)
    threads[me] = bad
    cuda.syncthreads()
    if me < uint32(GROUPS):
        for other in range(THREADS // GROUPS):
            bad = max(bad, threads[uint32(me + uint32(GROUPS * other))])
        groups[me] = bad
    cuda.syncthreads()
    if me == uint32(0):
        for other in range(GROUPS):
            bad = max(bad, groups[uint32(other)])
    return bad


def _unscale_body(table, scale, findings, rows):
    # rows of the table: first job, size, gradient, the divided one
    job = int32(cuda.blockIdx.x)
    at = int32(_row_of(table, rows, 4, job) * 4)
    source, out = floats_at(table[at + 2]), floats_at(table[at + 3])
    i, last = _range_of(table, at, job)
    inverse, bad = scale[1], float32(0)
    while i < last:
        value = source[i] * inverse
        out[i] = value
        if not abs(value) <= float32(FINITE):
            bad = float32(1)
        i = int32(i + THREADS)
    bad = _any_of_block(bad)
    if int32(cuda.threadIdx.x) == 0:
        findings[job] = bad


def _collect_body(findings, found, blocks):
    i, bad = int32(cuda.threadIdx.x), float32(0)
    while i < blocks:
        bad = max(bad, findings[i])
        i = int32(i + THREADS)
    bad = _any_of_block(bad)
    if int32(cuda.threadIdx.x) == 0:
        found[0] = bad


def _adjust_body(scale, tracker, found, growth, backoff, interval):
    if thread() == 0:
        value, good = scale[0], tracker[0] + int64(1)
        if found[0] != float32(0):
            value, good = value * backoff, int64(0)
        elif good == interval:
            grown, good = value * growth, int64(0)
            value = grown if grown <= float32(FINITE) else value
        scale[0], scale[1] = value, float32(1) / value
        tracker[0] = good


_UNSCALE = CudaKernel("update-unscale", _unscale_body, ("table", "float32", "float32", "int"), THREADS)
_COLLECT = CudaKernel("update-overflow", _collect_body, ("float32", "float32", "int"), THREADS)
_ADJUST = CudaKernel(
    "update-scale", _adjust_body, ("float32", "int64", "float32", "float", "float", "int"), 32
)  # fmt: skip


def unscale(rows: Uploaded, scale: Any, findings: Any, found: Any) -> None:
    """Write gradient · scale[1] of every row (gradient, out); found[0] becomes 1 where one is infinite or NaN, otherwise 0.

    findings, float32 (rows.jobs,), is scratch: each block writes there what it finds, and one puts it together.
    """
    _UNSCALE(rows.jobs, rows.table, scale, findings, len(rows))
    _COLLECT(1, findings, found, rows.jobs)


def adjust(scale: Any, tracker: Any, found: Any, growth: float, backoff: float, interval: int) -> None:
    """Shrink the scale by ``backoff`` after an overflow; let it grow by ``growth`` after ``interval`` steps without one.

    tracker, int64 (1,), counts these steps. The scale stays finite.
    """
    _ADJUST(1, scale, tracker, found, growth, backoff, min(interval, LARGEST))
