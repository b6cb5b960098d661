"""The command line: what it prints, what it refuses and in which words, and how it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import convkern as ck
from convkern.train import Config, checkpoint

from .test_train import write_data

pytest.importorskip("typer")
pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")
from convkern import cli

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Data and the run folder that 'convkern train' made of them, with what it printed."""
    data = tmp_path_factory.mktemp("cli-data")
    write_data(data, 96, 40)
    folder = tmp_path_factory.mktemp("cli") / "run"
    arguments = f"train --data mnist --data-dir {data} --epochs 1 --batch-size 32 --out {folder}"
    done = subprocess.run(command(arguments), capture_output=True, text=True, check=False, cwd=data, env=environment())
    assert done.returncode == 0, done.stderr
    return data, folder, done.stdout


def command(line):
    return [sys.executable, "-m", "convkern.cli", *line.split()]


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT)}


def refused(capsys, *arguments):
    """The one line that a wrong call prints."""
    assert cli.main(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_train_ends_with_the_accuracy(trained):
    _, folder, output = trained
    lines = output.splitlines()
    assert re.fullmatch(r"test accuracy \d{1,3}\.\d%", lines[-1])
    assert re.fullmatch(r"best epoch 1 with \d{1,3}\.\d%", lines[-2])
    assert lines[-3] == f"run folder {folder}"
    assert re.match(r"epoch 1/1  loss \d\.\d{4}  accuracy ", lines[-4])


def test_python_runs_the_package():
    line = [sys.executable, "-m", "convkern"]
    done = subprocess.run([*line, "--version"], capture_output=True, text=True, check=False, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, f"convkern {ck.__version__}\n", "")
    wrong = subprocess.run([*line, "summary", "lenet6"], capture_output=True, text=True, check=False, env=environment())
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("convkern: model must be one of alexnet")


def test_default_folder_is_below_the_working_directory(trained, tmp_path, monkeypatch, capsys):
    data, _, _ = trained
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--data", "mnist", "--data-dir", str(data), "--epochs", "1"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"lenet5-mnist-\d{8}-\d{6}", folder.name)
    assert f"run folder runs/{folder.name}" in capsys.readouterr().out


def test_every_option_reaches_the_configuration(trained, tmp_path):
    data, _, _ = trained
    line = (
        f"train --model lenet5 --data mnist --data-dir {data} --augment crop=3,flip --workers 1 "
        f"--epochs 2 --batch-size 48 --lr 0.01 --optimizer sgd "
        f"--schedule constant --weight-decay 0.001 --seed 5 --device cpu --out {tmp_path / 'run'}"
    )
    assert cli.main(line.split()) == 0
    assert Config.load(tmp_path / "run" / "config.json") == Config(
        model="lenet5", data="mnist", data_dir=str(data), augment="crop=3,flip", workers=1,
        epochs=2, batch_size=48, lr=0.01, optimizer="sgd",
        schedule="constant", weight_decay=0.001, seed=5, device="cpu", out=str(tmp_path / "run"),
    )  # fmt: skip


def test_every_technique_reaches_the_configuration(trained, tmp_path):
    data, _, _ = trained
    wanted = Config(
        data="mnist", data_dir=str(data), epochs=3, device="cpu", schedule="multi-step", milestones=(1, 2), gamma=0.2,
        warmup_epochs=0.5, optimizer="sgd", momentum=0.8, nesterov=True, weight_decay=0.001, decay_biases=False,
        label_smoothing=0.1, clip_norm=5.0, ema=0.9, out=str(tmp_path / "run"),
    )  # fmt: skip
    line = (
        f"train --data mnist --data-dir {data} --epochs 3 --schedule multi-step --milestones 1,2 --gamma 0.2 "
        "--warmup-epochs 0.5 --optimizer sgd --momentum 0.8 --nesterov --weight-decay 0.001 --no-decay-biases "
        f"--label-smoothing 0.1 --clip-norm 5 --ema 0.9 --out {tmp_path / 'run'}"
    )
    assert cli.main(line.split()) == 0
    assert Config.load(tmp_path / "run" / "config.json") == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model lenet6", r"model must be one of .*lenet5.*; got 'lenet6'"),
        ("--data imagenet", "data must be one of sample, fashion-mnist, mnist, cifar10, .*; got 'imagenet'"),
        ("--augment flip=2", r"augment's flip must be a probability, 0 to 1, got 2\.0"),
        ("--workers -1", "workers must be at least 0, got -1"),
        ("--image-size 32", "image_size must be given for the data 'folder' alone, got 32"),
        ("--data-dir somewhere", "data_dir must not be given for 'sample'"),
        ("--data mnist --data-dir nowhere-at-all", "mnist .* was not found in .*nowhere-at-all"),
        ("--epochs 0", "epochs must be at least 1, got 0"),
        ("--batch-size 0", "batch_size must be at least 1, got 0"),
        ("--lr -1", r"lr must be a finite number above 0, got -1\.0"),
        ("--lr nan", "lr must be a finite number above 0, got nan"),
        ("--optimizer lion", "optimizer must be one of sgd, .*adamw; got 'lion'"),
        ("--schedule stairs", "schedule must be one of cosine, constant, .*; got 'stairs'"),
        ("--optimizer sgd --beta1 0.5", "beta1 is for the optimizer adam or adamw, got beta1=0.5 with sgd"),
        ("--optimizer sgd --alpha 0.5", "alpha is for the optimizer rmsprop"),
        ("--beta2 2", "beta2 must be at least 0 and below 1"),
        ("--period 3", "period is for the schedule step or cosine-restarts"),
        ("--period-mult 3", "period_mult is for the schedule cosine-restarts"),
        ("--patience 3", "patience is for the schedule plateau"),
        ("--min-lr 3", "min_lr must be at least 0 and below the learning rate"),
        ("--pct-start 3", "pct_start is for the schedule one-cycle"),
        ("--schedule multi-step --milestones 3,x", "milestones must be epochs between commas, got '3,x'"),
        ("--clip-value 0", "clip_value must be a finite number above 0, got 0"),
        ("--ema 1", "ema must be above 0 and below 1, got 1"),
        ("--weight-decay -1", r"weight_decay must be a finite number of at least 0, got -1\.0"),
        ("--seed -1", "seed must be from 0 to 9223372036854775807, got -1"),
        ("--device tpu", "device must be one of auto, cpu, cuda; got 'tpu'"),
        ("--resume nowhere-at-all", "nowhere-at-all is not a folder: give the run folder"),
    ],
)
def test_train_refuses(capsys, options, message):
    error = refused(capsys, "train", *options.split())
    assert re.fullmatch(rf"convkern: .*{message}.*\n", error)


@pytest.mark.parametrize("option", ["--epochs", "--batch-size", "--lr", "--weight-decay", "--seed"])
def test_train_refuses_what_is_no_number(capsys, option):
    assert f"Invalid value for '{option}'" in refused(capsys, "train", option, "many")


def test_cuda_without_a_gpu_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(ck.device, "gpu", lambda: ("", "the CUDA driver reports no device"))
    error = refused(capsys, "train", "--device", "cuda")
    assert re.fullmatch(r"convkern: device 'cuda' cannot be used: .*the CUDA driver reports no device\n", error)


def test_out_on_a_file_is_one_line(capsys, trained, tmp_path):
    data, _, _ = trained
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    error = refused(capsys, "train", "--data", "mnist", "--data-dir", data, "--out", out, "--epochs", 1)
    assert error.startswith(f"convkern: {tmp_path / 'file'}")
    assert error.count("\n") == 1


def test_resume_refuses_another_lr(capsys, trained):
    _, folder, _ = trained
    message = f"lr cannot change when a run is resumed: it was {Config.lr}, got 0.5"
    assert refused(capsys, "train", "--resume", folder, "--lr", 0.5) == f"convkern: {message}\n"


def test_help_shows_the_defaults_that_hold(capsys):
    assert cli.main(["train", "--help"]) == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for option, default in (
        ("epochs", Config.epochs), ("batch-size", Config.batch_size), ("lr", Config.lr), ("seed", Config.seed),
        ("optimizer", Config.optimizer), ("schedule", Config.schedule), ("model", Config.model),
    ):  # fmt: skip
        assert re.search(rf"--{option} (?:(?! --).)*\[default: \(?{re.escape(str(default))}\)?\]", text), option


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"convkern {ck.__version__}\n"


def test_unknown_command(capsys):
    assert "No such command 'trian'" in refused(capsys, "trian")


def test_info(capsys):
    assert cli.main(["info"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["convkern"] == ck.__version__
    assert rows["numpy"] == np.__version__
    assert rows["threads"] == str(ck.num_threads())
    assert {"python", "numba", "llvmlite", "CPU", "SIMD"} < rows.keys()
    assert rows["GPU"] == ck.device.gpu_status()


def test_evaluate(capsys, trained):
    _, folder, output = trained
    assert cli.main(["evaluate", str(folder)]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == output.splitlines()[-1]  # after one epoch best and last are the same
    rows = re.findall(r"│ (\d) +│ +(?:-|[\d.]+%) │ +(?:-|[\d.]+%) │ +(\d+) │", text)
    assert [row[0] for row in rows] == list("0123456789")
    assert sum(int(row[1]) for row in rows) == 40
    assert cli.main(["evaluate", str(folder), "--checkpoint", "last"]) == 0
    assert "last checkpoint, epoch 1" in capsys.readouterr().out


def test_evaluate_refuses(capsys, trained, tmp_path):
    _, folder, _ = trained
    assert "holds no config.json" in refused(capsys, "evaluate", tmp_path)
    assert "checkpoint must be one of best, last" in refused(capsys, "evaluate", folder, "--checkpoint", "first")


def test_damaged_checkpoint_is_one_line(capsys, trained, tmp_path):
    _, folder, _ = trained
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "best.safetensors").write_bytes(b"\0" * 100)
    error = refused(capsys, "evaluate", tmp_path)
    assert re.fullmatch(r"convkern: .*best\.safetensors is damaged or not a convkern checkpoint: .*\n", error)


def test_checkpoint_of_another_model_is_one_line(capsys, trained, tmp_path):
    import dataclasses

    _, folder, _ = trained
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    saved = checkpoint.load(folder / "best.safetensors")
    saved.facts = dataclasses.replace(saved.facts, model="vgg11")
    checkpoint.save(tmp_path / "best.safetensors", saved)
    message = r"convkern: .*best\.safetensors holds the model 'vgg11', expected 'lenet5'\n"
    assert re.fullmatch(message, refused(capsys, "evaluate", tmp_path))


def test_predict(capsys, trained, tmp_path):
    Image = pytest.importorskip("PIL.Image")
    _, folder, _ = trained
    pixels = ck.data.load("sample", "test").images[0, 0]
    for name, values in (("dark.png", pixels), ("white.png", 255 - pixels)):
        Image.fromarray(values).save(tmp_path / name)
    assert cli.main(["predict", str(folder), str(tmp_path / "dark.png"), str(tmp_path / "white.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(tmp_path / "dark.png")
    assert lines[4] == f"{tmp_path / 'white.png'} (dark on white: inverted)"
    assert lines[1:4] == lines[5:8]
    assert all(re.fullmatch(r" +\d+\.\d%  \d", line) for line in lines[1:4])


def test_predict_names_an_unreadable_image(capsys, trained, tmp_path):
    _, folder, _ = trained
    (tmp_path / "notes.txt").write_text("no picture")
    error = refused(capsys, "predict", folder, tmp_path / "notes.txt")
    assert error == (
        f"convkern: {tmp_path / 'notes.txt'} cannot be read as a picture: it is not in a format that Pillow knows\n"
    )


def test_traceback_on_request():
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        cli.main(["--traceback", "train", "--epochs", "0"])


def test_without_typer_it_says_what_to_install():
    script = "import sys; sys.modules['typer'] = None; import convkern.cli"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.stderr == 'convkern: the command line needs typer: pip install "convkern[train]"\n'
    assert done.returncode == 1


@pytest.mark.skipif(os.name != "posix", reason="SIGINT to a process is POSIX")
def test_ctrl_c_leaves_a_run_that_goes_on(trained, tmp_path):
    """The real thing: a process, a signal in mid-training, and the command that it prints."""
    data, _, _ = trained
    train = f"train --data mnist --data-dir {data} --epochs 6 --batch-size 8 --schedule constant --out"
    folder = tmp_path / "a run"
    process = subprocess.Popen(
        [*command(train), str(folder)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text()):  # the first epoch has ended, five are to come
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == f"\ninterrupted; to go on:\n  convkern train --resume '{folder}'\n"
    stopped = checkpoint.load(folder / "last.safetensors", "lenet5").position
    assert 1 <= stopped.epoch < 6
    assert cli.main(["train", "--resume", str(folder)]) == 0
    whole = tmp_path / "whole"
    assert cli.main([*train.split(), str(whole)]) == 0
    got, want = (checkpoint.load(f / "last.safetensors") for f in (folder, whole))
    assert got.position == want.position
    for name, a in want.weights.items():
        np.testing.assert_array_equal(got.weights[name], a)
