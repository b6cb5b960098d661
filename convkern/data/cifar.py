"""CIFAR-10 in its two published forms, the binary and the python version, each as a folder or as its .tar.gz."""

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
CLASSES = 10
_PIXELS = 3 * 32 * 32
#: No published file is half as large; keeps an archive made to fill the memory from doing so.
_MAX_BYTES = 64 << 20

Batch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def parse_binary(content: bytes, source: str) -> Batch:
    """Read one file of the binary version: records of a label byte and 3,072 pixel bytes.

    Parameters
    ----------
    content : bytes
        The file.
    source : str
        Name for error messages.

    Returns
    -------
    images : numpy.ndarray
        uint8, (N, 3, 32, 32).
    labels : numpy.ndarray
        int64, (N,).

    Raises
    ------
    ValueError
        If the length is not a whole number of records or a label is above 9.
    """
    record = 1 + _PIXELS
    if not content or len(content) % record:
        raise ValueError(
            f"{source}: expected whole records of {record} bytes, got {len(content)} bytes: it is truncated"
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    return _checked(rows[:, 1:], rows[:, 0].astype(np.int64), source)


def parse_python(content: bytes, source: str) -> Batch:
    """Read one file of the python version: a pickled dict with ``data`` (N, 3072) and ``labels``.

    Parameters and results are those of `parse_binary`.

    Raises
    ------
    ValueError
        If the pickle is corrupt, asks for anything that the format does not need, or holds other arrays or labels.
    """
    batch = read_batch(content, source)
    missing = [key for key in ("data", "labels") if key not in batch]
    if missing:
        raise ValueError(f"{source}: expected the keys 'data' and 'labels', missing {missing}")
    data, labels = batch["data"], batch["labels"]
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS:
        got = data.shape if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{source}: expected 'data' to be a uint8 array (N, {_PIXELS}), got {got}")
    if type(labels) is not list or not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise ValueError(f"{source}: expected 'labels' to be a list of integers from 0 to {CLASSES - 1}")
    if len(labels) != len(data):
        raise ValueError(f"{source}: expected {len(data)} labels, one per image, got {len(labels)}")
    return _checked(data, np.array(labels, dtype=np.int64), source)


def _checked(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], source: str) -> Batch:
    if len(labels) and labels.max() >= CLASSES:
        raise ValueError(f"{source}: expected labels from 0 to {CLASSES - 1}, got {labels.max()}")
    return pixels.reshape(-1, *SHAPE), labels


class Form(NamedTuple):
    """One published form: its names on disk and how to read a file."""

    folder: str
    archive: str
    suffix: str
    parse: Callable[[bytes, str], Batch]

    def files(self, split: str) -> list[str]:
        """Return the names of the files of a split."""
        if split == "train":
            return [f"data_batch_{i}{self.suffix}" for i in range(1, 6)]
        return [f"test_batch{self.suffix}"]


#: In order of preference: the binary version needs no pickle.
FORMS = (
    Form("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin", parse_binary),
    Form("cifar-10-batches-py", "cifar-10-python.tar.gz", "", parse_python),
)


def find(place: str | os.PathLike[str]) -> tuple[Form, Path] | None:
    """Look for CIFAR-10 in one place.

    Parameters
    ----------
    place : str or path
        A folder that holds the published folder or archive, that folder itself, or the archive itself.

    Returns
    -------
    tuple of Form and pathlib.Path, or None
        What was found, the binary version first, and where: the folder with the batches or the archive.
    """
    place = Path(place)
    for form in FORMS:
        if place.is_file():
            if place.name == form.archive:
                return form, place
            continue
        if (place / form.folder).is_dir():
            return form, place / form.folder
        if (place / form.archive).is_file():
            return form, place / form.archive
        if any((place / name).is_file() for name in form.files("train") + form.files("test")):
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


def read_cifar10(form: Form, path: str | os.PathLike[str], split: str) -> Batch:
    """Read a split of CIFAR-10.

    Parameters
    ----------
    form : Form
        Which published form; with `path`, what `find` returns.
    path : str or path
        The folder with the batches, or the archive.
    split : str
        "train" (five files, concatenated) or "test".

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
    batches = [form.parse(content, str(path / name)) for name, content in zip(names, contents, strict=True)]
    for name, (_, labels) in zip(names, batches, strict=True):
        # The published files are equally long, and a binary one cut between two records shows no other sign.
        if len(labels) != len(batches[0][1]):
            raise ValueError(f"{path / name}: expected {len(batches[0][1])} images as in {names[0]}, got {len(labels)}")
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])
