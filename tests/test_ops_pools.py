"""Pooling of one to three axes, adaptive, Lp and un-, and resizing against PyTorch: values, gradients, errors, layers."""

from __future__ import annotations

import numpy as np
import pytest

import convkern as ck
from convkern import nn
from convkern.nn import functional as F

from .test_ops import compare, functional, normal

SHAPES = {1: [(2, 3, 11), (3, 9)], 2: [(2, 3, 9, 8), (3, 7, 9)], 3: [(2, 3, 6, 7, 9), (3, 7, 6, 5)]}
WINDOWS = [
    dict(kernel_size=2),
    dict(kernel_size=3, stride=2, padding=1),
    dict(kernel_size=3, stride=2, padding=1, ceil_mode=True),
    dict(kernel_size=2, stride=3, ceil_mode=True),
    dict(kernel_size=2, stride=2, padding=1, ceil_mode=True),  # the last window would start in the padding
]
AXES = pytest.mark.parametrize("axes", [1, 2, 3])


def both(name, axes):
    return getattr(F, f"{name}{axes}d"), getattr(functional(), f"{name}{axes}d")


@AXES
@pytest.mark.parametrize("options", [*WINDOWS, dict(kernel_size=2, stride=1, padding=1, dilation=3)], ids=str)
def test_max_pools(axes, options):
    torch = pytest.importorskip("torch")
    ours, theirs = both("max_pool", axes)
    for shape in SHAPES[axes]:
        x = normal(*shape)
        compare(lambda x: ours(x, **options), lambda x: theirs(x, **options), x)
        y, indices = ours(x, return_indices=True, **options)
        _, expected = theirs(torch.tensor(x), return_indices=True, **options)
        np.testing.assert_array_equal(indices, expected.numpy())
        assert indices.dtype == np.int64
        assert y.shape == indices.shape


@AXES
@pytest.mark.parametrize("extra", [{}, dict(count_include_pad=False), dict(divisor_override=3)], ids=str)
@pytest.mark.parametrize("options", WINDOWS, ids=str)
def test_average_pools(axes, options, extra):
    if axes == 1 and "divisor_override" in extra:
        with pytest.raises(TypeError, match="unexpected keyword argument 'divisor_override'"):
            F.avg_pool1d(normal(1, 1, 4), 2, **extra)
        return
    ours, theirs = both("avg_pool", axes)
    for shape in SHAPES[axes]:
        compare(lambda x: ours(x, **options, **extra), lambda x: theirs(x, **options, **extra), normal(*shape))


@AXES
@pytest.mark.parametrize("norm", [1, 2, 3, 2.5, 4])
@pytest.mark.parametrize("options", [o for o in WINDOWS if "padding" not in o], ids=str)
def test_lp_pools(axes, norm, options):
    ours, theirs = both("lp_pool", axes)
    for shape in SHAPES[axes]:
        x = np.abs(normal(*shape)) if norm % 2 else normal(*shape)
        compare(lambda x: ours(x, norm, **options), lambda x: theirs(x, norm, **options), x)


def test_lp_pool_of_zeros_has_the_gradient_zero():
    x = normal(1, 2, 4, 4)
    x[0, 0] = 0
    compare(lambda x: F.lp_pool2d(x, 2, 2), lambda x: functional().lp_pool2d(x, 2, 2), x)


@AXES
@pytest.mark.parametrize("size", [1, 2, 3, 5, 13, "none"])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_adaptive_pools(axes, kind, size):
    torch = pytest.importorskip("torch")
    ours, theirs = both(f"adaptive_{kind}_pool", axes)
    if size == "none":
        size = (None, 2, 3)[:axes] if axes > 1 else (3,)
    for shape in SHAPES[axes]:
        x = normal(*shape)
        compare(lambda x: ours(x, size), lambda x: theirs(x, size), x)
        if kind == "max":
            indices, expected = ours(x, size, True)[1], theirs(torch.tensor(x), size, True)[1]
            np.testing.assert_array_equal(indices, expected.numpy())


@AXES
def test_unpooling(axes):
    torch = pytest.importorskip("torch")
    pool, unpool = both("max_pool", axes)[0], both("max_unpool", axes)
    for shape in SHAPES[axes]:
        for options in (dict(kernel_size=2), dict(kernel_size=2, stride=2, padding=1), dict(kernel_size=3, stride=3)):
            y, indices = pool(normal(*shape), **options, return_indices=True)
            for size in (None, shape[-axes:]):
                wanted = dict(options, output_size=size)
                if size is None and options.get("padding"):
                    continue  # the places may lie outside
                theirs = lambda x, i=indices, o=wanted: unpool[1](x, torch.tensor(i), **o)  # noqa: E731
                if size is None and indices.max() >= np.prod(unpool_size(y.shape[-axes:], options)):
                    with pytest.raises(ValueError, match="indices must be between 0 and"):
                        unpool[0](y, indices, **wanted)
                    continue
                compare(lambda x, i=indices, o=wanted: unpool[0](x, i, **o), theirs, y)


def unpool_size(size, options):
    stride = options.get("stride", options["kernel_size"])
    return [(n - 1) * stride + options["kernel_size"] for n in size]


def test_unpooling_puts_maxima_back():
    x = normal(2, 3, 4, 6)
    y, indices = ck.max_pool2d(x, 2, return_indices=True)
    back = ck.max_unpool2d(y, indices, 2, output_size=x.shape)
    np.testing.assert_array_equal(ck.max_pool2d(back, 2), np.maximum(y, 0))
    assert np.count_nonzero(back) == y.size


MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@AXES
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(
    "options",
    [dict(size=5), dict(size=13), dict(size="uneven"), dict(scale_factor=2), dict(scale_factor=0.5), dict(scale_factor=1.7),
     dict(scale_factor=2.3, recompute_scale_factor=True), dict(scale_factor="uneven")],
    ids=str,
)  # fmt: skip
def test_resizing(axes, linear, options):
    torch_interpolate = functional().interpolate
    x = normal(*SHAPES[axes][0])
    options = dict(options, mode=MODES[axes] if linear else "nearest")
    if options.get("size") == "uneven":
        options["size"] = (4, 15, 1)[:axes]
    elif "size" in options:
        options["size"] = (options["size"],) * axes
    if options.get("scale_factor") == "uneven":
        options["scale_factor"] = (1.5, 2.0, 0.6)[:axes]
    for align in (None, False, True) if linear else (None,):
        compare(
            lambda x, a=align: F.interpolate(x, align_corners=a, **options),
            lambda x, a=align: torch_interpolate(x, align_corners=a, **options),
            x,
        )


def test_the_nearest_pixel_is_pytorchs_for_every_size():
    torch = pytest.importorskip("torch")
    for size in range(1, 40):
        x = np.arange(size, dtype=np.float32).reshape(1, 1, size)
        for out in range(1, 90):
            want = functional().interpolate(torch.tensor(x), size=out).numpy()
            np.testing.assert_array_equal(F.interpolate(x, size=out), want)


def test_channels_last_stays_channels_last():
    x = normal(2, 3, 5, 6).transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    y = F.interpolate(x, scale_factor=2, mode="bilinear")
    assert y.strides[1] == y.itemsize
    np.testing.assert_array_equal(y, F.interpolate(x.copy(order="C"), scale_factor=2, mode="bilinear"))


@AXES
def test_empty_batches(axes):
    shape = (0, 2, *(4, 6, 8)[:axes])
    calls = (
        lambda x: both("max_pool", axes)[0](x, 2),
        lambda x: both("avg_pool", axes)[0](x, 2),
        lambda x: both("lp_pool", axes)[0](x, 2, 2),
        lambda x: both("adaptive_avg_pool", axes)[0](x, 3),
        lambda x: both("adaptive_max_pool", axes)[0](x, 3),
        lambda x: F.interpolate(x, scale_factor=2),
    )
    for call in calls:
        x = ck.Tensor(np.zeros(shape), requires_grad=True)
        y = call(x)
        assert y.shape[:2] == (0, 2)
        y.backward(np.zeros(y.shape))
        assert x.grad.shape == shape


# --- layers


LAYERS = {
    "MaxPool{}d": (2, None, 0, 1, False, True),
    "AvgPool{}d": (3, 2, 1, True, False),
    "LPPool{}d": (2, 3, 2, True),
    "AdaptiveAvgPool{}d": (3,),
    "AdaptiveMaxPool{}d": (3,),
}


@AXES
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_pytorchs(name, axes):
    torch = pytest.importorskip("torch")
    args, name = LAYERS[name], name.format(axes)
    ours, theirs = getattr(nn, name)(*args), getattr(torch.nn, name)(*args)
    compare(ours, theirs, normal(*SHAPES[axes][0]))
    assert repr(args[0]) in repr(ours)


@AXES
def test_pooling_and_unpooling_layers(axes):
    torch = pytest.importorskip("torch")
    shape = SHAPES[axes][0]
    ours = getattr(nn, f"MaxPool{axes}d")(2, return_indices=True), getattr(nn, f"MaxUnpool{axes}d")(2)
    theirs = getattr(torch.nn, f"MaxPool{axes}d")(2, return_indices=True), getattr(torch.nn, f"MaxUnpool{axes}d")(2)
    compare(
        lambda x: ours[1](*ours[0](x), output_size=shape),
        lambda x: theirs[1](*theirs[0](x), output_size=torch.Size(shape)),
        normal(*shape),
    )


@pytest.mark.parametrize(
    "options", [dict(size=(5, 7)), dict(scale_factor=2, mode="bilinear", align_corners=True)], ids=str
)
def test_upsample(options):
    torch = pytest.importorskip("torch")
    compare(nn.Upsample(**options), torch.nn.Upsample(**options), normal(2, 3, 4, 5))


# --- errors

X1, X2, X3 = (np.ones((2, 3, *(5, 6, 7)[:n]), np.float32) for n in (1, 2, 3))
I2 = np.zeros((2, 3, 5, 6), np.int64)
ERRORS = {
    "rank": (lambda: F.max_pool1d(X2, 2), ValueError,
        r"max_pool1d: x must have axes \(N, C, W\) or \(C, W\), got shape \(2, 3, 5, 6\)"),
    "time": (lambda: F.avg_pool3d(X3, (6, 2, 2)), ValueError,
        r"avg_pool3d: the window's time 6 \(dilation 1\) does not fit into the input's time 5"),
    "padding": (lambda: F.max_pool1d(X1, 3, padding=2), ValueError,
        r"max_pool1d: padding must be at most half the kernel, got \(2, 2\) for width 3"),
    "kernel": (lambda: F.max_pool3d(X3, (2, 2)), ValueError,
        r"max_pool3d: kernel_size must be an int or 3 ints, got \(2, 2\)"),
    "norm": (lambda: F.lp_pool2d(X2, 0, 2), ValueError, "lp_pool2d: norm_type must be positive and finite, got 0"),
    "norm as text": (lambda: F.lp_pool2d(X2, "2", 2), TypeError, "lp_pool2d: norm_type must be a number, got '2'"),
    "adaptive": (lambda: F.adaptive_avg_pool2d(X2, 0), ValueError,
        "adaptive_avg_pool2d: output_size must be at least 1, got 0"),
    "adaptive sizes": (lambda: F.adaptive_max_pool3d(X3, (1, 2)), ValueError,
        r"adaptive_max_pool3d: output_size must be an int or 3 ints, got \(1, 2\)"),
    "indices": (lambda: F.max_unpool2d(X2, I2[:, :, :4], 2), ValueError,
        r"max_unpool2d: indices must have the shape of x \(2, 3, 5, 6\), got \(2, 3, 4, 6\)"),
    "float indices": (lambda: F.max_unpool2d(X2, X2, 2), TypeError,
        "max_unpool2d: indices must be integers, got float32"),
    "indices outside": (lambda: F.max_unpool2d(X2, I2 + 120, 2), ValueError,
        r"indices must be between 0 and 119, the pixels of an output \(10, 12\), got 120 to 120"),
    "negative indices": (lambda: F.max_unpool2d(X2, I2 - 1, 2), ValueError, "got -1 to -1"),
    "unpooled size": (lambda: F.max_unpool2d(X2, I2, 2, output_size=(10, 14)), ValueError,
        r"output_size must be less than stride \(2, 2\) from \(10, 12\), got \(10, 14\)"),
    "mode": (lambda: F.interpolate(X2, 4, mode="linear"), ValueError,
        r"mode must be 'nearest' or 'bilinear' for x of shape \(2, 3, 5, 6\), got 'linear'"),
    "both": (lambda: F.interpolate(X2, 4, 2), ValueError, "give either size or scale_factor, got 4 and 2"),
    "neither": (lambda: nn.Upsample()(X2), ValueError, "give either size or scale_factor, got None and None"),
    "align": (lambda: F.interpolate(X2, 4, align_corners=True), ValueError,
        "align_corners is for linear modes, got True with mode 'nearest'"),
    "factor": (lambda: F.interpolate(X2, scale_factor=-1), ValueError,
        "scale_factor must be a positive number or 2 of them, got -1"),
    "small factor": (lambda: F.interpolate(X2, scale_factor=0.1), ValueError,
        r"scale_factor 0.1 leaves nothing of the size \(5, 6\)"),
    "size": (lambda: F.interpolate(X2, (4, 0)), ValueError, "interpolate: size must be at least 1, got 0"),
    "rank to resize": (lambda: F.interpolate(X2[0, 0], 2), ValueError,
        r"x must have axes \(N, C, W\), .* got shape \(5, 6\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
