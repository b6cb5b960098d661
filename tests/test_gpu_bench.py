"""What the stages of bench/gpu.sh compute and compare, as far as they go without a GPU."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from convkern.bench.cases import CONVS, GRADIENTS, LAYERS
from convkern.bench.gpu import clock, rows, stage
from convkern.plan import HALVES

from . import fake_cupy
from .gpu import interpreted, needs_compiler

ROOT = Path(__file__).parents[1]


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
    monkeypatch.setattr(contenders, "Arrays", None)  # a new process does nothing again
    rows.measure(case, ("float32", "float16"), 0, {}, report)
    assert len(report.data["entries"]) == 3
    for entry in report.data["entries"]:
        ours = {"float16 float16 nchw", "float16 float16 channels_last", "tiled float16 nchw"}
        assert set(entry["ratios"]) == ours


@needs_compiler
@pytest.mark.parametrize("name", ["pointwise", "groups-2", "depthwise-stride-2"])
def test_contenders_agree_with_pytorch(name, borrowed):
    """Every row in every precision and layout over the tensors that PyTorch gets, in the interpreter."""
    from convkern.bench.gpu import contenders

    (case,) = (case for case in CONVS if case.name == name)
    arrays, seen = contenders.Arrays(case, 2), set()
    one = arrays.get("float32", "nchw")[0]
    for direction in contenders.THEIRS:
        want = contenders.THEIRS[direction](one["x"], one["w"], one["gy"], case)
        for precision, bound in contenders.AGREEMENT.items():
            for contender in contenders.our_contenders(case, direction, precision, arrays):
                got = contender.result()
                assert contenders.disagreement(got, want) < bound
                assert contenders.disagreement(1.2 * got, want) > bound
                assert len(contender.calls) == 2
                seen.add((contender.name, precision, contender.layout, direction))
    names = {(row, precision) for row, precision, _, _ in seen}
    wanted = {("direct", "float32"), ("tensor", "tf32"), ("float16", "float16"), ("bfloat16", "bfloat16")}
    extra = {("pointwise blocked", "float32"), ("pointwise tensor", "tf32")}
    extra |= {("pointwise float16", "float16"), ("pointwise bfloat16", "bfloat16")}
    few = {
        "groups-2": set(product(("tiled",), ("float32", *HALVES))),
        "depthwise-stride-2": set(product(("depthwise", "tiled"), ("float32", *HALVES))),
    }
    assert names == wanted | (extra if name == "pointwise" else few[name])
    for name in ("float16", "tensor"):
        assert {layout for row, _, layout, _ in seen if row == name} == set(contenders.LAYOUTS)


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
    names = ("tensor", "warpgroup_tf32")
    rows = {(name, layout) for name in names for layout in contenders.LAYOUTS}
    rows |= {(f"pointwise {name}", "nchw") for name in names}
    assert seen == {(*row, direction) for row in rows for direction in GRADIENTS}


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


NOTEBOOK = ROOT / "notebooks" / "03_from_naive_to_tensor_cores.ipynb"


@needs_compiler
def test_the_notebook_shows_what_the_stages_wrote(tmp_path, capsys):
    from convkern.bench.gpu import ladder, rungs

    case = ladder.the_case()
    folder = tmp_path / "bench" / "results" / "gpu"
    folder.mkdir(parents=True)
    report = stage.Report("rows", folder / "rows.json", 60)
    seconds = {"torch tf32 nchw": 1e-4, "tensor tf32 nchw": 2e-4, "warpgroup_float16 float16 channels_last": 5e-5}
    for direction in GRADIENTS:
        entry = {"case": case.name, "direction": direction, "seconds": seconds, "apart": {}}
        report.add("entries", rows.judge(entry, case, {}))
    climbed = stage.Report("ladder", folder / "ladder.json", 60)
    for name, rung in rungs.RUNGS.items():
        climbed.add("entries", {"rung": name, "precision": rung.precision, "seconds": 1e-2 / (len(name))})
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    (cell,) = (cell for cell in notebook["cells"] if cell["id"] == "speed-time")
    known = {"json": json, "PEAK": {"float32": 66.9e12, "TF32": 494.7e12, "float16": 989.4e12}, "fmas": case.flops // 2}
    exec("".join(cell["source"]), known | {"checkout": tmp_path})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(rungs.RUNGS) + 3
    assert lines[1].startswith("naive float32 channels_last ")
    assert [line.split()[0] for line in lines[-3:]] == ["tensor", "torch", "warpgroup_float16"]
    assert "200 µs,  74.0 TFLOP/s, 15.0% of the peak" in lines[-3]
    exec("".join(cell["source"]), known | {"checkout": tmp_path / "nothing"})
    assert capsys.readouterr().out == "not yet measured on a GPU\n"


@needs_compiler
def test_the_notebook_shows_the_kernels_that_are_timed():
    """The sources in its committed outputs are those of the module."""
    from convkern.bench.gpu import rungs

    shown = []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            shown += ["".join(output["data"]["text/markdown"])] if "text/markdown" in output.get("data", {}) else []
    source = Path(rungs.__file__).read_text(encoding="utf-8")
    for text in shown:
        assert text.startswith("```python\n")
        for part in text[len("```python\n") : -len("```")].split("\n\n\n"):
            assert part.strip() in source
    bodies = [getattr(value, "py_func", value) for value in vars(rungs).values()]
    mine = [body.__name__ for body in bodies if getattr(body, "__module__", "") == rungs.__name__]
    kernels = {name for name in mine if name.islower()} - {"kernel"}
    assert {name for name in kernels if any(f"def {name}(" in text for text in shown)} == kernels


@needs_compiler
@pytest.mark.parametrize("name", ["naive", "tiled", "register tile", "wide loads", "tensor cores"])
def test_the_ladder_is_held_to_pytorch(name, borrowed, monkeypatch):
    from convkern.bench.gpu import ladder

    case = dataclasses.replace(ladder.the_case(), n=1, c=16, size=(5, 27))
    monkeypatch.setattr(ladder, "interleave", lambda calls: dict.fromkeys(calls, 2.0))
    arrays = ladder.contenders.Arrays(case, 2)
    found = ladder.measure(name, case, arrays, {"float32": case.flops / 4.0})
    assert (found["rung"], found["seconds"]) == (name, 2.0)
    assert found["matrix_share"] == (2.0 if found["precision"] == "float32" else None)
    arrays.get("float32", "channels_last")[0]["w"][0] *= 1.2
    with pytest.raises(ValueError, match="the result is off by"):
        ladder.measure(name, case, arrays, {})


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


@pytest.mark.parametrize("name", ["lenet5", "vgg16_cifar", "resnet18_cifar", "resnet50"])
def test_pytorchs_network_starts_from_our_weights(name, monkeypatch):
    torch = pytest.importorskip("torch")
    import convkern as ck
    from convkern.bench.gpu import steps

    monkeypatch.setattr(steps, "DEVICE", "cpu")
    (network,) = (network for network in steps.NETWORKS if network.name == name)
    theirs, state = steps.twin(network).state_dict(), ck.models.build(name).state_dict()
    assert theirs.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(torch.as_tensor(theirs[key]).numpy(), value, err_msg=key)


@pytest.mark.full
def test_the_resnet50_of_the_comparison_is_ours():
    """Its layers and their order, 25,557,032 parameters, and the loss and the gradients of a small batch."""
    torch = pytest.importorskip("torch")
    import convkern as ck
    from convkern.bench.rivals import networks

    model, theirs = ck.models.build("resnet50"), networks.resnet50()
    assert sum(p.numel() for p in theirs.parameters()) == 25_557_032
    theirs.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in model.state_dict().items()})
    model, theirs = model.to(np.float64), theirs.double()
    rng = np.random.default_rng(5)
    x, labels = rng.standard_normal((3, 3, 64, 64)), rng.integers(0, 1000, 3)
    mine = ck.nn.functional.cross_entropy(model(ck.tensor(x)), labels)
    other = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(labels))
    assert mine.item() == pytest.approx(other.item(), rel=1e-9)
    mine.backward()
    other.backward()
    for (name, p), q in zip(model.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.data, q.grad, rtol=0, atol=1e-8 * float(q.grad.abs().max()), err_msg=name)


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


@pytest.fixture
def tiny(monkeypatch):
    """A model of one layer, ours and PyTorch's, in place of the networks that are measured."""
    torch = pytest.importorskip("torch")
    import convkern as ck
    from convkern.bench.gpu import steps
    from convkern.bench.rivals import networks

    def build(name: str) -> ck.nn.Module:
        with ck.nn.init.seeded(1):
            return ck.nn.Sequential(ck.nn.Flatten(), ck.nn.Linear(4, 3))

    def theirs() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))

    monkeypatch.setattr(ck.models, "build", build)
    monkeypatch.setattr(networks, "tiny", theirs, raising=False)
    for name, value in {"LR": 0.1, "TURNS": 1, "TURN_SECONDS": 1e-3, "wait": lambda: None, "DEVICE": "cpu"}.items():
        monkeypatch.setattr(steps, name, value)
    return steps.Network("tiny", 2, (1, 2, 2), 3)


@needs_compiler
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_captured_step_is_the_eager_one(precision, tiny):
    """Of a model of one layer: the losses of four steps."""
    from convkern.bench.gpu import steps
    from convkern.blas import own_products

    x, labels = np.random.default_rng(1).standard_normal((2, 1, 2, 2), np.float32), np.array([0, 2])
    with fake_cupy.installed(), own_products():
        eager, captured = (steps.our_step(tiny, x, labels, precision, how) for how in (False, True))
        losses = [steps.first_losses(step) + steps.first_losses(step) for step in (eager, captured)]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4


@needs_compiler
def test_the_contest_of_steps(tiny, tmp_path, monkeypatch):
    """All take the same step; those that cannot be made are told."""
    from convkern.bench.gpu import steps
    from convkern.blas import own_products

    names = {"ours float32", "ours captured float32", "torch float32 nchw", "torch float32 channels_last"}
    report = stage.Report("steps", tmp_path / "steps.json", 60)
    with fake_cupy.installed(), own_products():
        entry = steps.judge(steps.contest(tiny, "float32", report, compiled=False))
        assert report.data["failures"] == []
        assert entry["seconds"].keys() == entry["losses"].keys() == names
        assert entry["ratios"].keys() == entry["captured_ratios"].keys() == {n for n in names if n.startswith("torch")}
        monkeypatch.setattr(steps, "MOMENTUM", -1.0)  # which is refused
        assert steps.contest(tiny, "float32", report, compiled=False)["seconds"] == {}
    assert [text.partition(":")[0] for text in report.data["failures"]] == [
        *(f"tiny {name}" for name in sorted(names, key=lambda name: (name[0], "last" in name, "captured" in name))), "tiny",
    ]  # fmt: skip
