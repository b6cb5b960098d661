"""Every CUDA row of every table on a GPU against its definition, through the launcher that everybody uses."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from convkern.kernels.adaptive import reference as adaptive_reference
from convkern.kernels.conv import reference as conv_reference
from convkern.kernels.cuda import launch
from convkern.kernels.entropy.spec import EntropySpec
from convkern.kernels.spec import ChannelSpec, NormSpec, PointwiseSpec
from convkern.kernels.variant import Problem
from convkern.plan import HALVES, REDUCED

from .bounds import integers
from .cuda_checks import check_as_stored, check_entropy, check_sum, on_channels_last
from .device import missing, on_device
from .gpu import TABLES, cuda_rows
from .simulate import simulate_elementwise
from .test_cuda_capture_halves import trained_in_halves
from .test_cuda_halves import CHANNELS_LAST, HALF_EDGES, PARTED, WARPGROUP_EDGES, on_halves, wide
from .test_cuda_layers import NORMS
from .test_cuda_linear import check_exact_products
from .test_cuda_rows import DEPTHWISE_EDGES, LAST_POOLS, ONE, TILED_LAST, conv, edges, long
from .test_cuda_tf32 import TF32_EDGES, WIDE_LAST, WIDE_PARTED
from .test_kernels import check_conv, check_pointwise, check_pool, cuda_pool_specs, row_id
from .test_norm import check_norm
from .test_optim import UPDATES, check_update
from .test_pool3d import ADAPTIVE
from .test_pool3d import check as check_adaptive

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"no GPU to run kernels on: {missing()}")

ROOT = Path(__file__).parents[1]
PRODUCTS = [(0, 2, 3, 4), (1, 1, 1, 1), (3, 9, 8, 43), (2, 8, 33, 65), (1, 200, 250, 3), (2, 72, 80, 130)]
WINDOWS = ("depthwise", "tiled")  # rows that take few channels a group
WIDE_DEPTHWISE = conv(64, 64, (57, 56), 64, (3, 3), padding=ONE, groups=64)  # a thread has several images
ROWS = [pytest.param(name, row, id=f"{name}-{row_id(row)}") for name in TABLES for row in cuda_rows(name)]


# For compute-sanitizer, under which a launch takes a hundred times as long: a few cases of each row.
SMALL = os.environ.get("CONVKERN_TEST_SMALL") == "1"


def few(cases, *kept: int) -> list:
    """All of the cases, or those of these numbers where only a few are wanted."""
    cases = list(cases)
    return [cases[number] for number in kept] if SMALL else cases


def conv_cases(row) -> list:
    """Tile edges, every kind of geometry, sums that are cut into parts, no images at all."""
    warpgroup = row.name.startswith("warpgroup")
    if warpgroup:
        cases = TF32_EDGES if row.accuracy == "tf32" else WARPGROUP_EDGES
        specs = [wide(row.direction, spec) for spec in few(cases, 1, 3)]
    else:
        kept = (0, 1, 2) if row.name in WINDOWS else (1, 2, 3, 4)
        specs = few(edges(row), *kept) + (few(HALF_EDGES, 0, 3) if row.accuracy in HALVES else [])
        specs += [long(row)] if SMALL else [long(row), long(row)._replace(n=0)]
    if row.name == "depthwise" and not SMALL:
        specs.append(WIDE_DEPTHWISE)
    direction = row.direction.removesuffix("_residual")
    if direction in PARTED and row.name not in WINDOWS:
        specs.append((WIDE_PARTED if warpgroup else PARTED)[direction])
    return [spec._replace(activation=spec.k % 2) if row.direction.startswith("forward") else spec for spec in specs]


def check_conv_row(row) -> bool:
    for spec in conv_cases(row):
        assert check_conv(row, spec, "float32", make=integers, exact=True)
        assert SMALL or check_conv(row, spec, "float32")
        assert row.accuracy not in HALVES or spec.n == 0 or on_halves(row, spec)
    if row.name in WINDOWS:
        last = TILED_LAST if row.name == "tiled" else DEPTHWISE_EDGES
        for dtype, (layout, cases) in product(("float32", *HALVES), (("nchw", edges(row)), ("channels_last", last))):
            for spec in few(cases, 1, -1):
                asked = Problem("conv", row.direction, "cuda", dtype, "default", spec, layout)
                assert row.refuses(asked) == "takes a stride of 1 only" or check_as_stored(row, asked)
        return True
    return check_channels_last(row)


def check_channels_last(row) -> bool:
    """Images as they lie; rows that take NCHW alone refuse."""
    warpgroup, asked = row.name.startswith("warpgroup"), row.accuracy if row.accuracy in REDUCED else "default"
    last = CHANNELS_LAST
    if warpgroup:
        last = WIDE_LAST if row.accuracy == "tf32" else WARPGROUP_EDGES
    ran = []
    for dtype in ("float32", *([row.accuracy] if row.accuracy in HALVES else [])):
        for spec in few(last, 0, 1):
            spec = wide(row.direction, spec) if warpgroup else spec
            problem = Problem("conv", row.direction, "cuda", dtype, asked, spec, "channels_last")
            ran.append(not row.refuses(problem))
            if ran[-1]:
                np.testing.assert_array_equal(*on_channels_last(row, problem))
    return any(ran) or row.accuracy == "exact"


def check_pointwise_row(row) -> bool:
    ran = []
    for n, c, k, pixels in few(PRODUCTS, 2, 3, 4, 5):
        spec = PointwiseSpec(n, c, k, pixels, int(row.direction.startswith("forward") and k % 2))
        ran.append(check_pointwise(row, spec, "float32", make=integers, exact=True))
        assert SMALL or check_pointwise(row, spec, "float32") == ran[-1]
    return all(ran) or (row.name.startswith("warpgroup") and any(ran))  # these refuse few channels


def check_pool_row(row) -> bool:
    specs = cuda_pool_specs(row)
    specs = specs[::6] if SMALL else specs + LAST_POOLS[:2]
    return all(check_pool(row, spec, "float32", layout) for spec in specs for layout in ("nchw", "channels_last"))


def check_elementwise_row(row) -> bool:
    simulate_elementwise(row)
    return True


def check_norm_row(row) -> bool:
    specs = [NormSpec(*shape, a, r) for shape in NORMS for a, r in ((0, 0), (0, 1), (1, 0), (1, 1))]
    return all(check_norm(row, spec, "float32", make=integers) for spec in few(specs, 7, 16, 19, 34, 35))


def check_adaptive_row(row) -> bool:
    return all(
        check_adaptive(
            "adaptive", adaptive_reference, row, spec, "float32",
            math.prod(-(-a // b) + 1 + -(-b // a) for a, b in zip(spec.size, spec.out, strict=True)), layout,
        )
        for spec in few(ADAPTIVE.values(), 1, 4)
        for layout in ("nchw", "channels_last")
    )  # fmt: skip


def check_entropy_row(row) -> bool:
    shapes = [(0, 3, 1), (1, 1, 1), (3, 10, 1), (130, 7, 1), (2, 5, 131), (1, 300, 2)]
    return all(check_entropy(row, EntropySpec(*shape, -100)) for shape in few(shapes, 3, 4))


def check_reduce_row(row) -> bool:
    shapes = ((0, 2, 3), (1, 1, 1), (1, 7, 300), (6, 3, 700), (211, 34, 1))
    return all(check_sum(row, ChannelSpec(*shape)) for shape in few(shapes, 3, 4))


CHECKS = {
    "conv": check_conv_row,
    "pointwise": check_pointwise_row,
    "pool": check_pool_row,
    "elementwise": check_elementwise_row,
    "norm": check_norm_row,
    "adaptive": check_adaptive_row,
    "entropy": check_entropy_row,
    "reduce": check_reduce_row,
}


@pytest.mark.parametrize(("operation", "row"), ROWS)
def test_row(operation, row):
    if row.name.startswith("warpgroup") and launch.device_capability() != 90:
        pytest.skip("wgmma needs compute capability 9.0")
    with on_device():
        assert CHECKS[operation](row)


@pytest.mark.parametrize("name", UPDATES)
def test_optimizers(name):
    from convkern.kernels.update import cuda_chunks

    with on_device():
        check_update(cuda_chunks, name, "float32")


def test_a_stream_of_the_callers_own():
    """The launch follows what the stream did before, and what it does next follows the launch."""
    import cupy

    import convkern as ck

    spec = conv(8, 16, (64, 64), 32, (3, 3), padding=ONE)
    x, w = (integers(np.random.default_rng(1), shape, "f4") for shape in (spec.x_shape, spec.w_shape))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        there = cupy.asarray(x), cupy.asarray(w)
        for _ in range(20):  # the stream is busy when the kernel is launched
            there[0][...] = there[0] * 2 / 2
        got = ck.conv2d(*there, padding=1) + 0
        host = got.get(stream=stream)
        stream.synchronize()
    np.testing.assert_array_equal(host, conv_reference.forward(x.astype("f8"), w.astype("f8"), None, spec))


def test_two_threads_with_a_stream_each():
    import cupy

    import convkern as ck

    spec = conv(4, 16, (32, 32), 32, (3, 3), padding=ONE)

    def work(seed: int) -> None:
        x, w = (integers(np.random.default_rng(seed), shape, "f4") for shape in (spec.x_shape, spec.w_shape))
        with cupy.cuda.Stream(non_blocking=True) as stream:
            there = cupy.asarray(x), cupy.asarray(w)
            got = [ck.conv2d(*there, padding=1) for _ in range(20)]
            stream.synchronize()
        want = conv_reference.forward(x.astype("f8"), w.astype("f8"), None, spec)
        for y in got:
            np.testing.assert_array_equal(y.get(), want)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (1, 2)))


def test_captured_steps_are_eager_steps():
    """Losses and parameters of five steps of a small network with batch norm and dropout, bit for bit."""
    import cupy

    import convkern as ck
    from convkern import capture, nn

    rng = np.random.default_rng(3)
    batches = [(rng.standard_normal((8, 1, 12, 12), "f4"), rng.integers(0, 5, 8)) for _ in range(5)]

    def trained(captured: bool) -> tuple[list[float], dict[str, np.ndarray]]:
        with nn.init.seeded(4):
            model = nn.Sequential(
                nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5),
                nn.Linear(200, 5),
            ).to("cuda")  # fmt: skip
        optimizer, replay, losses = ck.optim.Adam(model.parameters(), lr=0.01), None, []

        def forward(x, labels):
            return nn.functional.cross_entropy(model(x), labels)

        with capture.own_stream():
            for number, (x, labels) in enumerate(batches):
                ck.random.seed_noise(1, number)
                there = cupy.asarray(x), cupy.asarray(labels)
                optimizer.param_groups[0]["lr"] = 0.01 / (number + 1)
                if captured and number:
                    replay = replay or capture.CapturedStep(model, forward, optimizer, *there)
                    losses.append(replay.forward(*there).item())
                    replay.backward()
                    replay.update()
                else:
                    optimizer.zero_grad()
                    loss = forward(*there)
                    losses.append(loss.item())
                    loss.backward()
                    optimizer.step()
        return losses, model.state_dict()

    (losses, state), (want, want_state) = trained(True), trained(False)
    assert losses == want
    for key, value in want_state.items():
        np.testing.assert_array_equal(state[key], value, err_msg=key)


@pytest.mark.parametrize("kind", HALVES)
def test_cublas_multiplies_halves(kind):
    """Through its own API, with addresses: every transposition, odd sizes."""
    import cupy

    check_exact_products(cupy, kind)


@pytest.mark.usefixtures("any_size_on_tensor_cores")
def test_captured_steps_in_float16_skip_what_overflows_as_eager_ones_do():
    """Losses, scale, parameters and optimizer state of seven steps, three of which overflow, bit for bit."""
    import cupy

    assert trained_in_halves(cupy, True).found == trained_in_halves(cupy, False).found


def test_out_of_memory_tells_the_bytes_and_leaves_the_pool_usable():
    import convkern as ck

    with pytest.raises(ck.device.OutOfDeviceMemory, match=r"4,503,599,627,370,496 bytes asked for") as caught:
        ck.device.empty(1 << 50, "float32")
    assert 0 < caught.value.free <= caught.value.total
    assert ck.device.empty(1 << 20, "float32").size == 1 << 20


BAD_ADDRESS = """
import cupy
from convkern.kernels.elementwise import cuda_chunks
from convkern.kernels.spec import ElementwiseSpec

nowhere = cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(1 << 20, 4096, None, 0), 0)
x, y = cupy.ndarray((1024,), "float32", nowhere), cupy.empty(1024, "float32")
cuda_chunks.relu(x, ElementwiseSpec(1024), None, y)
raise SystemExit("the call came back")
"""


def test_debugging_names_the_kernel_that_failed():
    """In a process of its own: a failed kernel takes its context along."""
    env = {**os.environ, "CONVKERN_DEBUG": "1"}
    done = subprocess.run([sys.executable, "-c", BAD_ADDRESS], capture_output=True, text=True, env=env, cwd=ROOT)
    assert "RuntimeError: the kernel relu failed in 4 blocks: " in done.stderr, done.stderr


def test_a_training_step_is_pytorchs():
    """Losses of three steps of LeNet, and all of its parameters after them, beside PyTorch on the CPU."""
    torch = pytest.importorskip("torch")
    import cupy

    import convkern as ck
    from convkern.bench.rivals import networks

    rng = np.random.default_rng(2)
    x, labels = rng.standard_normal((16, 1, 28, 28), "f4"), rng.integers(0, 10, 16)
    mine, twin = ck.models.build("lenet5"), networks.lenet5()
    twin.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in mine.state_dict().items()})
    mine.to("cuda")
    runs = [
        (mine, ck.optim.SGD, ck.nn.functional.cross_entropy, cupy.asarray),
        (twin, torch.optim.SGD, torch.nn.functional.cross_entropy, torch.from_numpy),
    ]
    losses = []
    for model, sgd, cross_entropy, convert in runs:
        optimizer = sgd(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            loss = cross_entropy(model(convert(x)), convert(labels))
            loss.backward()
            optimizer.step()
            losses.append(float(loss.item()))
    np.testing.assert_allclose(losses[:3], losses[3:], rtol=1e-4)
    state = mine.state_dict()
    for key, value in twin.state_dict().items():
        np.testing.assert_allclose(state[key], value.numpy(), rtol=1e-3, atol=1e-4, err_msg=key)
