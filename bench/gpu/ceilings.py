"""Stage ceilings: what the device can do at most, measured: copying, matrix products of each precision, and a launch."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from . import stage
from .clock import interleave

COPY_BYTES = 1 << 30
SIDE = 8192
PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
LAUNCHES = 1000


def allow_tf32(allowed: bool) -> None:
    """Whether PyTorch rounds float32 operands to TF32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def copy_bandwidth() -> dict[str, float]:
    """Bytes read and written a second, of PyTorch's copy and of our addition of two arrays."""
    import cupy
    import torch

    from ...kernels.elementwise import cuda_chunks
    from ...kernels.spec import ElementwiseSpec

    a = torch.empty(COPY_BYTES // 4, device="cuda").normal_()
    b, c = torch.empty_like(a), torch.empty_like(a)
    x, y, out = map(cupy.from_dlpack, (a, b, c))
    spec = ElementwiseSpec(out.size)
    b.copy_(a)
    seconds = interleave(
        {"copy": [lambda: b.copy_(a)], "add": [lambda: cuda_chunks.add(x, y, spec, cupy.empty(0, "uint8"), out)]}
    )
    return {"copy": 2 * COPY_BYTES / seconds["copy"], "our addition": 3 * COPY_BYTES / seconds["add"]}


def matrix_peak(precision: str) -> float:
    """Operations a second of cuBLAS's square product, a multiply-add counted as two."""
    import torch

    dtype = torch.float32 if precision in ("float32", "tf32") else getattr(torch, precision)
    a, b = (torch.randn(SIDE, SIDE, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    allow_tf32(precision == "tf32")
    try:
        seconds = interleave({precision: [lambda: torch.mm(a, b, out=out)]})
    finally:
        allow_tf32(False)
    return 2 * SIDE**3 / seconds[precision]


def launch_seconds() -> dict[str, Any]:
    """The host's time for one launch, without waiting for the device: of few arguments, and of a convolution's many."""
    import cupy

    from ...kernels.conv import cuda_direct
    from ...kernels.elementwise import cuda_chunks
    from ...kernels.spec import ConvSpec, ElementwiseSpec

    x, y = cupy.ones(32, "float32"), cupy.empty(32, "float32")
    none = cupy.empty(0, "uint8")
    flat = ElementwiseSpec(32)
    spec = ConvSpec(1, 2, 2, 1, (4, 4), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), (4, 4))
    image, w, result = (cupy.ones(shape, "float32") for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
    bias = cupy.empty(0, "float32")
    calls = {
        "elementwise": lambda: cuda_chunks.relu(x, flat, none, y),
        "convolution": lambda: cuda_direct.forward(image, w, bias, spec, none, result),
        "cupy.add": lambda: cupy.add(x, x, out=y),
    }
    found = {}
    for name, call in calls.items():
        for _ in range(10):
            call()
        cupy.cuda.runtime.deviceSynchronize()
        started = time.perf_counter()
        for _ in range(LAUNCHES):
            call()
        found[name] = (time.perf_counter() - started) / LAUNCHES
        cupy.cuda.runtime.deviceSynchronize()
    return found


def work(report: stage.Report) -> None:
    report.begin(bandwidth=None, matrix_peak={}, launch_seconds=None)
    if bandwidth := report.once("bandwidth", copy_bandwidth):
        report.found(bandwidth=bandwidth)
    for precision in PRECISIONS:
        if peak := report.once(f"peak of {precision}", partial(matrix_peak, precision)):
            report.data["matrix_peak"][precision] = peak
            report.save()
    if seconds := report.once("launch", launch_seconds):
        report.found(launch_seconds=seconds)


if __name__ == "__main__":
    stage.run("ceilings", work, patience=20)
