"""The public operations: each checks its arguments, plans, runs a kernel and records."""

from .activation import log_softmax, relu, sigmoid, softmax, tanh
from .adaptive import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
)
from .arithmetic import add, div, exp, log, mul, neg, pow, sqrt, sub
from .conv import (
    conv1d,
    conv1d_input_grad,
    conv1d_weight_grad,
    conv2d,
    conv2d_input_grad,
    conv2d_weight_grad,
    conv3d,
    conv3d_input_grad,
    conv3d_weight_grad,
)
from .conv_transpose import conv_transpose1d, conv_transpose2d, conv_transpose3d
from .convolution import bias_grad
from .linear import linear, matmul
from .loss import cross_entropy
from .lp_pool import lp_pool1d, lp_pool2d, lp_pool3d
from .norm import batch_norm
from .pad import pad
from .pointwise import pointwise, pointwise_input_grad, pointwise_weight_grad
from .pool import avg_pool1d, avg_pool2d, avg_pool3d, max_pool1d, max_pool2d, max_pool3d
from .reduce import max, mean, sum
from .resize import interpolate
from .shape import cast, clone, concatenate, expand, flatten, getitem, reshape, sum_to, transpose
from .unpool import max_unpool1d, max_unpool2d, max_unpool3d

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "add",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "bias_grad",
    "cast",
    "clone",
    "concatenate",
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
    "cross_entropy",
    "div",
    "exp",
    "expand",
    "flatten",
    "getitem",
    "interpolate",
    "linear",
    "log",
    "log_softmax",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "matmul",
    "max",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "mean",
    "mul",
    "neg",
    "pad",
    "pointwise",
    "pointwise_input_grad",
    "pointwise_weight_grad",
    "pow",
    "relu",
    "reshape",
    "sigmoid",
    "softmax",
    "sqrt",
    "sub",
    "sum",
    "sum_to",
    "tanh",
    "transpose",
]
