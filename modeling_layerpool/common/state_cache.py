"""
The states of a frozen encoder, computed once for each distinct text and kept in a memory-mapped file.

Notation: `n` hidden states read, `h` width.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..models.configuration_layerpool import LayerPoolConfigMixin
from .checksums import encoder_checksum
from .errors import InputError
from .folders import output_folder


DTYPES = ("float16", "float32")
WINDOW = 1024  # texts that are sorted by length and computed at once
# Fields of a configuration that the states do not depend on, in addition to those of the pooler.
WITHOUT_EFFECT = (
    *("_name_or_path", "architectures", "auto_map", "transformers_version", "dtype", "torch_dtype"),
    *("id2label", "label2id", "num_labels", "problem_type", "classifier_dropout"),
)

logger = logging.getLogger(__name__)


class StateFile:
    """
    The `.npy` file of the states of some texts, float16 or float32, `(len(input_ids), n, 2, h)`.

    Its name is a checksum of the texts, the weights and all options that the states depend on, so a file of another
    encoder or of other texts is never read. Until it is complete it has the suffix `.part`.

    Args:
        model: a layer-pooled model.
        input_ids, token_type_ids: the tokenized texts, as for `encode_states_of_token_ids`.
        folder: where the file lies; created if needed.
        dtype: `"float16"` or `"float32"`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: Sequence[Sequence[int]],
        token_type_ids: Sequence[Sequence[int]] | None,
        folder: str | Path,
        dtype: str,
    ):
        if model.pooler.reads_tokens:
            raise InputError(f"pooler_type={model.config.pooler_type} reads every token, and states do not keep them")
        if dtype not in DTYPES:
            raise InputError(f"dtype={dtype} of the states is unknown; use one of {', '.join(DTYPES)}")
        self.model, self.input_ids, self.token_type_ids = model, input_ids, token_type_ids
        self.shape = (len(input_ids), len(model.pooler.states), 2, model.config.hidden_size)
        self.dtype = np.dtype(dtype)
        self.path = Path(folder) / f"{self._checksum()[:32]}.npy"
        # Of this run alone: another one may compute the same states at the same time.
        self.part = self.path.with_suffix(f".{os.getpid()}.part")

    def _checksum(self) -> str:
        model = self.model
        unread = {*WITHOUT_EFFECT, *(field.name for field in fields(LayerPoolConfigMixin))}
        config = {name: value for name, value in model.config.to_dict().items() if name not in unread}
        device = model.input_device.type
        autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
        about = [1, encoder_checksum(model), model.pooler.states, self.dtype.name, autocast, config]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
        for tokens in (self.input_ids, self.token_type_ids or ()):
            for text in tokens:
                digest.update(np.asarray([len(text), *text], dtype=np.int64))
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of the states."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.shape[0]:,} texts ({self.size / 2**20:,.1f} MiB)"

    def is_complete(self) -> bool:
        """Whether the file exists with all states."""
        try:
            states = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError, EOFError):  # missing, or cut short by a copy
            return False
        return states.shape == self.shape and states.dtype == self.dtype

    @contextmanager
    def complete(self) -> Iterator[None]:
        """Reserve the space; give the file its name after all states were computed, or remove it after an error."""
        self._allocate()
        try:
            yield
            os.replace(self.part, self.path)
        finally:
            self.part.unlink(missing_ok=True)

    def _allocate(self) -> None:
        """Reserve the space. Raises an `InputError` if the folder cannot be written to or the disk is too small."""
        folder = self.path.parent
        with output_folder(folder, "--state_cache_dir"):
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
                    f"--state_cache_dir {folder}: the states of {self} do not fit ({error.strerror}); name another "
                    "folder, or turn the cache off with --state_cache off"
                ) from error

    def fill(self, begin: int, end: int, show_progress_bar: bool = True) -> None:
        """Compute the states of the texts from `begin` up to `end` into the allocated space."""
        states = np.load(self.part, mmap_mode="r+")
        with transformers_logging.tqdm(
            total=end - begin, desc="Encoder states", disable=not show_progress_bar
        ) as progress:
            for first in range(begin, end, WINDOW):
                window = slice(first, min(first + WINDOW, end))
                types = None if self.token_type_ids is None else self.token_type_ids[window]
                computed = self.model.encode_states_of_token_ids(self.input_ids[window], types)
                states[window] = computed.to(getattr(torch, self.dtype.name)).cpu().numpy()
                if not np.isfinite(states[window]).all():
                    raise InputError(
                        f"states of the encoder are not finite in {self.dtype.name}; "
                        + ("use float32 for them" if self.dtype == np.float16 else "its weights are broken")
                    )
                progress.update(window.stop - window.start)
        states.flush()


class StateCache:
    """
    The states of texts in a file: `cache[indices]` reads those of some texts, `(len(indices), n, 2, h)`.

    Args:
        path: a complete file of states.
        rows: for each text the index of its states in the file, `(texts,)`; texts may repeat.
    """

    def __init__(self, path: str | Path, rows: Sequence[int]):
        self.path, self.rows = Path(path), np.asarray(rows)

    @cached_property
    def states(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would hold the whole file.
        return {"path": self.path, "rows": self.rows}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.states[self.rows[index]])


def distinct_texts(
    input_ids: Sequence[Sequence[int]], token_type_ids: Sequence[Sequence[int]] | None = None
) -> tuple[list[Sequence[int]], list[Sequence[int]] | None, list[int]]:
    """
    `(input_ids, token_type_ids, rows)`: each text once, in order, and for each given text its index among these. Token
    types that are all 0 are None, as encoders take them for 0 then.
    """
    if token_type_ids is not None and not any(map(any, token_type_ids)):
        token_type_ids = None
    index_of: dict[tuple, int] = {}
    first: list[int] = []
    rows = []
    for number, ids in enumerate(input_ids):
        text = (tuple(ids), None if token_type_ids is None else tuple(token_type_ids[number]))
        index = index_of.setdefault(text, len(first))
        if index == len(first):
            first.append(number)
        rows.append(index)
    types = None if token_type_ids is None else [token_type_ids[number] for number in first]
    return [input_ids[number] for number in first], types, rows


def cached_states(
    model: PreTrainedModel,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    dtype: str = "float16",
    show_progress_bar: bool = True,
) -> StateCache:
    """
    The states that `encode_states` returns for texts without a prompt, computed once and then read from a file.

    Args:
        model: a layer-pooled model; its pooler names the states.
        texts: texts, or pairs of texts. Each distinct one is computed once.
        tokenizer: the tokenizer of the same checkpoint.
        folder: folder for the files of states. One folder can hold those of many encoders and texts.
        dtype: `"float16"` or `"float32"`.
        show_progress_bar: show a progress bar while states are computed.

    Returns:
        A [`StateCache`]: `cache[:]` is `(len(texts), n, 2, h)`.

    Raises:
        InputError: the pooler reads every token (hire), or the states do not fit on the disk.
        ValueError: as in `encode_states`.
    """
    tokens = model.tokenize(texts, tokenizer)
    input_ids, token_type_ids, rows = distinct_texts(tokens["input_ids"], tokens.get("token_type_ids"))
    file = StateFile(model, input_ids, token_type_ids, folder, dtype)
    if not file.is_complete():
        with file.complete():
            file.fill(0, len(input_ids), show_progress_bar)
    return StateCache(file.path, rows)
