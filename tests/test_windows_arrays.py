"""Operations over windows take arrays of any layout, write where they are told, and leave their inputs alone."""

from __future__ import annotations

import numpy as np
import pytest

import convkern as ck
from convkern import ops

from .test_ops import normal

W1, W2, W3 = (normal(4, 3, *(3, 2, 3)[:n], seed=1).astype(np.float32) for n in (1, 2, 3))
CALLS = {
    "conv1d": (3, lambda x, **o: ck.conv1d(x, W1, padding=1, **o)),
    "conv3d": (5, lambda x, **o: ck.conv3d(x, W3, padding=1, **o)),
    "conv_transpose1d": (3, lambda x, **o: ck.conv_transpose1d(x, W1.swapaxes(0, 1), stride=2, **o)),
    "conv_transpose2d": (4, lambda x, **o: ck.conv_transpose2d(x, W2.swapaxes(0, 1), stride=2, **o)),
    "conv_transpose3d": (5, lambda x, **o: ck.conv_transpose3d(x, W3.swapaxes(0, 1), stride=2, **o)),
    **{f"max_pool{n}d": (n + 2, lambda x, n=n, **o: getattr(ck, f"max_pool{n}d")(x, 2, **o)) for n in (1, 3)},
    **{f"avg_pool{n}d": (n + 2, lambda x, n=n, **o: getattr(ck, f"avg_pool{n}d")(x, 2, **o)) for n in (1, 3)},
    **{f"lp_pool{n}d": (n + 2, lambda x, n=n, **o: getattr(ck, f"lp_pool{n}d")(x, 2, 2, **o)) for n in (1, 2, 3)},
    **{
        f"adaptive_{kind}_pool{n}d of {size}": (
            n + 2,
            lambda x, kind=kind, n=n, size=size, **o: getattr(ck, f"adaptive_{kind}_pool{n}d")(x, size, **o),
        )
        for kind in ("avg", "max")
        for n in (1, 2, 3)
        for size in (1, 2, 3)
    },
}
WITHOUT_OUT = {
    "pad": (4, lambda x: ops.pad(x, (1, 2, 0, 1), "reflect")),
    "interpolate": (4, lambda x: ck.interpolate(x, scale_factor=1.5, mode="bilinear")),
    "max_unpool2d": (4, lambda x: ck.max_unpool2d(x, PLACES, 2)),
}
PLACES = np.broadcast_to(np.arange(24)[::-1].reshape(4, 6), (2, 3, 4, 6))


def an_input(ndim: int) -> np.ndarray:
    return normal(*(2, 3, 4, 6, 4)[:ndim]).astype(np.float32)


def layouts(x: np.ndarray) -> dict[str, np.ndarray]:
    """The same values laid out in other ways."""
    spaced = np.zeros([2 * n for n in x.shape], x.dtype)
    every_second = spaced[tuple(slice(None, None, 2) for _ in x.shape)]
    every_second[...] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "transposed": x.T.copy().T,
        "strided": every_second,
        "backwards": x[::-1, ..., ::-1].copy()[::-1, ..., ::-1],
        "other byte order": x.astype(x.dtype.newbyteorder("S")),
        "read-only": frozen,
    }


@pytest.mark.parametrize("name", [*CALLS, *WITHOUT_OUT])
def test_any_layout(name):
    ndim, call = {**CALLS, **WITHOUT_OUT}[name]
    x = an_input(ndim)
    before, want = x.copy(), call(x)
    np.testing.assert_array_equal(x, before)
    assert want.dtype == np.float32
    assert want.dtype.isnative
    for layout, values in layouts(x).items():
        np.testing.assert_array_equal(call(values), want, err_msg=layout)


@pytest.mark.parametrize("name", CALLS)
def test_out(name):
    ndim, call = CALLS[name]
    x = an_input(ndim)
    want = call(x)
    for out in (np.full_like(want, np.nan), np.full(want.shape[::-1], np.nan, want.dtype).T):
        assert call(x, out=out) is out
        np.testing.assert_array_equal(out, want)
    with pytest.raises(ValueError, match="out must have shape"):
        call(x, out=np.empty((1, *want.shape), want.dtype))
    with pytest.raises(TypeError, match="out is for arrays"):
        call(ck.Tensor(x), out=np.empty_like(want))
    with pytest.raises(
        ValueError, match="precision must be 'default', 'strict', 'tf32', 'float16' or 'bfloat16', got 'fast'"
    ):
        call(x, precision="fast")


def test_written_indices_do_not_reach_backward():
    """Were they the ones that backward uses, others could send it into memory that is not ours."""
    x = ck.Tensor(normal(1, 2, 4, 4, 4), requires_grad=True)
    y, indices = ck.max_pool3d(x, 2, return_indices=True)
    kept = indices.copy()
    back = ck.max_unpool3d(y, indices, 2)
    indices[...] = 10**9
    back.sum().backward()
    want = np.zeros((2, 64))
    np.put_along_axis(want, kept.reshape(2, -1), 1.0, axis=1)
    np.testing.assert_array_equal(x.grad.data.reshape(2, 64), want)
