"""The public functions with arrays on a GPU: a stand-in for CuPy, and rows in the interpreter."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import convkern as ck
from convkern import device, plan
from convkern.kernels.cuda import compiler

from . import fake_cupy
from .gpu import needs_compiler


@pytest.fixture
def cupy():
    with fake_cupy.installed() as module:
        yield module


RNG = np.random.default_rng(4)
X, W, B = (RNG.integers(-4, 5, shape).astype("f4") for shape in ((2, 4, 7, 9), (6, 2, 3, 3), (6,)))
GY = RNG.integers(-4, 5, (2, 6, 4, 5)).astype("f4")
OPTIONS: dict[str, Any] = dict(stride=2, padding=1, groups=2)
CALLS = {
    "conv2d": (lambda *a: ck.conv2d(*a, **OPTIONS, activation="relu"), (X, W, B)),
    "conv2d without bias": (lambda *a: ck.conv2d(*a, **OPTIONS), (X, W)),
    "conv2d with residual": (lambda *a: ck.conv2d(*a[:3], **OPTIONS, residual=a[3], activation="relu"), (X, W, B, GY)),
    "conv2d of one image": (lambda *a: ck.conv2d(*a, padding=1, groups=2), (X[0], W)),
    "conv2d_input_grad": (lambda *a: ck.conv2d_input_grad(*a, X.shape, **OPTIONS), (GY, W)),
    "conv2d_weight_grad": (lambda *a: ck.conv2d_weight_grad(*a, 3, **OPTIONS), (X, GY)),
    "conv1d": (lambda *a: ck.conv1d(*a, padding=1), (X[:, :, 0], W[:, :, 0].repeat(2, 1))),
    "conv_transpose1d": (lambda *a: ck.conv_transpose1d(*a, stride=2), (X[:, :, 0], W[:4, :, 0])),
    "conv_transpose2d": (lambda *a: ck.conv_transpose2d(*a, stride=2, padding=1, groups=2), (GY, W)),
    "pointwise": (lambda *a: ck.pointwise(*a, activation="relu"), (X, RNG.integers(-4, 5, (5, 4)).astype("f4"))),
    "pointwise with residual": (
        lambda x, w, r: ck.pointwise(x, w, residual=r, activation="relu"),
        (X, RNG.integers(-4, 5, (5, 4)).astype("f4"), RNG.integers(-4, 5, (2, 5, 7, 9)).astype("f4")),
    ),
    "max_pool2d": (lambda x: ck.max_pool2d(x, 3, 2, 1), (X,)),
    "max_pool2d indices": (lambda x: ck.max_pool2d(x, 2, return_indices=True)[1], (X,)),
    "avg_pool2d": (lambda x: ck.avg_pool2d(x, 2), (X,)),
    "relu": (ck.nn.functional.relu, (X,)),
}


@needs_compiler
@pytest.mark.parametrize("name", CALLS)
def test_cuda_arrays_in_cuda_arrays_out(name, cupy):
    function, arrays = CALLS[name]
    with plan.traced() as rows:
        result = function(*map(cupy.array, arrays))
    assert {row.device for _, row in rows} == {"cuda"}
    assert type(result) is cupy.ndarray
    np.testing.assert_array_equal(cupy.asnumpy(result), function(*arrays))


@needs_compiler
def test_layouts_and_results_on_the_device(cupy):
    channels_last = cupy.array(np.ascontiguousarray(X.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
    y = ck.conv2d(channels_last, cupy.array(W), **OPTIONS)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    want = ck.conv2d(X, W, **OPTIONS)
    np.testing.assert_array_equal(cupy.asnumpy(y), want)
    out = cupy.empty(want.shape, "f4")
    assert ck.conv2d(cupy.array(X), cupy.array(W), **OPTIONS, out=out) is out
    np.testing.assert_array_equal(cupy.asnumpy(out), want)
    with pytest.raises(TypeError, match="out must be a CuPy array, got ndarray"):
        ck.conv2d(cupy.array(X), cupy.array(W), **OPTIONS, out=np.empty(want.shape, "f4"))
    with pytest.raises(TypeError, match="out must be a NumPy array, got ndarray"):
        ck.conv2d(X, W, **OPTIONS, out=out)
    x = cupy.array(X)
    with pytest.raises(ValueError, match="out overlaps an input"):
        ck.max_pool2d(x, 1, out=x)


@needs_compiler
@pytest.mark.usefixtures("any_size_on_tensor_cores")
def test_tensor_cores_where_they_are_asked_for(cupy):
    x, w = cupy.array(X), cupy.array(W)
    for precision, name in (("default", "tiled"), ("strict", "tiled"), ("tf32", "tensor")):
        with plan.traced() as rows:
            y = ck.conv2d(x, w, **OPTIONS, precision=precision)
        assert [row.name for _, row in rows] == [name]
        np.testing.assert_array_equal(cupy.asnumpy(y), ck.conv2d(X, W, **OPTIONS, precision=precision))


@needs_compiler
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.usefixtures("any_size_on_tensor_cores")
def test_halves_where_they_are_asked_for(cupy, kind):
    """By the precision, by autocast, and by float16 arrays; channels-last stays what it is, forward and backward."""
    x, w = cupy.array(X), cupy.array(W)
    channels_last = cupy.array(np.ascontiguousarray(X.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
    want = ck.conv2d(X, W, **OPTIONS)
    for given, layout in ((x, "nchw"), (channels_last, "channels_last")):
        with plan.traced() as rows:
            y = ck.conv2d(given, w, **OPTIONS, precision=kind)
            with ck.amp.autocast("cuda", kind):
                np.testing.assert_array_equal(cupy.asnumpy(ck.conv2d(given, w, **OPTIONS)), want)
                ck.conv2d(given, w, **OPTIONS, precision="strict")
        assert [row.name for _, row in rows] == [kind, kind, "tiled"]
        assert [problem.layout for problem, _ in rows] == [layout, layout, "nchw"]
        assert y.flags.c_contiguous == (layout == "nchw")
        np.testing.assert_array_equal(cupy.asnumpy(y), want)
    gy = cupy.array(np.ascontiguousarray(GY.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
    with plan.traced() as rows:
        gx = ck.conv2d_input_grad(gy, w, X.shape, **OPTIONS, precision=kind)
        gw = ck.conv2d_weight_grad(channels_last, gy, 3, **OPTIONS, precision=kind)
        mixed = ck.conv2d_weight_grad(x, gy, 3, **OPTIONS, precision=kind)
    assert [problem.layout for problem, _ in rows] == ["channels_last", "channels_last", "nchw"]
    np.testing.assert_array_equal(cupy.asnumpy(gx), ck.conv2d_input_grad(GY, W, X.shape, **OPTIONS))
    for got in (gw, mixed):
        np.testing.assert_array_equal(cupy.asnumpy(got), ck.conv2d_weight_grad(X, GY, 3, **OPTIONS))


@needs_compiler
@pytest.mark.parametrize("precision", ["tf32", "default"])
@pytest.mark.usefixtures("any_size_on_tensor_cores")
def test_views_that_start_between_16_bytes_are_copied_for_tensor_cores(cupy, precision):
    """They read 16 bytes at a time; in float32 a view is read where it lies."""
    x, w = (RNG.integers(-4, 5, shape).astype("f4") for shape in ((2, 5, 6, 8), (3, 8, 3, 3)))
    buffer = cupy.array(np.concatenate([np.zeros(1, "f4"), x.reshape(-1)]))
    view = (
        buffer[1:].reshape(2, 5, 6, 8).transpose(0, 3, 1, 2) if precision == "tf32" else buffer[1:].reshape(2, 8, 5, 6)
    )
    assert view.data.ptr % 16 == 4
    starts: list[int] = []
    with plan.watched(lambda problem, row, arrays, outs: starts.append(arrays[0].data.ptr)):
        y = ck.conv2d(view, cupy.array(w), precision=precision)
    assert [start % 16 for start in starts] == [0 if precision == "tf32" else 4]
    np.testing.assert_array_equal(cupy.asnumpy(y), ck.conv2d(np.ascontiguousarray(cupy.asnumpy(view)), w))


@needs_compiler
@pytest.mark.usefixtures("any_size_on_tensor_cores")
def test_a_residual_is_added_by_the_kernel(cupy):
    """Where x and it lie alike as they are, otherwise both as NCHW; the result lies as x does, and its gradient too."""
    x, w, residual = cupy.array(X), cupy.array(W), cupy.array(GY)
    x_last, residual_last = (
        cupy.array(np.ascontiguousarray(a.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2) for a in (X, GY)
    )
    want = ck.conv2d(X, W, **OPTIONS, residual=GY, activation="relu")
    for a, r, precision, name, layout in (
        (x, residual, "strict", "tiled", "nchw"),
        (x, residual, "tf32", "tensor", "nchw"),
        (x_last, residual_last, "default", "tiled", "nchw"),
        (x, residual, "bfloat16", "bfloat16", "nchw"),
        (x_last, residual_last, "float16", "float16", "channels_last"),
        (x_last, residual, "float16", "float16", "nchw"),
        (x, residual_last, "float16", "float16", "nchw"),
    ):
        with plan.traced() as rows:
            y = ck.conv2d(a, w, **OPTIONS, residual=r, activation="relu", precision=precision)
        assert [(problem.direction, row.name, problem.layout) for problem, row in rows] == [
            ("forward_residual", name, layout)
        ]
        assert y.flags.c_contiguous == (a is x)
        np.testing.assert_array_equal(cupy.asnumpy(y), want)
    leaves = [ck.Tensor(a, requires_grad=True) for a in (x, w, cupy.array(B), residual)]
    same = [ck.Tensor(a, requires_grad=True) for a in (X, W, B, GY)]
    for x, w, bias, residual in (leaves, same):
        ck.conv2d(x, w, bias, **OPTIONS, residual=residual, activation="relu").sum().backward()
    for ours, theirs in zip(leaves, same, strict=True):
        np.testing.assert_array_equal(cupy.asnumpy(ours.grad.data), theirs.grad.data)
    steps = ck.explain(ck.conv2d, X, W, **OPTIONS, residual=GY)
    assert str(steps).count("conv.forward_residual cpu float32") == 1
    assert [step.problem.direction for step in steps] == ["forward_residual"]


@needs_compiler
def test_arrays_of_float16(cupy):
    x, w = cupy.array(X.astype("f2")), cupy.array(W.astype("f2"))
    with plan.traced() as rows:
        y = ck.conv2d(x, w, **OPTIONS)
    assert [row.name for _, row in rows] == ["float16"]
    assert y.dtype == np.float16
    np.testing.assert_array_equal(cupy.asnumpy(y), ck.conv2d(X, W, **OPTIONS))
    y = ck.conv2d(x, w, **OPTIONS, residual=cupy.array(GY.astype("f2")))
    np.testing.assert_array_equal(cupy.asnumpy(y), ck.conv2d(X, W, **OPTIONS, residual=GY))
    with pytest.raises(TypeError, match="must have one dtype, got x float16, residual float32"):
        ck.conv2d(x, w, **OPTIONS, residual=cupy.array(GY))
    flat = ck.pointwise(x, cupy.array(np.ones((5, 4), "f2")))
    np.testing.assert_array_equal(cupy.asnumpy(flat), ck.pointwise(X, np.ones((5, 4), "f4")))
    with pytest.raises(NotImplementedError, match=r"trades accuracy \(float16\), which precision='strict' forbids"):
        ck.conv2d(x, w, **OPTIONS, dilation=2, precision="strict")
    with plan.traced() as rows:  # groups of few channels, whose row sums in float32
        y = ck.conv2d(x, w, **OPTIONS, precision="strict")
    assert [row.name for _, row in rows] == ["tiled"]
    np.testing.assert_array_equal(cupy.asnumpy(y), ck.conv2d(X, W, **OPTIONS))
    with pytest.raises(TypeError, match="must have one dtype"):
        ck.conv2d(x, cupy.array(W), **OPTIONS)
    with pytest.raises(TypeError, match="x must be float32 or float64, got float16"):
        ck.conv2d(X.astype("f2"), W.astype("f2"), **OPTIONS)


def test_devices_never_mix_silently(cupy):
    x, w = cupy.array(X), cupy.array(W)
    message = r"arrays must live on one device, got {}; to\('cuda'\) or to\('cpu'\) moves a Tensor"
    for call, places in (
        (lambda: ck.conv2d(x, W), "x on cuda, w on cpu"),
        (lambda: ck.conv2d(X, w), "x on cpu, w on cuda"),
        (lambda: ck.conv2d(ck.tensor(X), w), "x on cpu, w on cuda"),
        (lambda: ck.conv2d(x, w, B, groups=2), "x on cuda, bias on cpu"),
        (lambda: ck.conv2d(x, w, **OPTIONS, residual=GY), "x on cuda, residual on cpu"),
        (lambda: ck.conv2d(X, W, **OPTIONS, residual=cupy.array(GY)), "x on cpu, residual on cuda"),
        (lambda: ck.conv2d_input_grad(cupy.array(GY), W, X.shape), "gy on cuda, w on cpu"),
        (lambda: ck.conv2d_weight_grad(X, cupy.array(GY), 3), "x on cpu, gy on cuda"),
        (lambda: ck.pointwise(x, W[:, :, 0, 0]), "x on cuda, w on cpu"),
    ):
        named = re.escape(places.replace("cuda", "cuda (CuPy)").replace("cpu", "cpu (NumPy)"))
        with pytest.raises(TypeError, match=message.format(named)):
            call()


def test_what_has_no_cuda_rows_says_so(cupy):
    x = cupy.array(X)
    for call in (
        lambda: ck.nn.functional.pad(x, (1, 1)), lambda: ck.nn.functional.interpolate(x, scale_factor=2.0),
        lambda: ck.max_unpool2d(x, cupy.zeros(x.shape, "i8"), 2), lambda: ck.lp_pool2d(x, 2, 2),
    ):  # fmt: skip
        with pytest.raises(NotImplementedError, match=r"no row for .*runs on the CPU only"):
            call()
    with pytest.raises(NotImplementedError, match=r"no row for conv\.forward cuda float64.*takes float32, not float64"):
        ck.conv2d(x.astype("f8"), cupy.array(W).astype("f8"), groups=2)


# --- convkern info


class NoDriver(Exception):
    pass


def runtime(count: Any) -> Any:
    def devices() -> int:
        if isinstance(count, Exception):
            raise count
        return count

    module: Any = SimpleNamespace(ndarray=type("ndarray", (), {}))
    properties = {"name": b"NVIDIA Made Up"}
    module.cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            getDeviceCount=devices, CUDARuntimeError=NoDriver, getDeviceProperties=lambda number: properties
        )
    )
    return module


@pytest.mark.parametrize(
    ("count", "missing", "status"),
    [
        (NoDriver("no driver"), "", "none: the CUDA driver does not answer (no driver)"),
        (0, "", "none: the CUDA driver reports no device"),
        (1, "", "NVIDIA Made Up"),
        (1, "ptxas is gone", "NVIDIA Made Up, but its kernels cannot be compiled: ptxas is gone"),
    ],
)
def test_the_gpu_or_the_missing_piece(monkeypatch, count, missing, status):
    monkeypatch.setitem(sys.modules, "cupy", runtime(count))
    monkeypatch.setattr(compiler, "missing", lambda: missing)
    assert device.gpu_status() == status


@needs_compiler
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("groups", [32, 8])
def test_layers_of_few_channels_a_group_are_never_converted(cupy, groups, dtype, layout):
    """As in MobileNet and ResNeXt: forward and backward in the layout and type of x, also under autocast."""
    shape, w_shape, options = (2, 32, 5, 6), (32, 32 // groups, 3, 3), dict(padding=1, groups=groups)
    x, w, gy = (RNG.integers(-2, 3, size).astype("f4") for size in (shape, w_shape, shape))
    put = lambda a: cupy.array(np.ascontiguousarray(a.transpose(0, 2, 3, 1)).astype(dtype)).transpose(0, 3, 1, 2)  # noqa: E731
    given = [put(a) if layout == "channels_last" else cupy.array(a.astype(dtype)) for a in (x, gy)]
    filters = cupy.array(w.astype(dtype))
    with plan.traced() as rows, ck.amp.autocast("cuda", "bfloat16"):
        y = ck.conv2d(given[0], filters, **options)
        gx = ck.conv2d_input_grad(given[1], filters, shape, **options)
        gw = ck.conv2d_weight_grad(*given, 3, **options)
    name = "depthwise" if groups == 32 else "tiled"
    assert [(row.name, problem.layout, problem.dtype) for problem, row in rows] == [(name, layout, dtype)] * 3
    for got, want in (
        (y, ck.conv2d(x, w, **options)),
        (gx, ck.conv2d_input_grad(gy, w, shape, **options)),
        (gw, ck.conv2d_weight_grad(x, gy, 3, **options)),
    ):
        assert got.dtype == dtype
        assert got is gw or got.flags.c_contiguous == (layout == "nchw")
        np.testing.assert_array_equal(cupy.asnumpy(got), want)
