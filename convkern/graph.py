"""The graph: recording operations and walking back through them. It knows no operation.

An operation calls ``record(name, out, parents, vjp, saved)``. ``vjp(needs, gy, *saved)`` gives one gradient for each
parent (None where ``needs`` is False); it is written with the public functions, which take arrays as well as Tensors: in
an ordinary backward pass it receives arrays and computes with arrays, under ``create_graph`` it receives Tensors and so
records itself.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .device import FLOATS, as_array, copied, is_cupy, library, memory_error, of, one, whole
from .memory import is_view
from .tensor import Tensor, Version

Vjp = Callable[..., Sequence[Any]]


# How two gradients of one value become one; `convkern.ops` puts its own addition here, which uses all threads.
add: Callable[[Any, Any], Any] = operator.add


class _Mode(threading.local):
    enabled = True


_mode = _Mode()


def is_grad_enabled() -> bool:
    """Whether operations on this thread are recorded."""
    return _mode.enabled


@contextmanager
def set_grad_enabled(enabled: bool) -> Iterator[None]:
    """Switch recording on or off for a ``with`` block or a decorated function."""
    before = _mode.enabled
    _mode.enabled = enabled
    try:
        yield
    finally:
        _mode.enabled = before


def no_grad() -> Any:
    """Record nothing on this thread: ``with no_grad():``, or ``@no_grad()`` above a function.

    Returns
    -------
    context manager and decorator
    """
    return set_grad_enabled(False)


class Folded:
    """A gradient that an operation gives without writing it out, as the one before may need it only in passing.

    Attributes
    ----------
    parts : tuple
        What the gradient is made of, for an operation that was recorded with ``takes_folded``.
    unfold : callable
        Gives the array, for everybody else.
    """

    __slots__ = ("dtype", "parts", "shape", "unfold")

    def __init__(self, shape: tuple[int, ...], dtype: Any, parts: tuple[Any, ...], unfold: Callable[[], Any]) -> None:
        self.shape, self.dtype, self.parts, self.unfold = shape, dtype, parts, unfold


class Node:
    """One recorded operation: what it needs to go backward, and where each parent's gradient goes."""

    __slots__ = ("__weakref__", "edges", "name", "outputs", "retained", "saved", "takes_folded", "vjp")

    def __init__(self, name: str, edges: list[Any], vjp: Vjp, outputs: list[tuple[tuple[int, ...], Any]]) -> None:
        self.name = name
        self.edges = edges  # per parent: (Node, output index), the leaf Tensor, or None
        self.vjp = vjp
        self.saved: list[Any] | None = []
        self.outputs = outputs  # (shape, dtype) each
        self.retained: dict[int, Any] = {}
        self.takes_folded = False


class _Saved:
    """A saved Tensor without its Node's other results: the array, its version then, and where its gradient goes."""

    __slots__ = ("count", "data", "edge", "version")

    def __init__(self, value: Tensor, edge: Any) -> None:
        self.data = value._data
        self.version: Version = value.version
        self.count = self.version.count
        self.edge = edge

    def unpack(self, node: Node, create_graph: bool) -> Any:
        if self.version.count != self.count:
            raise RuntimeError(
                f"a Tensor that the gradient of {node.name} needs was changed in place after it was used (its version "
                f"is {self.version.count}, {self.count} was recorded); call backward before the write, or write to a clone()"
            )
        if not create_graph:
            return self.data
        if isinstance(self.edge, Tensor):
            return self.edge
        value = Tensor(self.data)
        value.version = self.version
        if self.edge is not None:
            value.requires_grad = True
            value.grad_fn, value.output_index = self.edge if self.edge[0] is not None else (node, self.edge[1])
        return value


def _edge(parent: Any) -> Any:
    if not isinstance(parent, Tensor) or not parent.requires_grad:
        return None
    return parent if parent.grad_fn is None else (parent.grad_fn, parent.output_index)


def record(
    name: str, out: Any, parents: Sequence[Any], vjp: Vjp, saved: Sequence[Any] = (), takes_folded: bool = False
) -> Any:
    """Wrap the result of an operation, and remember how to go back through it if a parent requires grad.

    Parameters
    ----------
    name : str
        The operation, for messages.
    out : array or tuple of arrays
    parents : sequence
        What it was computed from: arrays, Tensors, None.
    vjp : callable
        ``vjp(needs, gy, *saved)``; with several outputs ``gy`` is a tuple that may hold None.
    saved : sequence
        What ``vjp`` needs of the inputs and outputs; ``out`` itself (or one of the outputs) may be among them.
    takes_folded : bool
        Whether the ``gy`` of a single output may be :class:`Folded`.

    Returns
    -------
    The array itself when no parent is a Tensor, otherwise a Tensor (or a tuple of them).
    """
    for parent in parents:
        if isinstance(parent, Tensor):
            break
    else:
        return out
    arrays = out if isinstance(out, tuple) else (out,)
    results = [Tensor(array) for array in arrays]
    for result in results:
        if is_view(result._data):
            _share_version(result, parents)
    edges = [_edge(parent) for parent in parents] if _mode.enabled else []
    if edges.count(None) < len(edges):
        node = Node(name, edges, vjp, [(a.shape, a.dtype) for a in arrays])
        for index, result in enumerate(results):
            if result._data.dtype in FLOATS:
                result.requires_grad, result.grad_fn, result.output_index = True, node, index
        node.saved = [_saved(value, arrays, results) for value in saved]
        node.takes_folded = takes_folded
    return tuple(results) if arrays is out else results[0]


def _saved(value: Any, arrays: Sequence[Any], results: Sequence[Tensor]) -> Any:
    for index, array in enumerate(arrays):
        if value is array:
            # An own output is saved without its Node: the two would keep each other alive.
            return _Saved(results[index], (None, index))
    return _Saved(value, _edge(value)) if isinstance(value, Tensor) else value


def _share_version(result: Tensor, parents: Sequence[Any]) -> None:
    """A view of a parent's array counts the writes to that array."""
    view = result._data
    for parent in parents:
        if not isinstance(parent, Tensor):
            continue
        array = parent._data
        if view.base is array or (of(array) == of(view) and np.may_share_memory(view, array)):
            result.version = parent.version
            return


def backward(root: Tensor, gradient: Any, retain_graph: bool | None, create_graph: bool) -> None:
    """See :meth:`Tensor.backward`."""
    if not root.requires_grad:
        raise RuntimeError("backward: this Tensor does not require grad and was not computed from one that does")
    if retain_graph is None:
        retain_graph = create_graph
    try:
        seed = _seed(root, gradient, create_graph)
        if root.grad_fn is None:
            _accumulate(root, seed, create_graph, {id(seed)})
            return
        with set_grad_enabled(create_graph):
            _walk(root, seed, retain_graph, create_graph)
    except MemoryError as error:
        told = memory_error(error)
        if told is error:
            raise
        raise told from error


def _seed(root: Tensor, gradient: Any, create_graph: bool) -> Any:
    if gradient is None:
        if root.size != 1:
            raise RuntimeError(
                f"backward without a gradient needs a scalar, this Tensor has shape {root.shape}; "
                "pass gradient= of the same shape, or reduce with sum() or mean() first"
            )
        gradient = library(root.data).ones(root.shape, root.dtype)
    array = gradient.data if isinstance(gradient, Tensor) else as_array(gradient, "gradient")
    one("backward", ("gradient", "the Tensor"), (array, root.data))
    if array.shape != root.shape:
        raise ValueError(f"backward: gradient must have the Tensor's shape {root.shape}, got {array.shape}")
    if array.dtype != root.dtype:
        raise TypeError(f"backward: gradient must have the Tensor's dtype {root.dtype}, got {array.dtype}")
    if create_graph:
        return gradient if isinstance(gradient, Tensor) else Tensor(array)
    return array


def _count_uses(root: Node) -> dict[Node, int]:
    """How many gradients each Node waits for."""
    uses = {root: 0}
    stack = [root]
    while stack:
        for edge in stack.pop().edges:
            if type(edge) is tuple:
                if edge[0] not in uses:
                    uses[edge[0]] = 0
                    stack.append(edge[0])
                uses[edge[0]] += 1
    return uses


def _walk(root: Tensor, seed: Any, retain_graph: bool, create_graph: bool) -> None:
    assert root.grad_fn is not None
    waiting = _count_uses(root.grad_fn)
    grads: dict[Node, list[Any]] = {root.grad_fn: [None] * len(root.grad_fn.outputs)}
    grads[root.grad_fn][root.output_index] = seed
    given: set[int] = {id(seed)}  # arrays that already belong to somebody
    ready = [root.grad_fn]
    while ready:
        node = ready.pop()
        gys = grads.pop(node, [None] * len(node.outputs))
        for index, reference in node.retained.items():
            if (kept := reference()) is not None and gys[index] is not None:
                _accumulate(kept, gys[index], create_graph, given)
        for edge, gradient in zip(node.edges, _parents_gradients(node, gys, create_graph), strict=True):
            if edge is None:
                continue
            if type(gradient) is Folded and not (type(edge) is tuple and _takes(edge[0], grads)):
                gradient = gradient.unfold()
            if type(edge) is not tuple:
                if gradient is not None:
                    _accumulate(edge, _fitted(gradient, edge.shape, edge.dtype, node), create_graph, given)
                continue
            parent, index = edge
            if gradient is not None:
                shape, dtype = parent.outputs[index]
                gradient = _fitted(gradient, shape, dtype, node)
                slots = grads.get(parent)
                if slots is None:
                    slots = grads[parent] = [None] * len(parent.outputs)
                held = slots[index]
                if type(held) is Folded:
                    held = held.unfold()
                slots[index] = gradient if held is None else add(held, gradient)
            waiting[parent] -= 1
            if waiting[parent] == 0:
                ready.append(parent)
        if not retain_graph:
            node.saved = None


def _takes(node: Node, grads: dict[Node, list[Any]]) -> bool:
    """Whether a gradient may reach a node folded: as its first, and if nobody else wants to see it."""
    return node.takes_folded and node not in grads and not node.retained


def _parents_gradients(node: Node, gys: list[Any], create_graph: bool) -> Sequence[Any]:
    if node.saved is None:
        raise RuntimeError(
            f"backward went through {node.name} before and freed what it had saved; "
            "pass retain_graph=True to the first call to go through the graph twice"
        )
    if gys[0] is None and all(gy is None for gy in gys):
        return [None] * len(node.edges)
    saved = [v.unpack(node, create_graph) if type(v) is _Saved else v for v in node.saved]
    gy = gys[0] if len(gys) == 1 else tuple(gys)
    gradients = node.vjp([edge is not None for edge in node.edges], gy, *saved)
    if len(gradients) != len(node.edges):
        raise RuntimeError(f"the gradient of {node.name} gave {len(gradients)} results for {len(node.edges)} inputs")
    return gradients


def _fitted(gradient: Any, shape: tuple[int, ...], dtype: Any, node: Node) -> Any:
    """A gradient that ``node`` gave, in the dtype of the input that it belongs to."""
    if gradient.shape != shape:
        raise RuntimeError(f"the gradient of {node.name} has shape {gradient.shape} for an input of shape {shape}")
    if gradient.dtype == dtype:
        return gradient
    return gradient.to(dtype) if isinstance(gradient, Tensor) else gradient.astype(dtype)


def _accumulate(target: Tensor, gradient: Any, create_graph: bool, given: set[int]) -> None:
    """Add a gradient to ``target.grad``, which never shares its array with anything else."""
    if create_graph:
        target.grad = gradient.clone() if target.grad is None else target.grad + gradient
        return
    array = whole(gradient)
    if target.grad is not None:
        target.grad = Tensor(whole(add(target.grad.data, array)))
    else:
        if id(array) in given or is_view(array) or not getattr(array.flags, "writeable", True):
            array = copied(array)
        given.add(id(array))
        target.grad = Tensor(array)


class Context:
    """What a Function keeps between forward and backward."""

    def __init__(self) -> None:
        self.to_save: tuple[Any, ...] = ()
        self.saved_tensors: tuple[Any, ...] = ()
        self.needs_input_grad: tuple[bool, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep inputs or outputs for ``backward``, where they are ``saved_tensors``."""
        self.to_save = tensors


class Function:
    """An operation of your own: a forward and its derivative.

    Write a subclass with two static methods and call it through ``apply``. Both receive Tensors and give Tensors or
    arrays; ``backward`` gives one gradient for each argument of ``apply``, None for those that have none. With the
    operations of convkern in ``backward``, second derivatives work too.

    Examples
    --------
    >>> import numpy as np, convkern as ck
    >>> class Softplus(ck.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         ctx.save_for_backward(x)
    ...         return np.log1p(np.exp(x.data))
    ...     @staticmethod
    ...     def backward(ctx, gy):
    ...         (x,) = ctx.saved_tensors
    ...         return gy * x.sigmoid()
    >>> x = ck.tensor([0.0], requires_grad=True)
    >>> Softplus.apply(x).sum().backward()
    >>> x.grad
    tensor([0.5])
    """

    @staticmethod
    def forward(ctx: Context, *args: Any, **kwargs: Any) -> Any:
        """Compute the result from Tensors."""
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Context, *grads: Any, **kwargs: Any) -> Any:
        """Compute the gradients of the arguments from those of the results."""
        raise NotImplementedError

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run ``forward`` and record it."""
        ctx = Context()
        ctx.needs_input_grad = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
        with no_grad():
            result = cls.forward(ctx, *(Tensor(a) if isinstance(a, np.ndarray) or is_cupy(a) else a for a in args))
        outputs = result if isinstance(result, tuple) else (result,)
        # Identity tells record() which saved values are outputs, so outputs are unwrapped the same way in both places.
        arrays = tuple(_array(cls, value) for value in outputs)
        own = {id(value): array for value, array in zip(outputs, arrays, strict=True)}
        saved = [own.get(id(value), value) for value in ctx.to_save]
        ctx.to_save = ()  # the Node keeps them now, and lets go of them after backward
        facts = [(library(array), array.shape, array.dtype) for array in arrays]

        def vjp(needs: list[bool], gy: Any, *values: Any) -> Sequence[Any]:
            ctx.saved_tensors = tuple(v if isinstance(v, Tensor) or v is None else Tensor(v) for v in values)
            grads = gy if isinstance(gy, tuple) else (gy,)
            zeroed = (f[0].zeros(*f[1:]) if g is None else g for g, f in zip(grads, facts, strict=True))
            given = cls.backward(ctx, *(g if isinstance(g, Tensor) else Tensor(g) for g in zeroed))
            ctx.saved_tensors = ()
            return [_gradient(cls, g) for g in (given if isinstance(given, tuple) else (given,))]

        return record(cls.__name__, arrays if isinstance(result, tuple) else arrays[0], args, vjp, saved)


def _array(cls: type, value: Any) -> np.ndarray:
    # A Tensor given back unchanged would share its identity with the input, so it gets an array object of its own.
    return value.data.view() if isinstance(value, Tensor) else as_array(value, f"the result of {cls.__name__}.forward")


def _gradient(cls: type, value: Any) -> Any:
    """What a backward gave, as the walk takes it: a Tensor under create_graph, an array otherwise."""
    if value is None:
        return None
    array = value.data if isinstance(value, Tensor) else as_array(value, f"a gradient from {cls.__name__}.backward")
    if _mode.enabled:
        return value if isinstance(value, Tensor) else Tensor(array)
    return array.view()  # never taken for a fresh array: it may be one that the user keeps
