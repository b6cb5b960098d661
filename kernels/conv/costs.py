"""What the convolution rows are expected to cost, so that the cheapest one runs.

The rows' work is counted in units.py. CYCLES says what a unit takes, fitted to the measured times of 473 layers on two cores,
whose inputs no cache held (Zen 5). The row that they choose takes 2% more than the fastest one in the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from ..spec import ConvSpec
from ..variant import Problem, cpu_only, too_large
from . import (
    cpu_channels,
    cpu_depthwise,
    cpu_depthwise_lanes,
    cpu_depthwise_lanes_weight,
    cpu_images,
    cpu_images_weight,
    cpu_pointwise,
    cpu_spread,
    cpu_tiled,
    cpu_winograd,
    cpu_winograd_weight,
)
from .units import EVEN, UNITS, Units, up

# Of a row's units, in their order, and at last of a call.
CYCLES: dict[tuple[str, str], Units] = {
    ("pointwise", "forward"): (1.21, 1.95, 2.99, 0, 1.69, 4.94, 144800),
    ("pointwise", "input_grad"): (1.21, 0, 0, 0.544, 6.5, 14.9, 124600),
    ("pointwise", "weight_grad"): (1.2, 3.82, 0, 127, 20.2, 4.06, 143400),
    ("depthwise", "forward"): (0.367, 0.916, 5.89, 0.812, 21100),
    ("depthwise", "input_grad"): (0.73, 1.22, 5.23, 0, 30700),
    ("depthwise", "weight_grad"): (0.173, 1.1, 12, 3.23, 57400),
    ("lanes", "forward"): (0.741, 11.9, 4.96, 3.88, 33, 0.833, 114700),
    ("lanes", "input_grad"): (0.809, 15.1, 3.24, 11.5, 6.89, 4.59, 121900),
    ("lanes", "weight_grad"): (1.07, 11.5, 9.08, 7.82, 7.66, 4.39, 198500),
    ("winograd", "forward"): (1.31, 362, 116, 614, 133000),
    ("winograd", "input_grad"): (1.3, 318, 160, 595, 141000),
    ("winograd", "weight_grad"): (1.13, 8.89, 643, 418, 0, 218100),
    ("images", "forward"): (0.965, 0, 7.39, 115, 0, 6.39, 7.77, 52800),
    ("images", "input_grad"): (0.811, 0.265, 11.1, 204, 0, 4.92, 5.49, 50700),
    ("images", "weight_grad"): (1.27, 77.4, 4.71, 2.47, 2.74, 35900),
    ("spread", "input_grad"): (1.19, 0, 1.96, 182, 21.7, 18.3, 91100),
    ("channels", "forward"): (1.04, 1.21, 7.06, 63.8, 0, 0, 29.9, 0.25, 4.57, 80500),
    ("channels", "input_grad"): (1.07, 0.721, 4.5, 22.4, 13.7, 26.5, 14, 13.3, 15.3, 96500),
    ("channels", "weight_grad"): (0.982, 0.872, 3.94, 12.5, 7.38, 124, 4.7, 2.83, 57900),
    ("patches", "forward"): (1.21, 62.8, 11.1, 6.74, 3, 113600),
    ("patches", "input_grad"): (1.37, 0, 5.65, 3.67, 3.42, 116200),
    ("patches", "weight_grad"): (1.01, 144, 10, 1.86, 0, 116000),
    ("tiled", "forward"): (1.04, 0.413, 2.55, 17.8, 19, 8.47, 0, 0, 64400),
    ("tiled", "input_grad"): (0.947, 1.49, 3.92, 21, 10.7, 8.88, 0.332, 6.43, 65400),
    ("tiled", "weight_grad"): (0, 13.3, 4.49, 20.6, 6.37, 65400),
}


ROWS = ("pointwise", "depthwise", "lanes", "winograd", "images", "spread", "channels", "patches", "tiled")


def _waits(jobs: float) -> float:
    """How much longer jobs take than if they shared out evenly."""
    return EVEN * up(int(jobs), EVEN) / max(jobs, 1)


@lru_cache(maxsize=4096)
def cycles(row: str, direction: str, spec: ConvSpec, itemsize: int) -> float:
    """Expected cycles of a row, of two threads together, waiting included where jobs do not share out evenly."""
    *units, call = CYCLES[row, direction]
    jobs, *counts = UNITS[row, direction](spec, itemsize)
    return sum(count * unit for count, unit in zip(counts, units, strict=True)) * _waits(jobs) + call


# Elements that a row keeps in shared scratch, where their number grows with the weights.
_COPIED: dict[tuple[str, str], Callable[[ConvSpec, int], int]] = {
    ("pointwise", "forward"): lambda spec, itemsize: cpu_pointwise._layout("forward", spec, itemsize).packed,
    ("pointwise", "input_grad"): lambda spec, itemsize: cpu_pointwise._layout("input_grad", spec, itemsize).packed,
    ("pointwise", "weight_grad"): lambda spec, itemsize: cpu_pointwise._weight_layout(spec, itemsize).sums,
    ("winograd", "weight_grad"): lambda spec, itemsize: sum(cpu_winograd_weight._work(spec, itemsize).sizes),
    ("spread", "input_grad"): lambda spec, itemsize: cpu_spread.gradient_work(spec, itemsize).packed,
    ("channels", "forward"): lambda spec, itemsize: cpu_channels._forward_work(spec, itemsize).packed,
    ("channels", "input_grad"): lambda spec, itemsize: cpu_channels._gradient_work(spec, itemsize).packed,
    ("tiled", "input_grad"): lambda spec, itemsize: cpu_tiled.gradient_work(spec, itemsize).gathered,
}


def refuses(row: str, problem: Problem) -> str:
    """Why a row cannot take a problem; "" if it can."""
    if reason := _refuses(row, problem):
        return reason
    copied = _COPIED.get((row, problem.direction))
    return too_large(copied(problem.spec, problem.itemsize), problem.itemsize) if copied else ""


def _refuses(row: str, problem: Problem) -> str:
    gradient = problem.direction == "weight_grad"
    if row == "pointwise":
        return cpu_pointwise.refuses(problem)
    if row == "depthwise":
        return cpu_depthwise.refuses(problem)
    if row == "lanes":
        return (cpu_depthwise_lanes_weight if gradient else cpu_depthwise_lanes).refuses(problem)
    if row == "winograd" and problem.precision == "strict":
        return "trades accuracy"
    if row == "winograd":
        return (cpu_winograd_weight if gradient else cpu_winograd).refuses(problem)
    if row == "images":
        return (cpu_images_weight if gradient else cpu_images).refuses(problem)
    if row == "spread":
        return cpu_spread.refuses(problem) if problem.direction == "input_grad" else "gives input gradients only"
    return cpu_only(problem)


def slower(row: str, problem: Problem) -> str:
    """That another row is expected to be faster than this one, which can take the problem; "" if none is."""
    case = (problem.direction, problem.spec, problem.itemsize)
    ours = cycles(row, *case)
    # Where the pointwise row's input gradient reads planes whole, only few pixels, or one channel, let another come near it.
    whole = row == "pointwise" and problem.direction == "input_grad" and problem.spec.size == problem.spec.out
    rivals = ("patches", "depthwise") if whole else ROWS
    others = {cycles(other, *case): other for other in rivals if other != row and not refuses(other, problem)}
    fastest = min(others, default=ours)
    return f"expected at {ours / fastest:.2f} times the {others[fastest]} row's time" if fastest < ours else ""
