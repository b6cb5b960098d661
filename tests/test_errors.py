"""Bad input: each kind raises ValueError or TypeError that names the argument, what came and what was expected."""

import importlib.util

import numpy as np
import pytest

import convkern as ck
from convkern import device, models, nn, ops, optim, plan
from convkern.nn import functional as F


def f4(*shape):
    return np.ones(shape, np.float32)


X, W, B = f4(2, 4, 6, 7), f4(6, 4, 3, 3), f4(6)  # (N, C, H, W), (K, C, R, S), (K,)
GY = f4(2, 6, 4, 5)  # (N, K, P, Q)
LOGITS, LABELS = f4(3, 5), np.array([0, 4, 2])

CASES = {
    # --- ranks, channels, sizes
    "x of rank 2": (lambda: ck.conv2d(X[0, 0], W), ValueError,
        r"conv2d: x must have axes \(N, C, H, W\) or \(C, H, W\), got shape \(6, 7\)"),
    "x of rank 5": (lambda: ck.conv2d(X[None], W), ValueError, r"x must have axes .* got shape \(1, 2, 4, 6, 7\)"),
    "w of rank 3": (lambda: ck.conv2d(X, W[0]), ValueError,
        r"conv2d: w must have 4 axes \(K, C/groups, R, S\), got shape \(4, 3, 3\)"),
    "pool of rank 2": (lambda: ck.max_pool2d(X[0, 0], 2), ValueError,
        r"max_pool2d: x must have axes .* got shape \(6, 7\)"),
    "empty kernel": (lambda: ck.conv2d(X, f4(6, 4, 0, 3)), ValueError,
        r"w must not be empty, got shape \(6, 4, 0, 3\)"),
    "channels": (lambda: ck.conv2d(X, f4(6, 3, 3, 3)), ValueError,
        r"x has 4 channels, but w of shape \(6, 3, 3, 3\) with groups=1 takes 3"),
    "channels of groups": (lambda: ck.conv2d(X, W, groups=2), ValueError,
        r"x has 4 channels, but w .* with groups=2 takes 8"),
    "groups not dividing K": (lambda: ck.conv2d(X, f4(5, 2, 3, 3), groups=2), ValueError,
        "groups=2 must divide the 5 output channels of w"),
    "groups not dividing C": (lambda: ck.conv2d_weight_grad(X, GY, 3, groups=3), ValueError,
        "groups=3 must divide the 4 channels of x"),
    "kernel too high": (lambda: ck.conv2d(X, f4(6, 4, 7, 3)), ValueError,
        r"the kernel's height 7 \(dilation 1\) does not fit into the input's height 6 with padding \(0, 0\)"),
    "kernel too wide": (lambda: ck.conv2d(X, W, padding=1, dilation=(1, 5)), ValueError,
        r"width 3 \(dilation 5\) does not fit into the input's width 7 with padding \(1, 1\)"),
    "window too large": (lambda: ck.avg_pool2d(X, 8), ValueError,
        r"avg_pool2d: the window's height 8 .* input's height 6 with padding \(0, 0\)"),
    "no pixels": (lambda: ck.conv2d(f4(1, 4, 0, 7), W, padding=2), ValueError,
        "does not fit into the input's height 0"),
    "no channels": (lambda: ck.max_pool2d(f4(1, 0, 4, 4), 2), ValueError,
        r"x must have channels, got shape \(1, 0, 4, 4\)"),
    "pool in the padding": (lambda: ck.max_pool2d(f4(1, 1, 2, 2), 2, 1, padding=2, dilation=3), ValueError,
        r"window .* lies wholly in the padding"),
    # --- stride, padding, dilation, groups
    "zero stride": (lambda: ck.conv2d(X, W, stride=0), ValueError, "conv2d: stride must be at least 1, got 0"),
    "negative stride": (lambda: ck.conv2d(X, W, stride=(1, -2)), ValueError, "stride must be at least 1, got -2"),
    "zero stride of a pool": (lambda: ck.max_pool2d(X, 2, 0), ValueError,
        "max_pool2d: stride must be at least 1, got 0"),
    "zero window": (lambda: ck.avg_pool2d(X, (2, 0)), ValueError,
        "avg_pool2d: kernel_size must be at least 1, got 0"),
    "zero dilation": (lambda: ck.conv2d(X, W, dilation=0), ValueError, "dilation must be at least 1, got 0"),
    "zero groups": (lambda: ck.conv2d(X, W, groups=0), ValueError, "groups must be at least 1, got 0"),
    "infinite stride": (lambda: ck.conv2d(X, W, stride=float("inf")), TypeError,
        "stride must be an int or 2 ints, got inf"),
    "NaN dilation": (lambda: ck.conv2d(X, W, dilation=(1, float("nan"))), TypeError,
        "dilation must be an int, got nan"),
    "float stride": (lambda: ck.conv2d(X, W, stride=1.0), TypeError, r"stride must be an int or 2 ints, got 1\.0"),
    "float in a pair": (lambda: ck.conv2d(X, W, stride=(1, 1.0)), TypeError, r"stride must be an int, got 1\.0"),
    "bool stride": (lambda: ck.conv2d(X, W, stride=True), TypeError, "stride must be an int or 2 ints, got True"),
    "bool in a pair": (lambda: ck.conv2d(X, W, dilation=(True, 1)), TypeError, "dilation must be an int, got True"),
    "bool groups": (lambda: ck.conv2d(X, W, groups=True), TypeError, "groups must be an int, got True"),
    "float window": (lambda: ck.max_pool2d(X, 2.0), TypeError, r"kernel_size must be an int or 2 ints, got 2\.0"),
    "three strides": (lambda: ck.conv2d(X, W, stride=(1, 1, 1)), ValueError,
        r"stride must be an int or 2 ints, got \(1, 1, 1\)"),
    "array as stride": (lambda: ck.conv2d(X, W, stride=np.array([1, 1])), TypeError,
        "stride must be an int or 2 ints, got array"),
    "dict as stride": (lambda: ck.conv2d(X, W, stride={}), TypeError, "stride must be an int or 2 ints, got {}"),
    "None as stride": (lambda: ck.conv2d(X, W, stride=None), TypeError, "stride must be an int or 2 ints, got None"),
    "unknown padding": (lambda: ck.conv2d(X, W, padding="full"), ValueError,
        "padding must be 'same', 'valid' or numbers, got 'full'"),
    "same with stride": (lambda: ck.conv2d(X, W, stride=(1, 2), padding="same"), ValueError,
        r"padding='same' needs stride 1, got stride \(1, 2\)"),
    "negative padding": (lambda: ck.conv2d(X, W, padding=-1), ValueError, "padding must be at least 0, got -1"),
    "float padding": (lambda: ck.conv2d(X, W, padding=0.5), TypeError, r"padding must be an int or 2 ints, got 0\.5"),
    "bool padding": (lambda: ck.conv2d(X, W, padding=False), TypeError,
        "padding must be an int or 2 ints, got False"),
    "one padding pair": (lambda: ck.conv2d(X, W, padding=((1, 1),)), ValueError,
        r"padding must have a \(before, after\) pair for each of 2 axes, got \(\(1, 1\),\)"),
    "half a padding pair": (lambda: ck.conv2d(X, W, padding=((1, 1), 1)), ValueError,
        r"padding must have a \(before, after\) pair"),
    "negative in a pair": (lambda: ck.conv2d(X, W, padding=((1, -3), (0, 0))), ValueError,
        "padding must be at least 0, got -3"),
    "same in a pair": (lambda: ck.conv2d(X, W, padding=("same", 1)), TypeError, "padding must be an int, got 'same'"),
    "padding of a pool": (lambda: ck.max_pool2d(X, 3, padding=2), ValueError,
        r"padding must be at most half the kernel, got \(2, 2\) for height 3"),
    "divisor 0": (lambda: ck.avg_pool2d(X, 2, divisor_override=0), ValueError,
        "divisor_override must be at least 1, got 0"),
    "divisor 1.5": (lambda: ck.avg_pool2d(X, 2, divisor_override=1.5), TypeError,
        r"divisor_override must be an int, got 1\.5"),
    "divisor True": (lambda: ck.avg_pool2d(X, 2, divisor_override=True), TypeError,
        "divisor_override must be an int, got True"),
    # --- dtypes
    "integer x": (lambda: ck.conv2d(X.astype(int), W), TypeError, "conv2d: x must be float32 or float64, got int64"),
    "half w": (lambda: ck.conv2d(X, W.astype(np.float16)), TypeError,
        "conv2d: w must be float32 or float64, got float16"),
    "complex gy": (lambda: ck.conv2d_input_grad(GY.astype(complex), W, X.shape), TypeError,
        "conv2d_input_grad: gy must be float32 or float64, got complex128"),
    "integer pool": (lambda: ck.max_pool2d(X.astype(np.uint8), 2), TypeError,
        "max_pool2d: x must be float32 or float64, got uint8"),
    "mixed dtypes": (lambda: ck.conv2d(X, W.astype(float)), TypeError,
        "conv2d: arrays must have one dtype, got x float32, w float64"),
    "mixed bias": (lambda: ck.conv2d(X, W, B.astype(float)), TypeError,
        "conv2d: arrays must have one dtype, got x float32, bias float64"),
    "integer bias": (lambda: ck.pointwise(X, f4(6, 4), np.ones(6, int)), TypeError,
        "pointwise: arrays must have one dtype, got x float32, bias int64"),
    "mixed gy": (lambda: ck.conv2d_weight_grad(X, GY.astype(float), 3), TypeError,
        "arrays must have one dtype, got x float32, gy float64"),
    "mixed linear bias": (lambda: ops.linear(f4(2, 4), f4(3, 4), np.ones(3)), TypeError,
        "linear: arrays must have one dtype, got x float32, w float32, bias float64"),
    "integer linear bias": (lambda: ops.linear(f4(2, 4), f4(3, 4), np.ones(3, int)), TypeError,
        "linear: bias must be float32 or float64, got int64"),
    "integer softmax": (lambda: F.softmax(np.arange(3), 0), TypeError,
        "softmax: x must be float32 or float64, got int64"),
    "integer log-softmax": (lambda: F.log_softmax(np.arange(3), 0), TypeError,
        "log_softmax: x must be float32 or float64, got int64"),
    # --- what is no array
    "list as x": (lambda: ck.conv2d(X.tolist(), W), TypeError, "x must be an array or a Tensor, got list"),
    "None as w": (lambda: ck.conv2d(X, None), TypeError, "w must be an array or a Tensor, got NoneType"),
    "list as bias": (lambda: ck.conv2d(X, W, [1.0] * 6), TypeError, "bias must be an array or a Tensor, got list"),
    "number as x": (lambda: ck.max_pool2d(1.0, 2), TypeError, "x must be an array or a Tensor, got float"),
    "list as operand": (lambda: ops.add(X, [1.0]), TypeError, "right operand must be an array or a Tensor, got list"),
    "text as operand": (lambda: ck.tensor([1.0]) * "two", TypeError,
        "right operand must be an array or a Tensor, got str"),
    "list of lists": (lambda: ops.concatenate([[1.0], [2.0]]), TypeError,
        r"tensors\[0\] must be an array or a Tensor, got list"),
    # --- bias, gy and their shapes
    "bias shape": (lambda: ck.conv2d(X, W, f4(5)), ValueError,
        r"bias must have shape \(6,\), one value per output channel, got \(5,\)"),
    "bias rank": (lambda: ck.conv2d(X, W, f4(6, 1)), ValueError, r"bias must have shape \(6,\), .* got \(6, 1\)"),
    "gy of the input gradient": (lambda: ck.conv2d_input_grad(GY[..., 1:], W, X.shape), ValueError,
        r"gy must have the output's shape \(2, 6, 4, 5\) for input \(2, 4, 6, 7\), got \(2, 6, 4, 4\)"),
    "gy of the weight gradient": (lambda: ck.conv2d_weight_grad(X, GY[:1], 3), ValueError,
        r"gy must have the output's shape \(2, 6, 4, 5\) for x \(2, 4, 6, 7\), got \(1, 6, 4, 5\)"),
    "gy without batch": (lambda: ck.conv2d_weight_grad(X[:1], GY[0], 3), ValueError,
        r"gy must have the output's shape \(1, 6, 4, 5\) .* got \(6, 4, 5\)"),
    "input_shape of rank 2": (lambda: ck.conv2d_input_grad(GY, W, (6, 7)), ValueError,
        r"input_shape must have axes .* got shape \(6, 7\)"),
    "input_shape as int": (lambda: ck.conv2d_input_grad(GY, W, 6), TypeError,
        "input_shape must be a tuple of ints, got 6"),
    "negative input_shape": (lambda: ck.conv2d_input_grad(GY, W, (2, 4, 6, -7)), ValueError,
        "input_shape must be at least 0, got -7"),
    "float input_shape": (lambda: ck.conv2d_input_grad(GY, W, (2, 4, 6.0, 7)), TypeError,
        r"input_shape must be an int, got 6\.0"),
    "zero kernel_size": (lambda: ck.conv2d_weight_grad(X, GY, 0), ValueError,
        "kernel_size must be at least 1, got 0"),
    "pointwise w": (lambda: ck.pointwise(X, W), ValueError,
        r"w must have shape \(K, C\) or \(K, C, 1, 1\), got \(6, 4, 3, 3\)"),
    "pointwise channels": (lambda: ck.pointwise(X, f4(6, 3)), ValueError,
        r"x has 4 channels, but w of shape \(6, 3\) takes 3"),
    "pointwise gy channels": (lambda: ck.pointwise_input_grad(X, f4(6, 3)), ValueError,
        r"gy has 4 channels, but w of shape \(6, 3\) gives 6"),
    "pointwise gy": (lambda: ck.pointwise_weight_grad(X, GY), ValueError,
        r"gy must have shape \(2, 6, 6, 7\) for x \(2, 4, 6, 7\), got \(2, 6, 4, 5\)"),
    # --- residual
    "residual shape": (lambda: ck.conv2d(X, W, residual=X), ValueError,
        r"conv2d: residual must have the output's shape \(2, 6, 4, 5\), got \(2, 4, 6, 7\)"),
    "residual of one image": (lambda: ck.conv2d(X, W, residual=GY[0]), ValueError,
        r"conv2d: residual must have the output's shape \(2, 6, 4, 5\), got \(6, 4, 5\)"),
    "residual dtype": (lambda: ck.conv2d(X, W, residual=GY.astype("f8")), TypeError,
        "conv2d: arrays must have one dtype, got x float32, residual float64"),
    "residual no array": (lambda: ck.conv2d(X, W, residual="x"), TypeError,
        "residual must be an array or a Tensor, got str"),
    "residual overlaps out": (lambda: ck.conv2d(X, W, residual=GY, out=GY), ValueError,
        "out overlaps an input"),
    "pointwise residual": (lambda: ck.pointwise(X, f4(6, 4), residual=X), ValueError,
        r"pointwise: residual must have the output's shape \(2, 6, 6, 7\), got \(2, 4, 6, 7\)"),
    # --- choices
    "activation": (lambda: ck.conv2d(X, W, activation="gelu"), ValueError,
        "activation must be None or 'relu', got 'gelu'"),
    "activation as list": (lambda: ck.pointwise(X, f4(6, 4), activation=["relu"]), ValueError,
        r"activation must be None or 'relu', got \['relu'\]"),
    "activation False": (lambda: ck.conv2d(X, W, activation=False), ValueError,
        "activation must be None or 'relu', got False"),
    "precision": (lambda: ck.conv2d(X, W, precision="fast"), ValueError,
        "precision must be 'default', 'strict', 'tf32', 'float16' or 'bfloat16', got 'fast'"),
    "precision of a pool": (lambda: ck.avg_pool2d(X, 2, precision=None), ValueError,
        "precision must be 'default', 'strict', 'tf32', 'float16' or 'bfloat16', got None"),
    "reduction": (lambda: F.cross_entropy(LOGITS, LABELS, reduction="max"), ValueError,
        "reduction must be one of .*mean.*sum.*none.* got 'max'"),
    # --- shapes
    "reshape": (lambda: ops.reshape(X, (5, -1)), ValueError,
        r"x of shape \(2, 4, 6, 7\) does not fit into \(5, -1\)"),
    "flatten": (lambda: ops.flatten(X, 2, 1), ValueError, r"start_dim=2, end_dim=1 do not fit shape \(2, 4, 6, 7\)"),
    "flatten too far": (lambda: ops.flatten(X, 1, 4), ValueError,
        r"start_dim=1, end_dim=4 do not fit shape \(2, 4, 6, 7\)"),
    "flatten a number": (lambda: ops.flatten(X.sum()), ValueError, r"start_dim=0, end_dim=-1 do not fit shape \(\)"),
    "transpose": (lambda: ops.transpose(X, (0, 1)), ValueError, r"axes must name each of 4 axes once, got \(0, 1\)"),
    "transpose too far": (lambda: ops.transpose(LOGITS, (0, 3)), ValueError,
        r"axes must name each of 2 axes once, got \(0, 3\)"),
    "transpose of two": (lambda: ck.tensor(LOGITS).transpose(0, 2), ValueError,
        r"dim0=0, dim1=2 do not fit shape \(3, 5\)"),
    "expand": (lambda: ops.expand(LOGITS, (2, 3)), ValueError, r"x of shape \(3, 5\) does not broadcast to \(2, 3\)"),
    "broadcasting": (lambda: ck.tensor(LOGITS) + f4(4), ValueError,
        r"add: shapes \(3, 5\) and \(4,\) do not broadcast"),
    "matmul": (lambda: ops.matmul(LOGITS, f4(4, 5)), ValueError, r"inner sizes differ, \(3, 5\) times \(4, 5\)"),
    "matmul of stacks": (lambda: ops.matmul(f4(2, 3, 4), f4(3, 4, 5)), ValueError,
        r"stacks do not broadcast, \(2, 3, 4\) times \(3, 4, 5\)"),
    "matmul of numbers": (lambda: ops.matmul(LOGITS, f4()), ValueError,
        r"operands must have axes, got shapes \(3, 5\) and \(\)"),
    "linear": (lambda: ops.linear(LOGITS, f4(2, 4)), ValueError,
        r"x of shape \(3, 5\) needs w of shape \(out, 5\), got \(2, 4\)"),
    "linear bias": (lambda: ops.linear(LOGITS, f4(2, 5), f4(5)), ValueError,
        r"bias must have shape \(2,\), got \(5,\)"),
    "linear of a number": (lambda: ops.linear(f4(), f4(2, 5)), ValueError, r"x must have axes .* got shape \(\)"),
    "sum": (lambda: ops.sum(LOGITS, 2), ValueError, "dim=2 does not fit an array of 2 axes"),
    "softmax": (lambda: ops.softmax(LOGITS, -3), ValueError, "dim=-3 does not fit an array of 2 axes"),
    "concatenate": (lambda: ops.concatenate([LOGITS, X]), ValueError,
        r"dim=0: shapes \[\(3, 5\), \(2, 4, 6, 7\)\] do not fit"),
    "concatenate nothing": (lambda: ops.concatenate([]), ValueError, "concatenate: needs at least one array"),
    "Tensor as exponent": (lambda: ck.tensor([1.0]) ** ck.tensor([2.0]), TypeError,
        "exponent must be a number, got Tensor"),
    # --- modules
    "Conv2d channels": (lambda: nn.Conv2d(0, 4, 3), ValueError, "Conv2d: in_channels must be at least 1, got 0"),
    "Conv2d float channels": (lambda: nn.Conv2d(3, 4.0, 3), TypeError,
        r"Conv2d: out_channels must be an int, got 4\.0"),
    "Conv2d groups": (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError,
        "groups=2 must divide in_channels=3 and out_channels=4"),
    "Conv2d kernel": (lambda: nn.Conv2d(3, 4, (3, 0)), ValueError, "Conv2d: kernel_size must be at least 1, got 0"),
    "Conv2d stride": (lambda: nn.Conv2d(3, 4, 3, stride=-1), ValueError, "Conv2d: stride must be at least 1, got -1"),
    "Conv2d padding": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding="same"), ValueError,
        r"padding='same' needs stride 1, got stride \(2, 2\)"),
    "Conv2d dtype": (lambda: nn.Conv2d(3, 4, 3, dtype=int), TypeError,
        "requires_grad needs float32 or float64, got int64"),
    "Linear features": (lambda: nn.Linear(True, 4), TypeError, "Linear: in_features must be an int, got True"),
    "Sequential": (lambda: nn.Sequential(nn.ReLU(), ops.relu), TypeError,
        "Sequential: member 1 must be a Module, got function"),
    "no forward": (lambda: nn.Module()(X), NotImplementedError, "Module does not define forward"),
    "no attribute": (lambda: nn.ReLU().weight, AttributeError, "ReLU has no attribute 'weight'"),
    "to integers": (lambda: nn.Linear(2, 2).to(np.int32), TypeError, "parameters are float32 or float64, got int32"),
    "x of a layer": (lambda: nn.Conv2d(3, 4, 3)(X), ValueError,
        r"conv2d: x has 4 channels, but w of shape \(4, 3, 3, 3\)"),
    "dtype of a layer": (lambda: nn.Linear(5, 2)(LOGITS.astype(float)), TypeError,
        "linear: arrays must have one dtype, got x float64, w float32"),
    "buffer": (lambda: nn.Module().register_buffer("mean", 1.0), TypeError, "mean must be a NumPy or CuPy array, got float"),
    "nonlinearity": (lambda: nn.init.calculate_gain("swish"), ValueError,
        "nonlinearity must be 'leaky_relu' or one of .* got 'swish'"),
    "fan mode": (lambda: nn.init.kaiming_normal_(ck.tensor(W), mode="fan_avg"), ValueError,
        "mode must be 'fan_in' or 'fan_out', got 'fan_avg'"),
    "fan of a vector": (lambda: nn.init.xavier_uniform_(ck.tensor(B)), ValueError,
        r"at least 2 axes, got shape \(6,\)"),
    "seed": (lambda: nn.init.manual_seed(-1), ValueError, r"seed must be between 0 and 2\*\*64 - 1, got -1"),
    "float seed": (lambda: models.lenet5(seed=0.5), TypeError, r"seed must be an integer, got float 0\.5"),
    # --- models
    "model": (lambda: models.build("lenet6"), ValueError, "model must be one of .*lenet5.*, got 'lenet6'"),
    "image size": (lambda: models.lenet5(image_size=11), ValueError, "image_size must be at least 12, got 11"),
    "classes": (lambda: models.lenet5(num_classes=0), ValueError, "out_features must be at least 1, got 0"),
    # --- optimizers
    "lr NaN": (lambda: optim.SGD([P()], lr=float("nan")), ValueError, "SGD: lr must be at least 0, got nan"),
    "lr negative": (lambda: optim.SGD([P()], lr=-0.1), ValueError, r"SGD: lr must be at least 0, got -0\.1"),
    "lr infinite": (lambda: optim.Adam([P()], lr=float("inf")), ValueError, "Adam: lr must be at least 0, got inf"),
    "lr as text": (lambda: optim.SGD([P()], lr="0.1"), TypeError, r"SGD: lr must be a number, got '0\.1'"),
    "lr as bool": (lambda: optim.SGD([P()], lr=True), TypeError, "SGD: lr must be a number, got True"),
    "momentum": (lambda: optim.SGD([P()], lr=0.1, momentum=-1), ValueError,
        "SGD: momentum must be at least 0, got -1"),
    "weight decay": (lambda: optim.Adam([P()], weight_decay=-1), ValueError,
        "Adam: weight_decay must be at least 0, got -1"),
    "beta 1": (lambda: optim.Adam([P()], betas=(0.9, 1.0)), ValueError,
        r"Adam: betas\[1\] must be at least 0 and below 1, got 1\.0"),
    "one beta": (lambda: optim.Adam([P()], betas=0.9), ValueError, r"Adam: betas must be two numbers, got 0\.9"),
    "eps": (lambda: optim.Adam([P()], eps=-1e-8), ValueError, "Adam: eps must be at least 0, got -1e-08"),
    "unknown option": (lambda: optim.SGD([P()], lr=0.1, nesterof=True), TypeError,
        "unexpected keyword argument 'nesterof'"),
    "unknown option of a group": (lambda: optim.SGD([{"params": [P()], "rate": 1}], lr=0.1), ValueError,
        r"SGD: a parameter group has unknown options \['rate'\]"),
    "option of a group": (lambda: optim.SGD([{"params": [P()], "lr": -1}], lr=0.1), ValueError,
        "SGD: lr must be at least 0, got -1"),
    "group without params": (lambda: optim.SGD([{"lr": 1.0}], lr=0.1), TypeError,
        "a parameter group must be a dict with 'params', got {'lr': 1.0}"),
    "no parameters": (lambda: optim.Adam([]), ValueError, "Adam: params must not be empty"),
    "a parameter twice": (lambda: optim.SGD([Q, P(), Q], lr=0.1), ValueError,
        r"SGD: params holds the same Tensor twice, shape \(2, 3\)"),
    "a parameter in two groups": (lambda: optim.Adam([{"params": [Q]}, {"params": [Q]}]), ValueError,
        r"params holds the same Tensor twice, shape \(2, 3\)"),
    "one Tensor": (lambda: optim.SGD(Q, lr=0.1), TypeError,
        "params must be an iterable of Tensors or of dicts, got a Tensor"),
    "arrays": (lambda: optim.SGD([f4(2)], lr=0.1), TypeError, "params must be Tensors, got ndarray"),
    "a model": (lambda: optim.SGD(nn.Sequential(nn.Linear(2, 2)), lr=0.1), TypeError,
        "params must be Tensors, got Linear"),
    "a result": (lambda: optim.SGD([Q * 2], lr=0.1), ValueError, "params must be leaves, got the result of mul"),
    # --- the rest
    "threads": (lambda: ck.set_num_threads(0), ValueError, "threads must be at least 1, got 0"),
    "float threads": (lambda: ck.set_num_threads(2.0), TypeError, "threads must be an int, got float"),
    "device": (lambda: device.check("gpu"), ValueError, "device must be 'auto', 'cpu' or 'cuda', got 'gpu'"),
    "row": (lambda: use_unknown_row(), ValueError, r"the plan asks for row 'fft' for conv\.forward cpu float32"),
}  # fmt: skip

Q = nn.Parameter(f4(2, 3))


def P():
    return nn.Parameter(f4(2))


def use_unknown_row():
    with plan.traced() as steps:
        ck.conv2d(X, W, padding=2)
    try:
        plan.use({plan.key(steps[0][0]): "fft"})
        ck.conv2d(X, W, padding=2)
    finally:
        plan._fixed.clear()
        plan.plan.cache_clear()


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name):
    call, error, message = CASES[name]
    with pytest.raises(error, match=message):
        call()


def test_twenty_kinds_and_more():
    assert len(CASES) >= 20


@pytest.mark.parametrize(
    ("good", "bad"), [(1, True), (1, 1.0), ((1, 1), (True, True)), ((1, 1), (1.0, 1)), (1, np.bool_(True))], ids=str
)
def test_a_good_call_before_does_not_let_a_bad_one_through(good, bad):
    """Specs are cached, and 1 == 1.0 == True."""
    for call in (
        lambda value: ck.conv2d(X, W, stride=value),
        lambda value: ck.conv2d(X, W, dilation=value),
        lambda value: ck.conv2d(X, W, padding=value),
        lambda value: ck.conv2d_weight_grad(X, GY, 3, stride=value),
        lambda value: ck.max_pool2d(X, value),
        lambda value: ck.avg_pool2d(X, 2, value),
    ):
        call(good)
        with pytest.raises(TypeError, match="must be an int"):
            call(bad)


def test_lists_and_numpy_integers_are_sizes():
    expected = ck.conv2d(X, W, stride=(2, 1), padding=((1, 0), (2, 2)))
    np.testing.assert_array_equal(ck.conv2d(X, W, stride=[2, 1], padding=[[1, 0], [2, 2]]), expected)
    np.testing.assert_array_equal(
        ck.conv2d(X, W, stride=(np.int64(2), np.uint8(1)), padding=((1, 0), (2, 2))), expected
    )


def test_nothing_is_written_before_a_check_fails():
    out = np.full((2, 6, 4, 5), 7, np.float32)
    for bad in (dict(bias=f4(5)), dict(precision="fast"), dict(activation="gelu"), dict(stride=0)):
        with pytest.raises((ValueError, TypeError)):
            ck.conv2d(X, W, out=out, **bad)
    assert (out == 7).all()


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_cuda_without_a_gpu_says_what_to_install():
    for call in (lambda: device.check("cuda"), lambda: nn.Linear(2, 2).to("cuda"), lambda: ck.tensor([1.0]).to("cuda")):
        with pytest.raises(
            ValueError, match=r"device 'cuda' cannot be used.*CuPy is not installed \(pip install \"convkern\["
        ):
            call()
    assert device.gpu_status().startswith("none: CuPy is not installed")


def test_auto_and_cpu_are_the_cpu():
    assert device.check("auto") == device.check("cpu") == "cpu"
    model = nn.Linear(2, 2)
    assert model.to("cpu") is model.to("auto") is model
