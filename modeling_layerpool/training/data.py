"""Datasets of local files and of the Hub, and the length of a text."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..common.columns import ColumnNames
from ..common.errors import InputError
from ..common.rows import read_rows, reading_errors
from .data_arguments import TrainDataArguments
from .run_arguments import RunArguments


def first_row(path: str) -> dict[str, Any]:
    """The first row of a local file. Raises an `InputError` if the file is missing, broken or empty."""
    for _, row in read_rows(path):
        return row
    raise InputError(f"{path}: the file is empty")


def dataset_of_files(
    read: Callable[..., Iterator[dict[str, Any]]], paths: Sequence[str], streaming: bool = False, **options: Any
) -> Dataset | IterableDataset:
    """
    The rows of local files as a dataset.

    Args:
        read: yields the checked rows; called with `paths`, `identities`, which it ignores, and the options.
        paths: local files.
        streaming: read and check the files while training. Data workers share the files.
        options: further arguments of `read`, no lists, which `datasets` would split among workers.

    Raises:
        InputError: `read` raised it.
    """
    if streaming:
        return IterableDataset.from_generator(read, gen_kwargs={"paths": list(paths), "identities": None, **options})
    # `datasets` caches by these arguments, so one of them has to change when the content of a file does.
    identities = tuple(_file_identity(path) for path in paths)
    try:
        return Dataset.from_generator(read, gen_kwargs={"paths": tuple(paths), "identities": identities, **options})
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise


def _file_identity(path: str) -> tuple[str, str]:
    with reading_errors(path), open(path, "rb") as file:
        return str(Path(path).resolve()), hashlib.file_digest(file, "sha256").hexdigest()


def load_hub(name: str, config: str | None, split: str, streaming: bool = False) -> Dataset | IterableDataset:
    """A split of a dataset on the Hub. Raises an `InputError` if it does not exist or cannot be reached."""
    try:
        return load_dataset(name, config, split=split, streaming=streaming)
    except Exception as error:  # datasets raises many types
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"dataset {name!r} cannot be loaded: {reason}") from error


def rename_columns(dataset: Dataset | IterableDataset, columns: ColumnNames) -> Dataset | IterableDataset:
    """A dataset by our names of its columns."""
    if not columns.columns:
        return dataset
    names = columns.of(dataset.column_names or next(iter(dataset)))
    kept = dataset.select_columns(list(names.values()))
    if isinstance(dataset, IterableDataset):  # its rename_columns does not exchange two names
        return kept.map(_renamed, fn_kwargs={"names": names}, remove_columns=list(names.values()))
    return kept.rename_columns({column: name for name, column in names.items() if column != name})


def _renamed(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {name: row[column] for name, column in names.items()}


def read_train_rows(
    data: TrainDataArguments, args: RunArguments, read_files: Callable[..., Dataset | IterableDataset]
) -> Dataset | IterableDataset:
    """
    The training rows, from the Hub or from `read_files(data.train_file, streaming=..., columns=...)`, by our names of
    the columns.
    """
    with args.main_process_first(desc="reading the training data"):
        if data.train_file is not None:
            dataset = read_files(data.train_file, streaming=data.streaming, columns=data.column_names)
        else:
            dataset = load_hub(data.dataset_name, data.dataset_config_name, data.dataset_split, data.streaming)
            dataset = rename_columns(dataset, data.column_names)
    if data.max_train_samples is not None:
        dataset = dataset.select(range(min(data.max_train_samples, len(dataset))))
    return dataset


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
