"""What ``convkern explain``, ``tune`` and ``warmup`` run: a call with its gradients, a benchmark case, a training step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from . import models, nn, ops, optim
from .graph import no_grad
from .tensor import Tensor

_KINDS = ("conv", "conv_transpose", "max_pool", "avg_pool")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(ops, name) for name in ("pointwise", *(f"{kind}{axes}d" for kind in _KINDS for axes in (1, 2, 3)))
}
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": partial(optim.SGD, lr=1e-3, momentum=0.9),
    "adagrad": partial(optim.Adagrad, lr=1e-3),
    "rmsprop": partial(optim.RMSprop, lr=1e-3),
    "adam": partial(optim.Adam, lr=1e-3),
    "adamw": partial(optim.AdamW, lr=1e-3),
}
DTYPES = ("float32", "float64")
USUAL_IMAGE, SMALL_IMAGE = 224, 32  # pixels, of models that take any size
SMALL_RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


class Subject(NamedTuple):
    """Something that runs kernels."""

    name: str
    run: Callable[[], object]


def call(
    name: str, x_shape: Sequence[int], w_shape: Sequence[int] | None = None, *, dtype: str = "float32", **options: Any
) -> Subject:
    """One of ``FUNCTIONS`` on random arrays, with the gradients of all of them.

    Parameters
    ----------
    name : str
        "conv2d", "pointwise", "conv_transpose2d", "max_pool2d" or "avg_pool2d", and those of one and three axes.
    x_shape, w_shape : sequence of int
        Convolutions need w, poolings take none.
    dtype : str
        "float32" or "float64".
    **options
        The function's own.

    Raises
    ------
    ValueError
        Naming what does not fit.
    """
    if name not in FUNCTIONS:
        raise ValueError(f"function must be one of {', '.join(FUNCTIONS)}, got {name!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be {' or '.join(DTYPES)}, got {dtype!r}")
    takes_w = "w" in inspect.signature(FUNCTIONS[name]).parameters
    if takes_w != (w_shape is not None):
        raise ValueError(f"{name}: w must {'be given' if takes_w else 'not be given'}")
    rng = np.random.default_rng(0)
    shapes = [x_shape] if w_shape is None else [x_shape, w_shape]
    arrays = [rng.standard_normal(tuple(shape)).astype(dtype) for shape in shapes]

    def run() -> None:
        inputs = [Tensor(array, requires_grad=True) for array in arrays]
        FUNCTIONS[name](*inputs, **options).sum().backward()

    return Subject(name, run)


def case(words: Sequence[str], precision: str = "default") -> Iterator[Subject]:
    """The benchmark cases that names or patterns stand for, in all of their directions."""
    from .bench.cases import select
    from .bench.rivals import OURS, STRICT, make_inputs

    ours = STRICT if precision == "strict" else OURS
    for found in select(words):

        def run(found: Any = found) -> None:
            inputs = make_inputs(found)
            for direction in found.directions:
                ours.call(found, direction, inputs)()

        yield Subject(found.name, run)


def image_shape(model: str) -> tuple[int, int, int]:
    """(C, H, W) of the images that a model of that name takes unless it is told otherwise."""
    _check_model(model, (*models.NAMES, *models.PIXELWISE))
    parameters = inspect.signature(getattr(models, model)).parameters
    channels = parameters["in_channels"].default if "in_channels" in parameters else 3
    if "image_size" in parameters:
        side = parameters["image_size"].default
    else:
        side = SMALL_IMAGE if "cifar" in model or model in SMALL_RESNETS else USUAL_IMAGE
    return channels, side, side


def network(model: str, image: Sequence[int] | None = None) -> tuple[Any, tuple[int, int, int]]:
    """A fresh model of that name, and (C, H, W) of the images it takes; see :func:`training_step`."""
    channels, height, width = image or image_shape(model)
    shape = (channels, height, width)
    return models.build_for(model, shape), shape


def training_step(
    model: str, batch: int, image: Sequence[int] | None = None, optimizers: Sequence[str] = ("sgd",),
    evaluate: bool = False,
) -> Subject:  # fmt: skip
    """Forward, cross-entropy, backward and a step of every optimizer of a fresh model, on random images of class 0.

    Parameters
    ----------
    model : str
        One of ``convkern.models.NAMES``.
    batch : int
        Images.
    image : sequence of int, optional
        (C, H, W); by default the size that the model is made for.
    optimizers : sequence of str
        Of "sgd" (momentum 0.9), "adagrad", "rmsprop", "adam" and "adamw"; all take the same gradients.
    evaluate : bool
        Also run the model once as it is evaluated.

    Raises
    ------
    ValueError
        Naming what does not fit.
    """
    _check_model(model, models.NAMES)
    channels, height, width = image or image_shape(model)
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    for name in optimizers:
        if name not in OPTIMIZERS:
            raise ValueError(f"optimizers must be of {', '.join(OPTIMIZERS)}, got {name!r}")

    def run() -> None:
        fresh, _ = network(model, (channels, height, width))
        x = np.random.default_rng(0).standard_normal((batch, channels, height, width), np.float32)
        labels = np.zeros(batch, np.int64)
        nn.functional.cross_entropy(fresh(x), labels).backward()
        for name in optimizers:
            OPTIMIZERS[name](fresh.parameters()).step()
        if evaluate:
            fresh.eval()
            with no_grad():
                nn.functional.cross_entropy(fresh(x), labels)

    return Subject(f"{model}, a training step of {batch} images {channels}x{height}x{width}", run)


def _check_model(model: str, known: Sequence[str]) -> None:
    if model not in known:
        raise ValueError(f"model must be one of {', '.join(known)}, got {model!r}")
