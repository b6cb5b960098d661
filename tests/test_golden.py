"""What the assembler makes of the CUDA kernels, against the committed record."""

from __future__ import annotations

import pytest

from convkern.kernels.cuda import compiler

from . import golden
from .gpu import TARGETS, needs_compiler


@needs_compiler
@pytest.mark.parametrize("name", golden.read()["kernels"])
def test_the_golden_file_holds(name):
    held, compilers = golden.read(), compiler.versions()
    if held["compilers"] != compilers:
        pytest.skip(f"golden.json was made by {held['compilers']}, here are {compilers}")
    now = golden.of_targets(golden.all_kernels()[name])
    assert held["kernels"][name] == now, "if this is meant, run python -m tests.golden"


@needs_compiler
def test_the_golden_file_has_every_kernel():
    assert set(golden.read()["kernels"]) == set(golden.all_kernels())


@pytest.mark.parametrize("name", golden.read()["kernels"])
def test_no_kernel_spills_or_computes_in_float64(name):
    targets = golden.read()["kernels"][name]
    assert list(targets) == (["sm_90a"] if "warpgroup" in name else list(TARGETS))
    for facts in targets.values():
        for fact in ("spill_bytes", "stack_bytes", "local_instructions", "float64_instructions"):
            assert facts[fact] == 0, fact
        assert 0 < facts["occupancy"] <= 1


@pytest.mark.parametrize("tile", ["128x128", "128x32"])
def test_main_loops_of_halves_are_tensor_cores_and_wide_copies(tile):
    """A slice of 64 terms: products of 16 x 8 x 16, four matrices a load, 16 bytes a copy."""
    products, loads, copies = {"128x128": (64, 24, 8), "128x32": (32, 16, 10)}[tile]
    for name in (f"conv-float16-to-float16-{tile}", f"conv-bfloat16-weight_grad-{tile}"):
        for facts in golden.read()["kernels"][name].values():
            mix = facts["main_loop"]
            assert (mix["HMMA"], mix["LDSM"], mix["LDGSTS"]) == (products, loads, copies)
    facts = golden.read()["kernels"]["conv-warpgroup-float16-to-float16-128x128"]["sm_90a"]
    assert (facts["main_loop"]["HGMMA"], facts["main_loop"]["LDGSTS"]) == (4, 8)
    facts = golden.read()["kernels"]["conv-warpgroup-float16-weight_grad-128x128"]["sm_90a"]
    assert (facts["main_loop"]["HGMMA"], facts["main_loop"]["LDGSTS"]) == (4, 8)


@pytest.mark.parametrize(("columns", "copies", "most"), [(64, 6, 240), (128, 8, 260), (256, 12, 310)])
def test_main_loops_of_tf32_by_warpgroups_load_one_operand_at_most(columns, copies, most):
    """A slice of 32 terms: four products, 16 bytes a copy; the weight gradient's first operand is 16 words of a lane."""
    kernels = golden.read()["kernels"]
    forward, weight_grad = (
        kernels[f"conv-warpgroup-tf32-{name}-128x{columns}"]["sm_90a"] for name in ("to-float32", "weight_grad")
    )
    for facts in (forward, weight_grad):
        mix = facts["main_loop"]
        assert (mix["HGMMA"], mix["LDGSTS"]) == (4, copies)
        assert sum(mix.values()) < most
    assert weight_grad["main_loop"]["LDS"] == forward["main_loop"]["LDS"] + 16


@pytest.mark.parametrize(("name", "loads", "words", "most"), [("to-float32", 24, 3, 320), ("weight_grad", 8, 67, 350)])
def test_main_loops_of_tf32_by_warps_are_tensor_cores_and_wide_copies(name, loads, words, most):
    """A slice of 32 terms: four matrices a load, but of the weight gradient's first operand a word for each lane."""
    for facts in golden.read()["kernels"][f"conv-tf32-{name}-128x128"].values():
        mix = facts["main_loop"]
        assert (mix["HMMA"], mix["LDSM"], mix["LDS"], mix["LDGSTS"]) == (64, loads, words, 8)
        assert sum(mix.values()) < most


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_main_loops_of_single_elements_waste_little_on_addresses(direction):
    """Of two terms in float32 almost all instructions multiply."""
    for facts in golden.read()["kernels"][f"conv-direct-{direction}-128x128"].values():
        mix = facts["main_loop"]
        assert (mix["FFMA"], mix["LDS"]) == (128, 8)
        assert sum(mix.values()) < 150


def test_occupancy_follows_what_runs_out_first():
    assert golden.occupancy(32, 0, 1024, "sm_80") == 1
    assert golden.occupancy(128, 0, 256, "sm_80") == 0.25
    assert golden.occupancy(33, 0, 64, "sm_80") == 0.75  # 40 registers are allotted
    assert golden.occupancy(16, 163 * 1024, 128, "sm_80") == 4 / 64
    assert golden.occupancy(16, 100 * 1024, 128, "sm_90a") == 8 / 64


@needs_compiler
def test_a_spill_would_show(monkeypatch, tmp_path):
    """The same kernel with too few registers."""
    kernel = golden.all_kernels()["conv-direct-forward-128x128"]
    monkeypatch.setenv("CONVKERN_CACHE_DIR", str(tmp_path))
    run = compiler.subprocess.run
    monkeypatch.setattr(
        compiler.subprocess,
        "run",
        lambda command, **options: run([command[0], "-maxrregcount=32", *command[1:]], **options),
    )
    source = compiler.ptx(kernel, "sm_80")
    source.write_text(source.read_text().replace(".maxntid", "//"))
    cubin = compiler.cubin(kernel, "sm_80")
    monkeypatch.undo()
    monkeypatch.setattr(compiler, "cubin", lambda kernel, target: cubin)
    facts = golden.facts(kernel, "sm_80")
    assert facts["registers"] <= 32
    assert facts["spill_bytes"] > 0
    assert facts["stack_bytes"] > 0
    assert facts["local_instructions"] > 0
