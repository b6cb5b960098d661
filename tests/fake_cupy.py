"""A stand-in for the CuPy module on machines without a GPU: arrays in the host's memory, launches in the interpreter.

It proves which way arrays take through convkern, not that CuPy does what it is expected to: that needs a GPU. Where CuPy is
stricter than NumPy it is as strict: its arrays are no NumPy arrays and do not become such by the way, its functions take no
NumPy arrays, sums without axes are arrays, results of arithmetic are C-contiguous, flags do not tell what is writeable, and
only what is listed here exists.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from convkern.kernels.cuda import launch

from . import fake_cublas, fake_device
from .fake_device import MemoryPool, OutOfMemoryError, Stream, synchronous, using_allocator
from .gpu import interpreted

# NumPy's names that CuPy has as well, with the same meaning; what convkern and its tests use of them.
SAME = (
    "abs", "absolute", "add", "all", "allclose", "any", "arange", "argmax", "argsort", "array_equal",
    "broadcast_to", "clip", "concatenate", "copysign", "divide", "dot", "equal", "exp", "expand_dims", "expm1",
    "floor", "full", "greater", "greater_equal", "isfinite", "isnan", "ix_", "less", "less_equal", "log",
    "log1p", "logical_and", "logical_or", "matmul", "max", "maximum", "mean", "min", "minimum", "moveaxis",
    "multiply", "negative", "not_equal", "ones", "ones_like", "power", "reciprocal", "rint", "shape", "sign",
    "sqrt", "square", "stack", "subtract", "sum", "take_along_axis", "tanh", "tile", "true_divide", "where",
    "zeros", "zeros_like", "bitwise_and", "bitwise_or", "bitwise_xor", "invert", "left_shift",
    "right_shift",
)  # fmt: skip
NUMBERS = (bool, int, float, complex, np.generic)


class _Address(NamedTuple):
    """Where an array was when a launch was captured."""

    host: np.ndarray


def _addresses(value: Any) -> Any:
    if isinstance(value, ndarray):
        return _Address(value.host)
    return tuple(map(_addresses, value)) if isinstance(value, tuple) else value


def _host(value: Any) -> Any:
    """What NumPy computes with; NumPy's arrays are refused, as CuPy does."""
    if isinstance(value, (ndarray, _Address)):
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (tuple, list)):
        return type(value)(map(_host, value))
    if isinstance(value, dict):
        return {key: _host(entry) for key, entry in value.items()}
    return value


def _device(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value))
    return tuple(map(_device, value)) if isinstance(value, tuple) else value


def _rows_of(result: Any) -> Any:
    """As CuPy's results lie that are no views: C-contiguous, whatever the operands are, where NumPy's follow those."""
    fresh = isinstance(result, np.ndarray) and result.base is None
    return np.asarray(result, order="C") if fresh else result


def _arrays_in(value: Any) -> Iterator[ndarray]:
    if isinstance(value, ndarray):
        yield value
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _arrays_in(entry)
    elif isinstance(value, dict):
        yield from _arrays_in(list(value.values()))


def _changed(arrays: Any, change: Callable[[], Any]) -> None:
    """Change memory now, or in the graph that is being captured."""
    if fake_device.memory.graph is None:
        change()
    else:
        fake_device.memory.graph.add(lambda: _quietly(change), list(_arrays_in(arrays)))


def _quietly(function: Callable[[], Any]) -> Any:
    with np.errstate(all="ignore"):  # a GPU does not warn
        return function()


def _computed(inputs: Any, compute: Callable[[], Any]) -> Any:
    """New arrays on the device; in a graph that is being captured their values only come when it is launched."""
    result = _quietly(compute)
    arrays = list(_arrays_in(inputs))
    if fake_device.memory.graph is None:
        return _device(result)
    if isinstance(result, np.ndarray) and any(np.may_share_memory(result, array.host) for array in arrays):
        owner = next(array for array in arrays if np.may_share_memory(result, array.host))
        return ndarray(result, owner if owner.base is None else owner.base)
    made = _device(result)
    results = list(_arrays_in(made))
    for number, array in enumerate(results):

        def again(number: int = number, host: np.ndarray = array.host) -> None:
            values = _quietly(compute)
            host[...] = values[number] if isinstance(values, tuple) else values

        _garble(array.host)
        fake_device.memory.graph.add(again, [*arrays, array])
    return made


def _garble(host: np.ndarray) -> None:
    """Values that show where nobody wrote over them."""
    host.reshape(-1).view(np.uint8)[:] = 0xFF


class ndarray:
    """Keeps a NumPy array, ``host``, that only this file and the interpreter look at."""

    def __init__(self, host: np.ndarray, base: ndarray | None = None) -> None:
        self.host, self.base = host, base
        self.pool = None if fake_device.memory.pool is None else weakref.ref(fake_device.memory.pool)
        if base is None:
            fake_device.memory.take(self)

    dtype = property(lambda self: self.host.dtype)
    shape = property(lambda self: self.host.shape)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    strides = property(lambda self: self.host.strides)
    T = property(lambda self: self.transpose())
    data = property(lambda self: SimpleNamespace(ptr=self.host.ctypes.data))

    @property
    def flags(self) -> Any:
        flags = self.host.flags
        return SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=flags.owndata)

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if function.__name__ not in (*SAME, "add"):
            return NotImplemented
        out = options.pop("out", (None,))[0]
        if not all(isinstance(value, (ndarray, np.ndarray, *NUMBERS)) for value in inputs):
            return NotImplemented
        host, more = _host(list(inputs)), _host(options)
        if out is None:
            return _computed([*inputs, options], lambda: _rows_of(getattr(function, method)(*host, **more)))
        target = out.host
        _changed([*inputs, options, out], lambda: target.__setitem__(..., getattr(function, method)(*host, **more)))
        return out

    def __array_function__(self, function: Any, kinds: Any, args: Any, options: Any) -> Any:
        mine = getattr(sys.modules["cupy"], function.__name__, None)
        return NotImplemented if mine is None else mine(*args, **options)

    def _viewed(self, host: Any) -> ndarray:
        shares = np.may_share_memory(host, self.host)
        return ndarray(np.asarray(host), (self if self.base is None else self.base) if shares else None)

    def reshape(self, *shape: Any) -> ndarray:
        host: Any = self.host
        found = host.reshape(*shape)
        if np.may_share_memory(found, host):
            return self._viewed(found)
        return _computed(self, lambda: host.reshape(*shape))  # a copy

    def transpose(self, *axes: Any) -> ndarray:
        return self._viewed(self.host.transpose(*axes))

    def view(self, dtype: Any = None) -> ndarray:
        return self._viewed(self.host.view(dtype) if dtype is not None else self.host.view())

    def __getitem__(self, index: Any) -> ndarray:
        host, place = self.host, _host(index)
        if np.may_share_memory(found := host[place], host):
            return self._viewed(found)
        return _computed([self, index], lambda: host[place])

    def __setitem__(self, index: Any, value: Any) -> None:
        host, place, given = self.host, _host(index), _host(value)
        _changed([self, index, value], lambda: host.__setitem__(place, given))

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> ndarray:
        if not copy and self.host.astype(dtype, order=order, copy=False) is self.host:  # type: ignore[call-overload]
            return self
        host: Any = self.host
        return _computed(self, lambda: host.astype(dtype, order=order))

    def copy(self, order: str = "C") -> ndarray:
        host: Any = self.host
        return _computed(self, lambda: host.copy(order))

    def fill(self, value: Any) -> None:
        host, given = self.host, _host(value)
        _changed([self, value], lambda: host.fill(given))

    def set(self, values: np.ndarray) -> None:
        synchronous("a copy from the host")
        assert type(values) is np.ndarray
        assert (values.shape, values.dtype) == (self.shape, self.dtype)
        self.host[...] = values

    def get(self) -> np.ndarray:
        synchronous("a copy to the host")
        return self.host.copy()

    def item(self) -> Any:
        return self.get().item()

    def __len__(self) -> int:
        return len(self.host)

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __repr__(self) -> str:
        return repr(self.host).replace("array", "cupy.array", 1)

    def __format__(self, how: str) -> str:
        return format(self.host[()] if self.ndim == 0 else self.host, how)


def _method(name: str) -> Callable[..., Any]:
    def method(self: ndarray, *args: Any, **options: Any) -> Any:
        if "initial" in options:
            raise TypeError(f"{name}() got an unexpected keyword argument 'initial'")  # CuPy's has none
        host, given, more = self.host, _host(args), _host(options)
        return _computed([self, args, options], lambda: getattr(host, name)(*given, **more))

    return method


def _operator(name: str) -> Callable[..., Any]:
    def method(self: ndarray, *others: Any) -> Any:
        if others and not isinstance(others[0], (ndarray, np.ndarray, *NUMBERS)):
            return NotImplemented
        if name.endswith("matmul__"):
            _no_cublas()
        host, given = self.host, [_host(other) for other in others]
        if name[2] == "i" and name != "__invert__":
            _changed([self, *others], lambda: getattr(host, name)(*given))
            return self
        return _computed([self, *others], lambda: _rows_of(getattr(host, name)(*given)))

    return method


for _name in ("sum", "max", "min", "mean", "any", "all", "argmax", "argsort", "var", "ravel"):
    setattr(ndarray, _name, _method(_name))
for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "floordiv",
    "mod",
    "lshift",
    "rshift",
):
    for _prefix in ("", "r", "i"):
        setattr(ndarray, f"__{_prefix}{_name}__", _operator(f"__{_prefix}{_name}__"))
for _name in ("neg", "abs", "invert", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
ndarray.__hash__ = None  # type: ignore[assignment]


class _Function:
    """A function of NumPy over this module's arrays; ufuncs have ``at`` as well."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.function is np.matmul:
            _no_cublas()
        given, more = _host(args), _host(options)
        if isinstance(out := options.get("out"), ndarray):
            _changed([args, options], lambda: self.function(*given, **more))
            return out
        order = (lambda result: result) if self.function.__name__.endswith("_like") else _rows_of
        return _computed([args, options], lambda: order(self.function(*given, **more)))

    def at(self, array: ndarray, index: Any, values: Any) -> None:
        host, place, given = array.host, _host(index), _host(values)
        _changed([array, index, values], lambda: self.function.at(host, place, given))


def _no_cublas() -> None:
    if fake_device.memory.graph is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")


def array(values: Any, dtype: Any = None) -> ndarray:
    if isinstance(values, ndarray):
        host = values.host
        return _computed(values, lambda: np.array(host, dtype=dtype))
    synchronous("a copy from the host")
    return ndarray(np.array(values, dtype=dtype))


def empty(shape: Any, dtype: Any) -> ndarray:
    """Full of what would show if nobody wrote over it."""
    made = np.empty(shape, dtype)
    _garble(made)
    return ndarray(made)


def ascontiguousarray(values: ndarray) -> ndarray:
    host = values.host
    return values if host.flags.c_contiguous else _computed(values, lambda: np.array(host, order="C"))


def asarray(values: Any) -> ndarray:
    return values if isinstance(values, ndarray) else array(values)


def may_share_memory(a: ndarray, b: ndarray) -> bool:
    return np.may_share_memory(a.host, b.host)


def asnumpy(values: ndarray) -> np.ndarray:
    return values.get()


class Philox4x3210:
    def __init__(self, seed: Any, *, size: int) -> None:
        self.seed = seed


class Generator:
    """As CuPy's: other numbers than NumPy's, which the seed decides."""

    def __init__(self, bits: Philox4x3210) -> None:
        self.generator = np.random.Generator(np.random.Philox(bits.seed))

    def random(self, size: Any, dtype: Any) -> ndarray:
        synchronous("a draw, whose replays would not be those of the eager step")
        return ndarray(self.generator.random(size, dtype))

    def standard_normal(self, size: Any, dtype: Any) -> ndarray:
        synchronous("a draw, whose replays would not be those of the eager step")
        return ndarray(self.generator.standard_normal(size, dtype))


def module() -> Any:
    """The module."""
    made: Any = ModuleType("cupy")
    own = (ndarray, array, empty, ascontiguousarray, asarray, may_share_memory, asnumpy)
    vars(made).update({name: _Function(getattr(np, name)) for name in SAME}, **{f.__name__: f for f in own})
    made.random = SimpleNamespace(Generator=Generator, Philox4x3210=Philox4x3210)
    runtime = SimpleNamespace(
        getDeviceCount=lambda: 1, getDeviceProperties=lambda number: {"name": b"interpreter"}, CUDARuntimeError=OSError,
        memGetInfo=lambda: (1 << 20, 1 << 30),
    )  # fmt: skip
    made.cuda = SimpleNamespace(
        runtime=runtime, get_device_id=lambda: 0, memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError), Stream=Stream,
        MemoryPool=MemoryPool, using_allocator=using_allocator, get_current_stream=lambda: fake_device.memory.stream,
        cublas=SimpleNamespace(gemmEx=fake_cublas.gemmEx), get_cublas_handle=lambda: fake_cublas.HANDLE,
        Device=lambda: SimpleNamespace(synchronize=lambda: synchronous("a wait for the device")),
    )  # fmt: skip
    made.get_default_memory_pool = lambda: fake_device.memory
    return made


@contextmanager
def installed(target: str = "sm_80") -> Iterator[Any]:
    """Inside the block ``import cupy`` gives this module, and kernels are interpreted as a target has them."""
    previous = sys.modules.get("cupy")
    made = sys.modules["cupy"] = module()
    try:
        with interpreted(target, host=_host):
            run = launch.launcher

            def launcher(kernel: Any, blocks: int, args: launch.Packed) -> None:
                arrays = [entry for value in args for entry in (value if isinstance(value, tuple) else (value,))]
                if fake_device.memory.graph is None:
                    run(kernel, blocks, args)
                else:  # with addresses, which keep nothing alive
                    given = tuple(map(_addresses, args))
                    _changed(arrays, lambda: run(kernel, blocks, given))

            def upload(table: tuple[Any, ...]) -> tuple[Any, ...]:
                synchronous("a copy from the host")
                return table  # the interpreter gives arrays their addresses

            launch.launcher, launch.upload = launcher, upload
            yield made
    finally:
        del sys.modules["cupy"]
        if previous is not None:
            sys.modules["cupy"] = previous
