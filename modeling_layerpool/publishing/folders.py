"""Output folders that are either complete or absent."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..common.errors import InputError


def check_output(output: Path) -> None:
    """Raise an `InputError` if the folder is not empty, or cannot be created."""
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{output}: {existing} is a file, not a folder")
    if existing == output and any(output.iterdir()):
        raise InputError(f"{output}: is not empty; name a new folder")
    if not os.access(output.absolute().parent if existing == output else existing, os.W_OK | os.X_OK):
        raise InputError(f"{output}: cannot be written there, no permission")


def write_text(path: Path, text: str) -> Path:
    """Write a file in one step: it is whole or as it was. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def written_in_one_step(folder: Path) -> Iterator[Path]:
    """Yield a folder next to `folder` to write into. It becomes `folder` at the end, and is removed on an error."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    part.mkdir()
    try:
        yield part
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
