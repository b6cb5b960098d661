"""The project's one shape table, used by tests and benchmarks.

A case says what a user would write; ``case.spec()`` gives the integers that a kernel takes. Importing this costs nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import ClassVar

from ..kernels.spec import ConvSpec, Pair, PointwiseSpec, PoolSpec, Sides, output_size
from .random_cases import random_shapes

GRADIENTS = ("forward", "input_grad", "weight_grad")


class _Named:
    """What all cases share: pytest and error messages show the name."""

    name: str

    def __str__(self) -> str:
        return self.name


def _symmetric(padding: Sides) -> Pair | None:
    (top, bottom), (left, right) = padding
    return (top, left) if top == bottom and left == right else None


@dataclass(frozen=True)
class ConvCase(_Named):
    """One convolution: x (N, C, H, W), w (K, C/groups, R, S)."""

    name: str
    n: int
    c: int
    size: Pair  # (H, W)
    k: int
    kernel: Pair  # (R, S)
    stride: Pair = (1, 1)
    padding: Sides = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    tags: frozenset[str] = frozenset()

    operation: ClassVar[str] = "conv"
    directions: ClassVar[tuple[str, ...]] = GRADIENTS

    @cached_property
    def _spec(self) -> ConvSpec:
        out = _out(self.size, self.kernel, self.stride, self.padding, self.dilation)
        shape = (self.n, self.c, self.k, self.groups, self.size)
        return ConvSpec(*shape, self.kernel, self.stride, self.padding, self.dilation, out)

    @cached_property
    def symmetric_padding(self) -> Pair | None:
        """Padding as one number an axis; None where the two sides differ."""
        return _symmetric(self.padding)

    def spec(self) -> ConvSpec:
        return self._spec

    @property
    def macs(self) -> int:
        """Multiply-adds of the direct sum, the same in all three directions."""
        return self._spec.multiply_adds

    @property
    def flops(self) -> int:
        return 2 * self.macs


@dataclass(frozen=True)
class PointwiseCase(_Named):
    """One 1x1 convolution: x (N, C, H, W), w (K, C)."""

    name: str
    n: int
    c: int
    size: Pair
    k: int
    tags: frozenset[str] = frozenset()

    operation: ClassVar[str] = "pointwise"
    directions: ClassVar[tuple[str, ...]] = GRADIENTS

    def spec(self) -> PointwiseSpec:
        return PointwiseSpec(self.n, self.c, self.k, self.size[0] * self.size[1])

    @property
    def macs(self) -> int:
        return self.spec().multiply_adds

    @property
    def flops(self) -> int:
        return 2 * self.macs


@dataclass(frozen=True)
class PoolCase(_Named):
    """One pooling: x (N, C, H, W). Average pooling leaves the dilation out, max pooling the last two options."""

    name: str
    n: int
    c: int
    size: Pair
    kernel: Pair
    stride: Pair
    padding: Sides = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None
    tags: frozenset[str] = frozenset()

    operation: ClassVar[str] = "pool"

    @property
    def directions(self) -> tuple[str, ...]:
        maximum = ("max_forward", "max_backward")
        return maximum if self.dilation != (1, 1) else (*maximum, "avg_forward", "avg_backward")

    @cached_property
    def _spec(self) -> PoolSpec:
        out = _out(self.size, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        window = (self.size, self.kernel, self.stride, self.padding, self.dilation, out)
        return PoolSpec(self.n, self.c, *window, int(self.count_include_pad), self.divisor or 0)

    @cached_property
    def symmetric_padding(self) -> Pair | None:
        return _symmetric(self.padding)

    def spec(self) -> PoolSpec:
        return self._spec

    @property
    def flops(self) -> int:
        """Comparisons or additions, those with the padding counted."""
        spec = self._spec
        return spec.n * spec.c * spec.out[0] * spec.out[1] * spec.kernel[0] * spec.kernel[1]


Case = ConvCase | PointwiseCase | PoolCase


def _out(
    size: Pair, kernel: Pair, stride: Pair, padding: Sides, dilation: Pair, ceil_mode: bool = False
) -> tuple[int, int]:
    p, q = (output_size(size[i], kernel[i], stride[i], padding[i], dilation[i], ceil_mode) for i in range(2))
    return p, q


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


def _sides(value: int | Pair | Sides) -> Sides:
    """Both sides of both axes, from one number, one an axis, or (before, after) for each."""
    if isinstance(value, int):
        return ((value, value), (value, value))
    rows, columns = value
    return (_pair(rows), _pair(columns))


def _conv(
    name: str,
    n: int,
    c: int,
    size: int | Pair,
    k: int,
    kernel: int | Pair,
    stride: int | Pair = 1,
    padding: int | Pair | Sides = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    tags: str = "",
) -> ConvCase:
    shape = (_pair(size), k, _pair(kernel), _pair(stride), _sides(padding), _pair(dilation), groups)
    return ConvCase(name, n, c, *shape, frozenset(tags.split()))


def _pool(
    name: str,
    n: int,
    c: int,
    size: int | Pair,
    kernel: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair | Sides = 0,
    dilation: int | Pair = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
    tags: str = "",
) -> PoolCase:
    stride = kernel if stride is None else stride
    window = (_pair(size), _pair(kernel), _pair(stride), _sides(padding), _pair(dilation))
    return PoolCase(name, n, c, *window, ceil_mode, count_include_pad, divisor, frozenset(tags.split()))


# Layers of networks that people train. "quick" marks those that a benchmark without options takes.
LAYERS = (
    # name, N, C, H x W, K, R x S, stride, padding, dilation, groups
    _conv("lenet-1", 128, 1, 28, 6, 5, 1, 2, tags="quick"),
    _conv("lenet-2", 128, 6, 14, 16, 5, 1, 0, tags="quick"),
    _conv("alexnet-1", 16, 3, 224, 96, 11, 4, 2),
    _conv("alexnet-2", 16, 96, 27, 256, 5, 1, 2),
    _conv("alexnet-3", 16, 256, 13, 384, 3, 1, 1),
    _conv("vgg-1", 32, 3, 32, 64, 3, 1, 1, tags="quick"),
    _conv("vgg-2", 32, 64, 32, 64, 3, 1, 1, tags="quick"),
    _conv("resnet18-56", 16, 64, 56, 64, 3, 1, 1),
    _conv("resnet18-28", 16, 128, 28, 128, 3, 1, 1),
    _conv("resnet18-14", 16, 256, 14, 256, 3, 1, 1),
    _conv("resnet18-7", 16, 512, 7, 512, 3, 1, 1),
    _conv("nin-1x1", 16, 96, 54, 96, 1),
    _conv("googlenet-1x1", 16, 192, 28, 64, 1, tags="quick"),
    _conv("googlenet-3x3", 16, 96, 28, 128, 3, 1, 1),
    _conv("googlenet-5x5", 16, 16, 28, 32, 5, 1, 2, tags="quick"),
    _conv("resnet-stem", 16, 3, 224, 64, 7, 2, 3),
    _conv("resnet-down-3x3", 16, 64, 56, 128, 3, 2, 1),
    _conv("resnet-reduce", 16, 256, 56, 64, 1),
    _conv("resnet-expand", 16, 64, 56, 256, 1),
    _conv("resnet-down-1x1", 16, 64, 56, 128, 1, 2, 0),
    _conv("resnext-3x3", 16, 128, 56, 128, 3, 1, 1, groups=32),
    _conv("depthwise", 16, 192, 28, 192, 3, 1, 1, groups=192, tags="quick"),
    _conv("depthwise-down", 16, 192, 28, 192, 3, 2, 1, groups=192),
)

# Off the beaten track, the same on every machine.
RANDOM = tuple(_conv(f"random-{number:03d}", *shape) for number, shape in enumerate(random_shapes()))

# Small enough that plain Python loops finish, so that they can be compared at all.
LOOPS = (
    _conv("lenet-1-image", 1, 1, 28, 6, 5, 1, 2, tags="quick"),
    _conv("lenet-2-image", 1, 6, 14, 16, 5, 1, 0),
    _conv("loops-3x3", 1, 32, 16, 24, 3, 1, 1, tags="quick"),
    _conv("loops-3x3-64", 1, 64, 20, 64, 3, 1, 1),  # seconds in Python
)

# Small awkward shapes for the tests: the definition does each in milliseconds.
CONVS = (
    _conv("plain", 2, 3, (6, 7), 4, 3),
    _conv("one-pixel", 1, 1, 1, 1, 1),
    _conv("one-pixel-padded", 1, 2, 1, 3, 3, padding=1),
    _conv("kernel-is-the-input", 2, 3, (5, 4), 2, (5, 4)),
    _conv("kernel-is-the-padded-input", 1, 2, (3, 4), 3, (5, 6), padding=1),
    _conv("odd-channels", 1, 7, (5, 6), 5, 3, padding=1),
    _conv("batch-5", 5, 1, (4, 5), 2, 3, padding=1),
    _conv("many-channels", 1, 17, (3, 4), 13, 3, padding=1),
    _conv("row-kernel", 1, 2, (3, 11), 3, (1, 7), padding=(0, 3)),
    _conv("column-kernel", 1, 2, (11, 3), 3, (7, 1), padding=(3, 0)),
    _conv("even-kernel", 2, 2, (6, 7), 3, (2, 4), padding=1),
    _conv("wide-image", 1, 2, (2, 40), 2, (2, 3)),
    _conv("tall-image", 1, 2, (40, 2), 2, (3, 2)),
    _conv("lenet", 2, 1, (9, 10), 6, 5, padding=2),
    _conv("pointwise", 2, 5, (4, 5), 7, 1),
    _conv("pointwise-stride-2", 2, 3, (5, 6), 4, 1, 2),
    _conv("pointwise-padded", 1, 2, (2, 3), 3, 1, padding=1),
    _conv("stride-2", 2, 3, (9, 11), 4, 3, 2, 1),
    _conv("stride-3x1", 1, 2, (10, 6), 3, 3, (3, 1), 1),
    _conv("stride-1x3", 1, 2, (6, 17), 3, 3, (1, 3), 1),
    _conv("stride-2-stem", 1, 3, (13, 14), 4, 7, 2, 3),
    _conv("stride-beyond-the-kernel", 1, 2, (8, 10), 3, (2, 1), 3),
    _conv("pixels-never-met", 1, 2, (8, 11), 3, 3, 3),
    _conv("padding-beyond-the-kernel", 1, 2, (3, 4), 3, 2, padding=3),
    _conv("padding-asymmetric", 1, 2, (5, 6), 3, 3, padding=((0, 2), (3, 1))),
    _conv("padding-on-one-side", 2, 1, (4, 6), 2, (3, 2), padding=((2, 0), (0, 0))),
    _conv("padding-asymmetric-stride-2", 1, 2, (6, 7), 3, 3, 2, ((1, 0), (0, 2))),
    _conv("dilation-2", 1, 2, (7, 9), 3, 3, 1, 2, 2),
    _conv("dilation-3x1-stride-2", 1, 2, (11, 8), 3, (3, 2), 2, 1, (3, 1)),
    _conv("dilation-beyond-the-image", 1, 1, (3, 3), 2, 2, 1, 2, 4),
    _conv("groups-2", 2, 4, (5, 6), 6, 3, 1, 1, groups=2),
    _conv("groups-3-stride-2", 1, 6, (7, 8), 9, (3, 2), 2, 1, groups=3),
    _conv("depthwise-odd", 2, 5, (6, 9), 5, 3, 1, 1, groups=5),
    _conv("depthwise-stride-2", 1, 6, (7, 9), 6, 3, 2, 1, groups=6),
    _conv("depthwise-two-each", 1, 3, (6, 7), 6, (3, 5), 1, (1, 2), groups=3),
    _conv("everything", 2, 4, (9, 11), 6, (2, 3), (2, 3), ((2, 0), (1, 3)), (3, 2), groups=2),
    # enough channels for the fast algorithms
    _conv("blocks-3x3", 6, 17, (9, 10), 18, 3, 1, 1),
    _conv("blocks-3x3-valid", 1, 16, (6, 38), 33, 3),
    _conv("blocks-3x3-wide-image", 1, 16, (5, 70), 16, 3, 1, 1),
    _conv("blocks-3x3-padding-asymmetric", 2, 19, (5, 6), 16, 3, padding=((0, 2), (3, 1))),
    _conv("blocks-3x3-many-channels", 2, 33, (7, 7), 130, 3, 1, 1),
    _conv("blocks-5x5", 2, 16, (9, 14), 19, 5, 1, 2),
    _conv("blocks-5x5-many-channels", 1, 70, (5, 6), 67, 5, 1, 2),
    # enough images for vectors of them
    _conv("images-17", 17, 2, (5, 6), 3, 3, 1, 1),
    _conv("images-9-stride-2", 9, 3, (7, 8), 5, (3, 2), 2, ((1, 0), (0, 2))),
    _conv("images-33-groups", 33, 4, (4, 5), 6, 2, 1, 1, (2, 1), 2),
    # around the SIMD widths, and with every remainder of a block of output channels
    *(_conv(f"width-{width}", 1, 2, (3, width), 3, 3, 1, 1) for width in (5, 7, 8, 9, 15, 16, 17, 31, 33)),
    *(_conv(f"channels-{k}", 1, 3, (3, 9), k, 3, 1, 1) for k in range(1, 8)),
)

POINTWISE = (
    PointwiseCase("pointwise-plain", 2, 5, (4, 5), 7),
    PointwiseCase("pointwise-one-pixel", 1, 3, (1, 1), 2),
    PointwiseCase("pointwise-one-channel", 3, 1, (3, 3), 1),
    PointwiseCase("pointwise-wide", 1, 4, (1, 33), 6),
    PointwiseCase("pointwise-many-channels", 1, 19, (3, 5), 13),
    PointwiseCase("pointwise-two-blocks", 2, 2, (19, 29), 5),
    *(PointwiseCase(f"pointwise-{k}", 1, 3, (2, 9), k) for k in range(1, 8)),
)

POINTWISE_LAYERS = (
    PointwiseCase("pointwise-nin", 16, 96, (54, 54), 96),
    PointwiseCase("pointwise-googlenet", 16, 192, (28, 28), 64, frozenset({"quick"})),
    PointwiseCase("pointwise-resnet-reduce", 16, 256, (56, 56), 64),
    PointwiseCase("pointwise-resnet-expand", 16, 64, (56, 56), 256),
)

POOLS = (
    _pool("pool-plain", 2, 3, (6, 8), 2),
    _pool("pool-rest-cut-off", 1, 2, (7, 9), 2),
    _pool("pool-one-pixel", 1, 1, 1, 1),
    _pool("pool-global", 2, 3, (5, 7), (5, 7)),
    _pool("pool-overlapping", 1, 2, (7, 9), 3, 2),
    _pool("pool-stride-1", 1, 2, (5, 6), 3, 1, 1),
    _pool("pool-resnet", 1, 3, (8, 9), 3, 2, 1),
    _pool("pool-rectangular", 2, 2, (7, 10), (2, 3), (3, 1), (1, 0)),
    _pool("pool-stride-beyond-the-window", 1, 2, (9, 11), 2, 4),
    _pool("pool-padding-counted-out", 1, 2, (6, 7), 3, 2, 1, count_include_pad=False),
    _pool("pool-padding-asymmetric", 1, 2, (5, 6), 3, 2, ((0, 1), (1, 0))),
    _pool("pool-ceil", 1, 2, (6, 8), 3, 2, ceil_mode=True),
    _pool("pool-ceil-padded", 1, 2, (6, 7), 3, 2, 1, ceil_mode=True),
    _pool("pool-ceil-counted-out", 1, 2, (6, 7), 3, 2, 1, ceil_mode=True, count_include_pad=False),
    _pool("pool-ceil-last-window-dropped", 1, 2, (5, 5), 2, 3, 1, ceil_mode=True),
    _pool("pool-divisor", 1, 2, (6, 7), 3, 2, 1, divisor=5),
    _pool("pool-dilation", 1, 2, (9, 11), 3, 2, 1, 2),
    _pool("pool-dilation-ceil", 1, 2, (8, 10), 2, 2, 1, (3, 2), ceil_mode=True),
    *(_pool(f"pool-width-{width}", 1, 2, (4, width), 2) for width in (7, 8, 9, 15, 16, 17, 33)),
)

POOL_LAYERS = (
    _pool("pool-lenet-1", 128, 6, 28, 2, tags="quick"),
    _pool("pool-alexnet-1", 16, 96, 55, 3, 2),
    _pool("pool-vgg-1", 32, 64, 32, 2),
    _pool("pool-resnet-stem", 16, 64, 112, 3, 2, 1, tags="quick"),
    _pool("pool-googlenet", 16, 192, 28, 3, 1, 1),
    _pool("pool-resnet-global", 16, 512, 7, 7),
)

# Means are taken over one of these tables and one direction.
TABLES: dict[str, tuple[Case, ...]] = {
    "loops": LOOPS,
    "layers": LAYERS,
    "random": RANDOM,
    "pools": POOL_LAYERS,
    "pointwise": POINTWISE_LAYERS,
    "small": (*CONVS, *POINTWISE, *POOLS),
}
ALL: tuple[Case, ...] = tuple(case for table in TABLES.values() for case in table)

# What `convkern bench --cases` knows beside the names of single cases.
GROUPS: dict[str, tuple[Case, ...]] = {
    "quick": tuple(case for case in (*LOOPS, *LAYERS) if "quick" in case.tags),
    **TABLES,
}


def table_of(case: Case) -> str:
    """The key of the table that holds a case, "other" for one that is in none."""
    return next((name for name, table in TABLES.items() if case in table), "other")


def select(wanted: Sequence[str]) -> tuple[Case, ...]:
    """The cases that groups, names or patterns stand for, each once, in the order asked for.

    Parameters
    ----------
    wanted : sequence of str
        Keys of ``GROUPS``, names, or patterns with ``*``, ``?`` and ``[...]``. Small cases are found where no other is.

    Raises
    ------
    ValueError
        If one of them matches nothing; the message names the groups and the nearest names.
    """
    found: dict[str, Case] = {}
    large = [case for case in ALL if case not in TABLES["small"]]
    for text in wanted:
        cases = GROUPS.get(text) or _matching(text, large) or _matching(text, TABLES["small"])
        if not cases:
            near = difflib.get_close_matches(text, [case.name for case in ALL], 3, 0.4)
            hint = f"; like {', '.join(near)}" if near else ""
            raise ValueError(f"cases must be {', '.join(GROUPS)}, or the name of a case{hint}; got {text!r}")
        found.update((case.name, case) for case in cases)
    return tuple(found.values())


def _matching(pattern: str, cases: Sequence[Case]) -> tuple[Case, ...]:
    return tuple(case for case in cases if fnmatchcase(case.name, pattern))
