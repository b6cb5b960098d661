"""The public operations: each checks its arguments, plans, runs a kernel and records."""

from .activation import log_softmax, relu, sigmoid, softmax, tanh
from .arithmetic import add, div, exp, log, mul, neg, pow, sqrt, sub
from .conv import bias_grad, conv2d, conv2d_input_grad, conv2d_weight_grad
from .linear import linear, matmul
from .loss import cross_entropy
from .norm import batch_norm
from .pointwise import pointwise, pointwise_input_grad, pointwise_weight_grad
from .pool import avg_pool2d, max_pool2d
from .reduce import max, mean, sum
from .shape import cast, clone, concatenate, expand, flatten, getitem, reshape, sum_to, transpose

__all__ = [
    "add",
    "avg_pool2d",
    "batch_norm",
    "bias_grad",
    "cast",
    "clone",
    "concatenate",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "cross_entropy",
    "div",
    "exp",
    "expand",
    "flatten",
    "getitem",
    "linear",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "max_pool2d",
    "mean",
    "mul",
    "neg",
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
