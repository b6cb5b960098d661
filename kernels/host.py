"""What the kernels' block sizes need to know of the host."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

USUAL_L2_BYTES = 512 * 1024
USUAL_L3_BYTES = 32 * 1024**2
LINE_BYTES = 64  # of a cache line


def odd_lines(elements: int, itemsize: int) -> int:
    """At least so many elements that fill an odd number of cache lines: steps of them reach every set of a cache."""
    return (-(-elements * itemsize // LINE_BYTES) | 1) * LINE_BYTES // itemsize


@cache
def l2_bytes() -> int:
    """Size of one core's second-level cache; the usual size where the system does not tell."""
    return _cache_bytes(2) or USUAL_L2_BYTES


@cache
def l3_bytes() -> int:
    """Size of the third-level cache that the first core sees; a usual size where the system does not tell."""
    return _cache_bytes(3) or USUAL_L3_BYTES


def _cache_bytes(level: int) -> int:
    try:
        text = Path(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size").read_text()
    except OSError:
        return 0
    match = re.fullmatch(r"(\d+)([KM])\s*", text)
    return int(match[1]) * {"K": 1024, "M": 1024**2}[match[2]] if match else 0
