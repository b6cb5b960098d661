"""What the convolution rows are expected to cost, so that the cheapest one runs.

The rows' work is counted in units.py. CYCLES says what a unit takes, fitted to the measured times of generated layers on one
core (Zen 5). Half of the estimates are within a tenth, nine tenths within 35%; the row that they choose takes 2% more than
the fastest one in the mean.
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
    ("pointwise", "forward"): (1.29, 2.28, 0.459, 0, 7.13, 6.67, 58700),
    ("pointwise", "input_grad"): (1.3, 4.66, 0, 1.81, 6.88, 17.4, 46300),
    ("pointwise", "weight_grad"): (1.21, 4.35, 16.2, 83.7, 0, 2.5, 37700),
    ("depthwise", "forward"): (0.367, 0.916, 5.89, 0.812, 21100),
    ("depthwise", "input_grad"): (0.436, 1.48, 5.44, 0.332, 18700),
    ("depthwise", "weight_grad"): (0.38, 0.818, 6.68, 0.681, 32900),
    ("lanes", "forward"): (0.765, 8.21, 3.95, 5.8, 35.1, 0.185, 65500),
    ("lanes", "input_grad"): (0.836, 11.4, 1.78, 14, 12.1, 0, 68900),
    ("lanes", "weight_grad"): (0.905, 6.36, 9.59, 5.29, 9.59, 0.317, 168900),
    ("winograd", "forward"): (1.72, 309, 192, 294, 63700),
    ("winograd", "input_grad"): (1.61, 348, 247, 388, 52400),
    ("winograd", "weight_grad"): (1.99, 0, 394, 171, 0, 138200),
    ("images", "forward"): (1.08, 0, 5.85, 95.9, 0, 9.06, 8.6, 31000),
    ("images", "input_grad"): (0.784, 3.65, 5.88, 88.1, 29.7, 5.05, 9.45, 30700),
    ("images", "weight_grad"): (1.27, 77.4, 4.71, 2.47, 2.74, 35900),
    ("spread", "input_grad"): (1.22, 0, 1.81, 217, 23, 14.1, 47900),
    ("channels", "forward"): (1.22, 0, 8.39, 30, 0, 0, 7.06, 15.8, 17.2, 90000),
    ("channels", "input_grad"): (1.2, 0, 7.22, 9.96, 20.4, 33.5, 5.84, 19.6, 9.33, 83600),
    ("channels", "weight_grad"): (0.855, 2.8, 7.8, 6.37, 7.24, 107, 0, 6.35, 34200),
    ("patches", "forward"): (0.978, 234, 8.45, 0, 1.98, 63500),
    ("patches", "input_grad"): (1.22, 167, 4.31, 2.76, 0.493, 57000),
    ("patches", "weight_grad"): (1.17, 132, 8.92, 6.9, 0, 38200),
    ("tiled", "forward"): (1.14, 0, 2.68, 13.7, 18.4, 21.8, 0, 0, 37800),
    ("tiled", "input_grad"): (1.07, 1.23, 8.32, 12.8, 13.4, 5.93, 0.32, 1.26, 40500),
    ("tiled", "weight_grad"): (0.61, 7.75, 4.61, 15, 7.06, 39500),
}


ROWS = ("pointwise", "depthwise", "lanes", "winograd", "images", "spread", "channels", "patches", "tiled")


def _waits(jobs: float) -> float:
    """How much longer jobs take than if they shared out evenly."""
    return EVEN * up(int(jobs), EVEN) / max(jobs, 1)


@lru_cache(maxsize=4096)
def cycles(row: str, direction: str, spec: ConvSpec, itemsize: int) -> float:
    """Expected cycles of a row on one thread, with what a second one would wait where jobs do not share out evenly."""
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
    # Where the pointwise row reads planes whole, only few pixels, or one channel, let another come near it.
    whole = row == "pointwise" and problem.spec.size == problem.spec.out
    rivals = ("patches", "depthwise") if whole else ROWS
    others = {cycles(other, *case): other for other in rivals if other != row and not refuses(other, problem)}
    fastest = min(others, default=ours)
    return f"expected at {ours / fastest:.2f} times the {others[fastest]} row's time" if fastest < ours else ""
