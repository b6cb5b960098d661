"""The commands ``convkern explain``, ``tune`` and ``warmup``: which kernels run, which are the fastest here, and compiling
them ahead of time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .subjects import Subject
    from .tuning import Tuned

_Targets = Annotated[
    list[str],
    typer.Argument(
        help="Models (lenet5, …), a function with --x and --w (conv2d, pointwise, conv_transpose2d, max_pool2d, "
        "avg_pool2d, or with 1d or 3d), or cases of 'convkern bench' (resnet18-56, 'vgg-*', layers).",
        metavar="MODEL|LAYER...",
    ),
]
_X = Annotated[str | None, typer.Option("--x", help="Shape of x of a function.", metavar="N,C,H,W")]
_W = Annotated[str | None, typer.Option("--w", help="Shape of w of a convolution.", metavar="K,C,R,S")]
_Kernel = Annotated[str | None, typer.Option("--kernel-size", help="Window of a pooling, an int or one for each axis.")]
_Stride = Annotated[str | None, typer.Option(help="An int, or one for each axis: 2,1.")]
_Padding = Annotated[str | None, typer.Option(help="An int, one for each axis, same or valid.")]
_Dilation = Annotated[str | None, typer.Option(help="An int, or one for each axis.")]
_Groups = Annotated[int | None, typer.Option(help="Groups of a convolution.")]
_Dtype = Annotated[str, typer.Option(help="float32 or float64, of a function.")]
_Precision = Annotated[str, typer.Option(help="default or strict, of a function or a case.")]
_Batch = Annotated[int, typer.Option(help="Images in a model's training step.", min=1)]
_Image = Annotated[
    str | None, typer.Option(help="Shape of a model's images.", show_default="the model's own", metavar="C,H,W")
]


def summary_command(
    model: Annotated[str, typer.Argument(help="A model: lenet5, vgg16, resnet50, unet, …", metavar="MODEL")],
    image: _Image = None,
) -> None:
    """Tell what a model is made of: shapes, parameters, multiply-adds, memory and receptive field of every layer."""
    from . import subjects

    network, shape = subjects.network(model, _numbers(image, "--image", 3))
    typer.echo(str(network.summary(shape)))


def explain_command(
    targets: _Targets,
    measure: Annotated[bool, typer.Option("--measure", help="Also time every row that takes the problem.")] = False,
    x: _X = None,
    w: _W = None,
    kernel_size: _Kernel = None,
    stride: _Stride = None,
    padding: _Padding = None,
    dilation: _Dilation = None,
    groups: _Groups = None,
    dtype: _Dtype = "float32",
    precision: _Precision = "default",
    batch: _Batch = 128,
    image: _Image = None,
) -> None:
    """Tell which kernels a layer or a model uses, what limits them on this machine, and why they were chosen."""
    from .explanation import explain

    window = dict(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, groups=groups)
    for subject in _subjects(targets, x, w, window, dtype, precision, batch, image):
        typer.echo(f"# {subject.name}")
        typer.echo(str(explain(subject.run, measure=measure)))


def tune_command(
    targets: _Targets,
    x: _X = None,
    w: _W = None,
    kernel_size: _Kernel = None,
    stride: _Stride = None,
    padding: _Padding = None,
    dilation: _Dilation = None,
    groups: _Groups = None,
    dtype: _Dtype = "float32",
    precision: _Precision = "default",
    batch: _Batch = 128,
    image: _Image = None,
) -> None:
    """Measure every kernel row for what a layer or a model needs; the fastest are used from now on, on this host."""
    from . import plan, tuning

    def report(found: Tuned) -> None:
        verdict = found.row if found.row == found.first else f"{found.row} (was {found.first})"
        times = "  ".join(f"{name} {seconds * 1e3:.4f} ms" for name, seconds in found.times.items())
        typer.echo(f"{plan.key(found.problem)}\n  {verdict:<24} {times}")

    window = dict(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, groups=groups)
    for subject in _subjects(targets, x, w, window, dtype, precision, batch, image):
        typer.echo(f"# {subject.name}")
        tuning.tune(subject.run, report=report)
    typer.echo(f"kept in {tuning.path()}")
    if not tuning.enabled():
        typer.echo("CONVKERN_TUNE is 0: these choices are not used", err=True)


def warmup_command(
    model_names: Annotated[list[str], typer.Argument(help="Models.", metavar="MODEL...")],
    batch: Annotated[int, typer.Option(help="Images a step.", min=1)] = 32,
    image: _Image = None,
) -> None:
    """Compile every kernel that a model's training, with any optimizer, and evaluation need; they are kept on disk.

    The last batch of a set is often smaller, and other kernels may suit it: some smaller ones are run too.
    """
    from . import subjects
    from .kernels import compiler
    from .train.progress import choose

    count = 0

    def counted(name: str, phase: str) -> None:
        nonlocal count
        count += phase == "done"

    began = time.perf_counter()
    shape = _numbers(image, "--image", 3)
    optimizers = tuple(subjects.OPTIMIZERS)
    steps = [subjects.training_step(name, batch, shape, optimizers, evaluate=True) for name in model_names]
    smaller = {batch * eighths // 8 for eighths in (6, 4, 2, 1)} - {0}
    steps += [subjects.training_step(name, size, shape, evaluate=True) for name in model_names for size in smaller]
    with compiler.watch(counted), choose(1, 1).compiling():
        for step in steps:
            step.run()
    seconds = time.perf_counter() - began
    done = f"{count} kernels compiled" if count else "nothing to compile"
    typer.echo(f"{done}, {seconds:.1f} s; {', '.join(model_names)} ready, kernels kept in {compiler.kernel_cache()}")


def _subjects(
    targets: Sequence[str], x: str | None, w: str | None, window: dict[str, Any], dtype: str, precision: str,
    batch: int, image: str | None,
) -> Iterator[Subject]:  # fmt: skip
    """What the words on the command line stand for."""
    from . import models, subjects

    options = {
        name: _option(value, f"--{name.replace('_', '-')}") for name, value in window.items() if value is not None
    }
    for target in targets:
        if target in subjects.FUNCTIONS:
            if x is None:
                raise ValueError(f"{target} needs --x N,C,H,W")
            shapes = (_numbers(x, "--x", None), _numbers(w, "--w", None))
            yield subjects.call(target, *shapes, dtype=dtype, precision=precision, **options)  # type: ignore[arg-type]
        elif target in models.NAMES:
            yield subjects.training_step(target, batch, _numbers(image, "--image", 3))
        else:
            try:
                yield from subjects.case([target], precision)
            except ValueError as error:
                known = f"a model ({', '.join(models.NAMES)}), a function ({', '.join(subjects.FUNCTIONS)})"
                raise ValueError(f"{target!r} must be {known}, or a case: {error}") from None


def _numbers(text: str | None, option: str, count: int | None) -> tuple[int, ...] | None:
    """Integers between commas."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or count not in (None, len(words)):
        wanted = "integers" if count is None else f"{count} integers"
        raise ValueError(f"{option} must be {wanted} between commas, got {text!r}")
    return tuple(map(int, words))


def _option(value: str | int, name: str) -> Any:
    """An option of a function: an int, a pair of ints, or the name of a padding."""
    if isinstance(value, int) or value in ("same", "valid"):
        return value
    numbers = _numbers(value, name, None)
    assert numbers is not None
    return numbers[0] if len(numbers) == 1 else numbers
