"""The idx and CIFAR file formats, against files that the tests write themselves."""

import gzip
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from convkern import data
from convkern.data import cifar
from convkern.data.idx import read_idx, read_labelled_images, write_idx
from convkern.data.names import CIFAR100_COARSE, CIFAR100_FINE


def random_bytes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def name_by_message(value):
    """Name a case by its message: file contents make no readable name."""
    return None if isinstance(value, str) else "content"


# --- idx ---------------------------------------------------------------------------------------------------------


def idx_bytes(array, magic=None, sizes=None):
    """An idx file written by hand, as the format's description has it."""
    magic = bytes([0, 0, 8, array.ndim]) if magic is None else magic
    sizes = array.shape if sizes is None else sizes
    return magic + b"".join(struct.pack(">I", n) for n in sizes) + array.tobytes()


@pytest.mark.parametrize("compress", [False, True])
def test_idx_reads_what_the_format_describes(tmp_path, compress):
    images = random_bytes(3, 4, 5)
    content = idx_bytes(images)
    path = tmp_path / "no-suffix-needed"
    path.write_bytes(gzip.compress(content) if compress else content)
    read = read_idx(path, 3)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, images)


@pytest.mark.parametrize("name", ["a-ubyte", "a-ubyte.gz"])
def test_idx_writer_writes_the_format_and_is_deterministic(tmp_path, name):
    images = random_bytes(3, 4, 5)[:, ::-1]  # not contiguous
    write_idx(tmp_path / name, images)
    first = (tmp_path / name).read_bytes()
    assert (gzip.decompress(first) if name.endswith(".gz") else first) == idx_bytes(images)
    write_idx(tmp_path / name, images)
    assert (tmp_path / name).read_bytes() == first
    assert os.listdir(tmp_path) == [name]
    if name.endswith(".gz"):
        assert first[3:8] == bytes(5), "gzip header must have neither file name nor time"


def test_idx_writer_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a-ubyte"
    write_idx(path, random_bytes(4))
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("convkern.data.idx.os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_idx(path, random_bytes(400))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a-ubyte"]


def test_idx_writer_refuses(tmp_path):
    with pytest.raises(TypeError, match="array must be a uint8 array, got float64"):
        write_idx(tmp_path / "a", np.zeros(3))
    with pytest.raises(TypeError, match="array must be a uint8 array, got list"):
        write_idx(tmp_path / "a", [1, 2])
    with pytest.raises(ValueError, match="array must have at least 1 axis, got 0"):
        write_idx(tmp_path / "a", np.uint8(3)[...])
    assert not os.listdir(tmp_path)


IMAGES = random_bytes(3, 4, 5)
GOOD = idx_bytes(IMAGES)
GOOD_GZ = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "which begins with 4 bytes of magic, got 0 bytes"),
        (b"\0\0\x08", "which begins with 4 bytes of magic, got 3 bytes"),
        (b"\x89PNG" + GOOD, "expected the idx magic 0x00000803, got 0x89504e47: not an idx file"),
        (idx_bytes(IMAGES, magic=b"\0\0\x07\x03"), "expected the idx magic 0x00000803, got 0x00000703"),
        (idx_bytes(IMAGES, magic=b"\0\0\x0d\x03"), r"expected elements of type uint8 \(0x08\), got float32 \(0x0d\)"),
        (idx_bytes(IMAGES[0]), "expected 3 axes, got 2"),
        (GOOD[:10], "expected a header of 16 bytes, got 10: the file is truncated"),
        (GOOD[:-1], r"expected 60 bytes of data for shape \(3, 4, 5\), got 59: the file is truncated"),
        (GOOD + b"\0", r"expected 60 bytes of data for shape \(3, 4, 5\), but more bytes follow"),
        (idx_bytes(IMAGES, sizes=(2**32 - 1,) * 3), "got 60: the file is truncated"),
        (GOOD_GZ[:-12], "expected a whole gzip stream, but it ends early: the file is truncated"),
        (GOOD_GZ[:-4], "expected a whole gzip stream, but it ends early: the file is truncated"),
        (GOOD_GZ[:5], "expected a whole gzip stream, but it ends early: the file is truncated"),
        (GOOD_GZ[:-8] + b"\1\2\3\4" + GOOD_GZ[-4:], r"expected a whole gzip stream, but it is corrupt \(CRC check"),
        (GOOD_GZ[:10] + b"\xff" * 20, "expected a whole gzip stream, but it is corrupt"),
        (GOOD_GZ + b"trailing", "expected a whole gzip stream, but it is corrupt"),
        (gzip.compress(GOOD + b"\0"), "but more bytes follow"),
        (gzip.compress(GOOD[:-1]), "got 59: the file is truncated"),
    ],
    ids=name_by_message,
)
def test_idx_corrupt(tmp_path, content, message):
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path, 3)
    assert str(caught.value).startswith(f"{path}: expected")


def test_idx_images_and_labels_of_different_length(tmp_path):
    write_idx(tmp_path / "images", IMAGES)
    write_idx(tmp_path / "labels", random_bytes(4))
    with pytest.raises(ValueError, match=r"labels: expected 3 labels, one per image of .*images, got 4"):
        read_labelled_images(tmp_path / "images", tmp_path / "labels")


# --- CIFAR-10 ----------------------------------------------------------------------------------------------------


def cifar_arrays(n=4, files=6):
    """Rows of six files, the last one the test batch: (pixels (n, 3072), labels (n,))."""
    return [(random_bytes(n, 3072, seed=i), np.arange(i, i + n) % 10) for i in range(files)]


def binary_files(arrays):
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    return {
        name: b"".join(bytes([label]) + row.tobytes() for row, label in zip(pixels, labels, strict=True))
        for name, (pixels, labels) in zip(names, arrays, strict=True)
    }


def python3_pickle(pixels, labels, numpy_module=None):
    batch = {b"batch_label": b"batch", b"labels": [int(v) for v in labels], b"data": pixels, b"filenames": [b"a.png"]}
    content = pickle.dumps(batch, protocol=2)
    if numpy_module:
        for module in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
            content = content.replace(b"c" + module + b"\n", b"c" + numpy_module + b"\n")
    return content


def python2_pickle(pixels, labels):
    """The opcodes that Python 2 wrote into the published files: byte strings, and the old name of NumPy's module."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    raw = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85" + short(b"b") + b"tR"
        b"(K\1K" + bytes([len(pixels)]) + b"M\0\x0c\x86"
        b"cnumpy\ndtype\n("
        + short(b"u1")
        + b"K\0K\1tR(K\3"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
        b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )
    items = short(b"data") + array + short(b"labels") + b"](" + b"".join(b"K" + bytes([v]) for v in labels) + b"e"
    items += (
        short(b"batch_label") + short(b"training batch 1 of 5") + short(b"filenames") + b"](" + short(b"a.png") + b"e"
    )
    return b"\x80\2}(" + items + b"u."


def python_files(arrays, write=python3_pickle):
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    return {name: write(pixels, labels) for name, (pixels, labels) in zip(names, arrays, strict=True)}


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_archive(path, folder, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"readme.html": b"hello", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def check_cifar(data_dir, arrays):
    for split, wanted in (("train", arrays[:5]), ("test", arrays[5:])):
        dataset = data.load("cifar10", split, data_dir)
        assert dataset.shape == (3, 32, 32)
        assert dataset.labels.dtype == np.int64
        assert dataset.classes[:2] == ("airplane", "automobile")
        np.testing.assert_array_equal(dataset.labels, np.concatenate([labels for _, labels in wanted]))
        pixels = np.concatenate([pixels for pixels, _ in wanted])
        # The format's words: 1,024 red bytes in rows of 32, then green, then blue.
        for channel, row, column in ((0, 0, 0), (1, 2, 3), (2, 31, 31)):
            at = 1024 * channel + 32 * row + column
            np.testing.assert_array_equal(dataset.images[:, channel, row, column], pixels[:, at])
        np.testing.assert_array_equal(dataset.images.reshape(len(pixels), 3072), pixels)


@pytest.mark.parametrize("form", ["binary", "python3", "python2"])
@pytest.mark.parametrize("where", ["folder", "folder itself", "archive", "archive itself"])
def test_cifar_in_every_published_form(tmp_path, form, where):
    arrays = cifar_arrays()
    folder, archive = {
        "binary": ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
        "python3": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
        "python2": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    }[form]
    files = {
        "binary": lambda: binary_files(arrays),
        "python3": lambda: python_files(arrays),
        "python2": lambda: python_files(arrays, python2_pickle),
    }[form]()
    if "folder" in where:
        write_folder(tmp_path / folder, files)
    else:
        write_archive(tmp_path / archive, folder, files)
    check_cifar({"folder itself": tmp_path / folder, "archive itself": tmp_path / archive}.get(where, tmp_path), arrays)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_cifar_pickle_by_old_and_new_numpy(module):
    pixels, labels = cifar_arrays()[0]
    content = python3_pickle(pixels, labels, module)
    assert b"c" + module + b"\n_reconstruct" in content
    images, read = cifar.parse_python(content, "batch")
    np.testing.assert_array_equal(images.reshape(4, 3072), pixels)
    np.testing.assert_array_equal(read, labels)


def test_cifar_pickle_of_a_fortran_array():
    pixels, labels = cifar_arrays()[0]
    images, _ = cifar.parse_python(python3_pickle(np.asfortranarray(pixels), labels), "batch")
    np.testing.assert_array_equal(images.reshape(4, 3072), pixels)


def test_cifar_prefers_the_binary_version(tmp_path):
    arrays = cifar_arrays()
    write_folder(tmp_path / "cifar-10-batches-bin", binary_files(arrays))
    write_folder(tmp_path / "cifar-10-batches-py", python_files(cifar_arrays(n=7)))
    check_cifar(tmp_path, arrays)


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_cifar_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    witness = tmp_path / "pwned"
    content = pickle.dumps({"data": Malicious(os.system, f"touch {witness}"), "labels": []}, protocol=protocol)
    with pytest.raises(ValueError, match=r"batch: expected a pickled CIFAR batch.*asks for (posix|nt)\.system, which"):
        cifar.parse_python(content, "batch")
    assert not witness.exists()
    pickle.loads(content)  # the pickle is really dangerous: without the restriction it runs
    assert witness.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Malicious(eval, "1"), r"asks for (builtins|__builtin__)\.eval"),
        (Malicious(getattr, "", "join"), r"asks for (builtins|__builtin__)\.getattr"),
        (np.array(["x", None], dtype=object), r"arrays must be uint8 \('u1'\), got 'O8'"),
        (np.zeros(3), r"arrays must be uint8 \('u1'\), got 'f8'"),
        (Path("x"), "asks for pathlib"),
    ],
)
def test_cifar_pickle_of_anything_else_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        cifar.parse_python(pickle.dumps({"data": value, "labels": []}, protocol=2), "batch")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\2c_codecs\nencode\n(X\1\0\0\0xX\5\0\0\0utf-8tR.", "bytes must be written as latin1, got 'utf-8'"),
        (b"\x80\2c_codecs\nencode\n}b.", "missing 1 required positional argument"),
        (b"\x80\2cnumpy\nndarray\n}b.", "missing 1 required positional argument"),
        (
            python2_pickle(*cifar_arrays()[0]).replace(b"(K\1K\4", b"(K\1K\5"),
            r"shape \(5, 3072\) cannot hold 12288 bytes",
        ),
        (python2_pickle(*cifar_arrays()[0])[:-100], "expected a pickled CIFAR batch, but it was refused"),
        (b"not a pickle", "expected a pickled CIFAR batch, but it was refused"),
        (b"", "expected a pickled CIFAR batch, but it was refused"),
        (pickle.dumps([1, 2]), "expected a pickled dict, got list"),
        (pickle.dumps({3: 4}), "expected text as the keys of the pickled dict, got 3"),
        (pickle.dumps({"data": 1}), r"expected the keys 'data' and 'labels', missing \['labels'\]"),
        (pickle.dumps({"data": 1, "labels": []}), r"expected 'data' to be a uint8 array \(N, 3072\), got int"),
        (
            python3_pickle(random_bytes(2, 100), [1, 2]),
            r"expected 'data' to be a uint8 array \(N, 3072\), got \(2, 100\)",
        ),
        (python3_pickle(random_bytes(2, 3072), [1]), "expected 2 labels, one per image, got 1"),
        (python3_pickle(random_bytes(1, 3072), [10]), "expected 'labels' to be a list of integers from 0 to 9"),
        (python3_pickle(random_bytes(1, 3072), [-1]), "expected 'labels' to be a list of integers from 0 to 9"),
    ],
    ids=name_by_message,
)
def test_cifar_bad_pickle(content, message):
    with pytest.raises(ValueError, match=message) as caught:
        cifar.parse_python(content, "batch")
    assert str(caught.value).startswith("batch: expected")


def test_cifar_bad_binary():
    with pytest.raises(
        ValueError, match="batch: expected whole records of 3073 bytes, got 3072 bytes: it is truncated"
    ):
        cifar.parse_binary(bytes(3072), "batch")
    with pytest.raises(ValueError, match="batch: expected whole records of 3073 bytes, got 0 bytes"):
        cifar.parse_binary(b"", "batch")
    with pytest.raises(ValueError, match="batch: expected labels from 0 to 9, got 11"):
        cifar.parse_binary(b"\x0b" + bytes(3072), "batch")


def test_cifar_batch_cut_between_records(tmp_path):
    files = binary_files(cifar_arrays())
    files["data_batch_3.bin"] = files["data_batch_3.bin"][:-3073]
    write_folder(tmp_path / "cifar-10-batches-bin", files)
    with pytest.raises(ValueError, match=r"data_batch_3.bin: expected 4 images as in data_batch_1.bin, got 3"):
        data.load("cifar10", "train", tmp_path)


def test_cifar_missing_file(tmp_path):
    files = binary_files(cifar_arrays())
    del files["data_batch_4.bin"]
    write_folder(tmp_path / "cifar-10-batches-bin", files)
    with pytest.raises(FileNotFoundError, match=r"expected the file data_batch_4\.bin, which is missing"):
        data.load("cifar10", "train", tmp_path)
    write_archive(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files)
    with pytest.raises(
        ValueError, match=r"expected the files cifar-10-batches-bin/data_batch_4.bin, which are missing"
    ):
        data.load("cifar10", "train", tmp_path / "cifar-10-binary.tar.gz")


def test_cifar_bad_archive(tmp_path, monkeypatch):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(path, "cifar-10-batches-bin", binary_files(cifar_arrays()))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # random pixels are stored, not compressed: only the checksum can tell
    bad = [whole[:5], whole[: len(whole) // 2], whole[:-4], whole[:-8] + bytes(8), bytes(flipped), b"nonsense" * 100]
    bad += [gzip.compress(b"nonsense" * 100)]
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"binary.tar.gz: expected a whole .tar.gz archive, but it is truncated or"
        ):
            data.load("cifar10", "test", tmp_path)
    path.write_bytes(whole)
    monkeypatch.setattr(cifar, "_MAX_BYTES", 3073)
    with pytest.raises(ValueError, match=r"test_batch\.bin to be at most 3073 bytes, got 12292"):
        data.load("cifar10", "test", tmp_path)


def test_cifar_archive_links_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3073))
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        member.type, member.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(member)
    with pytest.raises(ValueError, match=r"expected the files cifar-10-batches-bin/test_batch\.bin, which are missing"):
        data.load("cifar10", "test", tmp_path)


# --- CIFAR-100 ---------------------------------------------------------------------------------------------------


def cifar100_arrays(n=6):
    """Train and test: pixels (n, 3072), coarse labels and fine ones, the largest among them."""
    fine = np.array([0, 99, 42, 7, 13, 50])
    coarse = np.array([19, 0, 5, 11, 2, 7])
    return [(random_bytes(n, 3072, seed=i), np.roll(coarse, i), np.roll(fine, i)) for i in range(2)]


def cifar100_files(arrays, form):
    if form == "binary":  # the format's words: <1 x coarse label><1 x fine label><3072 x pixel>
        return {
            name: b"".join(bytes([c, f]) + row.tobytes() for row, c, f in zip(*split, strict=True))
            for name, split in zip(("train.bin", "test.bin"), arrays, strict=True)
        }
    return {
        name: pickle.dumps(
            {
                b"data": pixels,
                b"coarse_labels": coarse.tolist(),
                b"fine_labels": fine.tolist(),
                b"filenames": [b"a.png"],
                b"batch_label": b"training batch 1 of 1",
            },
            protocol=2,
        )
        for name, (pixels, coarse, fine) in zip(("train", "test"), arrays, strict=True)
    }


@pytest.mark.parametrize("form", ["binary", "python"])
@pytest.mark.parametrize("where", ["folder", "folder itself", "archive", "archive itself"])
def test_cifar100_in_every_published_form(tmp_path, form, where):
    arrays = cifar100_arrays()
    folder, archive = f"cifar-100-{form}", f"cifar-100-{form}.tar.gz"
    files = cifar100_files(arrays, form)
    if "folder" in where:
        write_folder(tmp_path / folder, files)
    else:
        write_archive(tmp_path / archive, folder, files)
    place = {"folder itself": tmp_path / folder, "archive itself": tmp_path / archive}.get(where, tmp_path)
    for split, (pixels, coarse, fine) in zip(("train", "test"), arrays, strict=True):
        for name, labels in (("cifar100", fine), ("cifar100-coarse", coarse)):
            dataset = data.load(name, split, place)
            np.testing.assert_array_equal(dataset.labels, labels)
            np.testing.assert_array_equal(dataset.images.reshape(-1, 3072), pixels)
            assert dataset.labels.dtype == np.int64
            assert dataset.shape == (3, 32, 32)
            assert len(dataset.classes) == {"cifar100": 100, "cifar100-coarse": 20}[name]


def test_cifar100_classes_are_the_published_ones():
    # Alphabetical, as the published label files have them; some places known from papers and other libraries.
    for names in (CIFAR100_FINE, CIFAR100_COARSE):
        assert list(names) == sorted(names)
        assert len(set(names)) == len(names)
    fine = {0: "apple", 8: "bicycle", 23: "cloud", 42: "leopard", 50: "mouse", 71: "sea", 88: "tiger", 99: "worm"}
    coarse = {0: "aquatic_mammals", 4: "fruit_and_vegetables", 14: "people", 17: "trees", 19: "vehicles_2"}
    assert {i: CIFAR100_FINE[i] for i in fine} == fine
    assert {i: CIFAR100_COARSE[i] for i in coarse} == coarse


def test_cifar100_is_looked_for_under_one_name(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVKERN_DATA", str(tmp_path))
    write_folder(tmp_path / "cifar100" / "cifar-100-binary", cifar100_files(cifar100_arrays(), "binary"))
    assert len(data.load("cifar100-coarse", "test")) == 6
    with pytest.raises(FileNotFoundError, match=r"cifar100-coarse \(test\) was not found in .*cifar-100-binary.tar.gz"):
        data.load("cifar100-coarse", "test", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"cifar10 \(test\) was not found"):
        data.load("cifar10", "test", tmp_path / "cifar100")


def test_cifar100_bad_files():
    with pytest.raises(ValueError, match="train: expected whole records of 3074 bytes, got 3073 bytes"):
        cifar.parse_binary(bytes(3073), "train", cifar.FINE)
    record = bytes([20, 100]) + bytes(3072)
    for kind, classes in ((cifar.FINE, 100), (cifar.COARSE, 20)):
        with pytest.raises(ValueError, match=f"train: expected labels from 0 to {classes - 1}, got {classes}"):
            cifar.parse_binary(record, "train", kind)
    batch = {"data": random_bytes(1, 3072), "fine_labels": [100], "coarse_labels": [0]}
    with pytest.raises(ValueError, match="expected 'fine_labels' to be a list of integers from 0 to 99"):
        cifar.parse_python(pickle.dumps(batch, protocol=2), "train", cifar.FINE)
    with pytest.raises(ValueError, match=r"expected the keys 'data' and 'coarse_labels', missing \['coarse_labels'\]"):
        cifar.parse_python(python3_pickle(random_bytes(1, 3072), [1]), "train", cifar.COARSE)
