"""What the kernels' block sizes need to know of the host."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

USUAL_L2_BYTES = 512 * 1024


@cache
def l2_bytes() -> int:
    """Size of one core's second-level cache; the usual size where the system does not tell."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text()
    except OSError:
        return USUAL_L2_BYTES
    match = re.fullmatch(r"(\d+)([KM])\s*", text)
    return int(match[1]) * {"K": 1024, "M": 1024**2}[match[2]] if match else USUAL_L2_BYTES
