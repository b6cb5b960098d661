"""Mixed precision: products of halves, everything else in float32, and losses scaled so that gradients do not vanish.

Inside :class:`autocast` convolutions (transposed ones too), pointwise layers and linear layers round the operands of
their products to halves, forward and backward. Their sums and results are float32, and all else stays float32: the
statistics of norms, losses, reductions, activations, pools, optimizers, and the parameters themselves, which so are the
master weights. (PyTorch's results are halves too; float32 ones lose nothing.) ``precision="strict"`` is never overridden,
nor any other precision that a call asks for.

On GPUs the rows "float16" and "bfloat16" multiply halves on tensor cores. On the CPU the same numbers come from float32
kernels over rounded operands, which is slower than without: there it serves to try out what a GPU would compute.

    scaler = amp.GradScaler("cuda")
    for x, labels in loader:
        optimizer.zero_grad()
        with amp.autocast("cuda"):
            loss = cross_entropy(model(x), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

Source: Micikevicius et al., "Mixed precision training", 2018; names and meaning are those of ``torch.amp``.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .device import library, refuse_capture
from .tensor import Tensor

DEVICES = {"cpu": "bfloat16", "cuda": "float16"}  # and what is taken where no dtype is given, as in PyTorch
KINDS = ("float16", "bfloat16")


class _Mode(threading.local):
    """For each device the kind of halves in use on this thread, or None."""

    def __init__(self) -> None:
        self.kinds: dict[str, str | None] = dict.fromkeys(DEVICES)


_mode = _Mode()


def _check_device(device_type: Any, name: str) -> str:
    if device_type not in DEVICES:
        raise ValueError(f"{name} must be 'cpu' or 'cuda', got {device_type!r}")
    return str(device_type)


class autocast:
    """Round the operands of products to halves on one device: a context manager, and a decorator.

    Parameters
    ----------
    device_type : "cuda" or "cpu"
        Arrays on the other device are not touched, nor are those of float64.
    dtype : "float16" or "bfloat16", optional
        "float16" on "cuda" and "bfloat16" on "cpu" where it is not given. NumPy's float16 is taken for its name.
    enabled : bool
        False switches mixed precision off inside the block.
    cache_enabled : bool, optional
        Taken for PyTorch's sake; nothing is cached.

    Raises
    ------
    ValueError
        For another device or dtype.
    """

    def __init__(
        self, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
    ) -> None:
        self.device_type = _check_device(device_type, "autocast: device_type")
        kind = DEVICES[device_type] if dtype is None else dtype
        if not isinstance(kind, str):
            kind = "float16" if kind is np.float16 or kind == np.dtype(np.float16) else kind
        if kind not in KINDS:
            raise ValueError(f"autocast: dtype must be 'float16' or 'bfloat16', got {dtype!r}")
        if not isinstance(enabled, bool):
            raise TypeError(f"autocast: enabled must be a bool, got {enabled!r}")
        self.dtype, self.enabled = str(kind), enabled
        self._before: list[str | None] = []

    def __enter__(self) -> autocast:
        self._before.append(_mode.kinds[self.device_type])
        _mode.kinds[self.device_type] = self.dtype if self.enabled else None
        return self

    def __exit__(self, *error: Any) -> None:
        _mode.kinds[self.device_type] = self._before.pop()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with autocast(self.device_type, self.dtype, self.enabled):
                return function(*args, **kwargs)

        return inside


def is_autocast_enabled(device_type: str) -> bool:
    """Whether products on a device take halves on this thread."""
    return _mode.kinds[_check_device(device_type, "is_autocast_enabled: device_type")] is not None


def get_autocast_dtype(device_type: str) -> str:
    """The kind of halves in use on a device, or that which would be."""
    device_type = _check_device(device_type, "get_autocast_dtype: device_type")
    return _mode.kinds[device_type] or DEVICES[device_type]


def precision_for(precision: Any, dtype: Any, device: str) -> Any:
    """The precision of a product: what the call asks for, and where it asks for nothing what :class:`autocast` says."""
    kind = _mode.kinds[device]
    return kind if kind is not None and precision == "default" and dtype == np.float32 else precision


class GradScaler:
    """Scale losses, so that small gradients do not vanish in float16, and skip steps whose gradients overflowed.

    The scale halves when an overflow was found and doubles after ``growth_interval`` steps without one.

    Parameters
    ----------
    device : "cuda" or "cpu"
    init_scale : float
        The first scale, above 0.
    growth_factor : float
        Above 1.
    backoff_factor : float
        Between 0 and 1.
    growth_interval : int
        Steps without an overflow in a row before the scale grows.
    enabled : bool
        With False losses are not scaled, and :meth:`step` is the optimizer's.

    References
    ----------
    Micikevicius et al., "Mixed precision training", 2018, section 3.2; torch.amp.GradScaler.
    """

    def __init__(
        self, device: str = "cuda", init_scale: float = 2.0**16, growth_factor: float = 2.0,
        backoff_factor: float = 0.5, growth_interval: int = 2000, enabled: bool = True,
    ) -> None:  # fmt: skip
        self.device = _check_device(device, "GradScaler: device")
        self._enabled = enabled
        self._scale = self._positive("init_scale", init_scale)
        self._growth_tracker = 0
        self.set_growth_factor(growth_factor)
        self.set_backoff_factor(backoff_factor)
        self.set_growth_interval(growth_interval)
        self._found: dict[int, bool] = {}  # of each optimizer whose gradients were divided: whether one overflowed
        self._stepped: set[int] = set()

    @staticmethod
    def _positive(name: str, value: Any) -> np.float32:
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < math.inf:
            raise ValueError(f"GradScaler: {name} must be a finite number above 0, got {value!r}")
        return np.float32(value)

    def scale(self, outputs: Any) -> Any:
        """The loss, or a tuple or list of losses, times the scale."""
        if not self._enabled:
            return outputs
        refuse_capture(
            "GradScaler.scale",
            "the scale changes from step to step, and replays would keep the first; give CapturedStep the scaler, as scaler=",
        )
        if isinstance(outputs, (tuple, list)):
            return type(outputs)(self.scale(output) for output in outputs)
        return outputs * float(self._scale)

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, before they are clipped, say.

        Raises
        ------
        RuntimeError
            If it was called since the last :meth:`update`, or :meth:`step` was.
        """
        if not self._enabled:
            return
        if id(optimizer) in self._stepped:
            raise RuntimeError("unscale_() is being called after step()")
        if id(optimizer) in self._found:
            raise RuntimeError("unscale_() has already been called on this optimizer since the last update()")
        overflowed = False
        divided = []  # kept apart until all are there: memory may run out
        with np.errstate(all="ignore"):
            _, inverse = self.numbers()
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        gradient = p.grad.data * inverse
                        overflowed |= not bool(library(gradient).isfinite(gradient).all())
                        divided.append((p, gradient))
        for p, gradient in divided:
            p.grad = Tensor(gradient)
        self._found[id(optimizer)] = overflowed

    def numbers(self) -> tuple[np.float32, np.float32]:
        """The scale, and what gradients are multiplied by to take it out again."""
        with np.errstate(all="ignore"):
            return self._scale, np.float32(1 / np.float64(self._scale))

    def check_free(self, optimizer: Any) -> None:
        """Raise RuntimeError if a step was made, or gradients were divided, since the last :meth:`update`."""
        if id(optimizer) in self._stepped or id(optimizer) in self._found:
            raise RuntimeError("step() has already been called since the last update()")

    def stepped(self, optimizer: Any, overflowed: bool) -> None:
        """Take note of a step whose gradients something else has divided, as a captured one does."""
        self._found[id(optimizer)] = overflowed
        self._stepped.add(id(optimizer))

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """The optimizer's step, with gradients divided by the scale; none where one of them is infinite or NaN.

        Returns
        -------
        What the optimizer's step gives; None where it was skipped.

        Raises
        ------
        RuntimeError
            If it was called since the last :meth:`update`, or with a closure.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs or args:
            raise RuntimeError("GradScaler: step() takes no closure while it is enabled")
        if id(optimizer) in self._stepped:
            raise RuntimeError("step() has already been called since the last update()")
        if id(optimizer) not in self._found:
            self.unscale_(optimizer)
        self._stepped.add(id(optimizer))
        return None if self._found[id(optimizer)] else optimizer.step(**kwargs)

    def update(self, new_scale: float | None = None) -> None:
        """Adjust the scale to what the last steps met, or set it; to be called once after all optimizers' steps.

        Raises
        ------
        RuntimeError
            If no optimizer made a step, or had its gradients divided, since the last call.
        """
        if not self._enabled:
            return
        if new_scale is not None:
            self._scale = self._positive("new_scale", new_scale)
        elif not self._found:
            raise RuntimeError("GradScaler: update() without a step() or unscale_() before it")
        elif any(self._found.values()):
            self._scale, self._growth_tracker = np.float32(self._scale * np.float32(self._backoff_factor)), 0
        else:
            self._growth_tracker += 1
            if self._growth_tracker == self._growth_interval:
                with np.errstate(over="ignore"):
                    grown = np.float32(self._scale * np.float32(self._growth_factor))
                self._scale, self._growth_tracker = grown if np.isfinite(grown) else self._scale, 0
        self._found, self._stepped = {}, set()

    def is_enabled(self) -> bool:
        return self._enabled

    def get_scale(self) -> float:
        """The scale; 1 while disabled."""
        return float(self._scale) if self._enabled else 1.0

    def get_growth_factor(self) -> float:
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        if not new_factor > 1:
            raise ValueError(f"GradScaler: growth_factor must be above 1, got {new_factor!r}")
        self._growth_factor = float(new_factor)

    def get_backoff_factor(self) -> float:
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        if not 0 < new_factor < 1:
            raise ValueError(f"GradScaler: backoff_factor must be between 0 and 1, got {new_factor!r}")
        self._backoff_factor = float(new_factor)

    def get_growth_interval(self) -> int:
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        if isinstance(new_interval, bool) or not isinstance(new_interval, (int, np.integer)) or new_interval < 1:
            raise ValueError(f"GradScaler: growth_interval must be an int of at least 1, got {new_interval!r}")
        self._growth_interval = int(new_interval)

    def state_dict(self) -> dict[str, Any]:
        """All that decides about the next steps, under PyTorch's names; empty while disabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self.get_scale(),
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._growth_tracker,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up a state again; a disabled scaler ignores it.

        Raises
        ------
        ValueError
            If a value is missing or out of range; nothing is changed then.
        """
        if not self._enabled:
            return
        missing = set(self.state_dict()) - set(state_dict)
        if missing:
            raise ValueError(f"GradScaler: the state lacks {', '.join(sorted(missing))}, it has {sorted(state_dict)}")
        options = {name: state_dict[name] for name in ("growth_factor", "backoff_factor", "growth_interval")}
        checked = GradScaler(self.device, state_dict["scale"], **options)
        checked._growth_tracker = int(state_dict["_growth_tracker"])
        for name in ("_scale", "_growth_factor", "_backoff_factor", "_growth_interval", "_growth_tracker"):
            setattr(self, name, getattr(checked, name))
