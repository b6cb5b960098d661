"""Tensor: an array that remembers how it was made."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import device as _device

if TYPE_CHECKING:
    from .graph import Node


class Version:
    """Counts the in-place writes to one array; Tensors that share the array share it."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Tensor:
    """An array with a gradient.

    Parameters
    ----------
    data : array
        NumPy's or CuPy's; shared, not copied (:func:`tensor` copies). Floating dtypes float32 and float64 can require grad.
    requires_grad : bool
        Record what is computed from this Tensor, so that ``backward`` fills ``grad``.

    Attributes
    ----------
    data : numpy.ndarray or cupy.ndarray
    grad : Tensor or None
        Sum of the gradients of all ``backward`` calls since it was last set to None.
    grad_fn : Node or None
        The operation that made this Tensor; None for leaves.
    is_leaf : bool
        Made by the user, not by a recorded operation.
    """

    __slots__ = ("__weakref__", "_data", "grad", "grad_fn", "output_index", "requires_grad", "version")
    __array_ufunc__ = None  # NumPy's operators defer to ours

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        shared = None
        if type(data) is not np.ndarray:
            if isinstance(data, Tensor):
                shared, data = data.version, data._data
            elif isinstance(data, (bool, int, float, list, tuple)) and not isinstance(data, np.generic):
                data = np.asarray(data, dtype=np.float32 if _holds_float(data) else None)
            data = _device.as_array(data, "data")
        self._data: np.ndarray = data
        if requires_grad and data.dtype not in _device.FLOATS:
            raise TypeError(f"requires_grad needs float32 or float64, got {data.dtype}")
        self.grad: Tensor | None = None
        self.requires_grad = requires_grad
        self.grad_fn: Node | None = None
        self.output_index = 0
        self.version: Version = shared or Version()

    # --- what it holds

    @property
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        self._data = _device.as_array(value, "data")
        self.version.count += 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._data.size

    @property
    def dtype(self) -> np.dtype:
        return self._data.dtype

    @property
    def device(self) -> str:
        """Where its array lives: "cpu" or "cuda"."""
        return _device.of(self._data)

    @property
    def is_leaf(self) -> bool:
        return self.grad_fn is None

    @property
    def T(self) -> Tensor:
        return ops.transpose(self)

    def __len__(self) -> int:
        return len(self._data)

    def __bool__(self) -> bool:
        return bool(self._data)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __repr__(self) -> str:
        text = np.array2string(_device.moved(self._data, "cpu"), separator=", ", prefix="tensor(", threshold=100)
        if self.grad_fn is not None:
            return f"tensor({text}, grad_fn=<{self.grad_fn.name}>)"
        return f"tensor({text}{', requires_grad=True' if self.requires_grad else ''})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **kwargs: Any) -> Any:
        self._refuse_gradient()
        return self._data.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._data.__dlpack_device__()

    def _refuse_gradient(self) -> None:
        if self.requires_grad:
            raise RuntimeError("this Tensor requires grad: use .detach().numpy(), or .data to share its array")

    def numpy(self) -> np.ndarray:
        """The array itself, NumPy's; raises where a gradient would get lost, and for an array on a GPU."""
        self._refuse_gradient()
        if _device.is_cupy(self._data):
            raise TypeError("this Tensor lives on cuda: .cpu() moves it first, .data is its CuPy array")
        return self._data

    def item(self) -> Any:
        """The only element as a Python number."""
        return self._data.item()

    def detach(self) -> Tensor:
        """A Tensor of the same array that is a leaf and records nothing."""
        return Tensor(self)

    def clone(self) -> Tensor:
        """A recorded copy."""
        return ops.clone(self)

    def to(self, dtype_or_device: Any) -> Tensor:
        """Convert to another dtype, or move to a device ("auto", "cpu" or "cuda"); recorded.

        Raises
        ------
        ValueError
            For "cuda" where it cannot be used; the message names what is missing.
        """
        if isinstance(dtype_or_device, str) and dtype_or_device in _device.DEVICES:
            return ops.move(self, _device.check(dtype_or_device))
        return ops.cast(self, dtype_or_device)

    def cpu(self) -> Tensor:
        """As ``to("cpu")``."""
        return self.to("cpu")

    def cuda(self) -> Tensor:
        """As ``to("cuda")``."""
        return self.to("cuda")

    # --- gradients

    def backward(self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False) -> None:
        """Add the derivative of this Tensor to ``grad`` of every leaf that it was computed from.

        Parameters
        ----------
        gradient : array or Tensor, optional
            Derivative of what is differentiated with respect to this Tensor, of the same shape; 1 for a scalar.
        retain_graph : bool, optional
            Keep what was saved for a second backward; by default as ``create_graph``.
        create_graph : bool
            Record the backward pass itself, for second derivatives.
        """
        graph.backward(self, gradient, retain_graph, create_graph)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Switch recording for a leaf, for instance to freeze a parameter."""
        if not self.is_leaf:
            raise RuntimeError(
                "requires_grad can be changed on leaves only; use detach() for a Tensor that was computed"
            )
        if requires_grad and self.dtype not in _device.FLOATS:
            raise TypeError(f"requires_grad needs float32 or float64, got {self.dtype}")
        self.requires_grad = requires_grad
        return self

    def retain_grad(self) -> None:
        """Have ``backward`` fill ``grad`` of this Tensor too, though it is not a leaf."""
        if not self.requires_grad:
            raise RuntimeError("retain_grad: this Tensor does not require grad")
        if self.grad_fn is not None:
            self.grad_fn.retained[self.output_index] = weakref.ref(self)

    # --- in-place writes: counted, so that backward can tell that a saved value is no longer what it was

    def mark_changed(self) -> None:
        """Say that the array was written to; whoever writes to ``data`` in place calls this."""
        self.version.count += 1

    def _writeable(self, how: str, value: Any) -> None:
        array = _plain(value)
        if isinstance(array, np.ndarray) or _device.is_cupy(array):
            _device.one(how, ("the Tensor", "the value"), (self._data, array))
        if not graph.is_grad_enabled():
            return
        if self.requires_grad:
            raise RuntimeError(f"{how} writes in place into a Tensor that requires grad; do it under no_grad()")
        if isinstance(value, Tensor) and value.requires_grad:
            raise RuntimeError(f"{how} would lose the gradient of the value; write value.detach(), or under no_grad()")

    def __setitem__(self, index: Any, value: Any) -> None:
        self._writeable("t[index] = value", value)
        self._data[_plain(index)] = _plain(value)
        self.mark_changed()

    def copy_(self, value: Any) -> Tensor:
        """Overwrite with ``value``."""
        self._writeable("copy_", value)
        self._data[...] = _plain(value)
        self.mark_changed()
        return self

    def zero_(self) -> Tensor:
        """Overwrite with zeros."""
        return self.copy_(0)

    def add_(self, value: Any, alpha: float = 1) -> Tensor:
        """Add ``alpha * value`` in place."""
        self._writeable("add_", value)
        self._data += _plain(value) if alpha == 1 else self._data.dtype.type(alpha) * _plain(value)
        self.mark_changed()
        return self

    def mul_(self, value: Any) -> Tensor:
        """Multiply in place."""
        self._writeable("mul_", value)
        self._data *= _plain(value)
        self.mark_changed()
        return self

    # --- arithmetic: each is the function of the same name in convkern.ops

    def __add__(self, other: Any) -> Tensor:
        return ops.add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return ops.sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return ops.sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return ops.mul(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return ops.div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return ops.div(other, self)

    def __pow__(self, exponent: float) -> Tensor:
        return ops.pow(self, exponent)

    def __neg__(self) -> Tensor:
        return ops.neg(self)

    def __matmul__(self, other: Any) -> Tensor:
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return ops.matmul(other, self)

    def __getitem__(self, index: Any) -> Tensor:
        return ops.getitem(self, index)

    # Comparisons give plain boolean arrays: they have no derivative.
    def __gt__(self, other: Any) -> Any:
        return self._data > _plain(other)

    def __ge__(self, other: Any) -> Any:
        return self._data >= _plain(other)

    def __lt__(self, other: Any) -> Any:
        return self._data < _plain(other)

    def __le__(self, other: Any) -> Any:
        return self._data <= _plain(other)

    def sum(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        return ops.sum(self, dim, keepdim)

    def mean(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        return ops.mean(self, dim, keepdim)

    def max(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        return ops.max(self, dim, keepdim)

    def argmax(self, dim: int | None = None) -> np.ndarray:
        return _device.whole(self._data.argmax(dim))

    def reshape(self, *shape: Any) -> Tensor:
        return ops.reshape(self, *shape)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        return ops.flatten(self, start_dim, end_dim)

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        axes = list(range(self.ndim))
        if not all(-self.ndim <= dim < self.ndim for dim in (dim0, dim1)):
            raise ValueError(f"transpose: dim0={dim0}, dim1={dim1} do not fit shape {self.shape}")
        axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
        return ops.transpose(self, axes)

    def permute(self, *dims: Any) -> Tensor:
        return ops.transpose(self, dims[0] if len(dims) == 1 and isinstance(dims[0], Sequence) else dims)

    def exp(self) -> Tensor:
        return ops.exp(self)

    def log(self) -> Tensor:
        return ops.log(self)

    def sqrt(self) -> Tensor:
        return ops.sqrt(self)

    def relu(self) -> Tensor:
        return ops.relu(self)

    def sigmoid(self) -> Tensor:
        return ops.sigmoid(self)

    def tanh(self) -> Tensor:
        return ops.tanh(self)

    def softmax(self, dim: int) -> Tensor:
        return ops.softmax(self, dim)

    def log_softmax(self, dim: int) -> Tensor:
        return ops.log_softmax(self, dim)


def _plain(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


def _holds_float(data: Any) -> bool:
    return bool(np.asarray(data).dtype.kind == "f")


def tensor(data: Any, requires_grad: bool = False) -> Tensor:
    """A Tensor of a copy of ``data``; Python floats become float32.

    Parameters
    ----------
    data : array, Tensor, number or nested list
    requires_grad : bool
        See :class:`Tensor`.

    Returns
    -------
    Tensor
        A leaf.
    """
    shared = Tensor(data)
    return Tensor(_device.copied(shared._data), requires_grad)


from . import graph, ops  # noqa: E402  (the operators above are theirs, and both need Tensor)
