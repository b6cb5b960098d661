"""The package as it is installed and imported."""

import ast
import inspect
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

import convkern as ck
from convkern import models, nn, ops, optim, plan

PACKAGE = Path(ck.__file__).parent


def fresh(code):
    """Run code in a new interpreter and give what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- importing


def test_import_is_light():
    heavy = "numba", "llvmlite", "cupy", "torch", "matplotlib", "typer", "rich", "PIL", "safetensors", "scipy"
    loaded = fresh("import convkern, sys; print(*sys.modules)").split()
    assert "convkern.ops.conv" in loaded
    assert "numpy" in loaded
    assert [m for m in loaded if m.split(".")[0] in heavy] == []
    assert [m for m in loaded if m.split(".")[0] == "kernels"] == []


def test_the_kernels_are_no_top_level_package():
    code = """
import convkern, numpy, sys
convkern.conv2d(numpy.ones((1, 1, 3, 3)), numpy.ones((1, 1, 3, 3)))
print(*sys.modules)
"""
    loaded = fresh(code).split()
    assert "convkern.kernels.conv.cpu_direct" in loaded
    assert "numba" in loaded
    assert "numba.cuda" not in loaded
    assert [m for m in loaded if m.split(".")[0] in ("kernels", "cupy", "torch")] == []


@pytest.mark.alone
def test_import_is_fast():
    """Under 0.3 s beyond Python's start; the best of several, for a machine that is busy."""

    def seconds(code):
        start = time.perf_counter()
        fresh(code)
        return time.perf_counter() - start

    fresh("import convkern")  # writes the .pyc files
    assert min(seconds("import convkern") - seconds("pass") for _ in range(5)) < 0.3


def test_submodules_load_when_they_are_named():
    code = """
import convkern, sys
assert "convkern.nn" not in sys.modules
convkern.nn.Linear
assert "convkern.nn" in sys.modules
for name in ("nothing", "kernel"):
    try:
        getattr(convkern, name)
    except AttributeError as error:
        print(error)
"""
    assert fresh(code).splitlines() == [
        f"module 'convkern' has no attribute {name!r}" for name in ("nothing", "kernel")
    ]


# --- what the package contains


def test_typed_marker_and_version():
    assert (PACKAGE / "py.typed").is_file()
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(dev|a|b|rc)\d+)?", ck.__version__)
    try:
        assert metadata.version("convkern") == ck.__version__
    except metadata.PackageNotFoundError:
        pytest.skip("not installed: run from a checkout")


def test_public_names():
    promised = {
        "conv2d", "conv2d_input_grad", "conv2d_weight_grad", "pointwise", "max_pool2d", "avg_pool2d", "Tensor", "tensor",
        "no_grad", "Function", "gradcheck", "explain", "set_num_threads",
        "set_flush_denormals", "nn", "optim", "models", "data", "train",
    }  # fmt: skip
    assert promised <= set(ck.__all__)
    assert list(ck.__all__) == sorted(ck.__all__)
    for name in ck.__all__:
        assert getattr(ck, name) is not None
    for module in (nn, nn.functional, optim, models, ops):
        assert all(hasattr(module, name) for name in module.__all__)


def test_signatures_are_the_promised_ones():
    expected = {
        "conv2d": "x, w, bias=None, stride=1, padding=0, dilation=1, groups=1, *, activation=None",
        "conv2d_input_grad": "gy, w, input_shape, stride=1, padding=0, dilation=1, groups=1, *",
        "conv2d_weight_grad": "x, gy, kernel_size, stride=1, padding=0, dilation=1, groups=1, *",
        "pointwise": "x, w, bias=None, *, activation=None",
        "max_pool2d": "x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False, *",
        "avg_pool2d": "x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,"
        " divisor_override=None, *",
        "lp_pool2d": "x, norm_type, kernel_size, stride=None, ceil_mode=False, *",
        "adaptive_avg_pool2d": "x, output_size, *",
        "adaptive_max_pool2d": "x, output_size, return_indices=False, *",
        "conv_transpose2d": "x, w, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *,"
        " activation=None",
    }
    for name in list(expected):  # of one and three axes likewise
        if "2d" in name:
            for axes in "13":
                expected[name.replace("2d", f"{axes}d")] = expected[name]
    expected["avg_pool1d"] = expected["avg_pool2d"].replace(" divisor_override=None,", "")
    for name in ("conv2d", "pointwise"):
        expected[name] = expected[name].replace("*, ", "*, residual=None, ")
    for name, signature in expected.items():
        parameters = inspect.signature(getattr(ck, name)).parameters.values()
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
        assert str(inspect.Signature(bare)) == f"({signature}, out=None, precision='default')"


# --- docstrings

FUNCTIONS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (ck, ops, nn.functional, nn.init, models)
    for name in getattr(module, "__all__", dir(module))
    if inspect.isfunction(getattr(module, name)) and getattr(module, name).__module__.startswith("convkern.")
    if not name.startswith("_")
}
CLASSES = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (ck, nn, optim)
    for name in module.__all__
    if inspect.isclass(getattr(module, name))
}


def test_there_is_something_to_check():
    assert len(FUNCTIONS) > 50
    assert len(CLASSES) > 15


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_docstrings(name):
    thing = {**FUNCTIONS, **CLASSES}[name]
    doc = inspect.getdoc(thing)
    assert doc, name
    first = doc.splitlines()[0]
    assert first.endswith((".", ":")), first
    headings = [a for a, b in zip(doc.splitlines(), doc.splitlines()[1:], strict=False) if a and set(b) == {"-"}]
    known = ["Parameters", "Attributes", "Returns", "Yields", "Raises", "Notes", "References", "Examples"]
    assert headings == [h for h in known if h in headings]  # numpydoc's names in numpydoc's order
    for a, b in zip(doc.splitlines(), doc.splitlines()[1:], strict=False):
        if a in known:
            assert b == "-" * len(a)


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if not n.startswith("convkern.ops.")])
def test_documented_parameters_are_the_real_ones(name):
    """Every parameter is described, none is that does not exist, and what comes back is described as well."""
    function = FUNCTIONS[name]
    doc, signature = inspect.getdoc(function), inspect.signature(function)
    parameters = [p for p in signature.parameters if p not in ("args", "kwargs")]
    if parameters:
        assert "Parameters\n----------" in doc, f"{name} has no Parameters section"
        section = re.split(r"\n\n\w+\n-+\n", doc.split("Parameters\n----------\n")[1])[0]
        heads = [line.split(" :")[0] for line in section.splitlines() if line[:1].strip()]
        assert sorted(n.lstrip("*") for head in heads for n in head.split(", ")) == sorted(parameters)
    if signature.return_annotation not in (None, "None"):
        assert "Returns\n-------" in doc or "Yields\n------" in doc, f"{name} has no Returns section"


@pytest.mark.parametrize("name", [n for n in CLASSES if not issubclass(CLASSES[n], nn.Module)])
def test_public_methods_have_docstrings(name):
    for attribute, value in vars(CLASSES[name]).items():
        if inspect.isfunction(value) and not attribute.startswith("_") and attribute not in OBVIOUS:
            assert inspect.getdoc(value), f"{name}.{attribute}"


# Methods of Tensor that are the operation of the same name.
OBVIOUS = {*ops.__all__, "argmax", "permute", "check", "update"}


# --- what the kernels may import


def test_kernels_import_numpy_numba_the_standard_library_and_themselves():
    everywhere = {"numpy", "numba", "llvmlite", *sys.stdlib_module_names}
    files = sorted((PACKAGE / "kernels").rglob("*.py"))
    assert len(files) > 8
    for path in files:
        depth = len(path.relative_to(PACKAGE / "kernels").parts)
        allowed = everywhere | ({"cupy"} if path.name == "launch.py" else set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in allowed, path
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= depth, f"{path} reaches out of kernels/"


def test_only_one_file_imports_cuda():
    for path in PACKAGE.rglob("*.py"):
        if path.as_posix() != (PACKAGE / "kernels/cuda/language.py").as_posix():
            text = path.read_text("utf-8")
            assert not re.search(r"from numba import .*\bcuda\b|import numba\.cuda|from numba\.cuda", text), path


def test_planning_and_graph_know_no_operation():
    for module, forbidden in ((ck.graph, ("ops", "kernels", "nn")), (plan, ("ops", "nn"))):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ImportFrom) and node.level:
                names = {(node.module or "").split(".")[0], *(alias.name for alias in node.names)}
                assert not names & set(forbidden)
