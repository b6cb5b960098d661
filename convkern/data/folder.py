"""Folders of picture files, one subfolder a class, decoded when they are asked for."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..files import require
from .datasets import ImageSource
from .pictures import as_array, open_picture
from .transforms.base import as_size

#: The suffixes that torchvision's ImageFolder takes for pictures.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class ImageFolder(ImageSource):
    """Pictures in the subfolders of a folder, each subfolder a class; ``torchvision.datasets.ImageFolder``.

    Classes are the subfolders in the order of their names, pictures the files below them, at any depth, in the order of
    folders and names. A picture is decoded when it is asked for and each time anew; its middle, as large as the aspect
    ratio allows, is scaled to `size` (torchvision's Resize and CenterCrop in one, with antialiasing).

    Parameters
    ----------
    root : str or path
    size : int or (int, int)
        Height and width of the images, from pictures of any size.
    channels : int
        3 (red, green and blue, also from grey and palette pictures) or 1 (grey). Transparent parts lie on white.

    Attributes
    ----------
    paths : list of pathlib.Path
        The files.
    labels : numpy.ndarray
        int64, (N,): the position of each picture's class in `classes`.
    classes : tuple of str
        The subfolders' names.
    shape : (int, int, int)
        Of every image, (C, H, W).

    Raises
    ------
    FileNotFoundError
        If `root` is no folder, holds no subfolder, or a subfolder no picture.
    TypeError, ValueError
        If `size` or `channels` is none of these.
    """

    def __init__(self, root: str | os.PathLike[str], size: int | Sequence[int], channels: int = 3) -> None:
        require("PIL")
        self.root = Path(root)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels!r}")
        self.shape = (channels, *as_size("size", size))
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: expected a folder with one subfolder a class, there is none")
        self.classes = tuple(sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir()))
        if not self.classes:
            raise FileNotFoundError(f"{self.root}: expected one subfolder a class, it has no subfolder")
        found = [_pictures(self.root / name) for name in self.classes]
        empty = [name for name, paths in zip(self.classes, found, strict=True) if not paths]
        if empty:
            raise FileNotFoundError(
                f"{self.root}: expected pictures ({', '.join(SUFFIXES)}) in every subfolder, none in {', '.join(empty)}"
            )
        self.paths = [path for paths in found for path in paths]
        self.labels = np.repeat(np.arange(len(found), dtype=np.int64), [len(paths) for paths in found])

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Decode some of the pictures.

        Parameters
        ----------
        indices : numpy.ndarray
            int64, (B,).

        Returns
        -------
        numpy.ndarray
            uint8, (B, C, H, W).

        Raises
        ------
        ValueError
            If a file is missing or damaged; the message names it.
        """
        out = np.empty((len(indices), *self.shape), np.uint8)
        for image, index in zip(out, indices.tolist(), strict=True):
            image[...] = read_scaled(self.paths[index], self.shape)
        return out

    def checksum(self, crc: int = 0) -> int:
        """Checksum of names, sizes in bytes and labels of all files, without decoding any; see `Dataset.checksum`."""
        for path, label in zip(self.paths, self.labels.tolist(), strict=True):
            name = path.relative_to(self.root).as_posix()
            crc = zlib.crc32(f"{name}\0{path.stat().st_size}\0{label}\n".encode(errors="surrogateescape"), crc)
        return crc


def read_scaled(path: str | os.PathLike[str], shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Read a picture file and scale its middle, as large as the aspect ratio allows, to a shape (C, H, W).

    Parameters
    ----------
    path : str or path
    shape : (int, int, int)
        Channels (1 or 3), height and width.

    Returns
    -------
    numpy.ndarray
        uint8, `shape`.

    Raises
    ------
    ValueError
        As `open_picture`.
    """
    image = open_picture(path, shape[0])
    from PIL import Image, ImageOps

    _, height, width = shape
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
    return as_array(image)


def _pictures(folder: Path) -> list[Path]:
    """The picture files below a folder, in the order of folders and names."""
    found = sorted((place, sorted(names)) for place, _, names in os.walk(folder, followlinks=True))
    return [Path(place, name) for place, names in found for name in names if name.lower().endswith(SUFFIXES)]
