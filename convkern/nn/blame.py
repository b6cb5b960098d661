"""Which layer of a model an error comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .module import Module


class _Place:
    """Kept with an error on its way out: the layer that raised it, its path below the module that was left last."""

    def __init__(self, message: str, layer: Module, args: tuple[Any, ...]) -> None:
        self.message, self.layer, self.last, self.path = message, layer, layer, ""
        self.shapes = ", ".join(str(tuple(a.shape)) for a in args if hasattr(a, "shape"))


def locate(error: Exception, module: Module, args: tuple[Any, ...]) -> None:
    """Name the layer in the message of an error that leaves ``module``.

    The first module that an error leaves is the layer; each module around it puts its own name of the one inside in front
    of the path. Errors that leave a layer which nobody called from another module stay as they are.

    Parameters
    ----------
    error : Exception
        Changed in place: its message, where it is a plain text.
    module : Module
    args : tuple
        What ``module`` was called with.
    """
    if len(error.args) != 1 or not isinstance(error.args[0], str):
        return
    place: _Place | None = error.__dict__.get("_place")
    name = "" if place is None else next((n for n, member in module.named_modules() if member is place.last), "")
    if place is None or not (name or place.path):  # where it began, or what called a layer that is not a member
        error.__dict__["_place"] = _Place(error.args[0], module, args)
        return
    if not name:  # an error that was kept and raised again elsewhere: its path is complete
        return
    place.last = module
    place.path = f"{name}.{place.path}" if place.path else name
    kind = f"{type(place.layer).__name__}({place.layer.extra_repr()})"
    given = f" was given {place.shapes}" if place.shapes else ""
    error.args = (f"{place.path} ({kind}){given}: {place.message}",)
