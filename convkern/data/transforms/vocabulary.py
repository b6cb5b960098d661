"""The augmentation of a training run in a few words, such as ``crop,flip,cutout=8``."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Compose, Transform, finite, probability
from .color import ColorJitter, Normalize
from .spatial import Cutout, RandomCrop, RandomErasing, RandomHorizontalFlip

#: Each word with what its number means, and the number where none is given; None depends on the image.
WORDS = {
    "crop": ("pixels of padding before a random crop of the image's size", None),  # an eighth of the smaller side
    "flip": ("probability of a mirror image", 0.5),
    "jitter": ("change of brightness, contrast and saturation, and four times that of hue", 0.4),
    "cutout": ("side of the blank square", None),  # half the smaller side
    "erase": ("probability of a blank rectangle", 0.5),
}
NOTHING = "none"


def parse(augment: str) -> dict[str, float | None]:
    """Read words between commas, each with ``=NUMBER`` or without.

    Parameters
    ----------
    augment : str
        "none", or some of "crop", "flip", "jitter", "cutout" and "erase", each once.

    Returns
    -------
    dict of str to float or None
        The number of each word; None where it depends on the image.

    Raises
    ------
    TypeError
        If `augment` is not a str.
    ValueError
        If a word is unknown or twice there, or its number not one that it can use.
    """
    if not isinstance(augment, str):
        raise TypeError(f"augment must be words between commas, got {augment!r}")
    found: dict[str, float | None] = {}
    for item in [] if augment == NOTHING else augment.split(","):
        word, equals, text = item.strip().partition("=")
        if word not in WORDS:
            raise ValueError(f"augment must be {NOTHING} or some of {', '.join(WORDS)}; got {word!r} in {augment!r}")
        if word in found:
            raise ValueError(f"augment must name {word} once, got {augment!r}")
        found[word] = _number(word, text) if equals else WORDS[word][1]
    return found


def augmentation(
    augment: str, shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
) -> Compose | None:
    """Build what words ask for, for images of one shape.

    The order is fixed: crop, flip, jitter, then the images are standardised, then cutout and erase blank with the mean.

    Parameters
    ----------
    augment : str
        See `parse`.
    shape : (int, int, int)
        Of the images, (C, H, W); that of the results as well.
    mean, std : sequence of float
        For `Normalize`.

    Returns
    -------
    Compose or None
        From bytes to standardised float32; None for "none".

    Raises
    ------
    ValueError
        As `parse`, and if the images are too small for a number.
    """
    found = parse(augment)
    if not found:
        return None
    side = min(shape[1:])
    steps: list[Transform] = []
    if "crop" in found:
        padding = found["crop"]
        steps.append(RandomCrop(shape[1:], max(1, round(side / 8)) if padding is None else int(padding)))
    if (p := found.get("flip")) is not None:
        steps.append(RandomHorizontalFlip(p))
    if (strength := found.get("jitter")) is not None:
        steps.append(ColorJitter(strength, strength, strength, strength / 4))
    steps.append(Normalize(mean, std))
    if "cutout" in found:
        square = found["cutout"]
        size = max(1, side // 2) if square is None else int(square)
        if size > side:
            raise ValueError(
                f"augment must have a cutout of at most the image's {shape[1]}x{shape[2]}, got {augment!r}"
            )
        steps.append(Cutout(size))
    if (p := found.get("erase")) is not None:
        steps.append(RandomErasing(p))
    return Compose(steps)


def _number(word: str, text: str) -> float:
    """The number of a word, checked."""
    name = f"augment's {word}"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number ({WORDS[word][0]}), got {text!r}") from None
    if word in ("flip", "erase"):
        return probability(name, value)
    if word == "jitter":
        if not 0 <= finite(name, value) <= 1:
            raise ValueError(f"{name} must be 0 to 1, got {text}")
        return value
    if not (value.is_integer() and value >= 1):
        raise ValueError(f"{name} must be an integer of at least 1 ({WORDS[word][0]}), got {text!r}")
    return value
