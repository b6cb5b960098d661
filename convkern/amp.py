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
import operator
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .device import is_cupy, library, refuse_capture
from .scale import DeviceScale, inverse
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

    Where all parameters of an optimizer live on a GPU, overflows are found, steps skipped and the scale adjusted there: the
    host waits only where it asks, by :meth:`get_scale` or :meth:`state_dict`, and for optimizers with a step or kernel of
    their own.

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
        self._there: DeviceScale | None = None  # where these two are from the first loss or gradient on a GPU on
        self.set_growth_factor(growth_factor)
        self.set_backoff_factor(backoff_factor)
        self.set_growth_interval(growth_interval)
        # Of each optimizer whose gradients were divided: whether one overflowed, a bool or float32 (1,) on the device.
        self._found: dict[int, Any] = {}
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
        array = outputs.data if isinstance(outputs, Tensor) else outputs
        if is_cupy(array) and array.dtype == np.float32:
            factor = self.on_device().factor
            return outputs * (Tensor(factor) if isinstance(outputs, Tensor) else factor)
        return outputs * float(self._numbers()[0])

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
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        divided, found = self._divided([p.grad.data for p in trained])
        for p, gradient in zip(trained, divided, strict=True):  # all of them are there: memory did not run out
            p.grad = Tensor(gradient)
        self._found[id(optimizer)] = found

    def _divided(self, gradients: list[Any]) -> tuple[list[Any], Any]:
        """New arrays, and whether a number in them is not finite: a bool, or on the device where all of them are there."""
        if gradients and all(is_cupy(gradient) and gradient.dtype == np.float32 for gradient in gradients):
            return self.on_device().divided(gradients)
        factor = inverse(self._numbers()[0])
        with np.errstate(all="ignore"):
            divided = [gradient * factor for gradient in gradients]
            finite = [bool(library(gradient).isfinite(gradient).all()) for gradient in divided]
        return divided, not all(finite)

    def on_device(self) -> DeviceScale:
        """The scale in the GPU's memory, where it is from now on."""
        if self._there is None:
            self._there = DeviceScale(self._scale, self._growth_tracker)
        return self._there

    def _numbers(self) -> tuple[np.float32, int]:
        """The scale, and the steps without an overflow since it changed."""
        return (self._scale, self._growth_tracker) if self._there is None else self._there.get()

    def _set(self, scale: np.float32, tracker: int) -> None:
        if self._there is None:
            self._scale, self._growth_tracker = scale, tracker
        else:
            self._there.set(scale, tracker)

    def check_free(self, optimizer: Any) -> None:
        """Raise RuntimeError if a step was made, or gradients were divided, since the last :meth:`update`."""
        if id(optimizer) in self._stepped or id(optimizer) in self._found:
            raise RuntimeError("step() has already been called since the last update()")

    def stepped(self, optimizer: Any, found: Any) -> None:
        """Take note of a step whose gradients something else has divided, as a captured one does: ``found`` is 0 if they
        were finite, float32 (1,) on the device."""
        self._found[id(optimizer)] = found
        self._stepped.add(id(optimizer))

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """The optimizer's step, with gradients divided by the scale; none where one of them is infinite or NaN.

        Returns
        -------
        What the optimizer's step gives; None where it was skipped, and where only the device knows.

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
        result = self._step(optimizer, **kwargs)
        self._stepped.add(id(optimizer))  # not where memory ran out: such a step may be tried again
        return result

    def _step(self, optimizer: Any, **kwargs: Any) -> Any:
        """The step or none, by what was found."""
        found = self._found[id(optimizer)]
        if is_cupy(found):
            may_skip = getattr(optimizer, "may_skip", None)
            if may_skip is not None and not kwargs and may_skip():
                return optimizer.step_unless(found)
            found = self._found[id(optimizer)] = bool(found.item())
        return None if found else optimizer.step(**kwargs)

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
            self._set(self._positive("new_scale", new_scale), self._numbers()[1])
        elif not self._found:
            raise RuntimeError("GradScaler: update() without a step() or unscale_() before it")
        else:
            self._adjust(list(self._found.values()))
        self._found, self._stepped = {}, set()

    def _adjust(self, found: list[Any]) -> None:
        """Shrink or grow; where no overflow was found on the host, the device is asked by a kernel of its own."""
        there = [flag for flag in found if is_cupy(flag)]
        factors = self._growth_factor, self._backoff_factor, self._growth_interval
        if there and not any(flag is True for flag in found):
            self.on_device().adjust(functools.reduce(operator.add, there), *factors)
            return
        scale, tracker = self._numbers()
        if any(flag is True for flag in found):
            self._set(np.float32(scale * np.float32(self._backoff_factor)), 0)
        elif tracker + 1 == self._growth_interval:
            with np.errstate(over="ignore"):
                grown = np.float32(scale * np.float32(self._growth_factor))
            self._set(grown if np.isfinite(grown) else scale, 0)
        else:
            self._set(scale, tracker + 1)

    def is_enabled(self) -> bool:
        return self._enabled

    def get_scale(self) -> float:
        """The scale; 1 while disabled. Where it is on a GPU, this waits for it."""
        return float(self._numbers()[0]) if self._enabled else 1.0

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
        scale, tracker = self._numbers()
        return {
            "scale": float(scale),
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": tracker,
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
        self._set(checked._scale, int(state_dict["_growth_tracker"]))
        for name in ("_growth_factor", "_backoff_factor", "_growth_interval"):
            setattr(self, name, getattr(checked, name))
