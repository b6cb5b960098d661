"""The CUDA rows in Numba's simulator: ``NUMBA_ENABLE_CUDASIM=1 python -m tests.simulate`` prints each row that passed.

The simulator runs a kernel's Python source, a thread of the host for each thread of a block, so shapes are tiny.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
from numba import config

from convkern.kernels.adaptive import reference as adaptive_reference
from convkern.kernels.cuda import launch
from convkern.kernels.entropy.spec import EntropySpec
from convkern.kernels.spec import (
    AdaptiveSpec,
    ChannelSpec,
    ConvSpec,
    ElementwiseSpec,
    NormSpec,
    PointwiseSpec,
    PoolSpec,
)

from .cuda_checks import check_entropy, check_sum
from .gpu import cuda_rows
from .test_kernels import SIDE_BY_SIDE, check_conv, check_pointwise, check_pool, run
from .test_norm import check_norm
from .test_pool3d import check as check_pool3d

CONV = ConvSpec(1, 4, 6, 2, (5, 4), (3, 2), (2, 1), ((1, 0), (0, 1)), (1, 2), (2, 3), 0)
DEPTHWISE = CONV._replace(groups=4, k=8)
FEW = ConvSpec(1, 2, 5, 1, (5, 4), (3, 3), (1, 1), ((1, 1), (0, 1)), (1, 1), (5, 3))
UNROLLED = ConvSpec(1, 2, 2, 2, (5, 4), (3, 3), (2, 2), ((1, 1), (0, 1)), (1, 1), (3, 2))
POOL = PoolSpec(1, 2, (5, 6), (3, 2), (2, 1), ((1, 1), (1, 0)), (1, 1), (3, 6))
ADAPTIVE = AdaptiveSpec(1, 2, (2, 3, 5), (1, 2, 7))
ENTROPY = EntropySpec(2, 3, 5, -1)
NUMBERS = {"int": np.int32, "float": np.float32}
POINTWISE = PointwiseSpec(2, 3, 9, 5)


_lock = threading.Lock()


def simulator_launcher(kernel: Any, blocks: int, args: tuple[Any, ...]) -> None:
    """Run a kernel's source; the packed numbers become named tuples again."""
    from convkern.kernels.cuda.language import cuda

    rest, whole = list(args), []
    for parameter in kernel.parameters:
        fields = 1 if isinstance(parameter, str) else len(parameter._fields)
        taken, rest = rest[:fields], rest[fields:]
        if not isinstance(parameter, str):
            whole.append(parameter(*map(np.int32, taken)))
        elif isinstance(taken[0], np.ndarray):
            whole.append(taken[0].reshape(-1))
        else:
            whole.append(NUMBERS[parameter](taken[0]))
    cuda.jit(kernel.body)[blocks, kernel.threads](*whole)


def shared_array(self: Any, shape: int, dtype: Any, alignment: int | None = None) -> np.ndarray:
    """As the simulator's own, which refuses an alignment: one array for each line that asks for one."""
    caller = sys._getframe(1)
    where = caller.f_code.co_filename, caller.f_lineno
    with _lock:
        return self._allocations.setdefault(where, np.full(shape, np.nan, str(dtype)))


def simulated_rows(operation: str) -> list[Any]:
    """The rows without tensor cores and asynchronous copies, which the simulator does not know."""
    return [row for row in cuda_rows(operation) if row.accuracy == "exact"]


def main() -> None:
    if not config.ENABLE_CUDASIM:
        raise SystemExit("set NUMBA_ENABLE_CUDASIM=1")
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    FakeCUDAShared.array = shared_array
    launch.launcher = simulator_launcher
    with np.errstate(over="ignore"):
        for row in simulated_rows("conv"):
            for spec in {"depthwise": (DEPTHWISE, UNROLLED), "tiled": (FEW,)}.get(row.name, (CONV,)):
                assert check_conv(row, spec._replace(activation=int(row.direction.startswith("forward"))), "float32")
            print("conv", row.name, row.direction)
        for row in simulated_rows("pointwise"):
            assert check_pointwise(row, POINTWISE, "float32")
            print("pointwise", row.name, row.direction)
        for row in cuda_rows("pool"):
            for layout in ("nchw", "channels_last"):
                assert check_pool(row, SIDE_BY_SIDE if "relu" in row.direction else POOL, "float32", layout)
            print("pool", row.name, row.direction)
        for row in cuda_rows("elementwise"):
            simulate_elementwise(row)
            print("elementwise", row.name, row.direction)
        for row in cuda_rows("norm"):
            for n, pixels in ((2, 7), (5, 1)):
                assert check_norm(row, NormSpec(n, 2, pixels, 1, int(row.direction != "input_grad")), "float32")
            print("norm", row.name, row.direction)
        for row in cuda_rows("adaptive"):
            for layout in ("nchw", "channels_last"):
                assert check_pool3d("adaptive", adaptive_reference, row, ADAPTIVE, "float32", 40, layout)
            print("adaptive", row.name, row.direction)
        for row in cuda_rows("entropy"):
            assert check_entropy(row, ENTROPY)
            print("entropy", row.name, row.direction)
        for row in cuda_rows("reduce"):
            assert check_sum(row, ChannelSpec(2, 3, 7))
            assert check_sum(row, ChannelSpec(7, 3, 1))
            print("reduce", row.name, row.direction)


def simulate_elementwise(row: Any) -> None:
    from convkern.kernels.elementwise import reference

    rng = np.random.default_rng(1)
    gy, y = (rng.integers(-4, 5, (2, 3, 7)).astype("f4") for _ in range(2))
    if row.direction == "relu_bias_grad":
        spec = ChannelSpec(2, 3, 7)
        out, sums = np.empty_like(gy), np.empty(3, "f4")
        assert run("elementwise", row, spec, "float32", gy, y, out=(out, sums))
        want, want_sums = reference.relu_bias_grad(gy, y, spec)
        np.testing.assert_array_equal(sums, want_sums)
        np.testing.assert_array_equal(out, want)
        return
    arrays = [a.reshape(-1) for a in ([gy] if row.direction in ("relu", "erf") else [gy, y])]
    flat = np.empty(gy.size, "f4")
    assert run("elementwise", row, ElementwiseSpec(gy.size), "float32", *arrays, out=(flat,))
    rounding = 1e-6 if row.direction == "erf" else 0
    np.testing.assert_allclose(flat, getattr(reference, row.direction)(*arrays), rtol=rounding)


if __name__ == "__main__":
    main()
