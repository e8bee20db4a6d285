"""Embeddings of texts by other encoders, computed once for each distinct text and kept in memory-mapped files."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers.utils import logging

from .checksums import text_checksum
from .computed_file import ComputedFile
from .errors import InputError
from .progress import without_bars


FORMAT = "1"  # counts changes of what a file holds
WINDOW = 1024  # texts that an encoder gets at once, which it sorts by length


class IdentifiedEncoder(Protocol):
    """An encoder that says what its embeddings depend on, as those of [`load_encoder`] do."""

    identity: str  # changes with the weights, the tokenizer and every option that matters

    def encode(self, sentences: list[str]) -> np.ndarray:
        """Embeddings `(len(sentences), d)`, in the order of the sentences."""


class EmbeddingFile(ComputedFile):
    """
    The embeddings of some texts by one encoder, of length 1, float16, `(len(texts), d)`.

    Args:
        encoder: computes them.
        texts: distinct texts.
        folder: where the file lies; created if needed.
    """

    CONTENT = "embeddings"
    FLAG = "--embedding_cache_dir"

    def __init__(self, encoder: IdentifiedEncoder, texts: Sequence[str], folder: str | Path):
        self.encoder, self.texts = encoder, texts
        width = np.asarray(encoder.encode(list(texts[:1]))).shape[1]
        super().__init__(folder, text_checksum(FORMAT, encoder.identity, *texts), (len(texts), width), "float16")

    def fill(self, begin: int, end: int, show_progress_bar: bool = True) -> None:
        rows = np.load(self.part, mmap_mode="r+")
        bar = logging.tqdm(total=end - begin, desc="Embeddings", disable=not show_progress_bar)
        with bar as progress, without_bars():  # an encoder shows one of its own
            for first in range(begin, end, WINDOW):
                window = slice(first, min(first + WINDOW, end))
                embeddings = np.asarray(self.encoder.encode(list(self.texts[window])), dtype=np.float32)
                if not np.isfinite(embeddings).all():
                    raise InputError("embeddings hold nan or infinity: the weights of their encoder are broken")
                rows[window] = unit_rows(embeddings)
                progress.update(window.stop - window.start)
        rows.flush()


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings `(n, d)` divided by their lengths. One of length 0 stays 0."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(lengths > 0, lengths, 1)


class TextEmbeddings:
    """
    Embeddings of the same texts by one or several groups of encoders, read from files.

    Args:
        texts: distinct texts.
        files: for each group, such as `"teacher"`, the complete files of its encoders, whose rows are the texts.

    `read(group, indices)` returns the embeddings of a group side by side, scaled so that the dot product of two texts
    is the mean of their cosines over the encoders.
    """

    def __init__(self, texts: Sequence[str], files: Mapping[str, Sequence[str | Path]]):
        self.files = {group: [Path(file) for file in of_group] for group, of_group in files.items()}
        self._index_of = {text: index for index, text in enumerate(texts)}

    def __getstate__(self) -> dict[str, Any]:
        # Data workers only read. A pickled memory map would hold the whole file.
        return {"files": self.files}

    @cached_property
    def _arrays(self) -> dict[str, list[np.ndarray]]:
        return {group: [np.load(file, mmap_mode="r") for file in files] for group, files in self.files.items()}

    def __contains__(self, group: str) -> bool:
        return group in self.files

    def width(self, group: str) -> int:
        """The width of what `read` returns."""
        return sum(array.shape[1] for array in self._arrays[group])

    def indices(self, texts: Sequence[str]) -> np.ndarray:
        """The index of each text, `(len(texts),)`. Raises an `InputError` for a text that has no embedding."""
        try:
            return np.array([self._index_of[text] for text in texts], dtype=np.int64)
        except KeyError as error:
            raise InputError(
                f"no embedding of the text {error.args[0][:60]!r}: the text embeddings are those of other texts"
            ) from None

    def read(self, group: str, indices: np.ndarray) -> torch.Tensor:
        """Embeddings, float32, `(*indices.shape, width)`."""
        arrays = self._arrays[group]
        parts = [np.asarray(array[indices.flatten()], dtype=np.float32) for array in arrays]
        side_by_side = np.concatenate(parts, axis=1) / len(arrays) ** 0.5
        return torch.from_numpy(side_by_side.reshape(*indices.shape, -1))
