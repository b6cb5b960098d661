"""Two-dimensional convolution and its gradients."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .. import device
from ..device import dtype_name, kernel_array
from ..graph import record
from ..kernels.spec import ConvSpec, Pair, output_size, reach
from ..kernels.variant import Problem
from ..plan import execute
from ..tensor import Tensor
from . import arguments as arg
from .activation import relu_bias_grad, relu_grad
from .shape import expand


def conv_spec(
    function: str,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: Any = None,
) -> ConvSpec:
    """Check the shapes and options of a convolution; x (N, C, H, W), w (K, C/groups, R, S)."""
    if len(w_shape) != 4:
        raise ValueError(f"{function}: w must have 4 axes (K, C/groups, R, S), got shape {w_shape}")
    if min(w_shape) < 1:
        raise ValueError(f"{function}: w must not be empty, got shape {w_shape}")
    strides = arg.per_axis(stride, f"{function}: stride", 1)
    dilations = arg.per_axis(dilation, f"{function}: dilation", 1)
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
) -> ConvSpec:
    """Check that sizes and channels fit together."""
    kernel = w_shape[2:]
    n, c, *size = x_shape
    if c != w_shape[1] * groups:
        raise ValueError(
            f"{function}: x has {c} channels, but w of shape {w_shape} with groups={groups} takes {w_shape[1] * groups}"
        )
    if w_shape[0] % groups:
        raise ValueError(f"{function}: groups={groups} must divide the {w_shape[0]} output channels of w")
    for axis, name in enumerate(("height", "width")):
        room = size[axis] + sum(pads[axis])
        if size[axis] < 1 or reach(kernel[axis], dilations[axis]) > room:
            raise ValueError(
                f"{function}: the kernel's {name} {kernel[axis]} (dilation {dilations[axis]}) does not fit into the "
                f"input's {name} {size[axis]} with padding {pads[axis]}"
            )
    out = tuple(output_size(size[i], kernel[i], strides[i], pads[i], dilations[i]) for i in range(2))
    return ConvSpec(n, c, w_shape[0], groups, tuple(size), kernel, strides, pads, dilations, out, activation)  # type: ignore[arg-type]


def _options(spec: ConvSpec, precision: str) -> dict[str, Any]:
    """The keywords with which a gradient calls the next operation."""
    return dict(
        stride=spec.stride, padding=spec.padding, dilation=spec.dilation, groups=spec.groups, precision=precision
    )


def _batched(shape: tuple[int, ...], function: str, name: str) -> tuple[int, ...]:
    if len(shape) not in (3, 4):
        raise ValueError(f"{function}: {name} must have axes (N, C, H, W) or (C, H, W), got shape {shape}")
    return shape if len(shape) == 4 else (1, *shape)


def _shape(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a tuple of ints, got {value!r}")
    return tuple(arg.integer(v, name, 0) for v in value)


def _bias_array(bias: Any, function: str, x: np.ndarray, k: int) -> np.ndarray:
    if bias is None:
        return device.library(x).empty(0, x.dtype.newbyteorder("="))
    _, array = arg.kernel_inputs(function, x=x, bias=bias)
    if array.shape != (k,):
        raise ValueError(f"{function}: bias must have shape ({k},), one value per output channel, got {array.shape}")
    if array.dtype.newbyteorder("=") != x.dtype.newbyteorder("="):
        raise TypeError(f"{function}: arrays must have one dtype, got x {x.dtype}, bias {array.dtype}")
    return kernel_array(array)


def conv2d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """Two-dimensional convolution as neural networks mean it: the cross-correlation of input and kernel.

    y[n, k, p, q] = bias[k] + Σ x[n, c, p·stride - padding + r·dilation, q·stride - padding + s·dilation] · w[k, c, r, s]

    Parameters
    ----------
    x : array or Tensor, (N, C, H, W) or (C, H, W)
        float32 or float64; NumPy's, or CuPy's float32 where all arrays are.
    w : array or Tensor, (K, C/groups, R, S)
    bias : array or Tensor, (K,), optional
    stride, dilation : int or (int, int)
        In pixels, at least 1.
    padding : int, (int, int), ((top, bottom), (left, right)), "same" or "valid"
        Zeros around the input, in pixels. "same" keeps the size and needs stride 1.
    groups : int
        Output channels are cut into this many groups, each of which sees its share of the input channels.
    activation : None or "relu"
        Applied to the result in the same pass.
    out : array, optional
        Where to write the result; only with arrays.
    precision : "default", "strict" or "tf32"
        "strict" admits only kernels that sum in the array's dtype. "tf32" also admits those that round the operands of a
        product to 10 fraction bits, on GPUs; elsewhere it is the default.

    Returns
    -------
    array or Tensor, (N, K, P, Q) or (K, P, Q)
        P = floor((H + top + bottom - dilation·(R-1) - 1) / stride) + 1, Q likewise; in the memory format of x.

    Raises
    ------
    ValueError, TypeError
        Naming the argument that does not fit.

    References
    ----------
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016.
    """
    xa, wa = arg.float_arrays("conv2d", cuda=True, x=x, w=w)
    x_shape = xa.shape
    shape = _batched(x_shape, "conv2d", "x")
    spec = conv_spec("conv2d", shape, wa.shape, stride, padding, dilation, groups, activation)
    problem = Problem("conv", "forward", device.of(xa), dtype_name(xa.dtype), arg.check_precision(precision), spec)
    y = arg.result_array(out, spec.y_shape[4 - xa.ndim :], xa.dtype, (x, w, bias))
    bias_array = _bias_array(bias, "conv2d", xa, spec.k)
    execute(problem, kernel_array(xa.reshape(shape)), kernel_array(wa), bias_array, out=y.reshape(spec.y_shape))
    y = arg.deliver(y, out, xa)

    def vjp(needs: list[bool], gy: Any, x: Any, w: Any, y: Any = None) -> list[Any]:
        gb = None
        if spec.activation and needs[2] and not isinstance(gy, Tensor):
            gy, gb = relu_bias_grad(gy, arg.array_of(y, "y"))
        elif spec.activation:
            gy = relu_grad(gy, y)
        options = _options(spec, precision)
        return [
            conv2d_input_grad(gy, w, x_shape, **options) if needs[0] else None,
            conv2d_weight_grad(x, gy, spec.kernel, **options) if needs[1] else None,
            bias_grad(gy) if needs[2] and gb is None else gb,
        ]

    saved = (arg.kept(x, w), arg.kept(w, x))
    return record("conv2d", y, (x, w, bias), vjp, (*saved, y) if spec.activation else saved)


def conv2d_input_grad(
    gy: Any,
    w: Any,
    input_shape: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """Gradient of :func:`conv2d` with respect to its input: the kernel, turned by 180 degrees, over the output gradient.

    Parameters
    ----------
    gy : array or Tensor, (N, K, P, Q) or (K, P, Q)
        Gradient with respect to the output.
    w : array or Tensor, (K, C/groups, R, S)
    input_shape : tuple of int
        (N, C, H, W) or (C, H, W), the shape of the input: with a stride several inputs give the same output size.
    stride, padding, dilation, groups, out, precision
        As in :func:`conv2d`.

    Returns
    -------
    array or Tensor of ``input_shape``

    References
    ----------
    Goodfellow, Bengio and Courville, "Deep Learning", 2016, section 9.5.
    """
    name = "conv2d_input_grad"
    ga, wa = arg.float_arrays(name, cuda=True, gy=gy, w=w)
    input_shape = _shape(input_shape, f"{name}: input_shape")
    spec = conv_spec(name, _batched(input_shape, name, "input_shape"), wa.shape, stride, padding, dilation, groups)
    if ga.shape != spec.y_shape[4 - len(input_shape) :]:
        expected = spec.y_shape[4 - len(input_shape) :]
        raise ValueError(f"{name}: gy must have the output's shape {expected} for input {input_shape}, got {ga.shape}")
    problem = Problem("conv", "input_grad", device.of(ga), dtype_name(ga.dtype), arg.check_precision(precision), spec)
    gx = arg.result_array(out, input_shape, ga.dtype, (gy, w))
    execute(problem, kernel_array(ga.reshape(spec.y_shape)), kernel_array(wa), out=gx.reshape(spec.x_shape))
    gx = arg.deliver(gx, out, ga)

    def vjp(needs: list[bool], ggx: Any, gy: Any, w: Any) -> list[Any]:
        options = _options(spec, precision)
        return [
            conv2d(ggx, w, **options) if needs[0] else None,
            conv2d_weight_grad(ggx, gy, spec.kernel, **options) if needs[1] else None,
        ]

    return record(name, gx, (gy, w), vjp, (arg.kept(gy, w), arg.kept(w, gy)))


def conv2d_weight_grad(
    x: Any,
    gy: Any,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """Gradient of :func:`conv2d` with respect to its kernel: the cross-correlation of input and output gradient.

    Parameters
    ----------
    x : array or Tensor, (N, C, H, W) or (C, H, W)
    gy : array or Tensor, (N, K, P, Q) or (K, P, Q)
        Gradient with respect to the output.
    kernel_size : int or (int, int)
        (R, S): with a stride several kernels give the same output size.
    stride, padding, dilation, groups, out, precision
        As in :func:`conv2d`.

    Returns
    -------
    array or Tensor, (K, C/groups, R, S)
    """
    name = "conv2d_weight_grad"
    xa, ga = arg.float_arrays(name, cuda=True, x=x, gy=gy)
    kernel = arg.per_axis(kernel_size, f"{name}: kernel_size", 1)
    x_shape = xa.shape
    shape = _batched(x_shape, name, "x")
    k = _batched(ga.shape, name, "gy")[1]
    if shape[1] % arg.integer(groups, f"{name}: groups", 1):
        raise ValueError(f"{name}: groups={groups} must divide the {shape[1]} channels of x")
    spec = conv_spec(name, shape, (k, shape[1] // groups, *kernel), stride, padding, dilation, groups)
    if ga.shape != spec.y_shape[4 - xa.ndim :]:
        expected = spec.y_shape[4 - xa.ndim :]
        raise ValueError(f"{name}: gy must have the output's shape {expected} for x {xa.shape}, got {ga.shape}")
    problem = Problem("conv", "weight_grad", device.of(xa), dtype_name(xa.dtype), arg.check_precision(precision), spec)
    gw = arg.result_array(out, spec.w_shape, xa.dtype, (x, gy))
    execute(problem, kernel_array(xa.reshape(shape)), kernel_array(ga.reshape(spec.y_shape)), out=gw)
    if out is not None:
        gw = arg.deliver(gw, out, gw)

    def vjp(needs: list[bool], ggw: Any, x: Any, gy: Any) -> list[Any]:
        options = _options(spec, precision)
        return [
            conv2d_input_grad(gy, ggw, x_shape, **options) if needs[0] else None,
            conv2d(x, ggw, **options) if needs[1] else None,
        ]

    return record(name, gw, (x, gy), vjp, (arg.kept(x, gy), arg.kept(gy, x)))


def bias_grad(gy: Any) -> Any:
    """Gradient of a per-channel bias: the sum of gy (N, K, P, Q) or (K, P, Q) over images and pixels, (K,)."""
    (ga,) = arg.float_arrays("bias_grad", gy=gy)
    gy_shape = ga.shape
    n, k, p, q = _batched(gy_shape, "bias_grad", "gy")
    spec = ConvSpec(n, 1, k, 1, (p, q), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), (p, q))
    problem = Problem("conv", "bias_grad", "cpu", dtype_name(ga.dtype), "default", spec)
    gb = np.empty(k, ga.dtype.newbyteorder("="))
    execute(problem, kernel_array(ga.reshape(spec.y_shape)), out=gb)

    def vjp(needs: list[bool], ggb: Any) -> list[Any]:
        return [expand(ggb.reshape(k, 1, 1), gy_shape)]

    return record("bias_grad", gb, (gy,), vjp)
