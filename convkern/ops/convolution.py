"""Convolution and its gradients along one, two or three axes: checked, planned, run and recorded.

One axis is two with height 1, which costs no copy.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from .. import amp, device
from ..device import dtype_name, kernel_array
from ..graph import Folded, record
from ..kernels.spec import Conv3dSpec, ConvSpec, Pair, output_size, reach
from ..kernels.variant import Problem
from ..plan import execute, refusal, rows
from ..tensor import Tensor
from . import arguments as arg
from .activation import pooled_relu_bias_grad, relu_bias_grad, relu_grad
from .halves import operands
from .shape import expand

NAMES = {1: ("width",), 2: ("height", "width"), 3: ("time", "height", "width")}
LETTERS = {1: ("W", "S"), 2: ("H, W", "R, S"), 3: ("T, H, W", "U, R, S")}  # of images and of kernels
FOLDERS = {1: "conv", 2: "conv", 3: "conv3d"}  # of the kernels


def conv_spec(
    function: str,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: Any = None,
    axes: int = 2,
) -> Any:
    """Check the shapes and options of a convolution; x (N, C, …), w (K, C/groups, …) with ``axes`` more each."""
    if len(w_shape) != axes + 2:
        raise ValueError(
            f"{function}: w must have {axes + 2} axes (K, C/groups, {LETTERS[axes][1]}), got shape {w_shape}"
        )
    if min(w_shape) < 1:
        raise ValueError(f"{function}: w must not be empty, got shape {w_shape}")
    strides = arg.per_axis(stride, f"{function}: stride", 1, axes)
    dilations = arg.per_axis(dilation, f"{function}: dilation", 1, axes)
    groups = arg.integer(groups, f"{function}: groups", 1)
    pads = arg.sides(padding, w_shape[2:], strides, dilations)
    return _fitting(function, x_shape, w_shape, strides, pads, dilations, groups, arg.activation_code(activation))


@lru_cache(maxsize=4096)  # of checked ints only: 1, 1.0 and True are one key
def _fitting(
    function: str,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[Pair, ...],
    dilations: tuple[int, ...],
    groups: int,
    activation: int,
) -> ConvSpec | Conv3dSpec:
    """Check that sizes and channels fit together."""
    kernel = w_shape[2:]
    n, c, *size = x_shape
    if c != w_shape[1] * groups:
        raise ValueError(
            f"{function}: x has {c} channels, but w of shape {w_shape} with groups={groups} takes {w_shape[1] * groups}"
        )
    if w_shape[0] % groups:
        raise ValueError(f"{function}: groups={groups} must divide the {w_shape[0]} output channels of w")
    for axis, name in enumerate(NAMES[len(kernel)]):
        room = size[axis] + sum(pads[axis])
        if size[axis] < 1 or reach(kernel[axis], dilations[axis]) > room:
            raise ValueError(
                f"{function}: the kernel's {name} {kernel[axis]} (dilation {dilations[axis]}) does not fit into the "
                f"input's {name} {size[axis]} with padding {pads[axis]}"
            )
    out = tuple(output_size(size[i], kernel[i], strides[i], pads[i], dilations[i]) for i in range(len(kernel)))
    channels: tuple[Any, ...] = (n, c, w_shape[0], groups)
    window: tuple[Any, ...] = (tuple(size), kernel, strides, pads, dilations, out)
    if len(kernel) == 3:
        return Conv3dSpec._make((*channels, *window, activation))
    if len(kernel) == 1:
        once = (1, 1, 1, (0, 0), 1, 1)  # the height
        window = tuple((first, *rest) for first, rest in zip(once, window, strict=True))
    return ConvSpec._make((*channels, *window, activation))


def batched(shape: tuple[int, ...], function: str, name: str, axes: int = 2) -> tuple[int, ...]:
    """The shape with a batch axis."""
    if len(shape) not in (axes + 1, axes + 2):
        letters = LETTERS[axes][0]
        raise ValueError(f"{function}: {name} must have axes (N, C, {letters}) or (C, {letters}), got shape {shape}")
    return shape if len(shape) == axes + 2 else (1, *shape)


def user_shape(shape: tuple[int, ...], axes: int, ndim: int) -> tuple[int, ...]:
    """A spec's shape as the user sees it: with ``axes`` axes behind the channels, with ``ndim`` in all."""
    if len(shape) != axes + 2:  # one axis is two with height 1, and a volume pooled to one pixel may be a picture
        shape = (*shape[:2], *((1, *shape[2:])[-axes:]))
    return shape[axes + 2 - ndim :]


def shape_of(value: Any, name: str) -> tuple[int, ...]:
    """A shape that the user gave."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a tuple of ints, got {value!r}")
    return tuple(arg.integer(v, name, 0) for v in value)


def bias_array(bias: Any, function: str, x: np.ndarray, k: int) -> np.ndarray:
    """The bias as kernels take it: empty where there is none."""
    if bias is None:
        return device.library(x).empty(0, x.dtype.newbyteorder("="))
    _, array = arg.kernel_inputs(function, x=x, bias=bias)
    if array.shape != (k,):
        raise ValueError(f"{function}: bias must have shape ({k},), one value per output channel, got {array.shape}")
    if array.dtype.newbyteorder("=") != x.dtype.newbyteorder("="):
        raise TypeError(f"{function}: arrays must have one dtype, got x {x.dtype}, bias {array.dtype}")
    return kernel_array(array)


@lru_cache(maxsize=4096)
def _without_activation(spec: Any) -> Any:
    return spec._replace(activation=0)


def residual_array(residual: Any, function: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What is added to a result of ``shape``, as it lies in memory."""
    _, array = arg.kernel_inputs(function, x=x, residual=residual)
    if array.shape != shape:
        raise ValueError(f"{function}: residual must have the output's shape {shape}, got {array.shape}")
    if array.dtype.newbyteorder("=") != x.dtype.newbyteorder("="):
        raise TypeError(f"{function}: arrays must have one dtype, got x {x.dtype}, residual {array.dtype}")
    return array


def _problem(axes: int, direction: str, array: np.ndarray, precision: Any, spec: Any) -> Problem:
    return Problem(
        FOLDERS[axes], direction, device.of(array), dtype_name(array.dtype), arg.check_precision(precision), spec
    )


def image_arrays(problem: Problem, out: Any, *arrays: np.ndarray, last: bool = False) -> tuple[Any, ...]:
    """The problem, and its images as a row takes them: channels-last where all are and a row wants them so, or NCHW.

    Slices of channels-last images count as such. Images of one pixel or channel are both; with ``last``, or beside one that
    is not, they are channels-last. With the caller's ``out`` it is NCHW, which is then copied there.
    """
    if out is None and problem.device == "cuda" and _lie_last(arrays, last):
        lying = problem._replace(layout="channels_last")
        if any(not refusal(row, lying) for row in rows(problem.operation, problem.direction, "cuda")):
            return lying, *(device.laid_out(array, True) for array in arrays)
    return problem, *map(kernel_array, arrays)


def _lie_last(arrays: tuple[np.ndarray, ...], last: bool) -> bool:
    leaning = [device.leans_channels_last(array) for array in arrays]
    return (last or any(leaning)) and all(
        leans or device.fits_channels_last(array) for leans, array in zip(leaning, arrays, strict=True)
    )


def image_result(problem: Problem, shape: tuple[int, ...], out: Any, dtype: np.dtype, parents: tuple[Any, ...]) -> Any:
    """An array for images, see :func:`.arguments.result_array`, in the problem's layout."""
    if problem.layout == "nchw" or out is not None:
        return arg.result_array(out, shape, dtype, parents)
    return arg.image_array(shape, dtype.newbyteorder("="), arg.array_of(parents[0], "input"), True)


def in_shape(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Reshaped, where it has another shape: so channels-last stays channels-last."""
    return array if array.shape == shape else array.reshape(shape)


def convolve(
    axes: int, x: Any, w: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1,
    *, residual: Any = None, activation: Any = None, out: np.ndarray | None = None, precision: Any = "default",
) -> Any:  # fmt: skip
    """See :func:`convkern.conv2d`, along ``axes`` axes."""
    function = f"conv{axes}d"
    xa, wa = arg.float_arrays(function, halves=True, x=x, w=w)
    shape = batched(xa.shape, function, "x", axes)
    spec = conv_spec(function, shape, wa.shape, stride, padding, dilation, groups, activation, axes)
    precision = amp.precision_for(precision, xa.dtype, device.of(xa))
    return _convolve(axes, x, w, bias, residual, spec, out, precision)


def _convolve(axes: int, x: Any, w: Any, bias: Any, residual: Any, spec: Any, out: Any, precision: Any) -> Any:
    """With a checked spec, which the operands fit; so it is in the two below."""
    function = f"conv{axes}d"
    xa, wa = arg.kernel_inputs(function, x=x, w=w)
    problem = _problem(axes, "forward" if residual is None else "forward_residual", xa, precision, spec)
    x_shape, y_shape, like = xa.shape, user_shape(spec.y_shape, axes, xa.ndim), xa
    added = [] if residual is None else [residual_array(residual, function, xa, y_shape)]
    xa, wa = operands(precision, xa, wa)
    problem, xa, *added = image_arrays(problem, out, xa, *added)
    last = problem.layout == "channels_last"
    y = image_result(problem, y_shape, out, xa.dtype, (x, w, bias, residual))
    inputs = in_shape(xa, spec.x_shape), kernel_array(wa.reshape(spec.w_shape)), bias_array(bias, function, xa, spec.k)
    execute(problem, *inputs, *(in_shape(a, spec.y_shape) for a in added), out=in_shape(y, spec.y_shape))
    y = arg.deliver(y, out, like)

    def vjp(needs: list[bool], gy: Any, x: Any, w: Any, y: Any = None) -> list[Any]:
        gb = None
        if isinstance(gy, Folded):
            gy, gb = pooled_relu_bias_grad(gy.parts[0], arg.array_of(y, "y"), gy.parts[1])
        elif spec.activation and needs[2] and not isinstance(gy, Tensor) and (axes == 2 or gy.ndim == 5):
            gy, gb = relu_bias_grad(gy, arg.array_of(y, "y"))
        elif spec.activation:
            gy = relu_grad(gy, y)
        plain = _without_activation(spec)
        if last and device.is_cupy(gy):
            gy = device.laid_out(gy, True)
        return [
            _input_grad(axes, gy, w, x_shape, plain, None, precision, last) if needs[0] else None,
            _weight_grad(axes, x, gy, plain, None, precision) if needs[1] else None,
            bias_grad(gy, axes) if needs[2] and gb is None else gb,
            gy if needs[3] else None,
        ]

    saved = (arg.kept(x, w), arg.kept(w, x), *([y] if spec.activation else []))
    through = bool(spec.activation) and isinstance(bias, Tensor) and bias.requires_grad
    return record(function, y, (x, w, bias, residual), vjp, saved, takes_folded=through)


def input_grad(
    axes: int, gy: Any, w: Any, input_shape: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1,
    *, out: np.ndarray | None = None, precision: Any = "default",
) -> Any:  # fmt: skip
    """See :func:`convkern.conv2d_input_grad`, along ``axes`` axes."""
    name = f"conv{axes}d_input_grad"
    ga, wa = arg.float_arrays(name, halves=True, gy=gy, w=w)
    input_shape = shape_of(input_shape, f"{name}: input_shape")
    shape = batched(input_shape, name, "input_shape", axes)
    spec = conv_spec(name, shape, wa.shape, stride, padding, dilation, groups, None, axes)
    expected = user_shape(spec.y_shape, axes, len(input_shape))
    if ga.shape != expected:
        raise ValueError(f"{name}: gy must have the output's shape {expected} for input {input_shape}, got {ga.shape}")
    return _input_grad(axes, gy, w, input_shape, spec, out, precision)


def _input_grad(
    axes: int, gy: Any, w: Any, input_shape: Any, spec: Any, out: Any, precision: Any, last: bool = False
) -> Any:
    name = f"conv{axes}d_input_grad"
    ga, wa = arg.kernel_inputs(name, gy=gy, w=w)
    problem = _problem(axes, "input_grad", ga, precision, spec)
    like = ga
    ga, wa = operands(precision, ga, wa)
    problem, ga = image_arrays(problem, out, ga, last=last)
    gx = image_result(problem, input_shape, out, ga.dtype, (gy, w))
    inputs = in_shape(ga, spec.y_shape), kernel_array(wa.reshape(spec.w_shape))
    execute(problem, *inputs, out=in_shape(gx, spec.x_shape))
    gx = arg.deliver(gx, out, like)

    def vjp(needs: list[bool], ggx: Any, gy: Any, w: Any) -> list[Any]:
        return [
            _convolve(axes, ggx, w, None, None, spec, None, precision) if needs[0] else None,
            _weight_grad(axes, ggx, gy, spec, None, precision) if needs[1] else None,
        ]

    return record(name, gx, (gy, w), vjp, (arg.kept(gy, w), arg.kept(w, gy)))


def weight_grad(
    axes: int, x: Any, gy: Any, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1,
    *, out: np.ndarray | None = None, precision: Any = "default",
) -> Any:  # fmt: skip
    """See :func:`convkern.conv2d_weight_grad`, along ``axes`` axes."""
    name = f"conv{axes}d_weight_grad"
    xa, ga = arg.float_arrays(name, halves=True, x=x, gy=gy)
    kernel = arg.per_axis(kernel_size, f"{name}: kernel_size", 1, axes)
    shape = batched(xa.shape, name, "x", axes)
    k = batched(ga.shape, name, "gy", axes)[1]
    if shape[1] % arg.integer(groups, f"{name}: groups", 1):
        raise ValueError(f"{name}: groups={groups} must divide the {shape[1]} channels of x")
    w_shape = (k, shape[1] // groups, *kernel)
    spec = conv_spec(name, shape, w_shape, stride, padding, dilation, groups, None, axes)
    expected = user_shape(spec.y_shape, axes, xa.ndim)
    if ga.shape != expected:
        raise ValueError(f"{name}: gy must have the output's shape {expected} for x {xa.shape}, got {ga.shape}")
    return _weight_grad(axes, x, gy, spec, out, precision)


def _weight_grad(axes: int, x: Any, gy: Any, spec: Any, out: Any, precision: Any) -> Any:
    name = f"conv{axes}d_weight_grad"
    xa, ga = arg.kernel_inputs(name, x=x, gy=gy)
    x_shape = xa.shape
    problem = _problem(axes, "weight_grad", xa, precision, spec)
    xa, ga = operands(precision, xa, ga)
    gw = arg.result_array(out, user_shape(spec.w_shape, axes, axes + 2), xa.dtype, (x, gy))
    problem, xa, ga = image_arrays(problem, out, xa, ga)
    execute(problem, in_shape(xa, spec.x_shape), in_shape(ga, spec.y_shape), out=gw.reshape(spec.w_shape))
    if out is not None:
        gw = arg.deliver(gw, out, gw)

    def vjp(needs: list[bool], ggw: Any, x: Any, gy: Any) -> list[Any]:
        return [
            _input_grad(axes, gy, ggw, x_shape, spec, None, precision) if needs[0] else None,
            _convolve(axes, x, ggw, None, None, spec, None, precision) if needs[1] else None,
        ]

    return record(name, gw, (x, gy), vjp, (arg.kept(x, gy), arg.kept(gy, x)))


def bias_grad(gy: Any, axes: int = 2) -> Any:
    """Gradient of a per-channel bias: the sum of gy (N, K, …) or (K, …) over images and pixels, (K,).

    ``axes`` is the number of axes behind the channels.
    """
    (ga,) = arg.float_arrays("bias_grad", gy=gy)
    gy_shape = ga.shape
    n, k, *size = batched(gy_shape, "bias_grad", "gy", axes)
    if device.is_cupy(ga) and device.leans_channels_last(ga):  # every pixel as an image of its own
        n, size, ga = n * math.prod(size), [1, 1], device.to_last(ga).reshape(-1, k, 1, 1)
    plane = (math.prod(size[:-1]), size[-1])
    spec = ConvSpec(n, 1, k, 1, plane, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), plane)
    problem = Problem("conv", "bias_grad", device.of(ga), dtype_name(ga.dtype), "default", spec)
    gb = arg.new_array((k,), ga.dtype.newbyteorder("="), ga)
    execute(problem, kernel_array(ga.reshape(spec.y_shape)), out=gb)

    def vjp(needs: list[bool], ggb: Any) -> list[Any]:
        return [expand(ggb.reshape(k, *(1,) * axes), gy_shape)]

    return record("bias_grad", gb, (gy,), vjp)
