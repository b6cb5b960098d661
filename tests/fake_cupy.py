"""A stand-in for the CuPy module on machines without a GPU: arrays in the host's memory, launches in the interpreter.

It proves which way arrays take through convkern, not that CuPy does what it is expected to: that needs a GPU. Where CuPy is
stricter than NumPy it is as strict: its arrays are no NumPy arrays and do not become such by the way, its functions take no
NumPy arrays, sums without axes are arrays, flags do not tell what is writeable, and only what is listed here exists.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from .gpu import interpreted

# NumPy's names that CuPy has as well, with the same meaning; what convkern and its tests use of them.
SAME = (
    "abs", "absolute", "add", "all", "allclose", "any", "arange", "argmax", "argsort", "array_equal",
    "broadcast_to", "clip", "concatenate", "copysign", "divide", "equal", "exp", "expand_dims", "expm1",
    "floor", "full", "greater", "greater_equal", "isfinite", "isnan", "ix_", "less", "less_equal", "log",
    "log1p", "logical_and", "logical_or", "matmul", "max", "maximum", "mean", "min", "minimum", "moveaxis",
    "multiply", "negative", "not_equal", "ones", "ones_like", "power", "reciprocal", "rint", "shape", "sign",
    "sqrt", "square", "stack", "subtract", "sum", "take_along_axis", "tanh", "tile", "true_divide", "where",
    "zeros", "zeros_like", "bitwise_and", "bitwise_or", "bitwise_xor", "invert",
)  # fmt: skip
NUMBERS = (bool, int, float, complex, np.generic)


def _host(value: Any) -> Any:
    """What NumPy computes with; NumPy's arrays are refused, as CuPy does."""
    if isinstance(value, ndarray):
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


class OutOfMemoryError(MemoryError):
    """As CuPy's, which raises it after its pool gave back what it kept and the driver refused again."""


class Memory:
    """The device's: what is in use, which allocations fail, and the graph that is being captured."""

    def __init__(self) -> None:
        self.used = self.taken = self.given_back = 0  # bytes, allocations, calls that empty the pool
        self.fails: Callable[[int], bool] = lambda number: False  # by the allocation's number

    def take(self, array: ndarray) -> None:
        self.taken += 1
        if self.fails(self.taken - 1):
            raise OutOfMemoryError(
                f"Out of memory allocating {array.nbytes:,} bytes (allocated so far: {self.used:,} bytes)."
            )
        self.used += array.nbytes
        weakref.finalize(array, self._give, array.nbytes)

    def _give(self, nbytes: int) -> None:
        self.used -= nbytes

    def free_all_blocks(self) -> None:
        self.given_back += 1


_memory = Memory()


class ndarray:
    """Keeps a NumPy array, ``host``, that only this file and the interpreter look at."""

    def __init__(self, host: np.ndarray, base: ndarray | None = None) -> None:
        self.host, self.base = host, base
        if base is None:
            _memory.take(self)

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
        with np.errstate(all="ignore"):  # a GPU does not warn
            result = getattr(function, method)(*map(_host, inputs), **_host(options))
        if out is None:
            return _device(result)
        out[...] = _device(result)
        return out

    def __array_function__(self, function: Any, kinds: Any, args: Any, options: Any) -> Any:
        mine = getattr(sys.modules["cupy"], function.__name__, None)
        return NotImplemented if mine is None else mine(*args, **options)

    def _viewed(self, host: Any) -> ndarray:
        shares = np.may_share_memory(host, self.host)
        return ndarray(np.asarray(host), (self if self.base is None else self.base) if shares else None)

    def reshape(self, *shape: Any) -> ndarray:
        return self._viewed(self.host.reshape(*shape))

    def transpose(self, *axes: Any) -> ndarray:
        return self._viewed(self.host.transpose(*axes))

    def view(self, dtype: Any = None) -> ndarray:
        return self._viewed(self.host.view(dtype) if dtype is not None else self.host.view())

    def __getitem__(self, index: Any) -> ndarray:
        return self._viewed(self.host[_host(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.host[_host(index)] = _host(value)

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> ndarray:
        made = self.host.astype(dtype, order=order, copy=copy)  # type: ignore[call-overload]
        return self if made is self.host else ndarray(made)

    def copy(self, order: str = "C") -> ndarray:
        return ndarray(self.host.copy(order))  # type: ignore[arg-type]

    def fill(self, value: Any) -> None:
        self.host.fill(_host(value))

    def get(self) -> np.ndarray:
        return self.host.copy()

    def item(self) -> Any:
        return self.host.item()

    def __len__(self) -> int:
        return len(self.host)

    def __bool__(self) -> bool:
        return bool(self.host)

    def __int__(self) -> int:
        return int(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def __repr__(self) -> str:
        return repr(self.host).replace("array", "cupy.array", 1)

    def __format__(self, how: str) -> str:
        return format(self.host[()] if self.ndim == 0 else self.host, how)


def _method(name: str) -> Callable[..., Any]:
    def method(self: ndarray, *args: Any, **options: Any) -> Any:
        if "initial" in options:
            raise TypeError(f"{name}() got an unexpected keyword argument 'initial'")  # CuPy's has none
        return _device(getattr(self.host, name)(*_host(args), **_host(options)))

    return method


def _operator(name: str) -> Callable[..., Any]:
    def method(self: ndarray, *others: Any) -> Any:
        if others and not isinstance(others[0], (ndarray, np.ndarray, *NUMBERS)):
            return NotImplemented
        with np.errstate(all="ignore"):
            result = getattr(self.host, name)(*map(_host, others))
        return self if result is self.host else _device(result)

    return method


for _name in ("sum", "max", "min", "mean", "any", "all", "argmax", "argsort", "var", "ravel"):
    setattr(ndarray, _name, _method(_name))
for _name in ("add", "sub", "mul", "truediv", "pow", "matmul", "and", "or", "xor", "floordiv", "mod"):
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
        with np.errstate(all="ignore"):
            return _device(self.function(*_host(args), **_host(options)))

    def at(self, array: ndarray, index: Any, values: Any) -> None:
        self.function.at(array.host, _host(index), _host(values))


def array(values: Any, dtype: Any = None) -> ndarray:
    return ndarray(np.array(values.host if isinstance(values, ndarray) else values, dtype=dtype))


def empty(shape: Any, dtype: Any) -> ndarray:
    """Full of what would show if nobody wrote over it."""
    made = np.empty(shape, dtype)
    made.reshape(-1).view(np.uint8)[:] = 0xFF
    return ndarray(made)


def ascontiguousarray(values: ndarray) -> ndarray:
    return values if values.host.flags.c_contiguous else ndarray(np.ascontiguousarray(values.host))


def asarray(values: Any) -> ndarray:
    return values if isinstance(values, ndarray) else array(values)


def may_share_memory(a: ndarray, b: ndarray) -> bool:
    return np.may_share_memory(a.host, b.host)


def asnumpy(values: ndarray) -> np.ndarray:
    return values.host.copy()


class Philox4x3210:
    def __init__(self, seed: Any, *, size: int) -> None:
        self.seed = seed


class Generator:
    """As CuPy's: other numbers than NumPy's, which the seed decides."""

    def __init__(self, bits: Philox4x3210) -> None:
        self.generator = np.random.Generator(np.random.Philox(bits.seed))

    def random(self, size: Any, dtype: Any) -> ndarray:
        return ndarray(self.generator.random(size, dtype))

    def standard_normal(self, size: Any, dtype: Any) -> ndarray:
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
        runtime=runtime, get_device_id=lambda: 0, memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    )
    made.get_default_memory_pool = lambda: _memory
    return made


@contextmanager
def installed() -> Iterator[Any]:
    """Inside the block ``import cupy`` gives this module."""
    previous = sys.modules.get("cupy")
    made = sys.modules["cupy"] = module()
    try:
        with interpreted("sm_80", host=_host):
            yield made
    finally:
        del sys.modules["cupy"]
        if previous is not None:
            sys.modules["cupy"] = previous
