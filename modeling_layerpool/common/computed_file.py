"""Memory-mapped `.npy` files that are computed once, and never read before they are complete."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .errors import InputError
from .folders import output_folder


class ComputedFile:
    """
    A `.npy` file of one array, computed in parts and read from then on.

    Its name is a checksum of everything that the array depends on, so a file of something else is never read. Until it
    is complete it has the suffix `.part`.

    Args:
        folder: where the file lies; created if needed.
        checksum: the checksum, in hexadecimal.
        shape: the shape of the array. Its first dimension counts texts.
        dtype: `"float16"` or `"float32"`.
    """

    # What the array holds, and what to do if the disk is too small for it, for errors.
    CONTENT = "values"
    FLAG = ""
    WAY_OUT = "name another folder"

    def __init__(self, folder: str | Path, checksum: str, shape: tuple[int, ...], dtype: str):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.path = Path(folder) / f"{checksum[:32]}.npy"
        # Of this run alone: another one may compute the same array at the same time.
        self.part = self.path.with_suffix(f".{uuid.uuid4().hex}.part")

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.shape[0]:,} texts ({self.size / 2**20:,.1f} MiB)"

    def is_complete(self) -> bool:
        """Whether the file exists with all values."""
        try:
            array = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError, EOFError):  # missing, or cut short by a copy
            return False
        return array.shape == self.shape and array.dtype == self.dtype

    @contextmanager
    def complete(self) -> Iterator[None]:
        """Reserve the space; give the file its name after all values were computed, or remove it after an error."""
        self._allocate()
        try:
            yield
            os.replace(self.part, self.path)
        finally:
            self.part.unlink(missing_ok=True)

    def _allocate(self) -> None:
        """Reserve the space. Raises an `InputError` if the folder cannot be written to or the disk is too small."""
        folder = self.path.parent
        with output_folder(folder, self.FLAG):
            free = shutil.disk_usage(folder).free
            try:
                if free < self.size:
                    raise OSError(0, f"{free / 2**20:,.1f} MiB are free")
                np.lib.format.open_memmap(self.part, mode="w+", dtype=self.dtype, shape=self.shape)
                if hasattr(os, "posix_fallocate"):  # writing to a memory-mapped file on a full disk ends the process
                    with open(self.part, "r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, os.path.getsize(self.part))
            except OSError as error:
                self.part.unlink(missing_ok=True)
                raise InputError(
                    f"{self.FLAG} {folder}: the {self.CONTENT} of {self} do not fit ({error.strerror}); {self.WAY_OUT}"
                ) from error

    def fill(self, begin: int, end: int, show_progress_bar: bool = True) -> None:
        """Compute the values of the texts from `begin` up to `end` into the reserved space."""
        raise NotImplementedError
