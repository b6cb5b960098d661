"""Optimizers, with PyTorch's formulas, parameter groups and state."""

from .adam import Adam
from .optimizer import Optimizer
from .sgd import SGD

__all__ = ["SGD", "Adam", "Optimizer"]
