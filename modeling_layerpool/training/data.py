"""
From files, Hub names and `datasets` objects to tokenised rows.

A tokenised row holds the token ids of its text columns under `<column>_input_ids`, their number under `tokens`, and
under `row_number` where it is from: the line in a local file, else the place in the dataset.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..rows import check_text, read_rows, require_columns


SelectColumns = Callable[[Sequence[str], str], list[str]]


def load_file(path: str, select_columns: SelectColumns, streaming: bool = False) -> Dataset | IterableDataset:
    """
    The rows of a local file (see [`~modeling_layerpool.rows.read_rows`]): the text columns needed, and `row_number`.

    Args:
        path: a jsonl, csv, tsv or txt file, also gzipped.
        select_columns: [`Objective.select_columns`], which names the columns needed of those available.
        streaming: read the file as it is needed, and check it then.

    Raises:
        InputError: the file is missing, empty or broken, or a row lacks a needed text; with file and line.
    """
    _, first = next(read_rows(path), (0, None))
    if first is None:
        raise InputError(f"{path}: the file is empty")
    # A tuple: lists among the arguments of a generator are shards to `datasets`.
    columns = tuple(sorted(set(select_columns(list(first), f"{path}, line 1"))))
    if streaming:
        return IterableDataset.from_generator(_checked_rows, gen_kwargs={"path": path, "columns": columns})
    status = Path(path).stat()
    try:
        # `datasets` caches by the arguments, so these have to tell one state of the file from another.
        return Dataset.from_generator(
            _checked_rows,
            gen_kwargs={"path": path, "columns": columns, "state": (status.st_size, status.st_mtime_ns)},
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise


def _checked_rows(path: str, columns: tuple[str, ...], state: Any = None) -> Iterator[dict[str, Any]]:
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        require_columns(row, columns, where)
        yield {"row_number": line} | {column: check_text(row[column], where, column) for column in columns}


def load_hub(name: str, config: str | None, split: str, streaming: bool = False) -> Dataset | IterableDataset:
    """A split of a dataset on the Hub. Raises an `InputError` if there is none of that name, or no way to reach it."""
    try:
        return load_dataset(name, config, split=split, streaming=streaming)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
        raise InputError(f"dataset {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error


def is_tokenized(dataset: Dataset | IterableDataset) -> bool:
    return any(column.endswith("_input_ids") for column in dataset.column_names or [])


def tokenize_dataset(
    dataset: Dataset | IterableDataset,
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    source: str,
) -> Dataset | IterableDataset:
    """
    Tokenise the text columns of a dataset, once: `datasets` caches the result, or does it on the fly when streaming.

    Args:
        dataset: raw rows with the text columns `columns`.
        max_seq_length: tokens at which a text is cut, special tokens included.
        source: the name of the data, for errors.

    Raises:
        InputError: a text is missing, empty or of another type; with its row.
    """
    columns = list(dict.fromkeys(columns))

    def tokenize(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows = batch.get("row_number", indices)
        result: dict[str, list] = {"row_number": rows, "tokens": [0] * len(rows)}
        for column in columns:
            texts = [
                check_text(text, f"{source}, row {row}", column) for text, row in zip(batch[column], rows, strict=True)
            ]
            ids = tokenizer(
                texts,
                truncation=True,
                max_length=max_seq_length,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            result[f"{column}_input_ids"] = ids
            result["tokens"] = [total + len(sentence) for total, sentence in zip(result["tokens"], ids, strict=True)]
        return result

    options = {} if isinstance(dataset, IterableDataset) else {"desc": "Tokenising"}
    return dataset.map(tokenize, batched=True, with_indices=True, remove_columns=dataset.column_names, **options)
