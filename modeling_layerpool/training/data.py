"""Where rows come from: the identity of a file, and datasets of the Hub."""

import hashlib
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset

from ..common.errors import InputError
from ..common.rows import reading_errors


def file_identity(path: str) -> tuple[str, str]:
    """
    Where a file is and what it holds. `datasets` caches by the arguments of a reader, so that one of them has to tell
    this file from every other: those of the same name in other folders, and those written in the same moment.
    """
    with reading_errors(path), open(path, "rb") as file:
        return str(Path(path).resolve()), hashlib.file_digest(file, "sha256").hexdigest()


def load_hub(name: str, config: str | None, split: str, streaming: bool = False) -> Dataset | IterableDataset:
    """A split of a dataset on the Hub. Raises an `InputError` if there is none of that name, or no way to reach it."""
    try:
        return load_dataset(name, config, split=split, streaming=streaming)
    except Exception as error:  # each way of not being there, or of being broken, has its own type
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"dataset {name!r} cannot be loaded: {reason}") from error
