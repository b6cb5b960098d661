"""The gradient of a ReLU after a bias, and the sum that is the bias's gradient, in one pass."""

from __future__ import annotations

from ..cuda.sums import channel_sums
from ..spec import ChannelSpec


def relu_bias_grad(gy, y, spec: ChannelSpec, workspace, out, sums) -> None:
    """out = gy where the ReLU's result y is positive or NaN, else 0; sums[c] = the sum of out over images and pixels."""
    channel_sums(gy, spec.n, spec.c, spec.pixels, workspace, sums, y, out)
