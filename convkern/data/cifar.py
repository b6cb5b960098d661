"""CIFAR-10 and CIFAR-100 in their published forms, the binary and the python version, each as a folder or as its .tar.gz."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .unpickle import read_batch

SHAPE = (3, 32, 32)  # (C, H, W): planes red, green, blue
_PIXELS = 3 * 32 * 32
#: No published file is half as large; keeps an archive made to fill the memory from doing so.
_MAX_BYTES = 320 << 20

Batch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


class Labels(NamedTuple):
    """One published kind of label.

    Parameters
    ----------
    classes : int
    before : int
        Label bytes before the pixels of a record of the binary version.
    place : int
        Which of them it is.
    key : str
        Its name in the dict of the python version.
    """

    classes: int
    before: int
    place: int
    key: str


CIFAR10 = Labels(10, 1, 0, "labels")
FINE = Labels(100, 2, 1, "fine_labels")
COARSE = Labels(20, 2, 0, "coarse_labels")


def parse_binary(content: bytes, source: str, kind: Labels = CIFAR10) -> Batch:
    """Read one file of the binary version: records of one label byte or two and 3,072 pixel bytes.

    Parameters
    ----------
    content : bytes
        The file.
    source : str
        Name for error messages.
    kind : Labels
        Which labels to read.

    Returns
    -------
    images : numpy.ndarray
        uint8, (N, 3, 32, 32).
    labels : numpy.ndarray
        int64, (N,).

    Raises
    ------
    ValueError
        If the length is not a whole number of records or a label has no class.
    """
    record = kind.before + _PIXELS
    if not content or len(content) % record:
        raise ValueError(
            f"{source}: expected whole records of {record} bytes, got {len(content)} bytes: it is truncated"
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    return _checked(rows[:, kind.before :], rows[:, kind.place].astype(np.int64), source, kind)


def parse_python(content: bytes, source: str, kind: Labels = CIFAR10) -> Batch:
    """Read one file of the python version: a pickled dict with ``data`` (N, 3072) and lists of labels.

    Parameters and results are those of `parse_binary`.

    Raises
    ------
    ValueError
        If the pickle is corrupt, asks for anything that the format does not need, or holds other arrays or labels.
    """
    batch = read_batch(content, source)
    missing = [key for key in ("data", kind.key) if key not in batch]
    if missing:
        raise ValueError(f"{source}: expected the keys 'data' and {kind.key!r}, missing {missing}")
    data, labels = batch["data"], batch[kind.key]
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS:
        got = data.shape if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{source}: expected 'data' to be a uint8 array (N, {_PIXELS}), got {got}")
    if type(labels) is not list or not all(type(label) is int and 0 <= label < kind.classes for label in labels):
        raise ValueError(f"{source}: expected {kind.key!r} to be a list of integers from 0 to {kind.classes - 1}")
    if len(labels) != len(data):
        raise ValueError(f"{source}: expected {len(data)} labels, one per image, got {len(labels)}")
    return _checked(data, np.array(labels, dtype=np.int64), source, kind)


def _checked(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], source: str, kind: Labels) -> Batch:
    if len(labels) and labels.max() >= kind.classes:
        raise ValueError(f"{source}: expected labels from 0 to {kind.classes - 1}, got {labels.max()}")
    return pixels.reshape(-1, *SHAPE), labels


class Form(NamedTuple):
    """One published form: its names on disk and how to read a file."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    parse: Callable[[bytes, str, Labels], Batch]

    def files(self, split: str) -> tuple[str, ...]:
        """Return the names of the files of a split."""
        return self.train if split == "train" else self.test


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
#: By dataset, in order of preference: the binary version needs no pickle.
FORMS = {
    "cifar10": (
        Form(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            tuple(f"{name}.bin" for name in _BATCHES),
            ("test_batch.bin",),
            parse_binary,
        ),
        Form("cifar-10-batches-py", "cifar-10-python.tar.gz", _BATCHES, ("test_batch",), parse_python),
    ),
    "cifar100": (
        Form("cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin",), ("test.bin",), parse_binary),
        Form("cifar-100-python", "cifar-100-python.tar.gz", ("train",), ("test",), parse_python),
    ),
}


def find(place: str | os.PathLike[str], name: str = "cifar10") -> tuple[Form, Path] | None:
    """Look for CIFAR-10 or CIFAR-100 in one place.

    Parameters
    ----------
    place : str or path
        A folder that holds the published folder or archive, that folder itself, or the archive itself.
    name : str
        "cifar10" or "cifar100".

    Returns
    -------
    tuple of Form and pathlib.Path, or None
        What was found, the binary version first, and where: the folder with the batches or the archive.
    """
    place = Path(place)
    for form in FORMS[name]:
        if place.is_file():
            if place.name == form.archive:
                return form, place
            continue
        if (place / form.folder).is_dir():
            return form, place / form.folder
        if (place / form.archive).is_file():
            return form, place / form.archive
        if any((place / file).is_file() for file in form.train + form.test):
            return form, place
    return None


def _read_folder(folder: Path, names: Sequence[str]) -> list[bytes]:
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: expected the file {name}, which is missing")
    return [(folder / name).read_bytes() for name in names]


def _read_archive(archive: Path, names: Sequence[str]) -> list[bytes]:
    """Read files from a .tar.gz in memory; nothing is written to disk."""
    found: dict[str, bytes] = {}
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if member.name not in names or not member.isfile():
                    continue
                if member.size > _MAX_BYTES:
                    raise ValueError(
                        f"{archive}: expected {member.name} to be at most {_MAX_BYTES} bytes, got {member.size}"
                    )
                file = tar.extractfile(member)
                assert file is not None  # isfile() said so
                found[member.name] = file.read()
            while stream.read(1 << 20):  # gzip compares its checksum only at its end, which tar need not reach
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{archive}: expected a whole .tar.gz archive, but it is truncated or corrupt ({error})"
        ) from error
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{archive}: expected the files {', '.join(missing)}, which are missing")
    return [found[name] for name in names]


def read_cifar(form: Form, path: str | os.PathLike[str], split: str, kind: Labels = CIFAR10) -> Batch:
    """Read a split of CIFAR-10 or CIFAR-100.

    Parameters
    ----------
    form : Form
        Which published form; with `path`, what `find` returns.
    path : str or path
        The folder with the batches, or the archive.
    split : str
        "train" (of CIFAR-10 five files, concatenated) or "test".
    kind : Labels
        Which labels to read.

    Returns
    -------
    images : numpy.ndarray
        uint8, (N, 3, 32, 32), channels red, green, blue.
    labels : numpy.ndarray
        int64, (N,).

    Raises
    ------
    ValueError
        If a file is corrupt, truncated, missing from the archive, or holds what the format does not allow.
    FileNotFoundError
        If a file is missing from the folder.
    """
    path = Path(path)
    names = form.files(split)
    if path.is_file():
        contents = _read_archive(path, [f"{form.folder}/{name}" for name in names])
    else:
        contents = _read_folder(path, names)
    batches = [form.parse(content, str(path / name), kind) for name, content in zip(names, contents, strict=True)]
    for name, (_, labels) in zip(names, batches, strict=True):
        # The published files are equally long, and a binary one cut between two records shows no other sign.
        if len(labels) != len(batches[0][1]):
            raise ValueError(f"{path / name}: expected {len(batches[0][1])} images as in {names[0]}, got {len(labels)}")
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])
