"""Launching without a GPU: what is asked of CuPy, and the way of arrays there and back with which a GPU is tested."""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convkern.kernels.cuda import compiler, kernel, launch

from . import fake_cupy
from .device import Travels, travelling
from .gpu import cuda_rows, needs_compiler
from .test_bars import own_seconds
from .test_cuda_rows import EDGES
from .test_kernels import check_conv
from .test_optim import check_update


class Machine:
    """CuPy's part in a launch, with two devices: it notes what is asked for."""

    def __init__(self) -> None:
        self.current, self.calls, self.loaded, self.waits, self.error = 0, [], [], 0, ""
        self.functions: list[Any] = []
        self.contexts: set[int] = set()
        self.capturing = False
        self.between: Any = None  # runs while a launch is under way
        machine = self

        class Device:
            compute_capability = "90"

            def __init__(self, number: int) -> None:
                self.id = number

            def __enter__(self) -> None:
                self.before, machine.current = machine.current, self.id

            def __exit__(self, *error: Any) -> None:
                machine.current = self.before

        class Function:
            max_dynamic_shared_size_bytes = 49152

            def __init__(self) -> None:
                machine.functions.append(self)
                self.ptr = len(machine.functions)

            @property
            def kernel(self) -> Function:
                return self

        def launch_kernel(function: int, *numbers: int) -> None:
            """Read what the driver would read: ``extra`` holds the block's address and that of its size."""
            blocks, _, _, threads, _, _, shared, stream, parameters, extra = numbers
            assert shared <= machine.functions[function - 1].max_dynamic_shared_size_bytes
            assert machine.current in machine.contexts
            words = (ctypes.c_uint64 * 5).from_address(extra)
            assert (words[0], words[2], words[4], parameters) == (1, 2, 0, 0)
            size = ctypes.c_uint64.from_address(words[3]).value
            block = ctypes.string_at(words[1], size)
            if machine.between is not None:
                machine.between()
                assert ctypes.string_at(words[1], size) == block, "another thread wrote into this block"
            machine.calls.append((machine.current, blocks, threads, block, shared, stream))

        class RawModule:
            def __init__(self, path: str) -> None:
                machine.loaded.append((machine.current, path))

            def get_function(self, name: str) -> Function:
                return Function()

        def synchronize() -> None:
            machine.waits += 1
            if machine.error:
                raise CudaError(machine.error)

        class CudaError(RuntimeError):
            pass

        def uploaded(values: list[int], dtype: str) -> Any:
            self.table = np.array(values, dtype)
            return SimpleNamespace(data=SimpleNamespace(ptr=self.table.ctypes.data))

        self.module = SimpleNamespace(
            RawModule=RawModule,
            array=uploaded,
            cuda=SimpleNamespace(
                Device=Device, get_device_id=lambda: machine.current,
                runtime=SimpleNamespace(CUDARuntimeError=CudaError, free=lambda p: machine.contexts.add(machine.current)),
                driver=SimpleNamespace(launchKernel=launch_kernel),
                get_current_stream=lambda: SimpleNamespace(
                    synchronize=synchronize, ptr=77, is_capturing=lambda: self.capturing
                ),
            ),
        )  # fmt: skip


def array(number: int) -> Any:
    """Stands for an array on a device."""
    flags = SimpleNamespace(c_contiguous=True)
    return SimpleNamespace(dtype="float32", flags=flags, data=SimpleNamespace(ptr=64 + number, device_id=number))


@pytest.fixture
def machine(monkeypatch, tmp_path):
    made = Machine()
    monkeypatch.setitem(sys.modules, "cupy", made.module)
    monkeypatch.setattr(launch, "_functions", {})
    monkeypatch.setattr(launch, "_frame", launch._Frame())
    monkeypatch.setattr(kernel, "_names", set())
    monkeypatch.setattr(kernel, "KERNELS", {})
    monkeypatch.setattr(compiler, "cubin", lambda k, target: tmp_path / f"{k.name}-{target}.cubin")
    monkeypatch.setattr(compiler, "entry_name", lambda path: "entry")
    return made


def a_kernel(kinds: tuple[Any, ...], shared: int = 0) -> kernel.CudaKernel:
    return kernel.CudaKernel("made-up", lambda: None, kinds, 64, shared)


def test_work_follows_the_arrays_device(machine):
    k = a_kernel(("float32", "int"), 200 * 1024)
    one, two = array(0), array(1)
    for given in (one, two, two, one):
        k(3, given, 7)
    assert [call[0] for call in machine.calls] == [0, 1, 1, 0]
    assert [number for number, _ in machine.loaded] == [0, 1]  # once for each device, while it is current
    assert machine.loaded[0][1].endswith("made-up-sm_90a.cubin")
    block = struct.pack("@Pi", two.data.ptr, 7)
    assert machine.calls[1][1:] == (3, 64, block, 200 * 1024, 77)
    assert machine.calls[0][3] == struct.pack("@Pi", one.data.ptr, 7)
    assert machine.current == 0
    assert machine.waits == 0


def test_arrays_on_two_devices_are_refused(machine):
    with pytest.raises(ValueError, match=r"made-up: arrays must live on one device, got devices \[0, 1\]"):
        a_kernel(("float32", "float32"))(1, array(0), array(1))


def test_arrays_in_a_table_say_where_to_work(machine):
    a_kernel(("table",))(1, (5, 0, array(1)))
    ((number, _, _, block, _, _),) = machine.calls
    assert number == 1
    assert block == struct.pack("P", machine.table.ctypes.data)
    np.testing.assert_array_equal(machine.table, [5, 0, 65])


def test_threads_do_not_share_a_block(machine):
    """A second thread launches while the first one's launch is under way (the driver lets go of the interpreter)."""
    k = a_kernel(("float32", "int"))
    machine.between = lambda: None
    k(1, array(0), 1)

    def second() -> None:
        machine.between = None
        with ThreadPoolExecutor(1) as pool:
            pool.submit(k, 2, array(0), 2).result()

    machine.between = second
    k(1, array(0), 3)
    assert [call[3][8:12] for call in machine.calls] == [struct.pack("i", n) for n in (1, 2, 3)]


def test_each_thread_launches_on_its_own_stream(machine):
    k = a_kernel(("float32", "int"))
    current = threading.local()
    default = machine.module.cuda.get_current_stream()
    machine.module.cuda.get_current_stream = lambda: getattr(current, "stream", default)

    def work(number: int) -> None:
        current.stream = SimpleNamespace(ptr=number)
        for _ in range(50):
            k(1, array(0), number)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (5, 6)))
    k(1, array(0), 77)
    assert Counter(call[5] for call in machine.calls) == {5: 50, 6: 50, 77: 1}
    assert all(call[3][8:] == struct.pack("i", call[5]) for call in machine.calls)


@pytest.mark.alone
def test_a_launch_costs_the_host_little(machine):
    """A convolution's, with four arrays and forty numbers, all but the driver's own part: 10 microseconds are for both."""
    from convkern.kernels.conv import cuda_direct
    from convkern.kernels.cuda.tiles import TILES, Grid, make_grid

    k = a_kernel(("float32",) * 4 + (cuda_direct.Geometry, Grid), 1024)
    geometry, grid = cuda_direct.geometry_of(EDGES[0], False), make_grid(TILES[0], 8, 100, 20)
    args = (*map(array, (0, 0, 0, 0)), geometry, grid)
    k(3, *args)
    assert len(machine.calls) == 1
    machine.module.cuda.driver.launchKernel = lambda *numbers: None
    assert own_seconds(lambda: k(3, *args)) < 8e-6


def test_numbers_too_large_for_a_kernel_are_refused(machine):
    with pytest.raises(OverflowError, match=r"made-up: .*2147483647"):
        a_kernel(("float32", "int"))(1, array(0), 2**31)
    assert machine.calls == []


def test_debugging_raises_at_the_call_that_failed(machine, monkeypatch):
    monkeypatch.setattr(launch, "DEBUG", True)
    k = a_kernel(("float32",))
    k(2, array(0))
    assert machine.waits == 1
    machine.capturing = True  # nothing runs, and a captured stream cannot be waited for
    k(2, array(0))
    assert machine.waits == 1
    machine.capturing = False
    machine.error = "an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="the kernel made-up failed in 2 blocks: an illegal memory access"):
        k(2, array(0))


# --- compilers of a toolkit


def test_a_toolkits_assembler_is_found_where_there_are_no_wheels(monkeypatch, tmp_path):
    monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    monkeypatch.setattr(compiler, "_WHEELS", ("numba-cuda",))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    program = tmp_path / "bin" / "ptxas"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    program.chmod(0o755)
    for function in (compiler.tool, compiler.versions):
        function.cache_clear()
    try:
        assert compiler.tool("ptxas") == program
        assert compiler.versions()["ptxas"] == "13.0.88"
    finally:
        for function in (compiler.tool, compiler.versions):
            function.cache_clear()


# --- the way to a GPU and back


@needs_compiler
@pytest.mark.parametrize("name", ["direct", "float16"])
def test_arrays_travel_to_the_device_and_back(name, monkeypatch):
    """A bias that is missing (an array is given twice), parts of a workspace, a table."""
    from convkern.kernels.update import cuda_chunks

    with fake_cupy.installed():
        monkeypatch.setattr(launch, "launcher", travelling(launch.launcher))
        for row in cuda_rows("conv"):
            assert row.name != name or check_conv(row, EDGES[1], "float32")
        check_update(cuda_chunks, "adam", "float32")


@pytest.mark.parametrize(("at", "message"), [(-1, "before the start"), (4, "past the end")])
def test_guards_catch_a_write_beside_an_array(at, message):
    def stray(made: Any, blocks: int, args: Any) -> None:
        whole = args[0].base.host.view("f4")
        whole[512 // 4 + at] = 0

    with fake_cupy.installed(), pytest.raises(AssertionError, match=f"made-up wrote {message} of an array"):
        travelling(stray)(SimpleNamespace(name="made-up"), 1, (np.zeros(4, "f4"),))  # type: ignore[arg-type]


def test_arrays_that_overlap_stay_so():
    whole = np.arange(8, dtype="f4")
    with fake_cupy.installed():
        travels = Travels([whole, whole[2:4], np.zeros(0, "f4")])
        travels.there(whole[2:4])[...] = sys.modules["cupy"].array(np.full(8, 0, "u1"))
        travels.back("made-up")
    np.testing.assert_array_equal(whole, [0, 1, 0, 0, 4, 5, 6, 7])
