"""The public operations: each checks its arguments, plans, runs a kernel and records."""

from .activation import log_softmax, relu, sigmoid, softmax, tanh
from .arithmetic import abs, add, clamp, div, erf, exp, log, mul, neg, pow, sqrt, sub, where
from .conv import bias_grad, conv2d, conv2d_input_grad, conv2d_weight_grad
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
from .nonlinear import elu, gelu, hardswish, leaky_relu, logsigmoid, prelu, relu6, selu, silu
from .norm import batch_norm
from .pointwise import pointwise, pointwise_input_grad, pointwise_weight_grad
from .pool import avg_pool2d, max_pool2d
from .reduce import max, mean, sum
from .row_norm import group_norm, instance_norm, layer_norm, local_response_norm
from .shape import cast, clone, concatenate, expand, flatten, getitem, reshape, sum_to, transpose

__all__ = [
    "abs",
    "add",
    "avg_pool2d",
    "batch_norm",
    "bias_grad",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cast",
    "clamp",
    "clone",
    "concatenate",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
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
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "local_response_norm",
    "log",
    "log_softmax",
    "logsigmoid",
    "matmul",
    "max",
    "max_pool2d",
    "mean",
    "mse_loss",
    "mul",
    "neg",
    "nll_loss",
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
