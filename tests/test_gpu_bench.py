"""The stages of bench/gpu.sh as far as they go without a GPU."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from convkern.bench import cases
from convkern.bench.cases import CONVS, GRADIENTS, LAYERS
from convkern.bench.gpu import clock, rows, stage
from convkern.device import gpu

from . import fake_cupy
from .gpu import interpreted, needs_compiler

ROOT = Path(__file__).parents[1]
needs_timeout = pytest.mark.skipif(not shutil.which("timeout"), reason="bench/gpu.sh needs the program timeout")


def primitives():
    from convkern.bench.gpu import primitives

    return primitives


@needs_compiler
@pytest.mark.parametrize(("needed", "target"), [(70, "sm_80"), (80, "sm_80"), (80, "sm_90a"), (90, "sm_90a")])
def test_primitives_are_right_in_the_interpreter(needed, target):
    module = primitives()
    place = module.Place(np.copy, np.asarray)
    with interpreted(target):
        for check in module.CHECKS[needed].values():
            check(place, np.random.default_rng(7))


@needs_compiler
def test_primitives_are_no_kernels_of_the_library():
    from convkern.kernels.cuda.kernel import KERNELS

    primitives().kernel("copy")
    assert not [name for name in KERNELS if name.startswith("primitive")]


@needs_compiler
@pytest.mark.parametrize(
    ("needed", "name"), [(80, "ldmatrix"), (80, "mma.sync TF32"), (90, "wgmma float16"), (90, "wgmma TF32")]
)
def test_a_wrong_primitive_is_told_with_its_place(needed, name):
    module = primitives()

    def off_by_one(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[-1] += 1
        return array

    with interpreted("sm_90a"), pytest.raises(AssertionError, match=r"1 of \d+ values are wrong, the first at \("):
        module.CHECKS[needed][name](module.Place(np.copy, off_by_one), np.random.default_rng(7))


@needs_timeout
def test_the_script_says_in_a_sentence_that_there_is_no_gpu(tmp_path):
    if not gpu()[1]:
        pytest.skip("there is a GPU")
    env = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100)
    assert done.returncode == 2
    assert done.stderr == f"bench/gpu.sh: no GPU to measure on: {gpu()[1]}\n"
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["status"], facts["device"]) == ("failed", None)
    assert facts["packages"]["numpy"] == np.__version__


@needs_timeout
def test_the_script_goes_on_after_a_stage_that_fails_or_takes_too_long(tmp_path):
    """A stand-in for Python: facts are well, build fails, tests never ends, rows is well."""
    stages = 'case "$2" in *.build) echo boom; exit 3 ;; *.tests) sleep 60 ;; esac; echo "$2" >>"$3/ran"'
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{stages}\n")
    python.chmod(0o755)
    env = {**os.environ, "PYTHON": str(python), "STAGES": "build tests rows", "TOTAL": "9"}
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("build: failed, see ")
    assert lines[1] == "    boom"
    assert lines[2].startswith("tests: cut off after ")
    assert lines[3] == "rows: left out, no time is left"
    env["STAGES"] = "build rows"
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100)
    assert (done.returncode, done.stdout.splitlines()[2]) == (1, "rows: done")
    ran = (tmp_path / "results" / "ran").read_text().split()
    assert ran == [f"convkern.bench.gpu.{stage}" for stage in ("facts", "facts", "rows")]


def test_a_report_keeps_what_was_found_before_a_failure(tmp_path, monkeypatch):
    from convkern.bench.gpu import stage

    def work(report: stage.Report) -> None:
        report.found(first=1)
        report.add("many", 2)
        assert json.loads((tmp_path / "made-up.json").read_text())["status"] == "running"
        report.attempt("a part", lambda: 1 // 0)
        report.found(last=3)
        raise RuntimeError("the end")

    monkeypatch.setattr(sys, "argv", ["stage", str(tmp_path), "10"])
    with pytest.raises(SystemExit) as ended:
        stage.run("made-up", work)
    assert ended.value.code == 1
    data = json.loads((tmp_path / "made-up.json").read_text())
    assert (data["status"], data["first"], data["many"], data["last"]) == ("failed", 1, [2], 3)
    assert [text.split(":")[0] for text in data["failures"]] == ["a part", "made-up"]


@pytest.fixture
def borrowed(monkeypatch, request):
    """The stand-in for CuPy over PyTorch's memory on the CPU; of the target that a test asks for."""
    pytest.importorskip("torch")
    from convkern.bench.gpu import contenders

    monkeypatch.setattr(contenders, "DEVICE", "cpu")
    for method in ("__dlpack__", "__dlpack_device__"):
        passed_on = lambda self, method=method, **options: getattr(self.host, method)(**options)  # noqa: E731
        monkeypatch.setattr(fake_cupy.ndarray, method, passed_on, raising=False)
    with fake_cupy.installed(getattr(request, "param", "sm_80")) as cupy:
        cupy.from_dlpack = lambda tensor: fake_cupy.ndarray(tensor.numpy())
        yield cupy


@needs_compiler
def test_operations_that_move_bytes_are_pytorchs(borrowed, monkeypatch):
    from convkern.bench.gpu import memory

    monkeypatch.setattr(memory, "SHAPE", (3, 5, 6, 8))
    monkeypatch.setattr(memory, "interleave", lambda calls: dict.fromkeys(calls, 2.0))
    names = []
    for job in memory.jobs():
        assert memory.measure(job, job.nbytes / 4)["copy_shares"] == {"ours": 2.0, "torch": 2.0}
        with pytest.raises(ValueError, match="the result is off by"):
            memory.measure(job._replace(theirs=lambda job=job: 1.1 * job.theirs()), None)
        names.append(job.name)
    assert len(names) == len(set(names)) == 14


@needs_compiler
def test_a_row_that_disagrees_is_a_failure_and_has_no_time(borrowed, monkeypatch, tmp_path):
    from convkern.bench.gpu import contenders, rows, stage

    honest = contenders.theirs
    monkeypatch.setattr(
        contenders, "theirs", lambda array, dtype: (1.2 if dtype == "float32" else 1) * honest(array, dtype)
    )
    monkeypatch.setattr(rows, "interleave", lambda timed: dict.fromkeys(timed, 1.0))
    (case,) = (case for case in CONVS if case.name == "groups-2")
    report = stage.Report("rows", tmp_path / "rows.json", 60)
    rows.measure(case, ("float32", "float16"), 0, {}, report)
    assert [text.split(" is off")[0] for text in report.data["failures"]] == [
        f"groups-2 {direction} {row} float32 nchw" for direction in GRADIENTS for row in ("tiled", "direct")
    ]
    for entry in report.data["entries"]:
        assert set(entry["ratios"]) == {"float16 float16 nchw", "float16 float16 channels_last"}


@needs_compiler
@pytest.mark.parametrize("name", ["pointwise", "groups-2", "depthwise-stride-2"])
def test_contenders_agree_with_pytorch(name, borrowed):
    """Every row in every precision and layout over the tensors that PyTorch gets, in the interpreter."""
    from convkern.bench.gpu import contenders

    (case,) = (case for case in CONVS if case.name == name)
    arrays, seen = contenders.Arrays(case, 2), set()
    one = arrays.get("float32", "nchw")[0]
    for direction in GRADIENTS:
        want = getattr(contenders.pytorch, direction)(one["x"], one["w"], one["gy"], case)
        for precision, bound in contenders.AGREEMENT.items():
            for contender in contenders.our_contenders(case, direction, precision, arrays):
                got = contender.result()
                assert contenders.disagreement(got, want) < bound
                assert contenders.disagreement(1.2 * got, want) > bound
                assert len(contender.calls) == 2
                seen.add((contender.name, precision, contender.layout, direction))
    names = {(row, precision) for row, precision, _, _ in seen}
    wanted = {("direct", "float32"), ("tensor", "tf32"), ("float16", "float16"), ("bfloat16", "bfloat16")}
    extra = {("pointwise blocked", "float32"), ("pointwise float16", "float16"), ("pointwise bfloat16", "bfloat16")}
    few = {"groups-2": {("tiled", "float32")}, "depthwise-stride-2": {("depthwise", "float32"), ("tiled", "float32")}}
    assert names == wanted | (extra if name == "pointwise" else few[name])
    assert {layout for row, _, layout, _ in seen if row == "float16"} == set(contenders.LAYOUTS)


@needs_compiler
@pytest.mark.parametrize("borrowed", ["sm_90a"], indirect=True)
def test_tf32_by_warpgroups_is_a_contender_in_both_layouts(borrowed):
    import dataclasses

    from convkern.bench.gpu import contenders

    (case,) = (case for case in CONVS if case.name == "pointwise")
    case = dataclasses.replace(case, c=36, k=40)
    arrays, seen = contenders.Arrays(case, 2), set()
    one = arrays.get("float32", "nchw")[0]
    for direction in GRADIENTS:
        want = getattr(contenders.pytorch, direction)(one["x"], one["w"], one["gy"], case)
        for contender in contenders.our_contenders(case, direction, "tf32", arrays):
            got = contender.result()
            assert contenders.disagreement(got, want) < contenders.AGREEMENT["tf32"]
            assert contenders.disagreement(1.2 * got, want) > contenders.AGREEMENT["tf32"]
            seen.add((contender.name, contender.layout, direction))
    rows = ("tensor", "nchw"), ("warpgroup_tf32", "nchw"), ("warpgroup_tf32", "channels_last")
    wanted = {(*row, direction) for row in (*rows, ("pointwise warpgroup_tf32", "nchw")) for direction in GRADIENTS}
    assert seen == wanted


def test_copies_of_every_layer_flow_past_the_cache():
    """At the smallest inputs too, those of halves, on a device with 60 MB of second-level cache."""
    cache = 60 << 20
    for layer in LAYERS:
        spec = dataclasses.replace(layer, n=rows.BATCH).spec()
        nbytes = 2 * (math.prod(spec.x_shape) + math.prod(spec.y_shape))
        count = clock.copies_for(nbytes, cache)
        assert count >= 2
        assert count * nbytes >= 2 * cache
        assert count * nbytes <= max(2 * cache + nbytes, 2 * nbytes)


def test_the_notebook_shows_what_the_stage_wrote(tmp_path, capsys):
    (layer,) = cases.select(["resnet18-28"])
    case = dataclasses.replace(layer, n=rows.BATCH)
    (tmp_path / "bench" / "results" / "gpu").mkdir(parents=True)
    report = stage.Report("rows", tmp_path / "bench" / "results" / "gpu" / "rows.json", 60)
    seconds = {"torch tf32 nchw": 1e-4, "tensor tf32 nchw": 2e-4, "warpgroup_float16 float16 channels_last": 5e-5}
    for direction in GRADIENTS:
        entry = {"case": case.name, "direction": direction, "seconds": seconds, "apart": {}}
        report.add("entries", rows.judge(entry, case, {}))
    notebook = json.loads((ROOT / "notebooks" / "03_from_naive_to_tensor_cores.ipynb").read_text(encoding="utf-8"))
    (cell,) = (cell for cell in notebook["cells"] if cell["id"] == "speed-time")
    known = {"json": json, "PEAK": {"float32": 66.9e12, "TF32": 494.7e12, "float16": 989.4e12}, "fmas": case.flops // 2}
    exec("".join(cell["source"]), known | {"checkout": tmp_path})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["warpgroup_float16", "torch", "tensor"]
    assert "200 µs,    74 TFLOP/s" in lines[-1]
    exec("".join(cell["source"]), known | {"checkout": tmp_path / "nothing"})
    assert capsys.readouterr().out == "not yet measured on a GPU\n"


def test_times_are_judged_beside_the_same_layout_and_the_better_one():
    from convkern.bench.gpu import rows

    (case,) = (case for case in CONVS if case.name == "plain")
    seconds = {
        "torch float16 nchw": 4e-3, "torch float16 channels_last": 1e-3, "float16 float16 nchw": 2e-3,
        "pointwise float16 float16 nchw": 1e-3,
    }  # fmt: skip
    ceilings = {"matrix_peak": {"float16": 2.0 * case.flops}, "bandwidth": {"copy": 1e9}}
    entry = rows.judge({"case": "plain", "direction": "forward", "seconds": seconds, "apart": {}}, case, ceilings)
    assert entry["ratios"]["float16 float16 nchw"] == {"torch": 2.0, "better": 0.5}
    assert entry["shares"]["float16 float16 nchw"]["matrix"] == pytest.approx(250)
    assert rows.means([entry]) == {"forward float16": 1.0}
    bare = rows.judge({"case": "plain", "direction": "forward", "seconds": seconds, "apart": {}}, case, {})
    assert bare["shares"]["torch float16 nchw"] == {"matrix": None, "copy": None}


@pytest.mark.parametrize("name", ["lenet5", "vgg16_cifar", "resnet18_cifar"])
def test_pytorchs_network_starts_from_our_weights(name, monkeypatch):
    torch = pytest.importorskip("torch")
    import convkern as ck
    from convkern.bench.gpu import steps

    monkeypatch.setattr(steps, "DEVICE", "cpu")
    (network,) = (network for network in steps.NETWORKS if network.name == name)
    theirs, state = steps.twin(network).state_dict(), ck.models.build(name).state_dict()
    for key, value in state.items():
        np.testing.assert_array_equal(torch.as_tensor(theirs[key]).numpy(), value, err_msg=key)


def test_steps_that_differ_are_told():
    from convkern.bench.gpu import steps

    assert steps.agreeing({"ours float32": [2.3, 2.2], "torch float16 nchw": [2.31, 2.19]}) == ""
    wrong = steps.agreeing({"ours float32": [2.3, 2.2], "torch float32 nchw": [2.3, 2.25]})
    assert wrong == "torch float32 nchw has losses [2.3, 2.25], ours float32 [2.3, 2.2]"
    entry = steps.judge({"seconds": {"ours float32": 2.0, "torch float32 nchw": 1.0, "torch float16 nchw": 1.0}})
    assert entry["ratios"] == {"torch float32 nchw": 0.5}
    assert entry["captured_ratios"] == {}
    seconds = {"ours float32": 2.0, "ours captured float32": 0.5, "torch float32 nchw": 1.0}
    assert steps.judge({"seconds": seconds})["captured_ratios"] == {"torch float32 nchw": 2.0}


@needs_compiler
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_captured_step_is_the_eager_one(precision, monkeypatch):
    """Of a model of one layer: the losses of four steps."""
    import convkern as ck
    from convkern.bench.gpu import steps
    from convkern.blas import own_products

    def build(name: str) -> ck.nn.Module:
        with ck.nn.init.seeded(1):
            return ck.nn.Sequential(ck.nn.Flatten(), ck.nn.Linear(4, 3))

    monkeypatch.setattr(ck.models, "build", build)
    monkeypatch.setattr(steps, "LR", 0.1)
    monkeypatch.setattr(steps, "wait", lambda: None)
    network = steps.Network("tiny", 2, (1, 2, 2), 3)
    x, labels = np.random.default_rng(1).standard_normal((2, 1, 2, 2), np.float32), np.array([0, 2])
    with fake_cupy.installed(), own_products():
        eager, captured = (steps.our_step(network, x, labels, precision, how) for how in (False, True))
        losses = [steps.first_losses(step) + steps.first_losses(step) for step in (eager, captured)]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4


def test_the_sanitizers_count_is_read(monkeypatch):
    from convkern.bench.gpu import sanitizer

    def printing(text: str, code: int = 0) -> None:
        done = SimpleNamespace(stdout=text, returncode=code)
        monkeypatch.setattr(sanitizer.subprocess, "run", lambda *args, **options: done)

    printing("3 passed in 2 s\n========= ERROR SUMMARY: 0 errors\n")
    assert sanitizer.check("tool", "memcheck", "", 1)[0] == 0
    printing("3 passed in 2 s\n========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n")
    assert sanitizer.check("tool", "racecheck", "", 1)[0] == 2
    printing("59 skipped in 2 s\n========= ERROR SUMMARY: 0 errors\n")
    assert sanitizer.check("tool", "memcheck", "", 1)[0] == -1
    printing("1 failed, 2 passed in 2 s\n========= ERROR SUMMARY: 0 errors\n", 1)
    assert sanitizer.check("tool", "memcheck", "", 1)[0] == -1
