"""Labelled image sets: the type, and where the named ones are found."""

from __future__ import annotations

import math
import os
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from . import cifar
from .idx import read_labelled_images
from .names import CIFAR100_COARSE, CIFAR100_FINE

NAMES = ("sample", "fashion-mnist", "mnist", "cifar10", "cifar100", "cifar100-coarse", "folder")
SPLITS = ("train", "test")

_SAMPLE = Path(__file__).parent / "sample"
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CLASSES = {
    "sample": _FASHION,
    "fashion-mnist": _FASHION,
    "mnist": tuple("0123456789"),
    "cifar10": _CIFAR10,
    "cifar100": CIFAR100_FINE,
    "cifar100-coarse": CIFAR100_COARSE,
}
_CIFAR_LABELS = {"cifar10": cifar.CIFAR10, "cifar100": cifar.FINE, "cifar100-coarse": cifar.COARSE}
#: The folders of the test pictures of "folder", the first that there is.
_TEST_FOLDERS = ("test", "val")
IMAGE_SIZE = 224
_STATS_BYTES = 4 << 20  # pixels looked at together
_IDX_PREFIX = {"train": "train", "test": "t10k"}
_IDX_FILES = "train- and t10k-images-idx3-ubyte.gz, train- and t10k-labels-idx1-ubyte.gz"
_HOW_TO_GET = {
    "fashion-mnist": "install Debian's package dataset-fashion-mnist, or put the four files of "
    f"https://github.com/zalandoresearch/fashion-mnist ({_IDX_FILES})",
    "mnist": f"put the four files of MNIST ({_IDX_FILES})",
    "cifar10": "put cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "put cifar-100-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
}
_HOW_TO_GET["cifar100-coarse"] = _HOW_TO_GET["cifar100"]  # the same files hold both kinds of labels


class ImageSource(ABC):
    """Labelled images of one shape, wherever they are: what `DataLoader` reads.

    Attributes
    ----------
    labels : numpy.ndarray
        int64, (N,), each the position of a name in `classes`.
    classes : tuple of str
        The names of the classes.
    shape : (int, int, int)
        Of one image, (C, H, W).
    """

    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    shape: tuple[int, int, int]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def pixels(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return the images at some positions, uint8 (B, C, H, W), the caller's to keep; threads may call at once."""

    @abstractmethod
    def checksum(self, crc: int = 0) -> int:
        """Return a checksum that tells other images or labels, going on from that of others."""


@dataclass(frozen=True, eq=False)
class Dataset(ImageSource):
    """Labelled images, held in memory as bytes.

    Parameters
    ----------
    images : numpy.ndarray
        uint8, (N, C, H, W), 0 is black.
    labels : numpy.ndarray
        int64, (N,), each the position of a name in `classes`.
    classes : tuple of str
        The names of the classes.

    Raises
    ------
    TypeError
        If an array has another element type, or `classes` is not a tuple of str.
    ValueError
        If a shape is wrong, the lengths differ, or a label has no class.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, array, dtype in (("images", self.images, np.uint8), ("labels", self.labels, np.int64)):
            if not isinstance(array, np.ndarray) or array.dtype != dtype:
                got = getattr(array, "dtype", type(array).__name__)
                raise TypeError(f"{name} must be a NumPy array of {np.dtype(dtype)}, got {got}")
        if not isinstance(self.classes, tuple) or not all(isinstance(c, str) for c in self.classes):
            raise TypeError(f"classes must be a tuple of str, got {self.classes!r}")
        if self.images.ndim != 4 or 0 in self.images.shape[1:]:
            raise ValueError(f"images must have shape (N, C, H, W) with C, H, W of at least 1, got {self.images.shape}")
        if self.labels.shape != self.images.shape[:1]:
            expected = self.images.shape[:1]
            raise ValueError(f"labels must have shape {expected}, one per image, got {self.labels.shape}")
        if len(self) and not (self.labels.min() >= 0 and self.labels.max() < len(self.classes)):
            got = f"{self.labels.min()} to {self.labels.max()}"
            raise ValueError(
                f"labels must be 0 to {len(self.classes) - 1}, one of {len(self.classes)} classes, got {got}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]  # read-only here
        """Shape of one image, (C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def pixels(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return a copy of the images at some positions, uint8 (B, C, H, W)."""
        return self.images[indices]

    def checksum(self, crc: int = 0) -> int:
        """Return the CRC-32 of all bytes of images and labels, going on from that of others."""
        for array in (self.images, self.labels):
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return crc

    def subset(self, indices: npt.ArrayLike | slice) -> Dataset:
        """Return the dataset of some of the images.

        Parameters
        ----------
        indices : slice or array_like of int or bool
            Which images, as NumPy indexes the first axis.

        Returns
        -------
        Dataset
            Of the images chosen, in the order of `indices`; shares memory for a slice.

        Raises
        ------
        TypeError
            If `indices` is neither a slice nor 1-dimensional integers or booleans.
        IndexError
            If an index is out of range.
        """
        if not isinstance(indices, slice):
            indices = np.asarray(indices)
            if indices.size == 0:
                indices = indices.astype(np.intp)  # an empty list arrives as float64
            if indices.ndim != 1 or indices.dtype.kind not in "iub":
                got = f"{indices.dtype} of shape {indices.shape}"
                raise TypeError(f"indices must be a slice or 1-dimensional integers or booleans, got {got}")
        return Dataset(self.images[indices], self.labels[indices], self.classes)


def search_places(name: str, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return the folders where a named dataset is looked for, in order.

    Parameters
    ----------
    name : str
        "fashion-mnist", "mnist", "cifar10" or "cifar100".
    data_dir : str or path, optional
        If given, only this folder and its subfolder `name` are searched: files asked for by place are never
        silently replaced by others. Otherwise the system's, ``$CONVKERN_DATA`` and the user's data folders.

    Returns
    -------
    list of pathlib.Path
        Folders, existing or not.
    """
    if data_dir is not None:
        return [Path(data_dir), Path(data_dir) / name]
    roots = [Path("/usr/share/datasets")]
    if os.environ.get("CONVKERN_DATA"):
        roots.append(Path(os.environ["CONVKERN_DATA"]))
    roots.append(Path.home() / ".local/share/convkern")
    return [root / name for root in roots]


def _idx_file(folder: Path, stem: str) -> Path | None:
    """Return the compressed or else the plain idx file of a folder."""
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.is_file():
            return path
    return None


def _load_idx(folder: Path, split: str, classes: tuple[str, ...]) -> Dataset | None:
    """Load a split from a folder of idx files, or return None where it has no images."""
    prefix = _IDX_PREFIX[split]
    images_path = _idx_file(folder, f"{prefix}-images-idx3-ubyte")
    labels_path = _idx_file(folder, f"{prefix}-labels-idx1-ubyte")
    if images_path is None:
        return None
    if labels_path is None:
        raise FileNotFoundError(f"{images_path}: expected {prefix}-labels-idx1-ubyte.gz beside it, which is missing")
    images, labels = read_labelled_images(images_path, labels_path)
    if len(labels) and labels.max() >= len(classes):
        raise ValueError(f"{labels_path}: expected labels from 0 to {len(classes) - 1}, got {labels.max()}")
    return Dataset(images, labels, classes)


def _load_cifar(place: Path, split: str, name: str) -> Dataset | None:
    found = cifar.find(place, _base(name))
    if found is None:
        return None
    return Dataset(*cifar.read_cifar(*found, split, _CIFAR_LABELS[name]), _CLASSES[name])


def _base(name: str) -> str:
    """The name of the files of a dataset: both kinds of labels of CIFAR-100 are in the same ones."""
    return name.removesuffix("-coarse")


def _load_folder(split: str, data_dir: str | os.PathLike[str] | None, size: int | None) -> ImageSource:
    """The pictures of a split: those in train, and those in test or val, with the same classes."""
    from .folder import ImageFolder

    if data_dir is None:
        raise ValueError("data_dir must be given for 'folder': the folder that holds train and test (or val)")
    size = IMAGE_SIZE if size is None else size
    training = ImageFolder(Path(data_dir, "train"), size)
    if split == "train":
        return training
    places = [place for place in (Path(data_dir, name) for name in _TEST_FOLDERS) if place.is_dir()]
    if not places:
        raise FileNotFoundError(
            f"{data_dir}: expected a folder {' or '.join(_TEST_FOLDERS)} beside train, there is none"
        )
    test = ImageFolder(places[0], size)
    if test.classes != training.classes:
        differing = sorted(set(test.classes) ^ set(training.classes))
        raise ValueError(
            f"{places[0]}: expected the subfolders of {training.root}, these are in one alone: {differing}"
        )
    return test


def load(
    name: str = "sample",
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
) -> ImageSource:
    """Load a split of a named dataset into memory, or find the pictures of a folder.

    Parameters
    ----------
    name : str
        "sample" (the embedded 6,000 training and 1,000 test images of Fashion-MNIST), "fashion-mnist", "mnist",
        "cifar10", "cifar100", "cifar100-coarse" (the same images with their 20 superclasses), or "folder": pictures in
        one subfolder a class below `data_dir`'s folders train and test (or val), see `ImageFolder`.
    split : str
        "train" or "test".
    data_dir : str or path, optional
        Where the files of a full dataset are; for CIFAR also the .tar.gz itself. See `search_places` for where they are
        looked for without it.
    image_size : int, optional
        Height and width of the images of "folder", by default 224; the others have a size of their own.

    Returns
    -------
    Dataset or ImageFolder
        Images uint8 (N, C, H, W), labels int64 (N,).

    Raises
    ------
    ValueError
        If `name` or `split` is unknown, `data_dir` is given for the embedded sample or not for "folder", `image_size` is
        given for another, or a file is corrupt.
    FileNotFoundError
        If the files are in none of the places searched; the message lists them and says how to get the files.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if name == "folder":
        return _load_folder(split, data_dir, image_size)
    if image_size is not None:
        raise ValueError(f"image_size must be given for 'folder' alone, got {image_size} for {name!r}")
    if name == "sample":
        if data_dir is not None:
            raise ValueError(f"data_dir must not be given for 'sample', which is embedded, got {str(data_dir)!r}")
        places = [_SAMPLE]
    else:
        places = search_places(_base(name), data_dir)
    for place in places:
        if name in _CIFAR_LABELS:
            dataset = _load_cifar(place, split, name)
        else:
            dataset = _load_idx(place, split, _CLASSES[name])
        if dataset is not None:
            return dataset
    if name == "sample":
        raise FileNotFoundError(f"{_SAMPLE}: the embedded sample is missing, install convkern again")
    raise FileNotFoundError(
        f"{name} ({split}) was not found in {', '.join(map(str, places))}. To get it: {_HOW_TO_GET[name]} "
        f"into {places[-1]} or any folder given as data_dir"
    )


def channel_stats(dataset: ImageSource, limit: int | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel over all pixels of a dataset.

    Parameters
    ----------
    dataset : ImageSource
        At least one image.
    limit : int, optional
        Look at no more images than these, spread evenly; at all without it.

    Returns
    -------
    mean, std : tuple of float
        One number per channel, on the scale where 255 is 1; what `DataLoader` takes. The deviation is the
        population's.

    Raises
    ------
    ValueError
        If the dataset is empty.
    """
    if len(dataset) == 0:
        raise ValueError("dataset must hold at least one image, got 0")
    chosen = np.arange(len(dataset))
    if limit is not None and limit < len(dataset):
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        chosen = np.arange(limit) * len(dataset) // limit
    levels = np.arange(256)
    counts = np.zeros((dataset.shape[0], 256), dtype=np.int64)
    block = max(1, _STATS_BYTES // math.prod(dataset.shape))
    for start in range(0, len(chosen), block):  # in blocks: bincount widens its input to eight bytes a pixel
        pixels = dataset.pixels(chosen[start : start + block])
        for channel, found in enumerate(counts):
            found += np.bincount(pixels[:, channel].ravel(), minlength=256)
    means, stds = [], []
    for found in counts:
        mean = (found @ levels) / found.sum()
        means.append(float(mean / 255))
        stds.append(float(np.sqrt(found @ (levels - mean) ** 2 / found.sum()) / 255))
    return tuple(means), tuple(stds)
