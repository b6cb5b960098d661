"""Picture files as arrays, through Pillow: whatever the format, eight bits, grey or colour, upright, nothing transparent."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from ..files import require


def open_picture(path: str | os.PathLike[str], channels: int) -> Any:
    """Read a picture file as a Pillow image.

    Parameters
    ----------
    path : str or path
        In any format that Pillow reads.
    channels : int
        1 makes it grey, 3 red, green and blue.

    Returns
    -------
    PIL.Image.Image
        Of mode "L" or "RGB", turned upright as its camera noted; 16-bit grey is scaled, transparent parts lie on white.

    Raises
    ------
    ValueError
        If the file is missing, not a picture, damaged or absurdly large; the message names it.
    """
    require("PIL")
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(_eight_bits(file))
                return _without_alpha(image).convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as a picture: {_reason(error)}") from error


def as_array(image: Any) -> npt.NDArray[np.uint8]:
    """Return a Pillow image of mode "L" or "RGB" as uint8 (C, H, W), contiguous."""
    pixels = np.asarray(image, np.uint8).reshape(image.height, image.width, -1)
    return np.ascontiguousarray(np.moveaxis(pixels, 2, 0))  # (H, W, C) -> (C, H, W)


def _eight_bits(image: Any) -> Any:
    """Scale 16-bit grey pictures to 8 bits, which Pillow's own conversion would clip."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))


def _without_alpha(image: Any) -> Any:
    """Lay a transparent picture on white, as viewers show it."""
    from PIL import Image

    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is not in a format that Pillow knows"
    return str(error)
