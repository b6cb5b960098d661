"""Finding and loading datasets, and the embedded sample."""

import gzip
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from convkern import data
from convkern.data import make_sample
from convkern.data.idx import write_idx

FULL = Path("/usr/share/datasets/fashion-mnist")
needs_full = pytest.mark.skipif(
    not (FULL / "train-images-idx3-ubyte.gz").is_file(),
    reason="the full Fashion-MNIST is not installed (Debian's package dataset-fashion-mnist)",
)
SAMPLE = Path(data.__file__).parent / "sample"


def random_bytes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- load --------------------------------------------------------------------------------------------------------


def write_mnist(folder, n=4, suffix=".gz", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", n), ("t10k", n // 2)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", random_bytes(count, 28, 28, seed=seed))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8))


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_load_from_data_dir(tmp_path, name, below, suffix):
    write_mnist(tmp_path / name if below else tmp_path, suffix=suffix)
    train, test = (data.load(name, split, data_dir=tmp_path) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images, random_bytes(4, 28, 28)[:, None])
    np.testing.assert_array_equal(train.labels, [0, 1, 2, 3])
    assert len(test) == 2
    assert train.labels.dtype == np.int64
    assert train.shape == (1, 28, 28)
    assert train.classes[:2] == (("0", "1") if name == "mnist" else ("T-shirt/top", "Trouser"))
    assert len(train.classes) == 10
    assert train.images.flags.writeable


def test_load_searches_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CONVKERN_DATA", str(tmp_path / "env"))
    write_mnist(tmp_path / "home/.local/share/convkern/mnist", n=6)
    assert len(data.load("mnist")) == 6
    write_mnist(tmp_path / "env/mnist", n=8)
    assert len(data.load("mnist")) == 8
    write_mnist(tmp_path / "given", n=10)
    assert len(data.load("mnist", data_dir=tmp_path / "given")) == 10


def test_load_does_not_replace_a_given_data_dir_by_another(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVKERN_DATA", str(tmp_path / "env"))
    write_mnist(tmp_path / "env/mnist")
    with pytest.raises(
        FileNotFoundError, match=r"mnist \(train\) was not found in .*/typo, .*/typo/mnist\. To get it: "
    ):
        data.load("mnist", data_dir=tmp_path / "typo")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mnist", "four files of MNIST"),
        ("cifar10", "cifar-10-binary.tar.gz"),
        ("fashion-mnist", "dataset-fashion-mnist"),
    ],
)
def test_load_not_found_lists_places_and_help(tmp_path, monkeypatch, name, hint):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CONVKERN_DATA", str(tmp_path / "env"))
    monkeypatch.setattr("convkern.data.datasets.Path.is_file", lambda _: False)
    monkeypatch.setattr("convkern.data.datasets.Path.is_dir", lambda _: False)
    with pytest.raises(FileNotFoundError, match=hint) as caught:
        data.load(name, "test")
    message = str(caught.value)
    places = [f"/usr/share/datasets/{name}", f"{tmp_path}/env/{name}", f"{tmp_path}/home/.local/share/convkern/{name}"]
    assert f"{name} (test) was not found in {', '.join(places)}. To get it: " in message


def test_load_bad_arguments(tmp_path):
    with pytest.raises(
        ValueError,
        match="name must be one of sample, fashion-mnist, mnist, cifar10, cifar100, cifar100-coarse, folder, got",
    ):
        data.load("imagenet")
    with pytest.raises(ValueError, match="split must be one of train, test, got 'validation'"):
        data.load("sample", "validation")
    with pytest.raises(ValueError, match="data_dir must not be given for 'sample', which is embedded"):
        data.load("sample", data_dir=tmp_path)


def test_load_labels_missing_or_too_large(tmp_path):
    write_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    write_idx(labels, np.array([0, 1, 2, 10], dtype=np.uint8))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz: expected labels from 0 to 9, got 10"):
        data.load("mnist", data_dir=tmp_path)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected train-labels-idx1-ubyte.gz beside it, which is missing"):
        data.load("mnist", data_dir=tmp_path)


# --- the embedded sample -----------------------------------------------------------------------------------------


def test_sample_is_even_small_and_disjoint():
    train, test = data.load("sample", "train"), data.load("sample", "test")
    assert train.images.shape == (6000, 1, 28, 28)
    assert test.images.shape == (1000, 1, 28, 28)
    np.testing.assert_array_equal(np.bincount(train.labels), [600] * 10)
    np.testing.assert_array_equal(np.bincount(test.labels), [100] * 10)
    seen = {image.tobytes() for image in train.images} | {image.tobytes() for image in test.images}
    assert len(seen) == 7000, "an image is there twice"
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 3_500_000
    # Shuffled: within any 100 neighbours of a random order fewer than six classes are practically impossible.
    assert min(len(set(block)) for block in train.labels.reshape(-1, 100)) > 5


def test_sample_has_its_licence():
    text = (SAMPLE / "LICENSE-fashion-mnist.txt").read_text(encoding="utf-8")
    assert "Copyright © 2017 Zalando SE" in text
    assert "The above copyright notice and this permission notice shall be included" in " ".join(text.split())


@needs_full
def test_sample_is_regenerated(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "convkern.data.make_sample", str(FULL), str(tmp_path / "out")]
    root = Path(data.__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in SAMPLE.glob("*.gz")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert len(names) == 4
    for name in names:
        made, kept = (tmp_path / "out" / name).read_bytes(), (SAMPLE / name).read_bytes()
        assert gzip.decompress(made) == gzip.decompress(kept), name
        # zlib-ng compresses to other bytes, which decompress to the same.
        assert made == kept or "zlib-ng" in zlib.ZLIB_RUNTIME_VERSION, name


@needs_full
def test_sample_is_drawn_from_the_full_set():
    for split in ("train", "test"):
        sample, full = data.load("sample", split), data.load("fashion-mnist", split)
        label_of = {image.tobytes(): label for image, label in zip(full.images, full.labels, strict=True)}
        assert all(label_of.get(x.tobytes()) == label for x, label in zip(sample.images, sample.labels, strict=True))
    assert full.images.shape == (10000, 1, 28, 28)


def test_make_sample_refuses_too_few():
    labels = np.repeat(np.arange(10, dtype=np.uint8), 5)
    chosen = make_sample.draw(labels, 5, 0)
    assert sorted(chosen) == list(range(50))
    assert not np.array_equal(chosen, make_sample.draw(labels, 5, 1))
    with pytest.raises(ValueError, match="labels must hold at least 6 of every class, got \\[5, 5"):
        make_sample.draw(labels, 6, 0)


@needs_full
def test_channel_stats_are_the_published_ones():
    mean, std = data.channel_stats(data.load("fashion-mnist", "train"))
    assert (round(mean[0], 4), round(std[0], 4)) == (0.2860, 0.3530)
