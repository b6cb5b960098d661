"""Draw the embedded sample from the full Fashion-MNIST: ``python -m convkern.data.make_sample FULL OUT``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..random import DRAW_SAMPLE, rng
from .idx import read_idx, write_idx

SEED = 2017
CLASSES = 10
#: Prefix of the file names, and images drawn per class.
SPLITS = (("train", 600), ("t10k", 100))


def draw(labels: npt.NDArray[np.uint8], per_class: int, split: int) -> npt.NDArray[np.intp]:
    """Choose the same number of images of every class, in random order.

    Parameters
    ----------
    labels : numpy.ndarray
        uint8, (N,): the labels of the full set, 0 to 9.
    per_class : int
        Images to choose of each class.
    split : int
        Position in `SPLITS`, so that each split has a stream of its own.

    Returns
    -------
    numpy.ndarray
        Indices into `labels`, (10 * per_class,), shuffled.

    Raises
    ------
    ValueError
        If a class has fewer images than `per_class`.
    """
    counts = np.bincount(labels, minlength=CLASSES)
    if counts[:CLASSES].min() < per_class:
        raise ValueError(f"labels must hold at least {per_class} of every class, got {counts.tolist()}")
    # Sorted raw Philox words: NumPy promises these for ever, its permutation() only within a version.
    words = rng(SEED, DRAW_SAMPLE, split).bit_generator
    order = np.argsort(words.random_raw(len(labels)), kind="stable")
    shuffled = labels[order]
    chosen = np.concatenate([order[shuffled == c][:per_class] for c in range(CLASSES)])  # class by class
    mixed: npt.NDArray[np.intp] = chosen[np.argsort(words.random_raw(len(chosen)), kind="stable")]
    return mixed


def make_sample(full: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[Path]:
    """Write the sample's four idx .gz files.

    Parameters
    ----------
    full : str or path
        Folder with the four idx .gz files of the full Fashion-MNIST.
    out : str or path
        Folder to write to; made where it does not exist.

    Returns
    -------
    list of pathlib.Path
        The files written.

    Raises
    ------
    ValueError
        If a file of the full set is corrupt or has too few images of a class.
    OSError
        If a file cannot be read or written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for split, (prefix, per_class) in enumerate(SPLITS):
        images_name, labels_name = f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"
        labels = read_idx(Path(full, labels_name), 1)
        chosen = draw(labels, per_class, split)
        write_idx(out / images_name, read_idx(Path(full, images_name), 3)[chosen])
        write_idx(out / labels_name, labels[chosen])
        written += [out / images_name, out / labels_name]
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m convkern.data.make_sample", description=__doc__)
    parser.add_argument("full", metavar="FULL", help="folder with the four idx .gz files of the full Fashion-MNIST")
    parser.add_argument("out", metavar="OUT", help="folder to write the sample to")
    options = parser.parse_args(arguments)
    for path in make_sample(options.full, options.out):
        print(f"{path} ({path.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
