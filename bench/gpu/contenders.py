"""Our rows and PyTorch's operators over the same arrays on the device, in each precision and layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...device import is_channels_last
from ...kernels.spec import PointwiseSpec
from ...kernels.variant import Problem, Variant
from ...plan import HALVES, REDUCED, rows
from ..cases import ConvCase
from ..rivals import pytorch
from .ceilings import allow_tf32

DEVICE = "cuda"  # of PyTorch's tensors
LAYOUTS = ("nchw", "channels_last")
TYPES = {"float32": "float32", "tf32": "float32", "float16": "float16", "bfloat16": "bfloat16"}  # of the arrays
# Of the residual pass gy stands for what is added: it has the shape of y.
INPUTS = {
    "forward": ("x", "w"),
    "forward_residual": ("x", "w", "gy"),
    "input_grad": ("gy", "w"),
    "weight_grad": ("x", "gy"),
}
# Largest difference from PyTorch's strict float32, as a share of its largest result.
AGREEMENT = {"float32": 1e-3, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 6e-2}

Call = Callable[[], Any]


class Contender(NamedTuple):
    """One way to compute one direction of one case."""

    name: str
    precision: str
    layout: str
    calls: list[Call]  # over the copies of the inputs
    result: Call  # of the first call's, as a float32 tensor


class Arrays:
    """Copies of a case's x, w and gy on the device, in the types and layouts that are asked for, as PyTorch's tensors.

    Values are normal with the variance 1, those of w such that y has it as well.
    """

    def __init__(self, case: ConvCase, copies: int, seed: int = 0) -> None:
        import torch

        spec = case.spec()
        shapes = {"x": spec.x_shape, "w": spec.w_shape, "gy": spec.y_shape}
        generator = torch.Generator(DEVICE).manual_seed(seed)
        self.made: dict[tuple[str, str], list[dict[str, Any]]] = {}
        first = []
        for _ in range(copies):
            one = {name: torch.randn(shape, device=DEVICE, generator=generator) for name, shape in shapes.items()}
            one["w"] /= float(np.sqrt(np.prod(spec.w_shape[1:])))
            first.append(one)
        self.made["float32", "nchw"] = first

    def get(self, dtype: str, layout: str) -> list[dict[str, Any]]:
        import torch

        if (dtype, layout) not in self.made:
            form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
            self.made[dtype, layout] = [
                {name: t.to(getattr(torch, dtype)).contiguous(memory_format=form) for name, t in one.items()}
                for one in self.made["float32", "nchw"]
            ]
        return self.made[dtype, layout]


def ours(tensor: Any) -> Any:
    """A tensor's memory as a CuPy array; bfloat16 as the uint16 of its bits."""
    import cupy
    import torch

    if tensor.dtype == torch.bfloat16:
        return cupy.from_dlpack(tensor.view(torch.int16)).view("uint16")
    return cupy.from_dlpack(tensor)


def theirs(array: Any, dtype: str) -> Any:
    """The other way round, as float32."""
    import torch

    if dtype == "bfloat16":
        return torch.from_dlpack(array.view("int16")).view(torch.bfloat16).float()
    return torch.from_dlpack(array).float()


def forward_residual(x: Any, w: Any, gy: Any, case: ConvCase) -> Any:
    """relu(conv(x, w) + gy) as PyTorch's users write it: in place, after the convolution."""
    return pytorch.forward(x, w, gy, case).add_(gy).relu_()


THEIRS = {
    "forward": pytorch.forward,
    "forward_residual": forward_residual,
    "input_grad": pytorch.input_grad,
    "weight_grad": pytorch.weight_grad,
}


def torch_contenders(case: ConvCase, direction: str, precision: str, arrays: Arrays) -> Iterator[Contender]:
    """PyTorch's operator in both layouts."""
    function, tf32 = THEIRS[direction], precision == "tf32"

    def call(one: dict[str, Any]) -> Any:
        allow_tf32(tf32)
        return function(one["x"], one["w"], one["gy"], case)

    for layout in LAYOUTS:
        copies = arrays.get(TYPES[precision], layout)
        calls: list[Call] = [partial(call, one) for one in copies]
        yield Contender("torch", precision, layout, calls, partial(_as_float32, calls[0]))


def _as_float32(call: Call) -> Any:
    return call().float()


def precision_of(row: Variant) -> str:
    return row.accuracy if row.accuracy in REDUCED else "float32"


def our_contenders(case: ConvCase, direction: str, precision: str, arrays: Arrays) -> Iterator[Contender]:
    """Every row of the tables that takes the case in this precision, in the layouts that it takes."""
    spec, dtype = case.spec(), TYPES[precision]
    activation = int(direction == "forward_residual")  # with the ReLU that comes after it in residual networks
    spec = spec._replace(activation=activation)
    operations: dict[str, Any] = {"conv": spec}
    if spec.kernel == (1, 1) == spec.stride and spec.groups == 1 and spec.size == spec.out:
        operations["pointwise"] = PointwiseSpec(spec.n, spec.c, spec.k, spec.size[0] * spec.size[1], activation)
    for operation, given in operations.items():
        for row in rows(operation, direction, "cuda"):
            for layout in LAYOUTS if operation == "conv" else LAYOUTS[:1]:
                asked = precision if precision in REDUCED else "default"
                problem = Problem(operation, direction, "cuda", dtype, asked, given, layout)
                fits = precision_of(row) == precision or (precision in HALVES and row.accuracy == "exact")
                if fits and not row.refuses(problem):
                    made = _contender(row, problem, precision, arrays)
                    if made is not None:
                        yield made


def _contender(row: Variant, problem: Problem, precision: str, arrays: Arrays) -> Contender | None:
    """A row over the copies; None where an image's channels-last layout is NCHW as well (one channel, one pixel)."""
    import cupy

    dtype, last = TYPES[precision], problem.layout == "channels_last"
    calls: list[Call] = []
    outs = []
    for one in arrays.get(dtype, problem.layout):
        given = [ours(one[name] if name != "w" else one[name].contiguous()) for name in INPUTS[problem.direction]]
        images = [a for a, name in zip(given, INPUTS[problem.direction], strict=True) if name != "w"]
        out = ours({"input_grad": one["x"], "weight_grad": one["w"].contiguous()}.get(problem.direction, one["gy"]))
        if last and not all(map(is_channels_last, images + ([] if problem.direction == "weight_grad" else [out]))):
            return None
        out = _empty_like(out)
        if problem.operation == "pointwise":
            given, out = [_flat(a) for a in given], _flat(out)
        if problem.direction in ("forward", "forward_residual"):
            given.insert(2, cupy.empty(0, given[0].dtype))  # no bias
        workspace = cupy.empty(row.workspace(problem), "uint8")
        calls.append(partial(row.run, *given, problem.spec, workspace, out))
        outs.append(out)

    def result() -> Any:
        calls[0]()
        return theirs(outs[0], dtype)

    name = row.name if problem.operation == "conv" else f"pointwise {row.name}"
    return Contender(name, precision, problem.layout, calls, result)


def _empty_like(array: Any) -> Any:
    """Uninitialised, in the layout of the array."""
    import cupy

    if not is_channels_last(array):
        return cupy.empty(array.shape, array.dtype)
    n, c, h, w = array.shape
    return cupy.empty((n, h, w, c), array.dtype).transpose(0, 3, 1, 2)


def _flat(array: Any) -> Any:
    """Images as (N, C, pixels), filters as (K, C)."""
    n, c, h, w = array.shape
    return array.reshape((n, c) if (h, w) == (1, 1) else (n, c, h * w))


def disagreement(got: Any, want: Any) -> float:
    """The largest difference as a share of the largest value wanted; infinite where something is not finite."""
    found = float((got.reshape(want.shape) - want).abs().max() / want.abs().max())
    return found if np.isfinite(found) else float("inf")
