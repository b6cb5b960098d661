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
from .arithmetic import abs, add, clamp, div, erf, exp, log, mul, neg, pow, sqrt, sub, where
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
from .dropout import dropout, dropout2d, gaussian_noise
from .entropy import cross_entropy, nll_loss
from .linear import linear, matmul
from .loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    huber_loss,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
)
from .lp_pool import lp_pool1d, lp_pool2d, lp_pool3d
from .nonlinear import elu, gelu, hardswish, leaky_relu, logsigmoid, prelu, relu6, selu, silu
from .norm import batch_norm
from .pad import pad
from .pointwise import pointwise, pointwise_input_grad, pointwise_weight_grad
from .pool import avg_pool1d, avg_pool2d, avg_pool3d, max_pool1d, max_pool2d, max_pool3d
from .reduce import max, mean, sum
from .resize import interpolate
from .row_norm import group_norm, instance_norm, layer_norm, local_response_norm
from .shape import cast, clone, concatenate, expand, flatten, getitem, move, reshape, sum_to, transpose
from .unpool import max_unpool1d, max_unpool2d, max_unpool3d

__all__ = [
    "abs",
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
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cast",
    "clamp",
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
    "dropout",
    "dropout2d",
    "elu",
    "erf",
    "exp",
    "expand",
    "flatten",
    "gaussian_noise",
    "gelu",
    "getitem",
    "group_norm",
    "hardswish",
    "huber_loss",
    "instance_norm",
    "interpolate",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "local_response_norm",
    "log",
    "log_softmax",
    "logsigmoid",
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
    "move",
    "mse_loss",
    "mul",
    "neg",
    "nll_loss",
    "pad",
    "pointwise",
    "pointwise_input_grad",
    "pointwise_weight_grad",
    "pow",
    "prelu",
    "relu",
    "relu6",
    "reshape",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "sqrt",
    "sub",
    "sum",
    "sum_to",
    "tanh",
    "transpose",
    "where",
]
