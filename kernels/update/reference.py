"""The steps of the optimizers by definition, for one parameter w with gradient g; everything is changed in place.

``numbers`` are those that the kernels take: options, and what follows from them and the number of the step.
"""

from __future__ import annotations

import numpy as np


def sgd(w: np.ndarray, g: np.ndarray, v: np.ndarray | None, numbers: tuple[float, ...]) -> None:
    """v ← momentum·v + g, w ← w - lr·v, where g has weight_decay·w added; without v, w ← w - lr·g."""
    lr, momentum, weight_decay = numbers
    g = g + weight_decay * w
    if v is not None:
        v[...] = momentum * v + g
        g = v
    w -= lr * g


def adam(w: np.ndarray, g: np.ndarray, mean: np.ndarray, square: np.ndarray, numbers: tuple[float, ...]) -> None:
    """Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.

    ``step`` is lr / (1 - beta1**t) and ``root`` is 1 / sqrt(1 - beta2**t): the running means start at zero.
    """
    step, root, eps, weight_decay, new1, keep2, new2 = numbers
    g = g + weight_decay * w
    mean += new1 * (g - mean)
    square[...] = keep2 * square + new2 * g * g
    w -= step * mean / (np.sqrt(square) * root + eps)
