"""The command line: every command is a thin door to the package.

A command is a function with ``@app.command()``; what it raises as ValueError, TypeError, OSError or a missing package
becomes one line and exit code 2 in `main`.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
except ModuleNotFoundError as _missing:
    if _missing.name != "typer":
        raise
    raise SystemExit('convkern: the command line needs typer: pip install "convkern[train]"') from None

from . import __version__
from .bench.cli import bench_command
from .data import NAMES as DATA_NAMES
from .kernel_commands import explain_command, summary_command, tune_command, warmup_command
from .train.config import Config
from .train.options import OPTIMIZERS, SCHEDULES

app = typer.Typer(
    name="convkern",
    help="Convolutional networks on kernels that people can read.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: error messages stay on one line and can be searched for
    pretty_exceptions_enable=False,
)

_show_traceback = False
_INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit code: 0, 1 for a broken pipe, 2 for a wrong argument or file, 130 after Ctrl-C.
    """
    global _show_traceback
    _show_traceback = False
    try:
        app(args=None if arguments is None else list(arguments), prog_name="convkern")
    except SystemExit as end:  # how typer ends, also when all is well
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        if _show_traceback:
            raise
        print(f"convkern: {_message(error)}", file=sys.stderr)
        return 2
    return 0


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"convkern {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error was raised.")] = False,
) -> None:
    global _show_traceback
    _show_traceback = traceback


@app.command()
def train(
    model: Annotated[str | None, typer.Option(help="Name of a model.", show_default=Config.model)] = None,
    data: Annotated[str | None, typer.Option(help=f"{', '.join(DATA_NAMES)}.", show_default=Config.data)] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the data files.", metavar="FOLDER")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images that pictures of --data folder become.", show_default="224")
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="Of crop, flip, jitter, cutout, erase, also with numbers: crop=4,flip.", show_default=Config.augment
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads that prepare batches ahead.", show_default=str(Config.workers))
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images.", show_default=str(Config.epochs))
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", show_default=str(Config.batch_size))] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default=str(Config.lr))] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help=f"Learning rate over the run: {', '.join(SCHEDULES)}.", show_default=Config.schedule),
    ] = None,
    warmup_epochs: Annotated[
        float | None, typer.Option(help="Linear rise of the learning rate in front, in epochs.", show_default="0")
    ] = None,
    period: Annotated[
        int | None,
        typer.Option(help="Epochs to a drop (step) or a restart (cosine-restarts).", show_default="a third of the run"),
    ] = None,
    period_mult: Annotated[
        int | None, typer.Option(help="Growth of the periods of cosine-restarts.", show_default="1")
    ] = None,
    milestones: Annotated[
        str | None,
        typer.Option(help="Epochs of the drops of multi-step: 30,60,80.", show_default="half and three quarters"),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(
            help="Factor of a drop (step, multi-step, plateau) or an epoch (exponential).", show_default="0.1 or 0.9"
        ),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Epochs that plateau waits for a better test loss.", show_default="3")
    ] = None,
    min_lr: Annotated[
        float | None, typer.Option(help="Lowest rate of cosine, cosine-restarts, plateau.", show_default="0")
    ] = None,
    pct_start: Annotated[
        float | None, typer.Option(help="Share of the run in which one-cycle rises.", show_default="0.3")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help=f"{', '.join(OPTIMIZERS)}.", show_default=Config.optimizer)
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(help="Of sgd and rmsprop.", show_default="0.9 for sgd, 0 for rmsprop")
    ] = None,
    nesterov: Annotated[
        bool | None, typer.Option("--nesterov", help="Nesterov's momentum, of sgd.", show_default=False)
    ] = None,
    beta1: Annotated[float | None, typer.Option(help="Of adam and adamw.", show_default="0.9")] = None,
    beta2: Annotated[float | None, typer.Option(help="Of adam and adamw.", show_default="0.999")] = None,
    alpha: Annotated[float | None, typer.Option(help="Of rmsprop.", show_default="0.99")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay.", show_default=str(Config.weight_decay))
    ] = None,
    decay_biases: Annotated[
        bool | None,
        typer.Option(
            "--decay-biases/--no-decay-biases",
            help="Weight decay also for biases and the parameters of normalisations.",
            show_default="--decay-biases",
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of the target given to all classes.", show_default="0")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of all gradients together.")] = None,
    clip_value: Annotated[float | None, typer.Option(help="Largest magnitude of a gradient's element.")] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Decay of averaged weights, which are tested and used, such as 0.999.", metavar="DECAY"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.", show_default=str(Config.seed))] = None,
    tensorboard: Annotated[
        bool | None,
        typer.Option("--tensorboard/--no-tensorboard", help="Also write logs for TensorBoard.", show_default="no"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default=Config.device)] = None,
    capture: Annotated[
        bool | None,
        typer.Option("--capture/--no-capture", help="On cuda: replay steps as CUDA graphs.", show_default="no"),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Folder of the run.", show_default="runs/MODEL-DATA-TIME", metavar="FOLDER"),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with this run, exactly as if it had not stopped.", metavar="RUN")
    ] = None,
) -> None:
    """Train a model; without options LeNet-5 on the embedded sample of Fashion-MNIST."""
    options: dict[str, Any] = {
        "model": model,
        "data": data,
        "data_dir": data_dir,
        "image_size": image_size,
        "augment": augment,
        "workers": workers,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "schedule": schedule,
        "warmup_epochs": warmup_epochs,
        "period": period,
        "period_mult": period_mult,
        "milestones": _epochs(milestones),
        "gamma": gamma,
        "patience": patience,
        "min_lr": min_lr,
        "pct_start": pct_start,
        "optimizer": optimizer,
        "momentum": momentum,
        "nesterov": nesterov,
        "beta1": beta1,
        "beta2": beta2,
        "alpha": alpha,
        "weight_decay": weight_decay,
        "decay_biases": decay_biases,
        "label_smoothing": label_smoothing,
        "clip_norm": clip_norm,
        "clip_value": clip_value,
        "ema": ema,
        "seed": seed,
        "tensorboard": tensorboard,
        "device": device,
        "capture": capture,
        "out": out,
    }
    given = {name: value for name, value in options.items() if value is not None}
    from . import train as training

    try:
        result = training.resume(resume, **given) if resume else training.train(Config(**given))
    except training.Interrupted as stop:
        typer.echo(f"\ninterrupted; to go on:\n  convkern train --resume {_quoted(stop.folder)}", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    except KeyboardInterrupt:
        typer.echo("\ninterrupted before training began; there is nothing to go on with", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    typer.echo(f"run folder {result.folder}")
    typer.echo(f"best epoch {result.best_epoch} with {result.best_accuracy:.1%}")
    typer.echo(f"test accuracy {result.accuracy:.1%}")


def _epochs(text: str | None) -> tuple[int, ...] | None:
    """Epochs between commas."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"milestones must be epochs between commas, got {text!r}")
    return tuple(map(int, words))


_Run = Annotated[Path, typer.Argument(help="Run folder of 'convkern train'.", metavar="RUN")]
_Which = Annotated[str, typer.Option("--checkpoint", help="best or last.")]


@app.command()
def evaluate(
    run: _Run,
    checkpoint: _Which = "best",
    data_dir: Annotated[str | None, typer.Option(help="Folder of the data files, if they moved.")] = None,
) -> None:
    """Measure a run's best checkpoint on the test images."""
    from rich.console import Console
    from rich.table import Table

    from .train import evaluate as measure
    from .train.metrics import per_class

    found = measure(run, which=checkpoint, data_dir=data_dir)
    table = Table("class")
    for heading in ("precision", "recall", "images"):
        table.add_column(heading, justify="right")
    for name, row in zip(found.classes, per_class(found.confusion), strict=True):
        table.add_row(name, _percent(row["precision"]), _percent(row["recall"]), str(row["count"]))
    Console().print(table)
    typer.echo(f"{checkpoint} checkpoint, epoch {found.epoch}, test loss {found.loss:.4f}")
    typer.echo(f"test accuracy {found.accuracy:.1%}")


@app.command()
def predict(
    run: _Run,
    images: Annotated[list[Path], typer.Argument(help="Picture files.", metavar="IMAGE...")],
    checkpoint: _Which = "best",
) -> None:
    """Say what pictures show: the three most likely classes of each."""
    from .train import predict as ask

    for answer in ask(run, images, which=checkpoint):
        typer.echo(f"{answer.path}{' (dark on white: inverted)' if answer.inverted else ''}")
        for name, probability in zip(answer.classes, answer.probabilities, strict=True):
            typer.echo(f"  {probability:6.1%}  {name}")


@app.command()
def info() -> None:
    """Show versions, the CPU's features, threads, and the GPU or why there is none."""
    from . import device

    width = 12
    for name, value in (*_versions(), *_cpu(), ("GPU", device.gpu_status())):
        typer.echo(f"{name:<{width}} {value}")


def _versions() -> list[tuple[str, str]]:
    rows = [("convkern", __version__), ("python", f"{platform.python_version()} on {platform.platform()}")]
    return [*rows, *((name, _version(name)) for name in ("numpy", "numba", "llvmlite"))]


def _cpu() -> list[tuple[str, str]]:
    """What the compiler knows of this CPU, and how many threads the kernels use."""
    from llvmlite import binding

    import convkern

    wanted = ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "neon", "sve")
    features: dict[str, bool] = dict(binding.get_host_cpu_features())
    found = [name for name in wanted if features.get(name)]
    return [
        ("CPU", binding.get_host_cpu_name()),
        ("SIMD", " ".join(found) or "none known to the compiler"),
        ("threads", str(convkern.num_threads())),
    ]


app.command("bench")(bench_command)
app.command("explain")(explain_command)
app.command("summary")(summary_command)
app.command("tune")(tune_command)
app.command("warmup")(warmup_command)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "not installed"


def _percent(share: float) -> str:
    return "-" if share != share else f"{share:.1%}"  # NaN: no image of the class, or none taken for it


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


if __name__ == "__main__":
    sys.exit(main())
