"""Batch normalisation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..device import dtype_name, is_cupy, kernel_array, leans_channels_last, like_format, of, to_last
from ..graph import record
from ..kernels.spec import NormSpec
from ..kernels.variant import Problem
from ..plan import execute, plan
from ..tensor import Tensor
from . import arguments as arg
from .activation import relu_grad
from .arithmetic import pow as pow_
from .reduce import mean as mean_
from .reduce import sum as sum_
from .shape import reshape


class _Channels(NamedTuple):
    """What every channel is normalised with; numbers of channels are float64, on a GPU float32."""

    mean: np.ndarray  # (C,)
    inverse: np.ndarray  # (C,): 1 / sqrt(variance + eps)
    affine: np.ndarray  # (3, C): y = (x - center) · scale + shift


def batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Any = None,
    activation: str | None = None,
    precision: str = "default",
) -> Any:
    """Give every channel mean 0 and variance 1, then scale and shift it.

    y = (x - mean) / sqrt(var + eps) · weight + bias [+ residual], through the activation, in one pass

    Parameters
    ----------
    x : array or Tensor, (N, C, …)
        float32 or float64.
    running_mean, running_var : float array, (C,), or None
        The statistics of evaluation. In training the batch's own are used, and these are moved towards them in place:
        running ← (1 - momentum) · running + momentum · batch, with the unbiased variance. None: they are not kept.
    weight, bias : array or Tensor, (C,), optional
        1 and 0 by default.
    training : bool
        Normalise with the mean and the biased variance of the batch, which depend on x, instead of the running ones.
    momentum : float
        Share of this batch in the running statistics, 0 to 1.
    eps : float
        Added to the variance, at least 0.
    residual : array or Tensor of x's shape, optional
        Added before the activation.
    activation : None or "relu"
    precision : "default" or "strict"
        As in :func:`convkern.conv2d`.

    Returns
    -------
    array or Tensor of x's shape, in x's memory format

    Raises
    ------
    ValueError, TypeError
        Naming the argument that does not fit; in training also if a channel has a single value, whose variance is 0.

    References
    ----------
    Ioffe and Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", 2015.
    """
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    xa = arg.float_arrays("batch_norm", **{name: value for name, value in given.items() if value is not None})[0]
    if xa.ndim < 2:
        raise ValueError(f"batch_norm: x must have axes (N, C, …), got shape {xa.shape}")
    channels = xa.shape[1]
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and arg.array_of(value, name).shape != (channels,):
            raise ValueError(f"batch_norm: {name} must have shape ({channels},), got {arg.array_of(value, name).shape}")
    if residual is not None and arg.array_of(residual, "residual").shape != xa.shape:
        raise ValueError(
            f"batch_norm: residual must have x's shape {xa.shape}, got {arg.array_of(residual, 'residual').shape}"
        )
    eps = _number("eps", eps, math.inf)
    n, pixels = xa.shape[0], math.prod(xa.shape[2:])
    if _last(xa):
        n, pixels = n * pixels, 1
    spec = NormSpec(n, channels, pixels, arg.activation_code(activation), int(residual is not None))
    arg.check_precision(precision)
    running = _running(running_mean, running_var, xa, training)
    moving = _number("momentum", momentum, 1.0) if training else 0.0
    used = _channels(xa, spec, precision, running, training, moving, eps, weight, bias)
    y = _forward(xa, residual, used.affine, spec, precision)

    def vjp(needs: list[bool], gy: Any, x: Any, weight: Any, residual: Any, y: Any = None) -> list[Any]:
        if isinstance(gy, Tensor):  # its own derivatives are wanted: written out in public operations
            if spec.activation:
                gy = relu_grad(gy, _forward(arg.array_of(x, "x"), residual, used.affine, spec, precision))
            gx, gw, gb = _gradients(gy, x, weight, used, eps if training else None)
            return [gx, gw, gb, gy if needs[3] else None]
        return _array_gradients(needs, gy, x, weight, y, used, spec, training, precision)

    saved = (x, weight, residual if spec.activation and spec.residual else None)
    masked_by = (y,) if spec.activation and spec.residual else ()
    return record("batch_norm", y, (x, weight, bias, residual), vjp, (*saved, *masked_by))


def _number(name: str, value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"batch_norm: {name} must be a number, got {value!r}")
    if not 0 <= value <= most:
        raise ValueError(
            f"batch_norm: {name} must be at least 0{f' and at most {most:g}' * (most < math.inf)}, got {value}"
        )
    return float(value)


def _kept_in(x: np.ndarray) -> type:
    """What statistics and sums of channels are kept in."""
    return np.float32 if is_cupy(x) else np.float64


def _running(mean: Any, var: Any, xa: np.ndarray, training: bool) -> list[np.ndarray]:
    """The arrays of the running statistics; none in training without them."""
    channels = xa.shape[1]
    if mean is None and var is None and training:
        return []
    arrays = []
    for name, value in (("running_mean", mean), ("running_var", var)):
        if value is None:
            raise ValueError(f"batch_norm: {name} is missing; only training does without both running statistics")
        _, array = arg.kernel_inputs("batch_norm", x=xa, **{name: value})
        if array.shape != (channels,):
            raise ValueError(f"batch_norm: {name} must have shape ({channels},), got {array.shape}")
        if array.dtype.kind != "f":
            raise TypeError(f"batch_norm: {name} must be floating, got {array.dtype}")
        if training and not getattr(array.flags, "writeable", True):  # CuPy's arrays always are
            raise ValueError(f"batch_norm: {name} is read-only, training changes it in place")
        if training and isinstance(value, Tensor):
            value.mark_changed()
        arrays.append(array)
    return arrays


def _problem(direction: str, x: np.ndarray, precision: str, spec: NormSpec) -> Problem:
    return Problem("norm", direction, of(x), dtype_name(x.dtype), precision, spec)


def _last(x: np.ndarray) -> bool:
    """Whether kernels get every pixel as an image of its own, whose channels then lie side by side: (N·L, C, 1)."""
    return is_cupy(x) and leans_channels_last(x)


def _rows(x: np.ndarray, spec: NormSpec, last: bool) -> np.ndarray:
    """(N, C, …) -> (N, C, L), as a kernel takes it, or (N·L, C, 1)."""
    return kernel_array(to_last(x) if last else x).reshape(spec.n, spec.c, spec.pixels)


def _new_rows(x: np.ndarray, dtype: np.dtype, spec: NormSpec) -> tuple[np.ndarray, np.ndarray]:
    """An array of x's shape, and the same memory as `_rows` of an array that lies like x."""
    made = arg.image_array(x.shape, dtype, x, _last(x))
    return made, (to_last(made) if _last(x) else made).reshape(spec.n, spec.c, spec.pixels)


def _channels(
    x: np.ndarray, spec: NormSpec, precision: str, running: list[np.ndarray], training: bool, momentum: float, eps: float,
    weight: Any, bias: Any,
) -> _Channels:  # fmt: skip
    """What to normalise with; in training the running statistics move towards the batch's."""
    mean, variance = _batch_statistics(x, spec, precision) if training else running
    count = spec.n * spec.pixels
    if is_cupy(x):
        plan(_problem("forward", x, precision, spec))  # refuses other dtypes
        inverse, affine = (arg.new_array(shape, x.dtype, x) for shape in ((spec.c,), (3, spec.c)))
        wa, ba = (None if v is None else kernel_array(arg.array_of(v, "weight")) for v in (weight, bias))
        _device_channels().affine(mean, variance, wa, ba, running * training, count, momentum, eps, inverse, affine)
        return _Channels(affine[0], inverse, affine)
    if training:
        for array, batch in zip(running, (mean, variance * (count / (count - 1))), strict=False):
            array[...] = (1 - momentum) * array + momentum * batch
    mean, variance = mean.astype(np.float64, copy=not training), variance.astype(np.float64, copy=False)
    inverse = 1 / np.sqrt(variance + eps)
    return _Channels(mean, inverse, _affine(mean, inverse, weight, bias, x.dtype.newbyteorder("=")))


def _device_channels() -> Any:
    """The GPU's arithmetic between the passes."""
    from ..kernels.norm import cuda_channels

    return cuda_channels


def _batch_statistics(x: np.ndarray, spec: NormSpec, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of the batch."""
    count = spec.n * spec.pixels
    if count < 2:
        raise ValueError(f"batch_norm: training needs more than one value in a channel, got x of shape {x.shape}")
    found = arg.new_array((2, spec.c), _kept_in(x), x)
    problem = _problem("statistics", x, precision, spec._replace(activation=0, residual=0))
    execute(problem, _rows(x, spec, _last(x)), out=found)
    mean, variance = found
    return mean, variance


def _affine(mean: np.ndarray, inverse: np.ndarray, weight: Any, bias: Any, dtype: np.dtype) -> np.ndarray:
    """(3, C): center, scale and shift. What rounding takes from the mean is put into the shift."""
    affine = np.empty((3, mean.size), dtype)
    scale = inverse if weight is None else inverse * arg.array_of(weight, "weight")
    affine[0] = mean
    affine[1] = scale
    shift = (affine[0] - mean) * scale
    affine[2] = shift if bias is None else shift + arg.array_of(bias, "bias")
    return affine


def _forward(x: np.ndarray, residual: Any, affine: np.ndarray, spec: NormSpec, precision: str) -> np.ndarray:
    y, out = _new_rows(x, affine.dtype, spec)
    added = affine[:0] if residual is None else _rows(arg.array_of(residual, "residual"), spec, _last(x))
    execute(_problem("forward", x, precision, spec), _rows(x, spec, _last(x)), added, affine, out=out)
    return like_format(x, y)


def _array_gradients(
    needs: list[bool], gy: np.ndarray, x: np.ndarray, weight: Any, y: Any, used: _Channels, spec: NormSpec,
    training: bool, precision: str,
) -> list[Any]:  # fmt: skip
    """The gradients of x, weight, bias and residual in two passes: sums over every channel, then gx.

    With x̂ = (x - mean)·inverse and m values in a channel, gx = weight · inverse · (g - Σg/m - x̂·Σ(g·x̂)/m).
    """
    affine, like = used.affine, x if is_cupy(x) else gy  # on the CPU the gradient's memory format is that of gy
    rows, grad = _rows(x, spec, _last(x)), _rows(gy, spec, _last(x))
    masked = bool(spec.activation and spec.residual)
    g, flat_g = _new_rows(x, affine.dtype, spec) if masked else (affine[:0], affine[:0])
    total = arg.new_array((2, spec.c), _kept_in(x), x)
    result = _rows(y, spec, _last(x)) if masked else affine[:0]
    execute(_problem("sums", x, precision, spec), rows, grad, result, affine, out=(total, flat_g))
    slopes, gw, gb = _slopes(total, used, spec, training, weight)
    gx = None
    if needs[0]:
        gx, flat_gx = _new_rows(x, affine.dtype, spec)
        plain = spec._replace(residual=0, activation=0 if masked else spec.activation)
        source = flat_g if masked else grad
        execute(_problem("input_grad", x, precision, plain), rows, source, slopes, out=flat_gx)
        gx = like_format(like, gx)
    return [
        gx,
        gw if needs[1] else None,
        gb if needs[2] else None,
        (like_format(like, g) if masked else gy) if needs[3] else None,
    ]


def _slopes(
    total: np.ndarray, used: _Channels, spec: NormSpec, training: bool, weight: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What "input_grad" takes of every channel (5, C), and the gradients of weight and bias (C,), from the sums (2, C)."""
    mean, inverse, affine = used
    count = spec.n * spec.pixels
    if is_cupy(affine):
        slopes, gw, gb = (arg.new_array(s, affine.dtype, affine) for s in ((5, spec.c), (spec.c,), (spec.c,)))
        _device_channels().slopes(total, inverse, affine, count, training, slopes, gw, gb)
        return slopes, gw, gb
    rounding = affine[0] - mean
    sum_g, sum_gx = total[0], total[1] + rounding * total[0]
    slopes = np.zeros((5, spec.c), affine.dtype)
    slopes[:3] = affine
    if training:
        scale = inverse if weight is None else inverse * weight
        slope = -scale * inverse * inverse * sum_gx / count
        slopes[3] = slope
        slopes[4] = rounding * slope - scale * sum_g / count
    return slopes, (sum_gx * inverse).astype(affine.dtype), sum_g.astype(affine.dtype)


def _gradients(gy: Any, x: Any, weight: Any, used: _Channels, eps: float | None) -> tuple[Any, Any, Any]:
    """The same as public operations, which can be differentiated again; ``eps`` None: the statistics are constants."""
    xa = arg.array_of(x, "x")
    axes = (0, *range(2, xa.ndim))
    column = (1, -1, *(1 for _ in axes[1:]))
    if eps is None:
        inverse = used.inverse.astype(xa.dtype).reshape(column)
        centered = x - used.mean.astype(xa.dtype).reshape(column)
    else:
        centered = x - mean_(x, axes, True)
        inverse = pow_(mean_(centered * centered, axes, True) + eps, -0.5)
    normal = centered * inverse
    gw, gb = sum_(gy * normal, axes), sum_(gy, axes)
    g = gy if eps is None else gy - mean_(gy, axes, True) - normal * mean_(gy * normal, axes, True)
    gx = g * inverse
    return gx if weight is None else gx * reshape(weight, column), gw, gb
