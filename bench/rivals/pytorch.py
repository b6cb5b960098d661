"""PyTorch on the CPU, in both of its memory layouts; imported only when it is called.

The gradients are the functions that its autograd calls, asked for just the one that is measured.
"""

from __future__ import annotations

from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

import convkern as ck

from ..cases import Case, ConvCase, PointwiseCase, PoolCase
from ..report import TORCH
from .rival import Function, Inputs, Rival


@cache
def _torch() -> Any:
    return import_module("torch")


@cache
def _aten() -> Any:
    return _torch().ops.aten


@cache
def _functional() -> Any:
    return import_module("torch.nn.functional")


def forward(x: Any, w: Any, gy: Any, case: ConvCase) -> Any:
    padding = case.symmetric_padding
    if padding is None:
        x, padding = _pad(x, case), (0, 0)
    return _functional().conv2d(x, w, None, case.stride, padding, case.dilation, case.groups)


def input_grad(x: Any, w: Any, gy: Any, case: ConvCase) -> Any:
    if case.symmetric_padding is not None:
        return _backward(x, w, gy, case, case.symmetric_padding, [True, False, False])[0]
    (top, bottom), (left, right) = case.padding
    gxp = _backward(_pad(x, case), w, gy, case, (0, 0), [True, False, False])[0]
    return gxp[:, :, top : gxp.shape[2] - bottom, left : gxp.shape[3] - right].contiguous()


def weight_grad(x: Any, w: Any, gy: Any, case: ConvCase) -> Any:
    padding = case.symmetric_padding
    if padding is None:
        x, padding = _pad(x, case), (0, 0)
    return _backward(x, w, gy, case, padding, [False, True, False])[1]


def _pad(x: Any, case: ConvCase) -> Any:
    """Padding that differs between sides is a step of its own for PyTorch's users too."""
    (top, bottom), (left, right) = case.padding
    return _functional().pad(x, (left, right, top, bottom))


def _backward(x: Any, w: Any, gy: Any, case: ConvCase, padding: tuple[int, int], mask: list[bool]) -> Any:
    options = (case.stride, padding, case.dilation, False, (0, 0), case.groups)
    return _aten().convolution_backward(gy, x, w, None, *options, mask)


_ONE, _NONE = (1, 1), (0, 0)


def pointwise_forward(x: Any, w: Any, gy: Any, case: PointwiseCase) -> Any:
    return _functional().conv2d(x, w[:, :, None, None])


def pointwise_input_grad(x: Any, w: Any, gy: Any, case: PointwiseCase) -> Any:
    options = (None, _ONE, _NONE, _ONE, False, _NONE, 1, [True, False, False])
    return _aten().convolution_backward(gy, x, w[:, :, None, None], *options)[0]


def pointwise_weight_grad(x: Any, w: Any, gy: Any, case: PointwiseCase) -> Any:
    options = (None, _ONE, _NONE, _ONE, False, _NONE, 1, [False, True, False])
    return _aten().convolution_backward(gy, x, w[:, :, None, None], *options)[1].flatten(1)


def max_forward(x: Any, indices: Any, gy: Any, case: PoolCase) -> Any:
    window = (case.kernel, case.stride, case.symmetric_padding, case.dilation, case.ceil_mode)
    return _functional().max_pool2d(x, *window)


def max_backward(x: Any, indices: Any, gy: Any, case: PoolCase) -> Any:
    window = (case.kernel, case.stride, case.symmetric_padding, case.dilation, case.ceil_mode)
    return _aten().max_pool2d_with_indices_backward(gy, x, *window, indices)


def avg_forward(x: Any, indices: Any, gy: Any, case: PoolCase) -> Any:
    window = (case.kernel, case.stride, case.symmetric_padding, case.ceil_mode)
    return _functional().avg_pool2d(x, *window, case.count_include_pad, case.divisor)


def avg_backward(x: Any, indices: Any, gy: Any, case: PoolCase) -> Any:
    window = (case.kernel, case.stride, case.symmetric_padding, case.ceil_mode)
    return _aten().avg_pool2d_backward(gy, x, *window, case.count_include_pad, case.divisor)


def _native(channels_last: bool, inputs: Inputs) -> Inputs:
    torch = _torch()
    if torch.get_num_threads() != ck.num_threads():
        torch.set_num_threads(ck.num_threads())
    tensors = [torch.from_numpy(array) for array in inputs]
    if channels_last:
        form = torch.channels_last
        tensors = [t.contiguous(memory_format=form) if t.ndim == 4 else t for t in tensors]
    return Inputs(*tensors)


def _array(result: Any) -> np.ndarray:
    array: np.ndarray = result.numpy()
    return array


def _missing() -> str:
    return "" if find_spec("torch") else "PyTorch is not installed (pip install torch)"


def _limit(case: Case, direction: str) -> str:
    if isinstance(case, PoolCase) and case.symmetric_padding is None:
        return "PyTorch's pools take symmetric padding only"
    return ""


_FUNCTIONS: dict[tuple[str, str], Function] = {
    ("conv", "forward"): forward,
    ("conv", "input_grad"): input_grad,
    ("conv", "weight_grad"): weight_grad,
    ("pointwise", "forward"): pointwise_forward,
    ("pointwise", "input_grad"): pointwise_input_grad,
    ("pointwise", "weight_grad"): pointwise_weight_grad,
    ("pool", "max_forward"): max_forward,
    ("pool", "max_backward"): max_backward,
    ("pool", "avg_forward"): avg_forward,
    ("pool", "avg_backward"): avg_backward,
}


def _layout(name: str, about: str, channels_last: bool) -> Rival:
    native = partial(_native, channels_last)
    return Rival(name, about, _FUNCTIONS, native=native, array=_array, missing=_missing, limit=_limit)


NCHW = _layout(TORCH[0], "PyTorch, tensors in NCHW", False)
CHANNELS_LAST = _layout(TORCH[1], "PyTorch, tensors in its channels-last format", True)
