"""The notebooks as they are committed, and (with ``-m full``) executed again."""

import ast
import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from convkern.kernels.cuda import compiler

from . import golden

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OVERVIEW = (1600, 700)

# An absolute path of some machine: /folder/more or C:\folder, but not https://host/page or a/b/c.
MACHINE_PATH = re.compile(r"(?<![\w.:/)\]}~])/[A-Za-z][\w.-]*/[\w.-]+|\b[A-Za-z]:\\\\?\w+|~/\w+")
# The ends of the names of cells whose printed figures are not the same every time: those that train (CONVKERN_SHORT
# shortens that, and figures depend on the order in which BLAS sums), those that measure time, and those that tell what
# the project's CUDA kernels become, which tests/golden.json holds.
VARIES = ("-train", "-time", "-compiled")

# Those that compile CUDA kernels: they need the extra cuda-test, and print what exactly its versions make of the kernels.
COMPILED = ("03_from_naive_to_tensor_cores",)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(output):
    """Everything in an output that people read, without the pictures."""
    if output.output_type == "stream":
        return output.text
    return "\n".join(value for kind, value in output.data.items() if not kind.startswith("image/"))


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def require_compiler(name):
    if name not in COMPILED:
        return
    if compiler.missing():
        pytest.skip(f"the notebook compiles CUDA kernels: {compiler.missing()}")
    if compiler.versions() != golden.read()["compilers"]:
        pytest.skip(f"the notebook was executed with {golden.read()['compilers']}, here are {compiler.versions()}")


def check_outputs(notebook):
    """No cell failed or warned."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data", "execute_result"), (cell.id, output)
            assert output.get("name") != "stderr", (cell.id, output.text)


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for cell in code_cells(notebook) for output in cell.outputs)


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """A function that executes a copy of a notebook in an empty folder and returns it."""
    workplace = tmp_path / "workplace"
    workplace.mkdir()
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # nobody's own settings
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this Python
    # This checkout, tests included: 03 runs kernels in their interpreter.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(FOLDER.parent), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("CONVKERN_SHORT", "1")  # notebooks read it in their first cell and train for a shorter time

    def run(notebook):
        notebook = copy.deepcopy(notebook)
        client = NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(workplace)}}
        )
        client.execute()
        assert not list(workplace.iterdir()), "the notebook left files behind"
        return notebook

    return run


# --- as committed ------------------------------------------------------------------------------------------------


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {
        "01_filters", "02_why_rot180", "03_from_naive_to_tensor_cores", "04_regression_to_mlp", "05_learning_kernels",
        "06_bottleneck", "07_optimizers", "08_init_and_batchnorm", "09_lenet_to_resnet", "10_video_3d", "11_classical_road",
    }  # fmt: skip


@each_notebook
def test_committed_notebook_is_valid_and_was_executed(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert pictures(notebook) >= 4
    check_outputs(notebook)


@each_notebook
def test_committed_notebook_is_clean_and_small(path):
    notebook = read(path)
    assert path.stat().st_size < 1_000_000
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(not cell.metadata for cell in notebook.cells)


@each_notebook
def test_committed_notebook_names_no_place_of_a_machine(path):
    for cell in read(path).cells:
        texts = [cell.source, *map(text_of, cell.get("outputs", []))]
        for text in texts:
            found = MACHINE_PATH.search(text)
            assert found is None, (cell.id, found)


@pytest.mark.parametrize(
    "text", ["in /home/ann/nets", "File '/usr/lib/a.py'", r"C:\Users\ann", "C:\\\\Users", "~/nets"]
)
def test_a_place_of_a_machine_is_recognised(text):
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["https://example.org/a/b", "r / s", "a/b/c", r"\frac{a}{b}/c/d", "[x](02_y.ipynb)"])
def test_other_slashes_are_no_places_of_a_machine(text):
    assert not MACHINE_PATH.search(text)


@each_notebook
def test_committed_notebook_asserts_its_claims(path):
    sources = (re.sub(r"^%.*$", "", cell.source, flags=re.M) for cell in code_cells(read(path)))
    asserts = [sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source))) for source in sources]
    assert sum(asserts) >= 15
    assert sum(count > 0 for count in asserts) >= len(asserts) // 2  # in most cells, not all in one


def test_committed_overview():
    path = FOLDER / "overview.png"
    assert path.stat().st_size < 300_000
    with Image.open(path) as picture:
        assert picture.size == OVERVIEW


# --- executed ----------------------------------------------------------------------------------------------------


@pytest.mark.full
@each_notebook
def test_notebook_executes(path, execute):
    require_compiler(path.stem)
    committed = read(path)
    executed = execute(committed)
    check_outputs(executed)
    assert pictures(executed) == pictures(committed)
    for before, after in zip(code_cells(committed), code_cells(executed), strict=True):
        if not before.id.endswith(VARIES):
            assert printed(after) == printed(before), before.id


def mirrored(function, axes):
    """Code that turns or mirrors the second argument of a function of convkern (w, or gy for the gradient of w)."""
    return (
        f"def mistaken(a, b, *rest, unbroken=convkern.{function}, **options):\n"
        f"    return unbroken(a, b[:, :, {axes}], *rest, **options)\n"
        f"convkern.{function} = mistaken\n"
    )


ROWS_EXCHANGED = """
from convkern.kernels.cuda import language
product = language.multiply_tf32
@language.inlined
def mistaken(a, b, c):
    return product((a[1], a[0], a[3], a[2]), b, c)
language.multiply_tf32 = mistaken
"""

NEW_CHANNELS_FIRST = """
from convkern.models import resnet
def mistaken(parts, dim, unbroken=resnet.concatenate):
    return unbroken(parts[::-1], dim)
resnet.concatenate = mistaken
"""

# Each is a mistake in convkern that the notebook's own asserts must notice.
MISTAKES = {
    "w-turned": ("01_filters", mirrored("conv2d", "::-1, ::-1")),
    "w-mirrored": ("01_filters", mirrored("conv2d", ":, ::-1")),
    "input-grad-turned": ("02_why_rot180", mirrored("conv2d_input_grad", "::-1, ::-1")),
    "weight-grad-turned": ("02_why_rot180", mirrored("conv2d_weight_grad", "::-1, ::-1")),
    "half-the-loss": (
        "04_regression_to_mlp",
        "convkern.nn.MSELoss.__call__ = lambda loss, y, t: loss.forward(y, t) * 0.5",
    ),
    "learned-turned": ("05_learning_kernels", mirrored("conv2d_weight_grad", "::-1, ::-1")),
    "pixels-mixed-up": ("06_bottleneck", mirrored("pointwise_weight_grad", "::-1, ::-1")),
    "tensor-rows-exchanged": ("03_from_naive_to_tensor_cores", ROWS_EXCHANGED),
    "another-beta": ("07_optimizers", "convkern.optim.Adam.__init__.__defaults__ = (1e-3, (0.9, 0.99), 1e-8, 0.0)"),
    "gain-forgotten": ("08_init_and_batchnorm", "convkern.nn.init.GAINS['relu'] = 1.0"),
    "new-channels-first": ("09_lenet_to_resnet", NEW_CHANNELS_FIRST),
    "time-turned": ("10_video_3d", mirrored("conv3d", "::-1")),
    "gabor-mirrored": ("11_classical_road", mirrored("conv2d", ":, ::-1")),
}


@pytest.mark.full
@pytest.mark.parametrize(("name", "mistake"), MISTAKES.values(), ids=MISTAKES)
def test_notebook_notices_a_mistake(name, mistake, execute):
    require_compiler(name)
    notebook = read(FOLDER / f"{name}.ipynb")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"import convkern\n{mistake}", id="mistake"))
    with pytest.raises(CellExecutionError) as error:
        execute(notebook)
    assert error.value.ename == "AssertionError"


@pytest.mark.full
def test_overview_can_be_drawn(tmp_path):
    path = tmp_path / "overview.png"
    script = [sys.executable, "-W", "error", str(FOLDER / "make_overview.py"), str(path)]
    subprocess.run(script, check=True, timeout=300)
    with Image.open(path) as picture:
        assert picture.size == OVERVIEW
        assert len(picture.convert("RGB").getcolors(picture.width * picture.height)) > 500  # not a blank sheet
