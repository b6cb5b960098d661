"""What the CUDA rows by windows in registers take, for depthwise layers and groups of few channels, and the parts of their
weight gradients' sums. Nothing here needs a compiler, so that the table of rows may ask."""

from __future__ import annotations

from ..cuda import (
    HALF_KINDS,
    costs,
    cuda_only,
    half_only,
    stored_only,
    tf32_only,
    warpgroup_only,
    warpgroup_tf32_only,
)
from ..cuda.tiles import FEW_CHANNELS, FEW_RESULTS, RESULTS, UNITS, lane_parts, slot_parts, window_parts
from ..spec import ConvSpec
from ..variant import Problem

TENSOR_CORES = {
    **{f"warpgroup_{kind}": warpgroup_only(kind) for kind in HALF_KINDS},
    **{kind: half_only(kind) for kind in HALF_KINDS},
    "warpgroup_tf32": warpgroup_tf32_only,
    "tensor": tf32_only,
}
FEW_FILTERS = 8  # as many rows as the lowest tile of the implicit GEMM has


def depthwise(problem: Problem) -> str:
    """Why the depthwise rows do not take a problem; "" where they do."""
    spec = problem.spec
    if reason := stored_only(problem):
        return reason
    if spec.c != spec.groups:
        return "takes one input channel a group"
    few = spec.k <= FEW_FILTERS * spec.c
    return "" if few else f"leaves more than {FEW_FILTERS} filters a channel to products of matrices"


def depthwise_parts(spec: ConvSpec, last: bool) -> int:
    """Into how many parts at most the weight gradient's sums are cut; ``last``: of channels-last images."""
    pixels = spec.n * spec.out[0] * spec.out[1]
    return lane_parts(spec.k, pixels) if last else window_parts(spec.k, pixels)


def depthwise_sums(problem: Problem) -> int:
    """Bytes of the parts of the weight gradient's sums."""
    spec = problem.spec
    return 4 * depthwise_parts(spec, problem.layout != "nchw") * spec.k * spec.kernel[0] * spec.kernel[1]


def tiled(problem: Problem) -> str:
    """Why the rows for groups of few channels do not take a problem; "" where they do."""
    spec = problem.spec
    if reason := stored_only(problem):
        return reason
    turned = problem.direction == "input_grad"
    if spec.kernel != (3, 3) or spec.dilation != (1, 1):
        return "takes kernels of 3x3 without dilation"
    if spec.stride != (1, 1) and (turned or spec.stride != (2, 2)):
        return "takes a stride of 1 only" if turned else "takes strides of 1 or 2"
    inner, outer = spec.c // spec.groups, spec.k // spec.groups
    if turned:
        inner, outer = outer, inner
    most = FEW_RESULTS if problem.direction == "weight_grad" else FEW_CHANNELS
    if inner > most or outer > FEW_RESULTS:
        return f"leaves groups of more than {most} channels or {FEW_RESULTS} results to products of matrices"
    if problem.layout != "nchw" and (inner > FEW_RESULTS or spec.groups * -(-outer // RESULTS) < UNITS):
        return f"channels-last takes {UNITS} groups of {RESULTS} results or more, of at most {FEW_RESULTS} channels"
    return ""


READ_NCHW: costs.Rivals = (("tiled", tiled), ("direct", cuda_only))  # which tensor cores are weighed against


def tiled_slower(problem: Problem) -> str:
    """Tensor cores, where they may be used and are not expected to be slower: where a group fills enough of their tiles."""
    spec = problem.spec
    small = spec.groups >= UNITS and max(spec.c, spec.k) <= RESULTS * spec.groups
    if small or problem.precision == "strict" or spec.n == 0:
        return ""
    taking = (name for name, refuses in TENSOR_CORES.items() if not refuses(problem))
    return next((name for name in taking if not costs.slower(name, READ_NCHW, problem)), "")


def tiled_sums(problem: Problem) -> int:
    """Bytes of the parts of the weight gradient's sums."""
    spec = problem.spec
    inner, outer = spec.c // spec.groups, spec.k // spec.groups
    units, pixels = spec.groups * -(-outer // RESULTS), spec.n * spec.out[0] * spec.out[1]
    if problem.layout != "nchw":
        parts = slot_parts(-(-units // UNITS) * inner, pixels)
    else:
        parts = window_parts(units * inner, pixels)
    return 4 * parts * spec.k * inner * spec.kernel[0] * spec.kernel[1]
