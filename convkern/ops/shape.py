"""Operations that move values: reshape, transpose, index, concatenate, broadcast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import device
from ..graph import record
from ..kernels.spec import ChannelSpec
from ..kernels.variant import Problem
from ..plan import execute
from . import arguments as arg


def reshape(x: Any, *shape: Any) -> Any:
    """The same values in another shape; one size may be -1."""
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
    xa = arg.array_of(x, "x")
    try:
        y = xa.reshape(tuple(sizes))
    except ValueError:
        raise ValueError(f"reshape: x of shape {xa.shape} does not fit into {tuple(sizes)}") from None
    before = xa.shape
    return record("reshape", y, (x,), lambda needs, gy: [reshape(gy, before)])


def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Join the axes from ``start_dim`` to ``end_dim`` into one."""
    shape = arg.array_of(x, "x").shape
    first, last = (d + len(shape) if d < 0 else d for d in (start_dim, end_dim))
    if not 0 <= first <= last < len(shape):
        raise ValueError(f"flatten: start_dim={start_dim}, end_dim={end_dim} do not fit shape {shape}")
    return reshape(x, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))


def transpose(x: Any, axes: Sequence[int] | None = None) -> Any:
    """Permute the axes; reversed by default."""
    xa = arg.array_of(x, "x")
    order = tuple(reversed(range(xa.ndim))) if axes is None else tuple(a + xa.ndim if a < 0 else a for a in axes)
    if sorted(order) != list(range(xa.ndim)):
        raise ValueError(f"transpose: axes must name each of {xa.ndim} axes once, got {axes}")
    back = tuple(int(i) for i in np.argsort(order))
    return record("transpose", xa.transpose(order), (x,), lambda needs, gy: [transpose(gy, back)])


def expand(x: Any, shape: Sequence[int]) -> Any:
    """Broadcast to ``shape``."""
    xa = arg.array_of(x, "x")
    try:
        y = np.broadcast_to(xa, tuple(shape))
    except ValueError:
        raise ValueError(f"expand: x of shape {xa.shape} does not broadcast to {tuple(shape)}") from None
    before = xa.shape
    return record("expand", y, (x,), lambda needs, gy: [sum_to(gy, before)])


def total(xa: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
    """The sum along axes; on a GPU by a row of ours where the axes that stay are neighbours."""
    kept = [i for i in range(xa.ndim) if i not in axes]
    neighbours = not kept or kept[-1] - kept[0] == len(kept) - 1
    if not device.is_cupy(xa) or xa.dtype != np.float32 or not neighbours or not axes:
        return device.whole(xa.sum(axis=axes, keepdims=keepdims))
    if kept in ([1], []) and device.is_channels_last(xa):  # channels behind all else, in any order
        flat = device.to_last(xa).reshape(-1, xa.shape[1] if kept else 1, 1)
    else:
        first, last = (kept[0], kept[-1] + 1) if kept else (xa.ndim, xa.ndim)
        sizes = (math.prod(xa.shape[a:b]) for a, b in ((0, first), (first, last), (last, xa.ndim)))
        flat = device.kernel_array(xa).reshape(*sizes)
    spec = ChannelSpec(*flat.shape)
    y = device.empty(spec.c, xa.dtype)
    execute(Problem("reduce", "sum", "cuda", "float32", "default", spec), flat, out=y)
    return y.reshape(tuple(1 if i in axes else n for i, n in enumerate(xa.shape) if keepdims or i not in axes))


def sum_to(x: Any, shape: Sequence[int]) -> Any:
    """Sum over the axes along which ``shape`` was broadcast to x's shape: the reverse of :func:`expand`."""
    xa = arg.array_of(x, "x")
    if xa.shape == tuple(shape):
        return x
    lead = xa.ndim - len(shape)
    stretched = tuple(i + lead for i, n in enumerate(shape) if n == 1 and xa.shape[i + lead] != 1)
    y = total(xa, (*range(lead), *stretched), True).reshape(tuple(shape))
    before = xa.shape
    return record("sum_to", y, (x,), lambda needs, gy: [expand(gy, before)])


def cast(x: Any, dtype: Any) -> Any:
    """Convert to another dtype."""
    xa = arg.array_of(x, "x")
    if xa.dtype == np.dtype(dtype):
        return x
    before = xa.dtype
    return record("cast", xa.astype(dtype), (x,), lambda needs, gy: [cast(gy, before)])


def move(x: Any, place: str) -> Any:
    """To another device, "cpu" or "cuda"; the gradient comes back."""
    xa = arg.array_of(x, "x")
    before = device.of(xa)
    if before == place:
        return x
    return record("move", device.moved(xa, place), (x,), lambda needs, gy: [move(gy, before)])


def clone(x: Any) -> Any:
    """A copy."""
    return record("clone", device.copied(arg.array_of(x, "x")), (x,), lambda needs, gy: [gy])


def _plain_index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_plain_index(i) for i in index)
    return arg.array_of(index, "index") if hasattr(index, "grad_fn") else index


def _is_basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(isinstance(p, (int, np.integer, slice)) or p is None or p is Ellipsis for p in parts)


def getitem(x: Any, index: Any) -> Any:
    """``x[index]`` with anything that NumPy takes as an index; arrays in it live on x's device."""
    xa = arg.array_of(x, "x")
    index = _plain_index(index)
    for part in index if isinstance(index, tuple) else (index,):
        if hasattr(part, "dtype") and hasattr(part, "__len__"):
            device.one("getitem", ("x", "index"), (xa, part))
    y = device.whole(xa[index])
    before, last = xa.shape, device.is_channels_last(xa)
    return record("getitem", y, (x,), lambda needs, gy: [_put(gy, index, before, last)])


def _put(gy: Any, index: Any, shape: tuple[int, ...], last: bool) -> Any:
    """Zeros of ``shape`` with gy added at ``index``; a pixel that was read twice receives twice."""
    ga = arg.array_of(gy, "gy")
    library = device.library(ga)
    gx = _zeros(library, shape, ga.dtype, last)
    if _is_basic(index):
        gx[index] = ga
    else:
        library.add.at(gx, index, ga)
    return record("getitem backward", gx, (gy,), lambda needs, ggx: [getitem(ggx, index)])


def _zeros(library: Any, shape: tuple[int, ...], dtype: Any, last: bool) -> np.ndarray:
    if not last:
        return library.zeros(shape, dtype)
    n, c, h, w = shape
    return device.from_last(library.zeros((n, h, w, c), dtype))


def take_flat(x: Any, indices: np.ndarray) -> Any:
    """x (…, H, W) read at flat plane positions ``indices`` (…, P, Q)."""
    xa = arg.array_of(x, "x")
    shape = xa.shape
    planes, reads = xa.reshape(*shape[:-2], -1), indices.reshape(*indices.shape[:-2], -1)
    y = np.take_along_axis(planes, reads, axis=-1).reshape(indices.shape)

    def vjp(needs: list[bool], gy: Any, indices: np.ndarray) -> list[Any]:
        return [put_flat(gy, indices, shape)]

    return record("take_flat", y, (x,), vjp, (indices,))


def put_flat(gy: Any, indices: np.ndarray, shape: tuple[int, ...]) -> Any:
    """Zeros of ``shape`` (…, H, W) with gy (…, P, Q) added at flat plane positions ``indices``."""
    ga = arg.array_of(gy, "gy")
    library = device.library(ga)
    gx = library.zeros((math.prod(shape[:-2]), shape[-2] * shape[-1]), ga.dtype)
    reads = indices.reshape(gx.shape[0], -1)
    library.add.at(gx, (library.arange(gx.shape[0])[:, None], reads), ga.reshape(reads.shape))
    return record("take_flat backward", gx.reshape(shape), (gy,), lambda needs, ggx: [take_flat(ggx, indices)])


def concatenate(tensors: Sequence[Any], dim: int = 0) -> Any:
    """Join along an existing axis."""
    if not tensors:
        raise ValueError("concatenate: needs at least one array")
    arrays = arg.kernel_inputs("concatenate", **{f"tensors[{i}]": t for i, t in enumerate(tensors)})
    last = any(map(device.leans_channels_last, arrays)) and {array.ndim for array in arrays} == {4}
    try:
        if last and -4 <= dim < 4:  # CuPy would give NCHW
            y = device.from_last(np.concatenate([device.to_last(a) for a in arrays], axis=(0, 3, 1, 2)[dim]))
        else:
            y = np.concatenate(arrays, axis=dim)
    except ValueError as error:
        raise ValueError(
            f"concatenate along dim={dim}: shapes {[a.shape for a in arrays]} do not fit: {error}"
        ) from None
    ends = np.cumsum([a.shape[dim] for a in arrays]).tolist()
    axis = dim % y.ndim

    def vjp(needs: list[bool], gy: Any) -> list[Any]:
        lead = (slice(None),) * axis
        starts = [0, *ends[:-1]]
        return [
            getitem(gy, (*lead, slice(a, b))) if need else None for a, b, need in zip(starts, ends, needs, strict=True)
        ]

    return record("concatenate", y, tuple(tensors), vjp)
