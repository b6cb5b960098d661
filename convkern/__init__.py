"""convkern: convolution kernels written by hand in Python with Numba, and the graph that trains networks on them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .tensor import Tensor, tensor  # isort: skip  (first: graph and ops need the class while they load)
from .explanation import explain
from .gradcheck import gradcheck
from .graph import Function, no_grad
from .ops import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    conv1d,
    conv1d_input_grad,
    conv1d_weight_grad,
    conv2d,
    conv2d_input_grad,
    conv2d_weight_grad,
    conv3d,
    conv3d_input_grad,
    conv3d_weight_grad,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    interpolate,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
    pointwise,
    pointwise_input_grad,
    pointwise_weight_grad,
)

if TYPE_CHECKING:
    from . import amp, data, models, nn, optim, train

__version__ = "0.1.0"

__all__ = [
    "Function",
    "Tensor",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "amp",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv1d",
    "conv1d_input_grad",
    "conv1d_weight_grad",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv3d",
    "conv3d_input_grad",
    "conv3d_weight_grad",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "data",
    "explain",
    "gradcheck",
    "interpolate",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "models",
    "nn",
    "no_grad",
    "num_threads",
    "optim",
    "pointwise",
    "pointwise_input_grad",
    "pointwise_weight_grad",
    "set_flush_denormals",
    "set_num_threads",
    "tensor",
    "train",
]

_SUBMODULES = ("amp", "data", "models", "nn", "optim", "train")


def __getattr__(name: str) -> Any:
    # Submodules load when they are first named, so that a plain import stays cheap.
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def set_num_threads(threads: int) -> None:
    """Set the number of threads that a kernel may use; the results do not depend on it.

    Parameters
    ----------
    threads : int
        At least 1.
    """
    from .kernels import threads as pool

    pool.set_num_threads(threads)


def set_flush_denormals(mode: bool) -> bool:
    """Set whether kernels treat denormal numbers as zero, which they do unless told otherwise.

    Below 1.2e-38 in float32 and 2.2e-308 in float64 a multiplication takes many times as long on most CPUs, so that a layer
    of tiny weights would be slow. The mode holds inside kernels only, on all of their threads; NumPy's own arithmetic is
    not touched.

    Parameters
    ----------
    mode : bool
        True to take and give zeros in place of denormal numbers, False to compute with them.

    Returns
    -------
    bool
        Whether this CPU can flush them, as ``torch.set_flush_denormal`` says it.
    """
    from .kernels import denormals

    return denormals.set_flush_denormals(mode)


def num_threads() -> int:
    """Number of threads that a kernel may use.

    Returns
    -------
    int
        What :func:`set_num_threads` set; else ``CONVKERN_NUM_THREADS``, ``NUMBA_NUM_THREADS`` or the cores.
    """
    from .kernels import threads as pool

    return pool.num_threads()
