"""The steps of the optimizers by definition, for one parameter w with gradient g; everything is changed in place.

``numbers`` are those that the kernels take: options, and what follows from them and the number of the step.
"""

from __future__ import annotations

import numpy as np


def sgd(w: np.ndarray, g: np.ndarray, v: np.ndarray | None, numbers: tuple[float, ...]) -> None:
    """v ← momentum·v + fresh·g, w ← w - lr·v, where g has weight_decay·w added; without v, w ← w - lr·fresh·g.

    With Nesterov's momentum w ← w - lr·(g + momentum·v).
    """
    lr, momentum, weight_decay, fresh, nesterov = numbers
    g = g + weight_decay * w
    if v is None:
        w -= lr * fresh * g
    else:
        v[...] = momentum * v + fresh * g
        w -= lr * (g + momentum * v if nesterov else v)


def adam(w: np.ndarray, g: np.ndarray, mean: np.ndarray, square: np.ndarray, numbers: tuple[float, ...]) -> None:
    """Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.

    ``step`` is lr / (1 - beta1**t) and ``root`` is 1 / sqrt(1 - beta2**t): the running means start at zero. AdamW (Loshchilov
    and Hutter, 2019) shrinks w by 1 - lr·weight_decay instead of adding weight_decay·w to g.
    """
    step, root, eps, weight_decay, new1, keep2, new2, shrink = numbers
    g = g + weight_decay * w
    mean += new1 * (g - mean)
    square[...] = keep2 * square + new2 * g * g
    w[...] = shrink * w - step * mean / (np.sqrt(square) * root + eps)


def adagrad(w: np.ndarray, g: np.ndarray, total: np.ndarray, numbers: tuple[float, ...]) -> None:
    """Duchi, Hazan and Singer, "Adaptive subgradient methods for online learning and stochastic optimization", 2011."""
    lr, weight_decay, eps = numbers
    g = g + weight_decay * w
    total += g * g
    w -= lr * g / (np.sqrt(total) + eps)


def rmsprop(
    w: np.ndarray,
    g: np.ndarray,
    square: np.ndarray,
    v: np.ndarray | None,
    mean: np.ndarray | None,
    numbers: tuple[float, ...],
) -> None:
    """Tieleman and Hinton, "Lecture 6.5: RMSProp", 2012; centered (Graves, 2013): the variance in place of the square."""
    lr, alpha, new, eps, weight_decay, momentum = numbers
    g = g + weight_decay * w
    square[...] = alpha * square + new * g * g
    power = square
    if mean is not None:
        mean += new * (g - mean)
        power = np.maximum(square - mean * mean, 0)
    step = g / (np.sqrt(power) + eps)
    if v is not None:
        v[...] = momentum * v + step
        step = v
    w -= lr * step
