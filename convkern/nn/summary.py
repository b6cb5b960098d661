"""What a model is made of, as a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..graph import no_grad

if TYPE_CHECKING:
    from .module import Module


class LayerFacts(NamedTuple):
    """One layer of a summary."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


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

    def __str__(self) -> str:
        head = ("layer", "kind", "output shape", "parameters", "multiply-adds")
        rows = [(layer.name, layer.kind, str(layer.output_shape), f"{layer.parameters:,}", f"{layer.multiply_adds:,}")
                for layer in self.layers]  # fmt: skip
        total = ("total", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}")
        table = [head, *rows, total]
        widths = [max(len(row[i]) for row in table) for i in range(5)]
        lines = [
            "  ".join(
                text.ljust(w) if i < 3 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        rule = "-" * len(lines[0])
        return "\n".join([f"input {self.input_shape}", lines[0], rule, *lines[1:-1], rule, lines[-1]])


def summarize(model: Module, input_shape: tuple[int, ...]) -> Summary:
    """Run zeros through the model and note every layer; see :meth:`Module.summary`."""
    shape = tuple(input_shape) if len(input_shape) != 3 else (1, *input_shape)
    facts: list[LayerFacts] = []
    counted: set[int] = set()
    handles = []

    def note(name: str) -> Any:
        def hook(module: Module, args: tuple[Any, ...], result: Any) -> None:
            # A parameter that several layers share is counted where it is met first.
            fresh = [p for p in module._parameters.values() if id(p) not in counted]
            counted.update(id(p) for p in fresh)
            macs = getattr(module, "multiply_adds", lambda y: 0)(result.shape)
            number = sum(p.size for p in fresh)
            facts.append(LayerFacts(name or "(model)", type(module).__name__, result.shape, number, macs))

        return hook

    for name, module in model.named_modules():
        if not module._modules or module._parameters:
            handles.append(module.register_forward_hook(note(name)))
    ready = (p.dtype for module in model.modules() for p in module._parameters.values())  # lazy ones have none yet
    dtype = next(ready, np.dtype(np.float32))
    was_training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with no_grad():
            model(np.zeros(shape, dtype))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in was_training:
            module.training = mode
    return Summary(shape, tuple(facts))


def conv_multiply_adds(y_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> int:
    """Each output pixel sums C/groups·R·S products."""
    return math.prod(y_shape) * math.prod(w_shape[1:])
