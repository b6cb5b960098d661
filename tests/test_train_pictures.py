"""What people see: the pictures of a run, pictures read for prediction, and the display of progress."""

import io
import re
from types import SimpleNamespace

import numpy as np
import pytest

import convkern as ck
from convkern.train import plots, progress
from convkern.train.checkpoint import Facts, Position
from convkern.train.prediction import read_image

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

GREY = Facts("lenet5", (1, 28, 28), (0.3,), (0.35,), tuple("0123456789"), 0, 0)
COLOUR = Facts("lenet5", (3, 32, 32), (0.5,) * 3, (0.25,) * 3, tuple("0123456789"), 0, 0)
HISTORY = [
    {"epoch": e, "train_loss": 1 / e, "test_loss": 1.1 / e, "train_accuracy": 1 - 0.5 / e, "test_accuracy": 1 - 0.6 / e}
    for e in (1, 2, 3)
]


def drawn(path):
    """A picture's values, after checking that something is on it."""
    a = np.asarray(Image.open(path).convert("L"))
    assert min(a.shape) > 100
    assert a.std() > 5
    return a


def test_curves(tmp_path):
    plots.curves(HISTORY, tmp_path / "a.png")
    plots.curves(HISTORY[:2], tmp_path / "b.png")
    assert not np.array_equal(drawn(tmp_path / "a.png"), drawn(tmp_path / "b.png"))


def test_confusion(tmp_path):
    plots.confusion(np.eye(3, dtype=int) * 5, ("a", "b", "c"), tmp_path / "a.png")
    plots.confusion(np.zeros((3, 3), int), ("a", "b", "c"), tmp_path / "b.png")  # a class without images
    assert not np.array_equal(drawn(tmp_path / "a.png"), drawn(tmp_path / "b.png"))


def test_confusion_of_many_classes_stays_small(tmp_path):
    names = [f"class {i}" for i in range(100)]
    plots.confusion(np.eye(100, dtype=int) * 5, names, tmp_path / "a.png")
    assert max(drawn(tmp_path / "a.png").shape) < 130 * 20


def test_filters_and_features_of_lenet(tmp_path):
    model = ck.models.lenet5()
    data = ck.data.load("sample", "test")
    plots.filters(model, tmp_path / "filters.png")
    plots.features(model, data, GREY, tmp_path / "features.png")
    plots.features(model, data.subset([1]), GREY, tmp_path / "other.png")
    drawn(tmp_path / "filters.png")
    assert not np.array_equal(drawn(tmp_path / "features.png"), drawn(tmp_path / "other.png"))


def test_features_are_what_the_layers_give():
    model = ck.models.lenet5()
    names, layers = zip(*plots.convolutions(model), strict=True)
    x = np.random.default_rng(0).standard_normal((1, 1, 28, 28)).astype(np.float32)
    maps, logits = plots._record(model, names, x)
    assert [y.shape for y in maps] == [(6, 28, 28), (16, 10, 10)]
    np.testing.assert_array_equal(maps[0], layers[0](x).data[0])
    np.testing.assert_array_equal(logits, model(x).data[0])


def test_colour_and_many_filters(tmp_path):
    nn = ck.nn
    plots.filters(nn.Sequential(nn.Conv2d(3, 70, 3)), tmp_path / "colour.png")
    plots.filters(nn.Sequential(nn.Conv2d(2, 5, 3)), tmp_path / "two.png")
    drawn(tmp_path / "colour.png")
    drawn(tmp_path / "two.png")


def test_model_without_convolution_has_no_such_pictures(tmp_path):
    model = ck.nn.Sequential(ck.nn.Flatten(), ck.nn.Linear(784, 10))
    plots.filters(model, tmp_path / "filters.png")
    plots.features(model, ck.data.load("sample", "test"), GREY, tmp_path / "features.png")
    assert list(tmp_path.iterdir()) == []


def save(path, pixels, **options):
    Image.fromarray(np.asarray(pixels)).save(path, **options)
    return path


@pytest.fixture
def shirt():
    return ck.data.load("sample", "test").images[0, 0]


def test_picture_of_the_right_kind_is_read_unchanged(tmp_path, shirt):
    pixels, inverted = read_image(save(tmp_path / "a.png", shirt), GREY)
    assert pixels.shape == (1, 28, 28)
    assert pixels.dtype == np.uint8
    assert not inverted
    np.testing.assert_array_equal(pixels[0], shirt)


def test_dark_on_white_is_inverted(tmp_path, shirt):
    pixels, inverted = read_image(save(tmp_path / "a.png", 255 - shirt), GREY)
    assert inverted
    np.testing.assert_array_equal(pixels[0], shirt)


def test_other_sizes_keep_their_proportions(tmp_path):
    tall = np.zeros((200, 100), np.uint8)
    tall[:, 25:75] = 200
    pixels, _ = read_image(save(tmp_path / "a.png", tall), GREY)
    assert (pixels[0, 14, :7] == 0).all()  # filled with the ground's colour
    assert (pixels[0, 14, 11:17] > 190).all()  # but for the ringing of a sharp resampling


def test_colour_becomes_grey_and_grey_colour(tmp_path, shirt):
    pixels, _ = read_image(save(tmp_path / "a.png", np.stack([shirt] * 3, axis=2)), GREY)
    np.testing.assert_array_equal(pixels[0], shirt)
    pixels, inverted = read_image(save(tmp_path / "b.png", 255 - shirt), COLOUR)
    assert pixels.shape == (3, 32, 32)
    assert not inverted  # colour pictures are never inverted
    np.testing.assert_array_equal(pixels[0], pixels[2])


def test_colour_channels_stay_in_their_order(tmp_path):
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0], red[..., 1] = 200, 100
    pixels, _ = read_image(save(tmp_path / "a.png", red), COLOUR)
    assert [int(plane.mean()) for plane in pixels] == [200, 100, 0]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path, shirt):
    pixels, _ = read_image(save(tmp_path / "a.png", shirt.astype(np.uint16) * 257), GREY)
    np.testing.assert_array_equal(pixels[0], shirt)


def test_transparent_ground_counts_as_white(tmp_path, shirt):
    layers = np.zeros((28, 28, 4), np.uint8)
    layers[..., 3] = shirt  # black ink, as thick as the shirt is bright
    pixels, inverted = read_image(save(tmp_path / "a.png", layers), GREY)
    assert inverted
    np.testing.assert_allclose(pixels[0].astype(int), shirt.astype(int), atol=1)


def test_rotation_of_cameras_is_undone(tmp_path, shirt):
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    pixels, _ = read_image(save(tmp_path / "a.png", shirt[::-1, ::-1].copy(), exif=exif), GREY)
    np.testing.assert_array_equal(pixels[0], shirt)


def test_unreadable_pictures_are_named(tmp_path, shirt):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png cannot be read as a picture: it is not in a format"):
        read_image(tmp_path / "text.png", GREY)
    with pytest.raises(ValueError, match=r"none\.png cannot be read as a picture: there is no such file"):
        read_image(tmp_path / "none.png", GREY)
    with pytest.raises(ValueError, match="cannot be read as a picture: it is a folder"):
        read_image(tmp_path, GREY)
    whole = save(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read as a picture: "):
        read_image(tmp_path / "cut.png", GREY)


def test_absurdly_large_picture_is_refused(tmp_path, monkeypatch, shirt):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture: .*exceeds limit"):
        read_image(save(tmp_path / "a.png", shirt), GREY)


@pytest.fixture
def compiler(monkeypatch):
    """A stand-in for the compiler's reports: compiles nothing, tells what the test says."""
    watchers = []

    class Watch:
        def __init__(self, callback):
            watchers.append(callback)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            watchers.pop()

    from convkern.kernels import compiler

    monkeypatch.setattr(compiler, "watch", Watch)
    return lambda name, phase: [watcher(name, phase) for watcher in watchers]


RECORD = {
    "epoch": 3, "train_loss": 0.51234, "train_accuracy": 0.8125, "test_loss": 0.6, "test_accuracy": 0.75,
    "images_per_second": 12345.6, "idle_share": 0.0312,
}  # fmt: skip


def test_plain_progress(capsys, compiler, monkeypatch):
    display = progress.choose(12, 4)
    assert type(display) is progress.PlainProgress
    with display.compiling():
        pass
    assert capsys.readouterr().out == ""  # nothing to compile, nothing to say
    with display.compiling():
        for name in ("conv_forward", "pool_forward"):
            compiler(name, "start")
            compiler(name, "done")
    assert capsys.readouterr().out.splitlines() == [progress.COMPILING, "   1 conv_forward", "   2 pool_forward"]
    display.open(Position())
    display.step(Position(step=1, loss_sum=2, correct=1, seen=2, seconds=1))
    assert capsys.readouterr().out == ""  # not more often than every few seconds
    monkeypatch.setattr(progress, "_PLAIN_INTERVAL", 0)
    display.step(Position(step=2, loss_sum=2, correct=1, seen=4, seconds=2, waited=0.5))
    assert capsys.readouterr().out == "epoch 1/12  step 2/4  loss 0.5000  accuracy  25.0%  2 images/s  idle 25.0%\n"
    display.epoch(RECORD)
    display.close()
    assert capsys.readouterr().out == (
        "epoch  3/12  loss 0.5123  accuracy  81.2%  test loss 0.6000  test accuracy  75.0%  12,346 images/s  idle 3.1%\n"
    )


def test_terminal_progress(monkeypatch, compiler):
    console_module = pytest.importorskip("rich.console")
    output = io.StringIO()
    console = console_module.Console(file=output, force_terminal=True, width=110, highlight=False)
    monkeypatch.setattr(console_module, "Console", lambda **options: console)
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    display = progress.choose(2, 4)
    assert type(display) is progress.RichProgress
    with display.compiling():
        compiler("conv_forward", "start")
        compiler("conv_forward", "done")
    display.open(Position(step=1))
    display.step(Position(step=2, loss_sum=2, correct=1, seen=4, seconds=2, waited=0.5))
    display._bar.refresh()
    display.epoch(RECORD | {"epoch": 1})
    display.close()
    display.close()  # twice does no harm
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    assert progress.COMPILING in text
    assert "1 done, last conv_forward" in text
    assert "epoch 1/2" in text
    assert "loss 0.5000  accuracy  25.0%  2 images/s  idle 25.0%" in text
    assert "left" in text
    assert "test accuracy  75.0%" in text


def test_quiet_shows_nothing(capsys):
    display = progress.choose(2, 4, quiet=True)
    with display.compiling():
        display.open(Position())
        display.step(Position(step=1))
        display.epoch(RECORD)
        display.close()
    assert capsys.readouterr().out == ""
