"""What a depthwise convolution is expected to take on one core: row by row (cpu_depthwise.py), or with channels as lanes
(cpu_depthwise_lanes.py). Cycles, fitted to single-thread times on Zen 5 with 512-bit vectors; both change alike elsewhere.
"""

from __future__ import annotations

from .. import simd
from ..variant import Problem

PRODUCT, ROW = 0.7, 4  # a vector's product, and what comes with each row of a plane
FEW_REGISTERS = 1.6  # times the products, where a tile of results leaves no registers for the shifted rows
SPILLED = 2.2  # times the products of a weight gradient whose sums do not stay in registers
LANE_PRODUCT, LANE_TAP_PRODUCT = (
    0.625,
    1.0,
)  # forward and input gradient, where pixels serve several taps; weight gradient
PIXEL, JOB, CALL = 8, 1000, 30000  # turning a vector of pixels; beginning with a block of planes, and at all


def row_cycles(problem: Problem, vectors: int) -> float:
    """Row by row, in tiles of so many vectors."""
    spec = problem.spec
    itemsize = problem.itemsize
    lanes, taps = simd.VECTOR_BITS // (8 * itemsize), spec.kernel[0] * spec.kernel[1]
    width = spec.size[1] if problem.direction == "input_grad" else spec.out[1]
    blocks = -(-width // (vectors * lanes))
    product = PRODUCT
    if problem.direction == "weight_grad":
        product *= SPILLED if taps > simd.REGISTERS - 4 else 1
    elif -(-spec.kernel[0] // spec.stride[0]) * vectors > 3 * simd.REGISTERS // 8:
        product *= FEW_REGISTERS
    # With a stride a tile of the input gradient spans as many times the results' columns.
    columns = vectors // spec.stride[1] if problem.direction == "input_grad" else vectors
    rows = spec.out[0] * spec.stride[0] + spec.kernel[0]
    return spec.n * spec.k * blocks * (spec.out[0] * taps * columns * product + rows * ROW)


def lane_cycles(problem: Problem) -> float:
    """With channels as lanes."""
    spec = problem.spec
    itemsize = problem.itemsize
    lanes, filters = simd.VECTOR_BITS // (8 * itemsize), spec.k // spec.c
    source, result = spec.size[0] * spec.size[1], spec.out[0] * spec.out[1]
    product = LANE_TAP_PRODUCT if problem.direction == "weight_grad" else LANE_PRODUCT
    products = filters * result * spec.kernel[0] * spec.kernel[1] * product
    return CALL + -(-spec.n * spec.c // lanes) * (products + (source + filters * result) * PIXEL + JOB)
