"""Stage memory: what moves bytes and computes little, beside PyTorch and as a share of the copy's bandwidth.

Bytes are those that an operation has to read and write once. Float32, NCHW; each array is larger than any cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from ...kernels.spec import ChannelSpec, ElementwiseSpec, NormSpec, PoolSpec
from ...kernels.variant import Problem
from ...plan import rows
from . import contenders, stage
from .clock import interleave
from .rows import ceilings

SHAPE = (64, 256, 56, 56)
AGREEMENT = 1e-3  # of the largest value


class Job(NamedTuple):
    """One operation: the bytes that it moves; ours, which gives its result; PyTorch's."""

    name: str
    nbytes: int
    ours: Callable[[], Any]
    theirs: Callable[[], Any]


def row_call(operation: str, direction: str, spec: Any, arrays: list[Any], outs: list[Any]) -> Callable[[], Any]:
    """The call of a table's first CUDA row; gives the last of what it writes."""
    import cupy

    (row, *_) = rows(operation, direction, "cuda")
    workspace = cupy.empty(row.workspace(Problem(operation, direction, "cuda", "float32", "default", spec)), "uint8")

    def call() -> Any:
        row.run(*arrays, spec, workspace, *outs)
        return outs[-1]

    return call


def elementwise(x: Any, gy: Any) -> Iterator[Job]:
    import cupy
    import torch

    n, c, size = x.shape[0], x.shape[1], x.numel()
    flat, channels = ElementwiseSpec(size), ChannelSpec(n, c, size // n // c)
    a, b = contenders.ours(x), contenders.ours(gy)
    y, sums = cupy.empty(a.shape, "float32"), cupy.empty(c, "float32")
    one, two, out = (array.reshape(-1) for array in (a, b, y))
    masked = partial(torch.ops.aten.threshold_backward, gy, x, 0)
    planes = [array.reshape(n, c, -1) for array in (a, b, y)]
    yield Job("relu", 8 * size, row_call("elementwise", "relu", flat, [one], [out]), partial(torch.relu, x))
    yield Job("relu_grad", 12 * size, row_call("elementwise", "relu_grad", flat, [two, one], [out]), masked)
    yield Job("add", 12 * size, row_call("elementwise", "add", flat, [one, two], [out]), partial(torch.add, x, gy))
    both = row_call("elementwise", "relu_bias_grad", channels, [planes[1], planes[0]], [planes[2], sums])
    yield Job("relu_bias_grad", 12 * size, both, lambda: masked().sum((0, 2, 3)))
    yield Job(
        "channel sum", 4 * size, row_call("reduce", "sum", channels, [planes[0]], [sums]), lambda: x.sum((0, 2, 3))
    )


def norm(x: Any, gy: Any) -> Iterator[Job]:
    import cupy
    import torch

    n, c, size = x.shape[0], x.shape[1], x.numel()
    spec = NormSpec(n, c, size // n // c)
    a, b = (contenders.ours(t).reshape(n, c, -1) for t in (x, gy))
    y, moments, none = cupy.empty(a.shape, "float32"), cupy.empty((2, c), "float32"), cupy.empty((0, c, 1), "float32")
    affine = torch.zeros((5, c), device=contenders.DEVICE)
    affine[1] = 1  # center, scale, shift, slope, offset
    three, five = contenders.ours(affine[:3].contiguous()), contenders.ours(affine)
    mean, one = affine[0], affine[1]
    var_mean = partial(torch.var_mean, x, (0, 2, 3), correction=0)
    yield Job(
        "norm statistics", 4 * size, row_call("norm", "statistics", spec, [a], [moments]),
        lambda: torch.stack(var_mean()[::-1]),
    )  # fmt: skip
    plain = partial(torch.nn.functional.batch_norm, x, mean, one, eps=0.0)
    yield Job("norm forward", 8 * size, row_call("norm", "forward", spec, [a, none, three], [y]), plain)
    sums = row_call("norm", "sums", spec, [a, b, none, three], [moments, none])
    yield Job(
        "norm sums",
        8 * size,
        lambda: (sums(), moments)[1],
        lambda: torch.stack([gy.sum((0, 2, 3)), (gy * x).sum((0, 2, 3))]),
    )
    yield Job(
        "norm input_grad",
        12 * size,
        row_call("norm", "input_grad", spec, [a, b, five], [y]),
        lambda: gy * one[:, None, None],
    )


def pool(x: Any) -> Iterator[Job]:
    import cupy
    import torch

    n, c, h, w = x.shape
    out, two, none = (h // 2, w // 2), (2, 2), ((0, 0), (0, 0))
    spec = PoolSpec(n, c, (h, w), two, two, none, (1, 1), out)
    a, size = contenders.ours(x), x.numel()
    gy = torch.randn((n, c, *out), device=contenders.DEVICE)
    b, y, gx = contenders.ours(gy), cupy.empty((n, c, *out), "float32"), cupy.empty(x.shape, "float32")
    winners = cupy.empty((n, c, *out), "int64")
    aten, forward = torch.ops.aten, partial(torch.ops.aten.max_pool2d_with_indices, x, two, two)
    indices = forward()[1]
    yield Job("max_forward", 7 * size, row_call("pool", "max_forward", spec, [a], [winners, y]), lambda: forward()[0])
    back = row_call("pool", "max_backward", spec, [b, cupy.from_dlpack(indices)], [gx])
    options = (two, two, (0, 0), (1, 1), False, indices)
    yield Job("max_backward", 7 * size, back, partial(aten.max_pool2d_with_indices_backward, gy, x, *options))
    average = partial(torch.nn.functional.avg_pool2d, x, two)
    yield Job("avg_forward", 5 * size, row_call("pool", "avg_forward", spec, [a], [y]), average)
    shared = partial(aten.avg_pool2d_backward, gy, x, two, two, (0, 0), False, True, None)
    yield Job("avg_backward", 5 * size, row_call("pool", "avg_backward", spec, [b], [gx]), shared)
    through = row_call("pool", "avg_relu_bias_backward", spec, [b, a], [gx, cupy.empty(c, "float32")])
    yield Job(
        "avg_relu_bias_backward", 9 * size, through, lambda: aten.threshold_backward(shared(), x, 0).sum((0, 2, 3))
    )


def jobs() -> Iterator[Job]:
    """All of them, over normal numbers."""
    import torch

    x, gy = (torch.randn(SHAPE, device=contenders.DEVICE) for _ in range(2))
    yield from elementwise(x, gy)
    yield from norm(x, gy)
    yield from pool(x)


def measure(job: Job, bandwidth: float | None) -> dict[str, Any]:
    """Seconds of both and shares of the bandwidth.

    Raises
    ------
    ValueError
        If the results differ.
    """
    apart = contenders.disagreement(contenders.theirs(job.ours(), "float32"), job.theirs())
    if apart > AGREEMENT:
        raise ValueError(f"the result is off by {apart:.2g} of the largest value")
    seconds = interleave({"ours": [job.ours], "torch": [job.theirs]})
    shares = {name: job.nbytes / value / bandwidth if bandwidth else None for name, value in seconds.items()}
    return {"operation": job.name, "nbytes": job.nbytes, "seconds": seconds, "copy_shares": shares}


def work(report: stage.Report) -> None:
    bandwidth = (ceilings(report.path.parent).get("bandwidth") or {}).get("copy")
    report.begin(shape=SHAPE, entries=[])
    for job in jobs():
        entry = report.once(job.name, partial(measure, job, bandwidth))
        if entry is not None:
            report.add("entries", entry)


if __name__ == "__main__":
    stage.run("memory", work, patience=20)
