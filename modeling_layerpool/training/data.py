"""Data of every kind of training: the identity of a file, datasets of the Hub, and the length of a text."""

import hashlib
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


def set_max_seq_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_seq_length: int | None, texts: int = 1
) -> None:
    """
    Set `tokenizer.model_max_length`, at which texts are truncated. The tokenizer is saved with it.

    Args:
        max_seq_length: number of tokens, special tokens included. Default: the tokenizer's limit, at most the model's.
        texts: number of texts in one input, 1 or 2.

    Raises:
        InputError: the model has fewer positions, or no token of a text is left between the special ones.
    """
    if max_seq_length is None:
        max_seq_length = min(tokenizer.model_max_length, model.max_tokens)
    if max_seq_length > model.max_tokens:
        raise InputError(f"max_seq_length={max_seq_length} is beyond the {model.max_tokens} positions of the model")
    special = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if max_seq_length < special + texts:
        raise InputError(
            f"max_seq_length={max_seq_length} leaves no token of {'each' if texts == 2 else 'the'} text next to "
            f"{special} special ones; use at least {special + texts}"
        )
    tokenizer.model_max_length = max_seq_length
