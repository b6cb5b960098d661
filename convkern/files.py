"""Writing files so that a crash, a full disk or a Ctrl-C never leaves half of one behind."""

from __future__ import annotations

import errno
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_TEMPORARY = ".{name}.{pid}.tmp"


def require(*packages: str, extra: str = "train") -> None:
    """Say in one sentence what to install when an optional package is missing.

    Parameters
    ----------
    *packages : str
        Names as they are imported.
    extra : str
        The extra of this package that brings them.

    Raises
    ------
    ModuleNotFoundError
        If one of them is not installed; the message holds the command that installs it.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f'this needs {" and ".join(missing)}: pip install "convkern[{extra}]"', name=missing[0]
        )


def write_atomic(path: Path, content: bytes, note: str = "") -> None:
    """Replace a file as a whole: readers see the old content or the new one, never a part.

    The content goes to a temporary name in the same folder, is forced to the disk, and is then renamed.

    Parameters
    ----------
    path : Path
        The file to write; its folder must exist.
    content : bytes
        Everything that the file will hold.
    note : str
        Said at the end of the error message, after what went wrong.

    Raises
    ------
    OSError
        If the disk is full or refuses; the previous file is untouched and the temporary one is removed.
    """
    temporary = path.with_name(_TEMPORARY.format(name=path.name, pid=os.getpid()))
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise write_failure(path, error, note) from error
    finally:
        temporary.unlink(missing_ok=True)  # gone already when the rename succeeded
    _sync_folder(path.parent)


def write_failure(path: Path, error: OSError, note: str = "") -> OSError:
    """The error to raise instead of one that does not say which file could not be written."""
    reason = "no space left on the disk" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return OSError(error.errno, f"cannot write {path}: {reason}{note}")


def _sync_folder(folder: Path) -> None:
    """Force the rename itself to the disk, where the system can (Windows opens no folders)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse; the file's own content is already safe
        pass
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed process left in a folder."""
    for path in folder.glob(_TEMPORARY.format(name="*", pid="*")):
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically, indented for people."""
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    ValueError
        If the file is missing, unreadable or not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: is {path.parent} a run folder of 'convkern train'?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
