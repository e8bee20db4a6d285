"""
From files, Hub names and `datasets` objects to tokenised rows.

A tokenised row holds the token ids of its text columns under `<column>_input_ids`, their number under `tokens`, and
under `row_number` where it is from: the line in a local file, else the index in the dataset; and under `value` the
number that an objective reads of it, scaled to [0, 1].
"""

from collections.abc import Iterator, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ...common.errors import InputError
from ...common.rows import check_number, check_text, read_rows, require_columns
from ..data import dataset_of_files, first_row
from .objectives.base import Objective


def load_file(path: str, objective: Objective, streaming: bool = False) -> Dataset | IterableDataset:
    """
    The rows of a local file (see [`~modeling_layerpool.common.rows.read_rows`]): the columns needed, and `row_number`.

    Args:
        path: a jsonl, csv, tsv or txt file, also gzipped.
        objective: names the columns needed of those available.
        streaming: read the file as it is needed, and check it then.

    Raises:
        InputError: the file is missing, empty or broken, or a row lacks a needed text or number; with file and
            line.
    """
    available, where = list(first_row(path)), f"{path}, line 1"
    columns = tuple(sorted(set(objective.select_columns(available, where))))
    value_column = objective.value_column(available, where)
    return dataset_of_files(_checked_rows, [path], streaming, columns=columns, value_column=value_column)


def _checked_rows(
    paths: Sequence[str], identities: Any, columns: tuple[str, ...], value_column: str | None
) -> Iterator[dict[str, Any]]:
    [path] = paths
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        require_columns(row, columns if value_column is None else (*columns, value_column), where)
        checked = {"row_number": line} | {column: check_text(row[column], where, column) for column in columns}
        if value_column is not None:
            checked[value_column] = check_number(row[value_column], where, value_column)
        yield checked


def is_tokenized(dataset: Dataset | IterableDataset) -> bool:
    return any(column.endswith("_input_ids") for column in dataset.column_names or [])


def tokenize_dataset(
    dataset: Dataset | IterableDataset,
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    source: str,
    value_column: str | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Dataset | IterableDataset:
    """
    Tokenise the text columns of a dataset, once: `datasets` caches the result, or does it on the fly when streaming.

    Args:
        dataset: raw rows with the text columns `columns`.
        max_seq_length: tokens at which a text is cut, special tokens included.
        source: the name of the data, for errors.
        value_column: the column of a number to keep, as `value`.
        value_range: the numbers that become 0 and 1.

    Raises:
        InputError: a text is missing, empty or of another type, or a number is none or out of range; with its row.
    """
    columns = list(dict.fromkeys(columns))
    low, high = value_range

    def scaled(value: Any, where: str) -> float:
        number = check_number(value, where, value_column)
        if not low <= number <= high:
            raise InputError(
                f"{where}: the {value_column} {number:g} is outside {low:g} to {high:g}"
                + ("; set --score_range" if value_column == "score" else "")
            )
        return (number - low) / (high - low)

    def tokenize(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows = batch.get("row_number", indices)
        result: dict[str, list] = {"row_number": rows, "tokens": [0] * len(rows)}
        if value_column is not None:
            values = zip(batch[value_column], rows, strict=True)
            result["value"] = [scaled(value, f"{source}, row {row}") for value, row in values]
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
