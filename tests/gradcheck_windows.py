"""Cases of test_gradcheck.py: convolutions of one to three axes, padding, pooling and resizing."""

import numpy as np

from convkern import ops


def values(*shape, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x + np.copysign(0.2, x)


def distinct(*shape, seed=0):
    n = int(np.prod(shape))
    return np.random.default_rng(seed).permutation(n).reshape(shape) / 4 + 0.1


def through(name, *args, **options):
    """The operation of that name as a function of x alone."""
    return lambda x: getattr(ops, name)(x, *args, **options)


PLACES = {axes: np.arange(2**axes)[::-1].reshape(1, 1, *(2,) * axes) for axes in (1, 2, 3)}

CASES = {
    "conv1d": [
        ("bias", lambda x, w, b: ops.conv1d(x, w, b, 2, 1), (values(2, 2, 7), values(3, 2, 3), values(3))),
        ("groups", lambda x, w: ops.conv1d(x, w, dilation=2, groups=2), (values(4, 6), values(2, 2, 3))),
    ],
    "conv1d_input_grad": [("plain", lambda g, w: ops.conv1d_input_grad(g, w, (2, 2, 5)), (values(2, 3, 3), values(3, 2, 3)))],
    "conv1d_weight_grad": [("plain", lambda x, g: ops.conv1d_weight_grad(x, g, 3), (values(2, 2, 5), values(2, 3, 3)))],
    "conv3d": [
        (
            "bias",
            lambda x, w, b: ops.conv3d(x, w, b, (1, 2, 1), 1, groups=2),
            (values(1, 2, 3, 4, 3), values(2, 1, 2, 3, 2), values(2)),
        ),
        ("pointwise", ops.conv3d, (values(1, 2, 2, 3, 2), values(3, 2, 1, 1, 1))),
    ],
    "conv3d_input_grad": [
        ("plain", lambda g, w: ops.conv3d_input_grad(g, w, (2, 3, 3, 4)), (values(3, 2, 2, 3), values(3, 2, 2, 2, 2)))
    ],
    "conv3d_weight_grad": [
        ("plain", lambda x, g: ops.conv3d_weight_grad(x, g, 2), (values(1, 2, 3, 3, 4), values(1, 3, 2, 2, 3)))
    ],
    "conv_transpose1d": [
        ("bias", lambda x, w, b: ops.conv_transpose1d(x, w, b, 2, 1, 1), (values(2, 2, 4), values(2, 3, 3), values(3)))
    ],
    "conv_transpose2d": [
        (
            "bias",
            lambda x, w, b: ops.conv_transpose2d(x, w, b, 2, 1, (1, 0), 2),
            (values(1, 2, 3, 2), values(2, 2, 3, 3), values(4)),
        ),
        (
            "output padding from the dilation",
            lambda x, w, b: ops.conv_transpose2d(x, w, b, output_padding=1, dilation=2, activation="relu"),
            (values(2, 3, 2), values(2, 1, 2, 2), values(1)),
        ),
    ],
    "conv_transpose3d": [
        ("plain", lambda x, w: ops.conv_transpose3d(x, w, stride=2), (values(1, 2, 2, 1, 2), values(2, 1, 2, 2, 2)))
    ],
    "pad": [
        ("constant", lambda x: ops.pad(x, (1, 2, -1, 1), value=1.5), (values(2, 3, 2),)),
        ("reflect", lambda x: ops.pad(x, (1, 2, 1, 0), "reflect"), (values(1, 2, 3, 3),)),
        ("replicate", lambda x: ops.pad(x, (1, 2, 1, 0, 2, 0), "replicate"), (values(1, 2, 2, 2),)),
        ("circular", lambda x: ops.pad(x, (1, 2), "circular"), (values(2, 3),)),
    ],
    **{
        f"{kind}_pool{axes}d": [
            (
                "overlapping",
                through(f"{kind}_pool{axes}d", 3, 2, 1, ceil_mode=True),
                (distinct(1, 2, *(5, 4, 3)[:axes]),),
            )
        ]
        for kind in ("max", "avg")
        for axes in (1, 3)
    },
    **{
        f"lp_pool{axes}d": [
            (f"p = {p}", through(f"lp_pool{axes}d", p, 2, 1, True), (distinct(1, 2, *(3, 4, 2)[:axes]),))
            for p in (1, 2, 3.5)
        ]
        for axes in (1, 2, 3)
    },
    **{
        f"adaptive_{kind}_pool{axes}d": [
            ("uneven", through(f"adaptive_{kind}_pool{axes}d", 2), (distinct(1, 2, *(5, 3, 4)[:axes]),)),
            ("even", through(f"adaptive_{kind}_pool{axes}d", 2), (distinct(2, *(4, 2, 6)[:axes]),)),
        ]
        for kind in ("max", "avg")
        for axes in (1, 2, 3)
    },
    **{
        f"max_unpool{axes}d": [("plain", through(f"max_unpool{axes}d", PLACES[axes], 2), (values(*PLACES[axes].shape),))]
        for axes in (1, 2, 3)
    },
    "interpolate": [
        ("nearest", lambda x: ops.interpolate(x, (5, 3)), (values(1, 2, 3, 4),)),
        ("linear", lambda x: ops.interpolate(x, scale_factor=1.7, mode="linear"), (values(2, 1, 5),)),
        ("bilinear", lambda x: ops.interpolate(x, (4, 5), mode="bilinear", align_corners=True), (values(1, 2, 2, 3),)),
        ("trilinear", lambda x: ops.interpolate(x, scale_factor=2, mode="trilinear"), (values(1, 1, 2, 2, 2),)),
    ],
}  # fmt: skip
