"""Output folders: checked before anything expensive happens, and removed again if they stay empty."""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError


@contextlib.contextmanager
def output_folder(output_dir: str | Path, flag: str = "--output_dir") -> Iterator[Path]:
    """
    Create a folder and check that it is writable. A created folder that is still empty at the end is removed.

    Args:
        output_dir: an existing folder, or a new one, which is created with its parents.
        flag: the flag that named the folder, for the error.

    Raises:
        InputError: the folder cannot be created or is not writable.
    """
    path = Path(output_dir)
    made: list[Path] = []
    try:
        made = _make(path)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".writable."):
            next(path.iterdir())
    except (OSError, ValueError) as error:
        _remove_if_empty(made)
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{flag} {output_dir}: cannot be written to ({reason}); choose another folder") from error
    try:
        yield path
    finally:
        _remove_if_empty(made)


def _make(path: Path) -> list[Path]:
    """Create a folder and its parents. Returns the created ones, the innermost first."""
    made: list[Path] = []
    path = path.absolute()
    missing = list(itertools.takewhile(lambda folder: not os.path.lexists(folder), (path, *path.parents)))
    existing = missing[-1].parent if missing else path
    if not existing.is_dir():
        kind = "a file, not a folder" if existing.exists() else "a link to nothing"
        raise NotADirectoryError(0, f"{existing} is {kind}")
    try:
        for folder in reversed(missing):
            folder.mkdir()
            made.insert(0, folder)
    except OSError:
        _remove_if_empty(made)
        raise
    return made


def _remove_if_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # not empty, or already removed
            return
