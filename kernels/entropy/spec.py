"""The shape of a cross-entropy of labels, and how its losses are cut into parts, each of which a block adds up."""

from __future__ import annotations

from typing import NamedTuple

THREADS = 128  # losses of a part


class EntropySpec(NamedTuple):
    """One cross-entropy of labels: logits x (N, C, L), labels (N, L), where L runs over the pixels."""

    n: int
    c: int
    pixels: int
    ignored: int  # a label that does not count


def parts_of(spec: EntropySpec) -> int:
    """Parts of the sum of all losses: by the shape alone."""
    return -(-spec.n * spec.pixels // THREADS)
