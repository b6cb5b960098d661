"""Bad input of layers, losses and optimizers: each kind raises an error that names the argument and what came."""

import numpy as np
import pytest

from convkern import nn, ops, optim
from convkern.nn import functional as F


def f4(*shape):
    return np.ones(shape, np.float32)


def P():
    return nn.Parameter(f4(2))


X = f4(2, 4, 6, 7)  # (N, C, H, W)
LOGITS, LABELS = f4(3, 5), np.array([0, 4, 2])

CASES = {
    # --- losses
    "label too large": (lambda: F.cross_entropy(LOGITS, np.array([0, 5, 1])), ValueError,
        "cross_entropy: target must be in 0 … 4, or -100 to be ignored, got 0 … 5"),
    "label -1": (lambda: F.cross_entropy(LOGITS, np.array([0, -1, 1])), ValueError,
        "target must be in 0 … 4, or -100 to be ignored, got -1 … 1"),
    "float labels": (lambda: F.cross_entropy(LOGITS, f4(3)), ValueError,
        r"target of probabilities must have input's shape \(3, 5\), got \(3,\)"),
    "float labels of nll_loss": (lambda: F.nll_loss(LOGITS, f4(3)), TypeError,
        "nll_loss: target must hold integer labels, got float32"),
    "bool labels": (lambda: F.cross_entropy(LOGITS, np.ones(3, bool)), TypeError,
        "target must hold integer labels, got bool"),
    "labels as list": (lambda: F.cross_entropy(LOGITS, [0, 1, 2]), TypeError,
        "target must be an array or a Tensor, got list"),
    "too few labels": (lambda: F.cross_entropy(LOGITS, LABELS[:2]), ValueError,
        r"target must have shape \(3,\) for input \(3, 5\), got \(2,\)"),
    "logits of rank 3": (lambda: F.cross_entropy(f4(3, 5, 1), LABELS), ValueError,
        r"target must have shape \(3, 1\) for input \(3, 5, 1\), got \(3,\)"),
    "logits without axes": (lambda: F.nll_loss(f4(), LABELS), ValueError,
        r"input must have shape \(C,\) or \(N, C, …\), got \(\)"),
    "integer logits": (lambda: F.cross_entropy(np.ones((3, 5), int), LABELS), TypeError,
        "cross_entropy: input must be float32 or float64, got int64"),
    "class weights": (lambda: F.cross_entropy(LOGITS, LABELS, f4(3)), ValueError,
        r"cross_entropy: weight must have shape \(5,\), one per class, got \(3,\)"),
    "wide class weights": (lambda: F.nll_loss(LOGITS, LABELS, np.ones(5)), TypeError,
        "nll_loss: weight must have input's dtype float32, got float64"),
    "negative class weights": (lambda: F.nll_loss(LOGITS, LABELS, -f4(5)), ValueError,
        r"nll_loss: weight must be at least 0, got -1\.0"),
    "all ignored": (lambda: F.cross_entropy(LOGITS, LABELS * 0 + 7, ignore_index=7), ValueError,
        "the mean of targets that are all ignored or weigh 0 does not exist"),
    "ignore_index": (lambda: F.cross_entropy(LOGITS, LABELS, ignore_index=1.5), TypeError,
        r"ignore_index must be an int, got 1\.5"),
    "label_smoothing": (lambda: F.cross_entropy(LOGITS, LABELS, label_smoothing=1.1), ValueError,
        r"label_smoothing must be at least 0 and at most 1, got 1\.1"),
    "target of another shape": (lambda: F.mse_loss(f4(3, 1), f4(3)), ValueError,
        r"mse_loss: target must have input's shape \(3, 1\), got \(3,\)"),
    "target of another dtype": (lambda: F.l1_loss(f4(3), np.ones(3)), TypeError,
        "l1_loss: arrays must have one dtype, got input float32, target float64"),
    "loss of nothing": (lambda: F.huber_loss(f4(0), f4(0)), ValueError,
        "huber_loss: the mean over an empty batch does not exist"),
    "delta": (lambda: F.huber_loss(f4(3), f4(3), delta=0), ValueError, "huber_loss: delta must be above 0, got 0"),
    "beta of a loss": (lambda: nn.SmoothL1Loss(beta=-1), ValueError, "SmoothL1Loss: beta must be at least 0, got -1"),
    "probabilities": (lambda: F.binary_cross_entropy(2 * f4(3), f4(3)), ValueError,
        "binary_cross_entropy: input must be between 0 and 1, got 2 … 2"),
    "weight of a loss": (lambda: F.binary_cross_entropy(f4(3), f4(3), f4(2, 3)), ValueError,
        r"weight of shape \(2, 3\) does not broadcast to \(3,\)"),
    "pos_weight": (lambda: F.binary_cross_entropy_with_logits(f4(3), f4(3), pos_weight=f4(2, 3)), ValueError,
        r"pos_weight of shape \(2, 3\) does not broadcast to \(3,\)"),
    "reduction of a module": (lambda: nn.MSELoss(reduction="avg"), ValueError,
        "MSELoss: reduction must be one of .* got 'avg'"),
    # --- activations, normalisation, noise
    "gelu": (lambda: nn.GELU("fast"), ValueError, "approximate must be 'none' or 'tanh', got 'fast'"),
    "slope": (lambda: F.leaky_relu(X, "0.1"), TypeError, r"leaky_relu: negative_slope must be a number, got '0\.1'"),
    "alpha": (lambda: nn.ELU(float("nan")), ValueError, "ELU: alpha must be finite, got nan"),
    "prelu": (lambda: F.prelu(X, f4(3)), ValueError,
        r"prelu: weight must have shape \(1,\) or \(4,\) for x of shape \(2, 4, 6, 7\), got \(3,\)"),
    "integer activation": (lambda: F.silu(np.arange(3)), TypeError, "silu: x must be float32 or float64, got int64"),
    "condition": (lambda: ops.where(X, X, X), TypeError, "where: condition must be boolean, got float32"),
    "clamp": (lambda: ops.clamp(X), ValueError, "clamp: min or max must be given"),
    "layer_norm": (lambda: nn.LayerNorm((6, 8))(X), ValueError,
        r"layer_norm: x must have shape \(…, 6, 8\), got \(2, 4, 6, 7\)"),
    "normalized_shape": (lambda: nn.LayerNorm(()), ValueError, "normalized_shape must name at least one axis, got"),
    "layer_norm weight": (lambda: F.layer_norm(X, 7, f4(6)), ValueError,
        r"layer_norm: weight must have shape \(7,\), got \(6,\)"),
    "group_norm": (lambda: F.group_norm(X, 3), ValueError, "num_groups=3 must divide the 4 channels of x"),
    "GroupNorm": (lambda: nn.GroupNorm(3, 4), ValueError, "GroupNorm: num_groups=3 must divide num_channels=4"),
    "GroupNorm channels": (lambda: nn.GroupNorm(3, 6)(X), ValueError,
        r"GroupNorm: x must have shape \(N, 6, …\), got \(2, 4, 6, 7\)"),
    "group_norm weight dtype": (lambda: F.group_norm(X, 2, np.ones(4)), TypeError,
        "group_norm: arrays must have one dtype, got x float32, weight float64"),
    "instance_norm": (lambda: F.instance_norm(X[:, :, 0, 0]), ValueError,
        r"instance_norm: x must have axes \(N, C, …\) with pixels, got shape \(2, 4\)"),
    "instance of one pixel": (lambda: F.instance_norm(X[:, :, :1, :1]), ValueError,
        r"x needs more than one pixel in a channel, got shape \(2, 4, 1, 1\)"),
    "instance_norm weight": (lambda: F.instance_norm(X, weight=f4(3)), ValueError,
        r"instance_norm: weight must have shape \(4,\), got \(3,\)"),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(3)(X), ValueError,
        r"InstanceNorm2d: x must have shape \(\[N, \]3, H, W\), got \(2, 4, 6, 7\)"),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4)(X), ValueError,
        r"BatchNorm1d: x must have shape \(N, 4, L\) or \(N, 4\), got \(2, 4, 6, 7\)"),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4)(X), ValueError,
        r"BatchNorm3d: x must have shape \(N, 4, D, H, W\), got \(2, 4, 6, 7\)"),
    "momentum of a norm": (lambda: nn.BatchNorm2d(4, momentum=2), ValueError,
        "BatchNorm2d: momentum must be at least 0 and at most 1, got 2"),
    "local_response_norm": (lambda: F.local_response_norm(X, 0), ValueError,
        "local_response_norm: size must be at least 1, got 0"),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(5, beta="high"), TypeError,
        "LocalResponseNorm: beta must be a number, got 'high'"),
    "dropout": (lambda: nn.Dropout(1.5), ValueError, "Dropout: p must be at least 0 and at most 1, got 1.5"),
    "dropout2d": (lambda: F.dropout2d(LOGITS), ValueError, r"x must have axes \(N, C, …\) with pixels, got shape \(3, 5\)"),
    "noise": (lambda: F.gaussian_noise(X, -1), ValueError, "gaussian_noise: std must be at least 0, got -1"),
    "lazy parameters": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)).parameters().__next__(), RuntimeError,
        "LazyLinear '1' has no parameters yet: run a batch through the model first"),
    "lazy options": (lambda: nn.LazyConv2d(4, 0), ValueError, "Conv2d: kernel_size must be at least 1, got 0"),
    "lazy input": (lambda: nn.LazyBatchNorm2d()(f4(3)), ValueError,
        r"LazyBatchNorm2d: x has no channels, got shape \(3,\)"),
    "add_module": (lambda: nn.Sequential().add_module("a.b", nn.ReLU()), ValueError,
        "add_module: name must be text without dots, got 'a.b'"),
    # --- clipping
    "max_norm": (lambda: nn.utils.clip_grad_norm_([P()], -1), ValueError,
        "clip_grad_norm_: max_norm must be at least 0, got -1"),
    "norm_type": (lambda: nn.utils.clip_grad_norm_([P()], 1, norm_type=0), ValueError,
        "clip_grad_norm_: norm_type must be above 0, got 0"),
    "clip_value": (lambda: nn.utils.clip_grad_value_([P()], None), TypeError,
        "clip_grad_value_: clip_value must be a number, got None"),
    "clipped model": (lambda: nn.utils.clip_grad_norm_([nn.ReLU()], 1), TypeError,
        "clip_grad_norm_: parameters must be Tensors, got ReLU"),
    # --- optimizers
    "dampening": (lambda: optim.SGD([P()], dampening=np.inf), ValueError, "SGD: dampening must be finite, got inf"),
    "nesterov without momentum": (lambda: optim.SGD([P()], nesterov=True), ValueError,
        r"SGD: nesterov needs momentum above 0 and dampening 0, got momentum=0\.0, dampening=0\.0"),
    "nesterov with dampening": (lambda: optim.SGD([P()], momentum=0.9, dampening=0.5, nesterov=True), ValueError,
        r"nesterov needs momentum above 0 and dampening 0, got momentum=0\.9, dampening=0\.5"),
    "nesterov": (lambda: optim.SGD([P()], nesterov=1), TypeError, "SGD: nesterov must be a bool, got 1"),
    "AdamW": (lambda: optim.AdamW([P()], betas=(1.0, 0.9)), ValueError,
        r"AdamW: betas\[0\] must be at least 0 and below 1, got 1\.0"),
    "lr_decay": (lambda: optim.Adagrad([P()], lr_decay=-1), ValueError, "Adagrad: lr_decay must be at least 0, got -1"),
    "accumulator": (lambda: optim.Adagrad([P()], initial_accumulator_value="0"), TypeError,
        "Adagrad: initial_accumulator_value must be a number, got '0'"),
    "RMSprop alpha": (lambda: optim.RMSprop([P()], alpha=1.5), ValueError,
        r"RMSprop: alpha must be at least 0 and at most 1, got 1\.5"),
    "centered": (lambda: optim.RMSprop([P()], centered="yes"), TypeError, "RMSprop: centered must be a bool, got 'yes'"),
    "added group": (lambda: optim.AdamW([P()]).add_param_group([P()]), TypeError,
        "AdamW: a parameter group must be a dict with 'params', got"),
    "option of an added group": (lambda: optim.RMSprop([P()]).add_param_group({"params": P(), "momentum": -1}), ValueError,
        "RMSprop: momentum must be at least 0, got -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name):
    call, error, message = CASES[name]
    with pytest.raises(error, match=message):
        call()


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    optimizer = optim.RMSprop([P()])
    with pytest.raises(ValueError, match="momentum"):
        optimizer.add_param_group({"params": [P()], "momentum": -1})
    assert len(optimizer.param_groups) == 1
