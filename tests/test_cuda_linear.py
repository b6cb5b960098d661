"""Linear layers in halves on a GPU: what cuBLAS is asked to do, and what comes of it by cublasGemmEx's definition."""

from __future__ import annotations

import numpy as np
import pytest

import convkern as ck
from convkern import amp, cublas, nn, ops, plan
from convkern.blas import own_products, product
from convkern.kernels import cuda
from convkern.plan import HALVES

from . import fake_cublas, fake_cupy, fake_device
from .bounds import assert_within, floats, from_halves, halves, integers
from .gpu import needs_compiler

pytestmark = needs_compiler

SHAPES = [(1, 1, 1), (3, 5, 7), (8, 16, 24), (2, 9, 33), (17, 1, 10), (33, 40, 1)]


@pytest.fixture
def cupy():
    with fake_cupy.installed() as module:
        fake_cublas.calls.clear()
        yield module


def near(array: np.ndarray, kind: str) -> np.ndarray:
    return from_halves(halves(array, kind), kind)


def operand(cupy, array: np.ndarray, turned: bool):
    return cupy.array(np.ascontiguousarray(array.T)).T if turned else cupy.array(array)


def both_orders(cupy, a: np.ndarray, b: np.ndarray):
    """CuPy's a and b, each as it is and transposed in memory."""
    for left in (operand(cupy, a, False), operand(cupy, a, True)):
        for right in (operand(cupy, b, False), operand(cupy, b, True)):
            yield left, right


def check_exact_products(cupy, kind: str) -> None:
    """Of small integers, whose sums are exact in any order; by cuBLAS, the stand-in's or a GPU's."""
    rng = np.random.default_rng(2)
    for m, inner, n in SHAPES:
        a, b = integers(rng, (m, inner), "f4"), integers(rng, (inner, n), "f4")
        for left, right in both_orders(cupy, a, b):
            np.testing.assert_array_equal(cublas.half_product(left, right, kind).get(), a @ b)


@pytest.mark.parametrize("kind", HALVES)
def test_products_of_integers_are_exact(kind, cupy):
    check_exact_products(cupy, kind)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_halves(shape, kind, cupy):
    """Both operands plain and transposed, within the bound of a float32 sum of the rounded operands' products."""
    m, inner, n = shape
    rng = np.random.default_rng(3)
    a, b = floats(rng, (m, inner), "f4"), floats(rng, (inner, n), "f4")
    wide = [near(array, kind).astype("f8") for array in (a, b)]
    for left, right in both_orders(cupy, a, b):
        got = product(left, right, kind)
        assert got.dtype == np.float32
        assert got.flags.c_contiguous
        assert_within(got.get(), wide[0] @ wide[1], abs(wide[0]) @ abs(wide[1]), inner)
        (call,) = fake_cublas.calls
        assert call.types == (kind, kind, "float32")
        assert call.sizes == (n, m, inner)
        assert all(pitch % 8 == 0 for pitch in call.pitches[:2])  # rows of halves begin at whole 16 bytes
        assert call.addresses[2] == got.data.ptr
        fake_cublas.calls.clear()


def test_what_cublas_is_asked_for(cupy):
    """Word by word for one product: x (3, 5) · wᵀ of w (7, 5), whose rows of halves take 8 elements."""
    x, w = cupy.array(np.ones((3, 5), "f4")), cupy.array(np.ones((7, 5), "f4"))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        y = product(x, w.T, "float16")
    (call,) = fake_cublas.calls
    assert call.turned == (1, 0)  # column by column w is wᵀ, and x is xᵀ: yᵀ = w · xᵀ
    assert call.sizes == (7, 3, 5)
    assert call.pitches == (8, 8, 7)
    assert call.stream is stream
    assert (y.get() == 5).all()


def test_values_beyond_the_range(cupy):
    """Infinities where float16 has no number, as everywhere in half precision; bfloat16 has float32's range."""
    a, b = cupy.array(np.array([[1e5, 1.0]], "f4")), cupy.array(np.eye(2, dtype="f4"))
    assert product(a, b, "float16").get()[0, 0] == np.inf
    assert product(a, b, "bfloat16").get()[0, 0] == near(np.array([1e5], "f4"), "bfloat16")[0]


def test_nothing_to_multiply(cupy):
    for shape in [(0, 3, 4), (2, 0, 3), (2, 3, 0)]:
        m, inner, n = shape
        got = product(cupy.empty((m, inner), "f4"), cupy.empty((inner, n), "f4"), "float16")
        np.testing.assert_array_equal(got.get(), np.zeros((m, n), "f4"))
    assert not fake_cublas.calls


def test_large_matrices_are_rounded_in_pieces(cupy, monkeypatch):
    """As many rows at a time as a kernel can count the elements of."""
    monkeypatch.setattr(cuda, "LARGEST", 40)
    rng = np.random.default_rng(5)
    a, b = integers(rng, (13, 9), "f4"), integers(rng, (9, 6), "f4")
    np.testing.assert_array_equal(product(cupy.array(a), cupy.array(b), "float16").get(), a @ b)


def test_a_view_of_neither_order_is_copied(cupy):
    rng = np.random.default_rng(5)
    a, b = integers(rng, (6, 8), "f4"), integers(rng, (4, 6), "f4")
    got = product(cupy.array(a)[::2, ::2], cupy.array(b), "float16")
    np.testing.assert_array_equal(got.get(), a[::2, ::2] @ b)


@pytest.mark.parametrize("broken", ["order", "pitch", "type"])
def test_a_wrong_call_is_noticed(broken, cupy, monkeypatch):
    honest = fake_cublas.gemmEx

    def call(*given):
        changed = list(given)
        if broken == "order":
            changed[1], changed[2] = changed[2], changed[1]
        if broken == "pitch":
            changed[9] += 8
        if broken == "type":
            changed[8] = changed[11] = 14
        honest(*changed)

    monkeypatch.setattr(cupy.cuda.cublas, "gemmEx", call)
    rng = np.random.default_rng(5)
    a, b = floats(rng, (3, 9), "f4"), floats(rng, (9, 6), "f4")
    try:
        got = product(cupy.array(a), operand(cupy, b, True), "float16").get()
    except ValueError:
        return
    want = near(a, "float16") @ near(b, "float16")
    assert not np.allclose(got, want, rtol=1e-3)


def trained(x, w, bias, gy, kind: str, device: str):
    with amp.autocast(device, kind):
        tensors = [ck.Tensor(a, requires_grad=True) for a in (x, w, bias)]
        y = nn.functional.linear(*tensors)
    y.backward(ck.Tensor(gy))
    return y, *(t.grad for t in tensors)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("lead", [(5,), (2, 3), ()])
def test_layers_multiply_halves_forward_and_backward(lead, kind, cupy, monkeypatch):
    """Three products in halves, none in float32; results, gradients and weights are float32, as on the CPU."""
    rng = np.random.default_rng(6)
    shapes = (*lead, 9), (7, 9), (7,), (*lead, 7)
    arrays = [floats(rng, shape, "f4") for shape in shapes]
    want = trained(*arrays, kind, "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(fake_cupy.ndarray, "__matmul__", None)
        patch.setattr(cupy, "matmul", None)
        got = trained(*map(cupy.array, arrays), kind, "cuda")
    assert [call.types for call in fake_cublas.calls] == [(kind, kind, "float32")] * 3
    for mine, theirs in zip(got, want, strict=True):
        assert mine.data.dtype == np.float32
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine.data.get(), theirs.data, rtol=1e-5, atol=1e-5 * np.abs(theirs.data).max())
    x, w, _, gy = (near(a, kind).reshape(-1, a.shape[-1]).astype("f8") for a in arrays)
    assert_within(got[1].data.get().reshape(-1, 9), gy @ w, abs(gy) @ abs(w), 7)
    assert_within(got[2].data.get(), gy.T @ x, abs(gy).T @ abs(x), max(5, len(x)))


def test_outside_of_autocast_nothing_is_rounded(cupy):
    rng = np.random.default_rng(6)
    x, w = (cupy.array(floats(rng, shape, "f4")) for shape in ((3, 9), (7, 9)))
    plain = nn.functional.linear(x, w).get()
    with amp.autocast("cuda"):
        np.testing.assert_array_equal(ops.matmul(x, w.T).get(), plain)
        rounded = nn.functional.linear(x, w).get()
    assert len(fake_cublas.calls) == 1
    assert (plain != rounded).any()


def test_second_derivatives_are_of_halves_too(cupy):
    """On integers, which halves hold: the same values as in float32."""
    rng = np.random.default_rng(7)
    arrays = [integers(rng, shape, "f4") for shape in ((3, 4), (5, 4), (3, 5))]

    def second(move, device: str, enabled: bool):
        x, w, gy = (ck.Tensor(move(a), requires_grad=True) for a in arrays)
        with amp.autocast(device, "bfloat16", enabled=enabled):
            y = nn.functional.linear(x, w)
        y.backward(gy, create_graph=True)
        (x.grad * x.grad).sum().backward()
        return w.grad.data, gy.grad.data

    want, got = second(np.array, "cpu", False), second(cupy.array, "cuda", True)
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(mine.get(), theirs)
    assert len(fake_cublas.calls) >= 5


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.usefixtures("any_size_on_tensor_cores")
def test_our_own_products_of_halves(kind, cupy):
    """What a captured step takes, since CuPy lets nobody record cuBLAS: rows of halves, plain and transposed operands."""
    rng = np.random.default_rng(4)
    a, b = integers(rng, (5, 9), "f4"), integers(rng, (9, 11), "f4")
    with own_products(), plan.traced() as rows:
        for left, right in both_orders(cupy, a, b):
            np.testing.assert_array_equal(product(left, right, kind).get(), a @ b)
    assert {row.accuracy for _, row in rows} == {kind}
    assert not fake_cublas.calls


def test_cublas_is_not_captured(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    a, b = cupy.array(np.ones((2, 3), "f4")), cupy.array(np.ones((3, 4), "f4"))
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(NotImplementedError, match="cuBLAS"):
                cublas.half_product(a, b, "float16")
        finally:
            fake_device.memory.graph = None
