"""The idx format of MNIST and Fashion-MNIST, plain or compressed with gzip.

A file is two zero bytes, one byte for the element type, one for the number of axes, each axis as a big-endian
32-bit integer, then the elements in C order.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

UINT8 = 0x08
_TYPE_NAMES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20


def _read_up_to(file: IO[bytes], size: int) -> bytearray:
    # In pieces: a corrupt header may promise far more bytes than there are, and read(n) would reserve them all.
    data = bytearray()
    while len(data) < size:
        piece = file.read(min(_CHUNK, size - len(data)))
        if not piece:
            break
        data += piece
    return data


def _read_header(file: IO[bytes], path: Path, ndim: int) -> tuple[int, ...]:
    """Check the first bytes of an idx file and return its shape."""
    magic = _read_up_to(file, 4)
    if len(magic) < 4:
        raise ValueError(f"{path}: expected an idx file, which begins with 4 bytes of magic, got {len(magic)} bytes")
    if magic[:2] != b"\0\0" or magic[2] not in _TYPE_NAMES:
        raise ValueError(f"{path}: expected the idx magic 0x000008{ndim:02x}, got 0x{magic.hex()}: not an idx file")
    if magic[2] != UINT8:
        raise ValueError(
            f"{path}: expected elements of type uint8 (0x08), got {_TYPE_NAMES[magic[2]]} (0x{magic[2]:02x})"
        )
    if magic[3] != ndim:
        raise ValueError(f"{path}: expected {ndim} axes, got {magic[3]}")
    sizes = _read_up_to(file, 4 * ndim)
    if len(sizes) < 4 * ndim:
        raise ValueError(
            f"{path}: expected a header of {4 + 4 * ndim} bytes, got {4 + len(sizes)}: the file is truncated"
        )
    return struct.unpack(f">{ndim}I", sizes)


def read_idx(path: str | os.PathLike[str], ndim: int) -> npt.NDArray[np.uint8]:
    """Read an idx file of bytes, plain or gzip, told apart by its content.

    Parameters
    ----------
    path : str or path
        The file.
    ndim : int
        Number of axes that it must have: 3 for images, 1 for labels.

    Returns
    -------
    numpy.ndarray
        uint8, in the shape that the header gives.

    Raises
    ------
    ValueError
        If the file is not idx, holds another element type or number of axes, is truncated or corrupt, or goes on
        after the last element. The message names the file and what was expected.
    OSError
        If the file cannot be opened.
    """
    path = Path(path)
    with open(path, "rb") as raw:
        compressed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if compressed else raw  # type: ignore[assignment]
        try:
            shape = _read_header(file, path, ndim)
            size = math.prod(shape)
            data = _read_up_to(file, size)
            trailing = file.read(1)  # at its end gzip also compares its checksum
        except EOFError:
            raise ValueError(
                f"{path}: expected a whole gzip stream, but it ends early: the file is truncated"
            ) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: expected a whole gzip stream, but it is corrupt ({error})") from None
    if len(data) < size:
        raise ValueError(
            f"{path}: expected {size} bytes of data for shape {shape}, got {len(data)}: the file is truncated"
        )
    if trailing:
        raise ValueError(f"{path}: expected {size} bytes of data for shape {shape}, but more bytes follow")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def write_idx(path: str | os.PathLike[str], array: npt.NDArray[np.uint8]) -> None:
    """Write an array of bytes as an idx file; with gzip where the name ends in ``.gz``.

    The same array always gives the same bytes: gzip stores neither name nor time. The file appears whole or not at all.

    Parameters
    ----------
    path : str or path
        The file; one that exists is replaced.
    array : numpy.ndarray
        uint8, 1 to 255 axes.

    Raises
    ------
    TypeError
        If `array` is not a uint8 array.
    ValueError
        If `array` has no axes.
    """
    path = Path(path)
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        raise TypeError(f"array must be a uint8 array, got {getattr(array, 'dtype', type(array).__name__)}")
    if array.ndim == 0:
        raise ValueError("array must have at least 1 axis, got 0")
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, UINT8, array.ndim, *array.shape) + array.tobytes()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as file:
                    file.write(content)
            else:
                raw.write(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_labelled_images(
    images_path: str | os.PathLike[str], labels_path: str | os.PathLike[str]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Read a file of grey images and the file of their labels.

    Parameters
    ----------
    images_path, labels_path : str or path
        idx files with 3 axes and with 1.

    Returns
    -------
    images : numpy.ndarray
        uint8, (N, 1, H, W).
    labels : numpy.ndarray
        int64, (N,).

    Raises
    ------
    ValueError
        As `read_idx`, and if the two files differ in length.
    OSError
        If a file cannot be opened.
    """
    images = read_idx(images_path, 3)  # (N, H, W)
    labels = read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path}: expected {len(images)} labels, one per image of {images_path}, got {len(labels)}"
        )
    return images[:, None], labels.astype(np.int64)
