"""Compiling CPU kernels with Numba and keeping the machine code on disk.

Numba's own disk cache notices a change of the compiled function only, not of what it calls, and wants to write beside
the source file. Ours lies in the user's cache folder, below a name that holds a hash of the kernel's module and of every
kernel source that it imports, so that an installed, read-only or edited package never runs stale code.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.ccallback import CFunc

from .frames import with_room
from .linked import Linked

# Sums may be reordered and contracted into FMA; NaN, infinities and signed zeros keep their meaning but for -0 sums.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}

_CFunc: Any = CFunc  # Numba annotates a part of itself only

Watcher = Callable[[str, str], None]
_watchers: list[Watcher] = []


@contextmanager
def watch(callback: Watcher) -> Iterator[None]:
    """Call ``callback(name, phase)`` with phase "start" and "done" around every kernel that is really compiled."""
    _watchers.append(callback)
    try:
        yield
    finally:
        _watchers.remove(callback)


def _tell(name: str, phase: str) -> None:
    for callback in list(_watchers):
        callback(name, phase)


def user_cache_folder() -> Path:
    """``$CONVKERN_CACHE_DIR``, or the platform's place for caches."""
    if folder := os.environ.get("CONVKERN_CACHE_DIR"):
        return Path(folder)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base.expanduser() / "convkern"


ROOT = Path(__file__).resolve().parent


@cache
def _imports(path: Path) -> frozenset[Path]:
    """The sources of this package that a source imports by name, and itself."""
    found = {path}
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for name in (alias.name for alias in node.names):
            places = (base / f"{name}.py", base / name / "__init__.py", base.with_suffix(".py"), base / "__init__.py")
            found |= {next(place for place in places if place.exists())}
    return frozenset(found)


@cache
def sources_of(path: Path) -> tuple[Path, ...]:
    """A source and all of this package that it needs, directly or through others; for a stranger all of this package."""
    if not path.is_relative_to(ROOT):
        return (path, *sorted(ROOT.rglob("*.py")))
    found: set[Path] = set()
    waiting = {path}
    while waiting:
        found |= waiting
        waiting = {needed for source in waiting for needed in _imports(source)} - found
    return tuple(sorted(found))


@cache
def sources_hash(sources: tuple[Path, ...]) -> str:
    """Hash over sources, and over what else decides the machine code beside Numba's own key."""
    digest = hashlib.sha256(f"{numba.__version__} {os.environ.get('CONVKERN_VECTOR_BITS')}".encode())
    for source in sources:
        digest.update(os.path.relpath(source, ROOT).encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@cache
def kernel_cache() -> Path:
    """The folder of compiled kernels: in the user's cache, or a private temporary one where that cannot be written."""
    folder = user_cache_folder() / "cpu"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        fallback = Path(tempfile.mkdtemp(prefix="convkern-"))
        warnings.warn(
            f"kernels compiled now are not kept: {folder} cannot be written ({error.strerror}); set CONVKERN_CACHE_DIR",
            RuntimeWarning,
            stacklevel=2,
        )
        return fallback


class _Locator(_CacheLocator):
    """Where Numba keeps a function: in a folder for its module's sources, stamped by their hash."""

    def __init__(self, stamp: str) -> None:
        self._stamp = stamp

    def get_cache_path(self) -> str:
        return str(kernel_cache() / self._stamp)

    def get_source_stamp(self) -> str:
        return self._stamp

    def get_disambiguator(self) -> str:
        return "0"

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator:
        module = Path(inspect.getfile(sys.modules[py_func.__module__])).resolve()
        return cls(sources_hash(sources_of(module)))


class _CacheImpl(CompileResultCacheImpl):
    _locator_classes: ClassVar[list[Any]] = [_Locator]


class KernelCache(FunctionCache):
    """A disk cache in which a bad or unwritable file means compiling again, never a failure."""

    _impl_class = _CacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # a truncated file can raise nearly anything while it is read
            warnings.warn(
                f"a kernel is compiled again, its cache is unreadable: {error!r}", RuntimeWarning, stacklevel=2
            )
            self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            warnings.warn(f"a compiled kernel was not kept on disk: {error}", RuntimeWarning, stacklevel=2)


class CachedCFunc(_CFunc):
    """A C entry point kept in our cache, which reports when it has to be compiled."""

    def enable_caching(self) -> None:
        self._cache = KernelCache(self._pyfunc)

    def _compile_uncached(self) -> Any:
        name = self.__qualname__.split("[")[0]
        _tell(name, "start")
        try:
            return super()._compile_uncached()
        finally:
            _tell(name, "done")


@with_room
def entry_point(function: Callable[..., Any], signature: Any) -> CachedCFunc:
    """Compile ``function`` to a C function of the given Numba signature, from the disk cache where it is there."""
    args, result = numba.core.sigutils.normalize_signature(signature)
    compiled = CachedCFunc(function, (args, result), locals={}, options={"nopython": True, "error_model": "numpy"})
    compiled.enable_caching()
    compiled.compile()
    return compiled


@with_room
def cached_njit(function: Callable[..., Any], signature: Any) -> Any:
    """A nogil Numba function with exactly one signature, kept in our cache."""
    dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
    dispatcher._cache = KernelCache(function)
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher


def helper(function: Callable[..., Any]) -> Any:
    """A function that kernels call; it is compiled into each of them."""
    return Linked(function, fastmath=FASTMATH, error_model="numpy", nogil=True)
