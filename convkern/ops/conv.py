"""Convolution of one to three axes and its gradients: the public functions; convolution.py has what they share."""

from __future__ import annotations

from typing import Any

import numpy as np

from .convolution import convolve, input_grad, weight_grad


def conv1d(
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
    """One-dimensional convolution, as of signals, text and time series: the cross-correlation of input and kernel.

    y[n, k, q] = bias[k] + Σ x[n, c, q·stride - padding + s·dilation] · w[k, c, s]

    Parameters
    ----------
    x : array or Tensor, (N, C, W) or (C, W)
        float32 or float64.
    w : array or Tensor, (K, C/groups, S)
    bias : array or Tensor, (K,), optional
    stride, dilation : int or (int,)
        At least 1.
    padding : int, (int,), ((left, right),), "same" or "valid"
        Zeros around the input. "same" keeps the size and needs stride 1.
    groups, activation, out, precision
        As in :func:`conv2d`.

    Returns
    -------
    array or Tensor, (N, K, Q) or (K, Q)
        Sizes as in :func:`conv2d`.

    Raises
    ------
    ValueError, TypeError
        Naming the argument that does not fit.
    """
    return convolve(
        1, x, w, bias, stride, padding, dilation, groups, activation=activation, out=out, precision=precision
    )


def conv1d_input_grad(
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
    """Gradient of :func:`conv1d` with respect to its input, see :func:`conv2d_input_grad`.

    Parameters
    ----------
    gy : array or Tensor, (N, K, Q) or (K, Q)
        Gradient with respect to the output.
    w : array or Tensor, (K, C/groups, S)
    input_shape : tuple of int
        (N, C, W) or (C, W).
    stride, padding, dilation, groups, out, precision
        As in :func:`conv1d`.

    Returns
    -------
    array or Tensor of ``input_shape``
    """
    return input_grad(1, gy, w, input_shape, stride, padding, dilation, groups, out=out, precision=precision)


def conv1d_weight_grad(
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
    """Gradient of :func:`conv1d` with respect to its kernel, see :func:`conv2d_weight_grad`.

    Parameters
    ----------
    x : array or Tensor, (N, C, W) or (C, W)
    gy : array or Tensor, (N, K, Q) or (K, Q)
        Gradient with respect to the output.
    kernel_size : int or (int,)
        (S,): with a stride several kernels give the same output size.
    stride, padding, dilation, groups, out, precision
        As in :func:`conv1d`.

    Returns
    -------
    array or Tensor, (K, C/groups, S)
    """
    return weight_grad(1, x, gy, kernel_size, stride, padding, dilation, groups, out=out, precision=precision)


def conv2d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    residual: Any = None,
    activation: str | None = None,
    out: np.ndarray | None = None,
    precision: str = "default",
) -> Any:
    """Two-dimensional convolution as neural networks mean it: the cross-correlation of input and kernel.

    y[n, k, p, q] = bias[k] + Σ x[n, c, p·stride - padding + r·dilation, q·stride - padding + s·dilation] · w[k, c, r, s]
    [+ residual], through the activation

    Parameters
    ----------
    x : array or Tensor, (N, C, H, W) or (C, H, W)
        float32 or float64; NumPy's, or CuPy's float32 or float16 where all arrays are.
    w : array or Tensor, (K, C/groups, R, S)
    bias : array or Tensor, (K,), optional
    stride, dilation : int or (int, int)
        In pixels, at least 1.
    padding : int, (int, int), ((top, bottom), (left, right)), "same" or "valid"
        Zeros around the input, in pixels. "same" keeps the size and needs stride 1.
    groups : int
        Output channels are cut into this many groups, each of which sees its share of the input channels.
    residual : array or Tensor of the output's shape, optional
        Added after the bias and before the activation, as at the end of a residual block. On GPUs in the same pass, where
        it is read as it lies if x and it have one memory format; on the CPU in a second pass over the result, together with
        the activation.
    activation : None or "relu"
        Applied to the result in the same pass.
    out : array, optional
        Where to write the result; only with arrays.
    precision : "default", "strict", "tf32", "float16" or "bfloat16"
        "strict" admits only kernels that sum in the array's dtype. "tf32" also admits those that round the operands of a
        product to 10 fraction bits or cut them off there, on GPUs; elsewhere it is the default. "float16" and "bfloat16"
        round the operands to such halves and sum in float32: on tensor cores, and on the CPU, slower than without, in plain
        kernels.

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
    options = dict(residual=residual, activation=activation, out=out, precision=precision)
    return convolve(2, x, w, bias, stride, padding, dilation, groups, **options)


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
    return input_grad(2, gy, w, input_shape, stride, padding, dilation, groups, out=out, precision=precision)


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
    return weight_grad(2, x, gy, kernel_size, stride, padding, dilation, groups, out=out, precision=precision)


def conv3d(
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
    """Three-dimensional convolution, as of video: the cross-correlation of input and kernel.

    y[n, k, o, p, q] = bias[k] + Σ x[n, c, o' + u·dilation, p' + r·dilation, q' + s·dilation] · w[k, c, u, r, s],
    where o' = o·stride - padding along the time, and p' and q' likewise.

    Parameters
    ----------
    x : array or Tensor, (N, C, T, H, W) or (C, T, H, W)
        float32 or float64.
    w : array or Tensor, (K, C/groups, U, R, S)
    bias : array or Tensor, (K,), optional
    stride, dilation : int or (int, int, int)
        At least 1.
    padding : int, (int, int, int), ((front, back), (top, bottom), (left, right)), "same" or "valid"
        Zeros around the input. "same" keeps the size and needs stride 1.
    groups, activation, out, precision
        As in :func:`conv2d`.

    Returns
    -------
    array or Tensor, (N, K, O, P, Q) or (K, O, P, Q)
        Sizes as in :func:`conv2d`.

    Raises
    ------
    ValueError, TypeError
        Naming the argument that does not fit.
    """
    return convolve(
        3, x, w, bias, stride, padding, dilation, groups, activation=activation, out=out, precision=precision
    )


def conv3d_input_grad(
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
    """Gradient of :func:`conv3d` with respect to its input, see :func:`conv2d_input_grad`.

    Parameters
    ----------
    gy : array or Tensor, (N, K, O, P, Q) or (K, O, P, Q)
        Gradient with respect to the output.
    w : array or Tensor, (K, C/groups, U, R, S)
    input_shape : tuple of int
        (N, C, T, H, W) or (C, T, H, W).
    stride, padding, dilation, groups, out, precision
        As in :func:`conv3d`.

    Returns
    -------
    array or Tensor of ``input_shape``
    """
    return input_grad(3, gy, w, input_shape, stride, padding, dilation, groups, out=out, precision=precision)


def conv3d_weight_grad(
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
    """Gradient of :func:`conv3d` with respect to its kernel, see :func:`conv2d_weight_grad`.

    Parameters
    ----------
    x : array or Tensor, (N, C, T, H, W) or (C, T, H, W)
    gy : array or Tensor, (N, K, O, P, Q) or (K, O, P, Q)
        Gradient with respect to the output.
    kernel_size : int or (int, int, int)
        (U, R, S): with a stride several kernels give the same output size.
    stride, padding, dilation, groups, out, precision
        As in :func:`conv3d`.

    Returns
    -------
    array or Tensor, (K, C/groups, U, R, S)
    """
    return weight_grad(3, x, gy, kernel_size, stride, padding, dilation, groups, out=out, precision=precision)
