"""
The states of a frozen encoder, computed once for each distinct text and kept in a memory-mapped file.

Notation: `n` hidden states read, `h` width.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..models.configuration_layerpool import LayerPoolConfigMixin
from .checksums import encoder_checksum
from .computed_file import ComputedFile
from .errors import InputError


DTYPES = ("float16", "float32")
WINDOW = 1024  # texts that are sorted by length and computed at once
# Fields of a configuration that the states do not depend on, in addition to those of the pooler.
WITHOUT_EFFECT = (
    *("_name_or_path", "architectures", "auto_map", "transformers_version", "dtype", "torch_dtype", "use_cache"),
    *("id2label", "label2id", "num_labels", "problem_type", "classifier_dropout"),
)


class StateFile(ComputedFile):
    """
    The states of some texts, float16 or float32, `(len(input_ids), n, 2, h)`.

    They depend on the texts, the weights of the encoder and some of its options.

    Args:
        model: a layer-pooled model.
        input_ids, token_type_ids: the tokenized texts, as for `encode_states_of_token_ids`.
        folder: where the file lies; created if needed.
        dtype: `"float16"` or `"float32"`.
    """

    CONTENT = "states"
    FLAG = "--state_cache_dir"
    WAY_OUT = "name another folder, or turn the cache off with --state_cache off"

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
        shape = (len(input_ids), len(model.pooler.states), 2, model.config.hidden_size)
        super().__init__(folder, self._checksum(dtype), shape, dtype)

    def _checksum(self, dtype: str) -> str:
        model = self.model
        unread = {*WITHOUT_EFFECT, *(field.name for field in fields(LayerPoolConfigMixin))}
        config = {name: value for name, value in model.config.to_dict().items() if name not in unread}
        device = model.input_device.type
        autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
        about = [1, encoder_checksum(model), model.pooler.states, dtype, autocast, config]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
        for tokens in (self.input_ids, self.token_type_ids or ()):
            for text in tokens:
                digest.update(np.asarray([len(text), *text], dtype=np.int64))
        return digest.hexdigest()

    def fill(self, begin: int, end: int, show_progress_bar: bool = True) -> None:
        states = np.load(self.part, mmap_mode="r+")
        with logging.tqdm(total=end - begin, desc="Encoder states", disable=not show_progress_bar) as progress:
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
