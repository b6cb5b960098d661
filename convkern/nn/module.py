"""Module: a function with parameters, made of other modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np

from .. import device as _device
from ..tensor import Tensor


class Parameter(Tensor):
    """A Tensor that belongs to a Module and is trained."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)


_watchers: list[Callable[[Module, dict[str, Any], Any], None]] = []  # see watch_calls
_hook_keys = count()  # never given twice: an old handle takes nothing else off


class HookHandle:
    """Takes a hook off again."""

    def __init__(self, hooks: dict[int, Any], key: int) -> None:
        self._hooks, self._key = hooks, key

    def remove(self) -> None:
        self._hooks.pop(self._key, None)


class Module:
    """Base of all layers and models: assign Parameters and Modules as attributes, write ``forward``."""

    training: bool

    def __init__(self) -> None:
        self.__dict__.update(_parameters={}, _modules={}, _buffers={}, _hooks={}, training=True)

    def __setattr__(self, name: str, value: Any) -> None:
        if "_parameters" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}: call super().__init__() before assigning {name!r}")
        if isinstance(value, Parameter):
            self._claim(name, self._parameters)[name] = value
        elif isinstance(value, Module):
            self._claim(name, self._modules)[name] = value
        elif name in self._buffers and (isinstance(value, np.ndarray) or _device.is_cupy(value)):
            self._buffers[name] = value
        else:
            self._claim(name, self.__dict__)
            object.__setattr__(self, name, value)

    def _claim(self, name: str, owner: dict[str, Any]) -> dict[str, Any]:
        """Take a name from whatever else it stood for."""
        for registry in (self._parameters, self._modules, self._buffers, self.__dict__):
            if registry is not owner:
                registry.pop(name, None)
        return owner

    def __getattr__(self, name: str) -> Any:
        members = self.__dict__
        for registry in ("_parameters", "_modules", "_buffers"):
            if registry in members and name in members[registry]:
                return members[registry][name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        for registry in (self._parameters, self._modules, self._buffers):
            if registry.pop(name, None) is not None:
                return
        object.__delattr__(self, name)

    def register_buffer(self, name: str, value: np.ndarray) -> None:
        """Keep an array that is saved with the parameters but not trained."""
        if not isinstance(value, np.ndarray) and not _device.is_cupy(value):
            raise TypeError(f"register_buffer: {name} must be a NumPy or CuPy array, got {type(value).__name__}")
        self._claim(name, self._buffers)[name] = value

    def add_module(self, name: str, module: Module) -> None:
        """As ``setattr(self, name, module)``, for names that are made up."""
        if not isinstance(module, Module):
            raise TypeError(f"add_module: {name} must be a Module, got {type(module).__name__}")
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"add_module: name must be text without dots, got {name!r}")
        setattr(self, name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the result; every Module defines its own."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = self.forward(*args, **kwargs)
        except (ValueError, TypeError, MemoryError) as error:
            from .blame import locate

            told = _device.memory_error(error) if isinstance(error, MemoryError) else error
            locate(told, self, args)
            if told is error:
                raise
            raise told from error
        if _watchers:
            for watcher in tuple(_watchers):
                watcher(self, kwargs, result)
        if self._hooks:
            for hook in tuple(self._hooks.values()):
                replaced = hook(self, args, result)
                if replaced is not None:
                    result = replaced
        return result

    def register_forward_hook(self, hook: Callable[[Module, tuple[Any, ...], Any], Any]) -> HookHandle:
        """Call ``hook(module, args, result)`` after every forward; what it gives, unless None, replaces the result."""
        key = next(_hook_keys)
        self._hooks[key] = hook
        return HookHandle(self._hooks, key)

    # --- what it is made of

    def children(self) -> Iterator[Module]:
        """The direct members."""
        yield from self._modules.values()

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, with dotted names; each once."""
        seen: set[int] = set()
        stack: list[tuple[str, Module]] = [(prefix, self)]
        while stack:
            name, module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield name, module
            members = [(f"{name}.{n}" if name else n, m) for n, m in module._modules.items()]
            stack.extend(reversed(members))

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        for _, module in self.named_modules():
            yield module

    def apply(self, fn: Callable[[Module], Any]) -> Module:
        """Call ``fn(module)`` for everything below and then for this module."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def _named(self, registry: str) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for path, module in self.named_modules():
            module._check_ready(path)
            for name, value in module.__dict__[registry].items():
                if id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def _check_ready(self, name: str) -> None:
        """Raise if the parameters of the module of that name are not known yet, see :mod:`convkern.nn.lazy`."""

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters with dotted names; a shared one once."""
        yield from self._named("_parameters")

    def parameters(self) -> Iterator[Parameter]:
        """All parameters."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self) -> Iterator[tuple[str, np.ndarray]]:
        """All buffers with dotted names."""
        yield from self._named("_buffers")

    def buffers(self) -> Iterator[np.ndarray]:
        """All buffers."""
        for _, buffer in self.named_buffers():
            yield buffer

    # --- what state it is in

    def train(self, mode: bool = True) -> Module:
        """Switch everything below to training (or evaluation) behaviour."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self) -> Module:
        """Switch everything below to evaluation behaviour."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Freeze or unfreeze all parameters."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, dtype_or_device: Any) -> Module:
        """Convert all floating parameters and buffers to a dtype, or move them to a device ("auto", "cpu" or "cuda").

        Gradients are forgotten. An optimizer goes on with the moved parameters and takes its state along. Buffers of
        integers, which count, stay on the CPU.

        Raises
        ------
        ValueError
            For "cuda" where it cannot be used; the message names what is missing.
        """
        if isinstance(dtype_or_device, str) and dtype_or_device in _device.DEVICES:
            place = _device.check(dtype_or_device)
            return self._converted(lambda array: _device.moved(array, place))
        dtype = np.dtype(dtype_or_device)
        if dtype not in _device.FLOATS:
            raise TypeError(f"to: parameters are float32 or float64, got {dtype}")
        return self._converted(lambda array: array.astype(dtype))

    def _converted(self, convert: Callable[[np.ndarray], np.ndarray]) -> Module:
        for parameter in self.parameters():
            parameter.data = convert(parameter.data)
            parameter.grad = None
        for module in self.modules():
            for name, value in module._buffers.items():
                if value.dtype in _device.FLOATS:
                    module._buffers[name] = convert(value)
        return self

    def cpu(self) -> Module:
        """As ``to("cpu")``."""
        return self.to("cpu")

    def cuda(self) -> Module:
        """As ``to("cuda")``."""
        return self.to("cuda")

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers by their dotted names, in NumPy arrays wherever the model is."""
        named = {name: _device.cpu_copy(p.data) for name, p in self.named_parameters()}
        named.update((name, _device.cpu_copy(b)) for name, b in self.named_buffers())
        return named

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Overwrite all parameters and buffers, where they are, with arrays from any device.

        Raises
        ------
        ValueError
            Naming everything that is missing, unexpected or of another shape or kind; nothing is changed then.
        """
        targets: dict[str, np.ndarray] = {name: p.data for name, p in self.named_parameters()}
        targets.update(self.named_buffers())
        wrong = [f"missing {name}" for name in targets if name not in state]
        wrong += [f"unexpected {name}" for name in state if name not in targets]
        arrays = {name: _device.as_array(_plain(state[name]), name) for name in targets if name in state}
        wrong += [
            f"{name} has shape {array.shape}, expected {targets[name].shape}"
            for name, array in arrays.items()
            if array.shape != targets[name].shape
        ]
        wrong += [
            f"{name} has dtype {array.dtype}, which does not convert to {targets[name].dtype}"
            for name, array in arrays.items()
            if not np.can_cast(array.dtype, targets[name].dtype, "same_kind")
        ]
        if wrong:
            raise ValueError(f"load_state_dict: the state does not fit {type(self).__name__}: {'; '.join(wrong)}")
        for name, array in arrays.items():
            targets[name][...] = _device.moved(array, _device.of(targets[name]))
        for parameter in self.parameters():
            parameter.mark_changed()

    def window(self, axis: int, before: int, after: int) -> tuple[float, float]:
        """What a pixel of the result sees along an axis: for the receptive fields of :meth:`summary`.

        Parameters
        ----------
        axis : int
            Of the pixels, from 0.
        before, after : int
            The size of the input and of the result along it.

        Returns
        -------
        (float, float)
            Pixels of the input, dilation counted, and those from one pixel of the result to the next. By default one and one;
            layers with windows say otherwise.
        """
        return 1, 1

    def extra_repr(self) -> str:
        """What ``repr`` says about this module's options."""
        return ""

    def __repr__(self) -> str:
        lines = [
            f"  ({name}): {repr(module).replace(chr(10), chr(10) + '  ')}" for name, module in self._modules.items()
        ]
        head = f"{type(self).__name__}({self.extra_repr()}"
        return "\n".join([head, *lines, ")"]) if lines else f"{head})"

    def summary(self, input_shape: tuple[int, ...]) -> Any:
        """Layer by layer: output shape, parameters, multiply-adds, memory of the output, receptive field.

        Parameters
        ----------
        input_shape : tuple of int
            One image (C, H, W), or a batch (N, C, H, W); with as many axes as the first convolution takes.

        Returns
        -------
        convkern.nn.summary.Summary
            Prints as a table.
        """
        from .summary import summarize

        return summarize(self, input_shape)


@contextmanager
def watch_calls(watcher: Callable[[Module, dict[str, Any], Any], None]) -> Iterator[None]:
    """Call ``watcher(module, kwargs, result)`` after every forward of any module, in any thread, in this context.

    Unlike a hook, a watcher changes nothing: layers that compute their ReLU in the same pass go on doing so, and are called
    with ``activation="relu"`` among the ``kwargs``.
    """
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def _plain(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value
