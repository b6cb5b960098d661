"""Compiling, keeping and packing CUDA kernels, without a GPU."""

from __future__ import annotations

import itertools
import re
from collections import namedtuple

import numpy as np
import pytest

from convkern.kernels.cuda import compiler, kernel, launch
from convkern.kernels.cuda.tiles import STEP, TILES, Product, choose_tile, make_grid, product_parts

from . import golden
from .gpu import TARGETS, compiled, needs_compiler

Sizes = namedtuple("Sizes", "n c")


@pytest.fixture
def a_kernel(monkeypatch):
    monkeypatch.setattr(kernel, "_names", set())
    monkeypatch.setattr(kernel, "KERNELS", {})

    def body(x, y, sizes, size):
        y[0] = x[0]

    def make(name="made-up", threads=64, body=body):
        return kernel.CudaKernel(name, body, ("float32", "int64", Sizes, "int"), threads)

    return make


def test_arguments_are_packed_as_the_kernel_declares_them(a_kernel):
    k = a_kernel()
    x, y = np.zeros(3, "float32"), np.zeros(3, "int64")
    packed = launch.pack(k, (x, y, Sizes(1, -2), 2**31 - 1))
    assert packed[0] is x
    assert packed[1] is y
    assert packed[2:] == (1, -2, 2**31 - 1)


def test_the_parameter_block_is_laid_out_as_c_would(a_kernel):
    """Every parameter where its own size aligns it; the size before them is that of the parameters alone."""
    kinds = ("float32", "int", "int64", Sizes, "float", "table")
    k = kernel.CudaKernel("laid-out", lambda: None, kinds, 32)
    room = bytearray(k.layout.size)
    launch.write(k, [2**40 + 1, 2, 2**40 + 3, -4, 5, 0.1, 2**40 + 6], room)
    fields = {"u8": [(0, 48), (8, 2**40 + 1), (24, 2**40 + 3), (48, 2**40 + 6)], "i4": [(16, 2), (32, -4), (36, 5)]}
    for kind, values in fields.items():
        assert [np.frombuffer(room, kind, 1, at)[0] for at, _ in values] == [value for _, value in values]
    assert np.frombuffer(room, "f4", 1, 40)[0] == np.float32(0.1)
    assert (k.pointers, k.tables) == ([0, 2, 6], [6])


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1, 2.5])
def test_numbers_that_do_not_fit_are_refused(a_kernel, number):
    k = a_kernel()
    with pytest.raises(OverflowError, match=r"made-up: .*(integer|2147483647)"):
        launch.write(k, [0, 0, 1, 2, number], bytearray(k.layout.size))


def test_a_block_that_drivers_do_not_take_is_refused(a_kernel):
    wide = namedtuple("wide", [f"n{i}" for i in range(1025)])
    with pytest.raises(ValueError, match="wide: parameters take 4100 bytes, at most 4096 go"):
        kernel.CudaKernel("wide", lambda: None, (wide,), 32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({0: np.zeros(3)}, TypeError, "made-up: argument 0 must be a contiguous float32 array, got float64"),
        ({0: np.zeros((4, 4), "float32").T[:2]}, TypeError, "argument 0 .* got float32, not contiguous"),
        ({1: np.zeros(3, "int32")}, TypeError, "argument 1 must be a contiguous int64 array, got int32"),
        ({2: (1, 2)}, TypeError, "argument 2 must be a Sizes, got tuple"),
    ],
)
def test_wrong_arguments_are_named(a_kernel, change, error, message):
    args = [np.zeros(3, "float32"), np.zeros(3, "int64"), Sizes(1, 2), 3]
    for number, value in change.items():
        args[number] = value
    with pytest.raises(error, match=message):
        launch.pack(a_kernel(), tuple(args))


def test_too_few_arguments(a_kernel):
    with pytest.raises(TypeError, match="made-up takes 4 arguments, got 1"):
        launch.pack(a_kernel(), (3,))


def test_kernels_are_checked_when_they_are_made(a_kernel):
    a_kernel()
    with pytest.raises(ValueError, match="there is a CUDA kernel made-up already"):
        a_kernel()
    for threads in (0, 33, 2048):
        with pytest.raises(ValueError, match=f"whole warps, 32 to 1024 threads; got {threads}"):
            a_kernel(f"threads-{threads}", threads)


def test_no_blocks_are_no_launch(a_kernel, monkeypatch):
    launched = []
    monkeypatch.setattr(launch, "launcher", lambda *args: launched.append(args))
    k = a_kernel()
    args = np.zeros(3, "float32"), np.zeros(3, "int64"), Sizes(1, 2), 3
    k(0, *args)
    assert launched == []
    k(2, *args)
    assert launched[0][:2] == (k, 2)


def test_targets():
    assert compiler.target("80") == "sm_80"
    assert compiler.target("90") == "sm_90a"
    assert compiler.target("120") == "sm_120"
    assert compiler._capability("sm_90a") == (9, 0, "a")
    assert compiler._capability("sm_120") == (12, 0)
    with pytest.raises(ValueError, match="an architecture is named like sm_80 or sm_90a, got 'x86'"):
        compiler._capability("x86")


def test_a_missing_compiler_is_one_sentence(a_kernel, monkeypatch, tmp_path):
    monkeypatch.setenv("CONVKERN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "versions", dict)
    compiler.missing.cache_clear()
    try:
        with pytest.raises(
            ModuleNotFoundError, match=r"CUDA kernels cannot be compiled: numba-cuda is not installed \(pip install "
        ):
            compiler.ptx(a_kernel(), "sm_80")
        monkeypatch.setattr(compiler, "versions", lambda: {"numba-cuda": "1"})
        monkeypatch.setattr(compiler, "tool", lambda name: None)
        compiler.missing.cache_clear()
        assert compiler.missing().startswith("the assembler ptxas is not installed (pip install ")
    finally:
        compiler.missing.cache_clear()


@needs_compiler
def test_cubins_are_kept_by_kernel_target_and_versions(monkeypatch, tmp_path):
    from convkern.kernels.elementwise import cuda_chunks

    monkeypatch.setenv("CONVKERN_CACHE_DIR", str(tmp_path))
    first = compiler.cubin(cuda_chunks._ADD, "sm_80")
    assert first.read_bytes()[:4] == b"\x7fELF"
    assert {path.suffix for path in first.parent.iterdir()} == {".ptx", ".cubin", ".txt"}
    assert ".target sm_80" in first.with_suffix(".ptx").read_text()
    assert all(version in first.name for version in compiler.versions().values())

    def fail(*args, **options):
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiler, "assemble", fail)
    assert compiler.cubin(cuda_chunks._ADD, "sm_80") == first
    with pytest.raises(AssertionError, match="compiled again"):
        compiler.cubin(cuda_chunks._ADD, "sm_90a")
    monkeypatch.setattr(compiler, "versions", lambda: {"numba-cuda": "another"})
    with pytest.raises(AssertionError, match="compiled again"):
        compiler.cubin(cuda_chunks._ADD, "sm_80")


@needs_compiler
def test_the_assemblers_refusal_is_told(tmp_path):
    bad = tmp_path / "bad.ptx"
    bad.write_text(".version 8.0\n.target sm_80\n.address_size 64\nnonsense\n")
    with pytest.raises(RuntimeError, match=r"ptxas refuses .*bad\.ptx: "):
        compiler.assemble(bad, "sm_80", tmp_path / "bad.cubin")
    with pytest.raises(ValueError, match="has no kernel"):
        compiler.entry_name(bad)


@needs_compiler
def test_the_divider_divides():
    from convkern.kernels.cuda.language import divider

    rng = np.random.default_rng(8)
    for divisor in [*range(1, 70), 127, 128, 129, 2**16 - 1, 2**16 + 1, 2**30, 2**30 + 1, 2**31 - 1]:
        multiplier, shift = divider(divisor)
        assert -(2**31) <= multiplier < 2**31
        edges = [k * divisor + d for k in (0, 1, 2, (2**31 - 1) // divisor) for d in (-1, 0, 1)]
        values = [v for v in (*edges, 2**31 - 1, *map(int, rng.integers(0, 2**31, 50))) if 0 <= v < 2**31]
        assert [(v * (multiplier % 2**32)) >> shift for v in values] == [v // divisor for v in values]


def test_grids_cover_the_work_by_shape_alone():
    shapes = (1, 1, 0, 1), (129, 257, 5000, 1), (3, 9, 100000, 4), (2000, 2000, 9000, 1)
    for direction, (rows, columns, terms, groups) in itertools.product(("forward", "weight_grad"), shapes):
        tile = TILES[choose_tile(rows)]
        parts = product_parts(direction, Product(rows, columns, terms, groups))
        grid = make_grid(tile, rows, columns, terms, groups, parts)
        assert grid.tall * tile.rows >= rows > (grid.tall - 1) * tile.rows
        assert grid.wide * tile.columns >= columns > (grid.wide - 1) * tile.columns
        assert grid.chunk % STEP == 0
        assert 1 <= grid.parts <= parts
        assert grid.parts * grid.chunk >= terms
        assert grid.blocks == grid.tall * grid.wide * groups * grid.parts
    assert [TILES[choose_tile(rows)].rows for rows in (1, 8, 9, 33, 64, 96, 128, 129, 250)] == [
        8,
        8,
        32,
        32,
        32,
        128,
        128,
        32,
        128,
    ]


def test_sums_are_cut_where_blocks_are_few():
    """Two blocks for each multiprocessor of an H100, four of the smaller tiles; pixels in parts of 512 terms at least."""
    tile = TILES[choose_tile(128)]
    for blocks, parts in ((1, 9), (88, 3), (89, 2), (132, 2), (133, 1), (1000, 1)):
        assert product_parts("forward", Product(128, tile.columns * blocks, 9 * 512)) == parts
    assert product_parts("forward", Product(128, 128, 1023)) == 1
    assert product_parts("weight_grad", Product(128, 128, 1023)) == 3
    assert product_parts("forward", Product(32, 128 * 88, 1 << 16)) == 6
    assert product_parts("input_grad", Product(64, 128 * 11, 1 << 16, groups=2)) == 12


@needs_compiler
@pytest.mark.parametrize("name", ["conv-direct-forward-8x256", "conv-float16-to-float32-128x32"])
def test_one_front_end_gives_each_target_its_own_ptx(name, monkeypatch, tmp_path):
    """What the tests run is what a kernel becomes when it is compiled for one target alone, but for Numba's names."""
    kernel, texts = golden.all_kernels()[name], []
    for folder, compile_for in (("alone", compiler.ptx), ("together", compiled)):
        monkeypatch.setenv("CONVKERN_CACHE_DIR", str(tmp_path / folder))
        paths = [compile_for(kernel, target) for target in TARGETS]
        texts.append([re.sub(r"_ZN[\w$]+?(?=_param_\d+\b|[^\w$])|smem_\d+", "", path.read_text()) for path in paths])
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]
