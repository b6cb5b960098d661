"""Losses as modules; see the functions of the same meaning in :mod:`convkern.nn.functional`."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..ops import arguments as arg
from ..ops.loss import check_reduction
from .module import Module


class _Loss(Module):
    """A loss with a reduction, and arrays that belong to it as buffers."""

    def __init__(self, reduction: str, **arrays: Any) -> None:
        super().__init__()
        check_reduction(reduction, type(self).__name__)
        self.reduction = reduction
        for name, value in arrays.items():
            if value is None:
                setattr(self, name, None)
            else:
                self.register_buffer(name, np.array(arg.array_of(value, f"{type(self).__name__}: {name}")))

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class MSELoss(_Loss):
    """Squared differences, see :func:`convkern.nn.functional.mse_loss`."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__(reduction)

    def forward(self, input: Any, target: Any) -> Any:
        return ops.mse_loss(input, target, reduction=self.reduction)


class L1Loss(_Loss):
    """Absolute differences, see :func:`convkern.nn.functional.l1_loss`."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__(reduction)

    def forward(self, input: Any, target: Any) -> Any:
        return ops.l1_loss(input, target, reduction=self.reduction)


class HuberLoss(_Loss):
    """See :func:`convkern.nn.functional.huber_loss`."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        self.delta = arg.positive(delta, "HuberLoss: delta")

    def forward(self, input: Any, target: Any) -> Any:
        return ops.huber_loss(input, target, self.reduction, self.delta)


class SmoothL1Loss(_Loss):
    """See :func:`convkern.nn.functional.smooth_l1_loss`."""

    def __init__(self, *, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        self.beta = arg.number(beta, "SmoothL1Loss: beta", 0.0)

    def forward(self, input: Any, target: Any) -> Any:
        return ops.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class BCELoss(_Loss):
    """Binary cross-entropy of probabilities, see :func:`convkern.nn.functional.binary_cross_entropy`."""

    def __init__(self, weight: Any = None, *, reduction: str = "mean") -> None:
        super().__init__(reduction, weight=weight)

    def forward(self, input: Any, target: Any) -> Any:
        return ops.binary_cross_entropy(input, target, self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(_Loss):
    """Binary cross-entropy of logits, see :func:`convkern.nn.functional.binary_cross_entropy_with_logits`."""

    def __init__(self, weight: Any = None, *, reduction: str = "mean", pos_weight: Any = None) -> None:
        super().__init__(reduction, weight=weight, pos_weight=pos_weight)

    def forward(self, input: Any, target: Any) -> Any:
        return ops.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


class NLLLoss(_Loss):
    """Minus the log-probability of each label, see :func:`convkern.nn.functional.nll_loss`."""

    def __init__(self, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(reduction, weight=weight)
        self.ignore_index = arg.integer(ignore_index, "NLLLoss: ignore_index", -(2**63))

    def forward(self, input: Any, target: Any) -> Any:
        return ops.nll_loss(input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


class CrossEntropyLoss(_Loss):
    """See :func:`convkern.nn.functional.cross_entropy`."""

    def __init__(
        self, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0
    ) -> None:
        super().__init__(reduction, weight=weight)
        self.ignore_index = arg.integer(ignore_index, "CrossEntropyLoss: ignore_index", -(2**63))
        self.label_smoothing = arg.number(label_smoothing, "CrossEntropyLoss: label_smoothing", 0.0, 1.0)

    def forward(self, input: Any, target: Any) -> Any:
        return ops.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
