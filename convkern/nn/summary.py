"""What a model is made of, as a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..device import library
from ..graph import no_grad

if TYPE_CHECKING:
    from .module import Module


class LayerFacts(NamedTuple):
    """One layer of a summary."""

    name: str
    kind: str
    output_shape: tuple[int, ...]  # of the first result, where there are several
    parameters: int
    multiply_adds: int
    memory: int  # bytes of all results
    receptive_field: tuple[int, ...] | None  # pixels of the input along each of its axes; None: all of it


class Summary(NamedTuple):
    """The layers of a model in the order in which they ran."""

    input_shape: tuple[int, ...]
    layers: tuple[LayerFacts, ...]

    @property
    def parameters(self) -> int:
        """Trained numbers, in all."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiplications with their additions of one forward pass, in all."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def memory(self) -> int:
        """Bytes of all outputs, which training keeps for the gradients."""
        return sum(layer.memory for layer in self.layers)

    def __str__(self) -> str:
        head = ("layer", "kind", "output shape", "parameters", "multiply-adds", "KiB", "sees")
        rows = [
            (
                layer.name, layer.kind, str(layer.output_shape), f"{layer.parameters:,}", f"{layer.multiply_adds:,}",
                f"{layer.memory / 1024:,.1f}", _pixels(layer.receptive_field),
            )
            for layer in self.layers
        ]  # fmt: skip
        total = ("total", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}", f"{self.memory / 1024:,.1f}", "")
        table = [head, *rows, total]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = [
            "  ".join(
                text.ljust(w) if i < 3 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        rule = "-" * len(lines[0])
        return "\n".join([f"input {self.input_shape}", lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _pixels(field: tuple[int, ...] | None) -> str:
    return "all" if field is None else "x".join(map(str, field))


class _Fields:
    """Receptive fields of the arrays that layers gave, as pixels along each axis, and those from one to the next.

    An array that no layer gave (a sum, channels put together) sees as much as the widest layer so far.

    Source: Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks", 2019.
    """

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}
        self._kept: list[Any] = []  # so that no id is given twice
        self._widest: Any = ((), ())

    def after(self, module: Module, x: Any, results: list[Any]) -> tuple[int, ...] | None:
        """The field of the layer's results, by the first of them; None where it has no pixels any more."""
        y = results[0]
        axes = max(len(y.shape) - 2, 0)  # but for images and channels
        sizes, steps = self._known.get(id(x), self._widest)
        if axes and len(getattr(x, "shape", ())) == len(y.shape):
            if len(sizes) != axes:  # the model's own input
                sizes, steps = (1,) * axes, (1.0,) * axes
            windows = [module.window(axis, x.shape[2 + axis], y.shape[2 + axis]) for axis in range(axes)]
            sizes = tuple(
                int(size + (kernel - 1) * step) for size, step, (kernel, _) in zip(sizes, steps, windows, strict=True)
            )
            steps = tuple(step * stride for step, (_, stride) in zip(steps, windows, strict=True))
        found = (sizes, steps)
        for result in results:
            self._known[id(result)] = found
            self._kept.append(result)
        if sizes >= self._widest[0]:
            self._widest = found
        return sizes if axes else None


def _arrays(result: Any) -> list[Any]:
    """The arrays of a layer's result, which may be a tuple, a list or a dict of them."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, (tuple, list)):
        return [array for part in result for array in _arrays(part)]
    return [result] if hasattr(result, "shape") else []


def summarize(model: Module, input_shape: tuple[int, ...]) -> Summary:
    """Run zeros through the model and note every layer; see :meth:`Module.summary`."""
    # As its first convolution has it; images where there is none.
    axes = next((module.axes for module in model.modules() if hasattr(module, "axes")), 2)
    shape = tuple(input_shape) if len(input_shape) != axes + 1 else (1, *input_shape)
    facts: list[LayerFacts] = []
    counted: set[int] = set()
    fields = _Fields()
    handles = []

    def note(name: str) -> Any:
        def hook(module: Module, args: tuple[Any, ...], result: Any) -> None:
            results = _arrays(result)
            if not results:
                return
            # A parameter that several layers share is counted where it is met first.
            fresh = [p for p in module._parameters.values() if id(p) not in counted]
            counted.update(id(p) for p in fresh)
            shape = results[0].shape
            macs = getattr(module, "multiply_adds", lambda y: 0)(shape)
            number = sum(p.size for p in fresh)
            memory = sum(math.prod(y.shape) * y.dtype.itemsize for y in results)
            field = fields.after(module, args[0] if args else None, results)
            facts.append(LayerFacts(name or "(model)", type(module).__name__, shape, number, macs, memory, field))

        return hook

    for name, module in model.named_modules():
        if not module._modules or module._parameters:
            handles.append(module.register_forward_hook(note(name)))
    # Lazy layers have no parameters yet.
    like = next((p.data for module in model.modules() for p in module._parameters.values()), np.empty(0, np.float32))
    was_training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with no_grad():
            model(library(like).zeros(shape, like.dtype))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in was_training:
            module.training = mode
    return Summary(shape, tuple(facts))


def conv_multiply_adds(y_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> int:
    """Each output pixel sums C/groups·R·S products."""
    return math.prod(y_shape) * math.prod(w_shape[1:])
