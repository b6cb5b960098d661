"""Linear, logistic and softmax regression, and the multilayer perceptron: networks without a convolution."""

from __future__ import annotations

from .. import nn
from ..nn import init


def linear_regression(in_features: int, out_features: int = 1, seed: int = 0) -> nn.Linear:
    """y = x · Wᵀ + b, trained with :class:`convkern.nn.MSELoss`; (in_features + 1) · out_features parameters.

    Parameters
    ----------
    in_features, out_features : int
        Numbers that go in and come out.
    seed : int
        Of the initial weights.

    Returns
    -------
    Linear
        Takes (N, in_features), gives (N, out_features).
    """
    with init.seeded(seed):
        return nn.Linear(in_features, out_features)


def logistic_regression(in_features: int, seed: int = 0) -> nn.Sequential:
    """The probability of one class: the sigmoid of a weighted sum, trained with :class:`convkern.nn.BCELoss`.

    Parameters
    ----------
    in_features : int
        Numbers that go in.
    seed : int
        Of the initial weights.

    Returns
    -------
    Sequential
        Takes (N, in_features), gives probabilities (N, 1).

    References
    ----------
    Cox, "The regression analysis of binary sequences", 1958.
    """
    with init.seeded(seed):
        return nn.Sequential(nn.Linear(in_features, 1), nn.Sigmoid())


def softmax_regression(
    num_classes: int = 10, in_channels: int = 1, image_size: int = 28, seed: int = 0
) -> nn.Sequential:
    """One linear layer over all pixels, trained with :class:`convkern.nn.CrossEntropyLoss`, which takes the softmax.

    Parameters
    ----------
    num_classes : int
        Outputs.
    in_channels : int
        Channels of the image.
    image_size : int
        Height and width of the image in pixels.
    seed : int
        Of the initial weights.

    Returns
    -------
    Sequential
        Takes (N, in_channels, image_size, image_size), gives logits (N, num_classes).
    """
    with init.seeded(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))


def mlp(
    num_classes: int = 10, in_channels: int = 1, image_size: int = 28, hidden: tuple[int, ...] = (256,),
    dropout: float = 0.0, seed: int = 0,
) -> nn.Sequential:  # fmt: skip
    """A multilayer perceptron over all pixels: linear layers with ReLU between them.

    Parameters
    ----------
    num_classes : int
        Outputs.
    in_channels : int
        Channels of the image.
    image_size : int
        Height and width of the image in pixels.
    hidden : tuple of int
        Units of each hidden layer.
    dropout : float
        Share of the hidden units that is dropped in training.
    seed : int
        Of the initial weights.

    Returns
    -------
    Sequential
        Takes (N, in_channels, image_size, image_size), gives logits (N, num_classes).

    References
    ----------
    Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", 1986.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = in_channels * image_size**2
    with init.seeded(seed):
        for units in hidden:
            layers += [nn.Linear(inputs, units), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            inputs = units
        layers.append(nn.Linear(inputs, num_classes))
    return nn.Sequential(*layers)
