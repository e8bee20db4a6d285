"""Texts to pre-train on: read, checked and tokenized."""

from collections.abc import Iterator, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ...common.columns import ColumnNames
from ...common.errors import InputError
from ...common.rows import check_text, read_rows, require_columns, row_name
from ..data import dataset_of_files, first_row


def load_texts(
    paths: Sequence[str], streaming: bool = False, columns: ColumnNames | None = None
) -> Dataset | IterableDataset:
    """
    The texts of local files as rows with `text` (see [`~modeling_layerpool.common.rows.read_rows`]).

    Args:
        paths: txt files, or jsonl, csv, tsv (all also gzipped) or parquet files with a column `text`.
        streaming: read and check the files while training. Several data workers share them.
        columns: the name of the column in the files. Default: ours.

    Raises:
        InputError: a file is missing, empty or broken, or a row has no text; with file and line.
    """
    columns = columns or ColumnNames()
    column_of = {path: columns.of(first_row(path)).get("text", "text") for path in paths}
    return dataset_of_files(_checked_texts, paths, streaming, column_of=column_of)


def _checked_texts(paths: Sequence[str], identities: Any, column_of: dict[str, str]) -> Iterator[dict[str, str]]:
    for path in paths:
        column = column_of[path]
        for number, row in read_rows(path):
            where = row_name(path, number)
            require_columns(row, (column,), where)
            yield {"text": check_text(row[column], where, column)}


def tokenize_texts(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, piece_length: int | None, source: str
) -> Dataset | IterableDataset:
    """
    Tokenize texts: `datasets` does this once and caches the result, or while training if it streams.

    Args:
        dataset: rows with `text`. Empty texts, which datasets on the Hub may have, are left out.
        piece_length: maximum number of tokens. Longer texts are cut into pieces, each with its own special tokens.
            None: texts are not cut.
        source: the name of the data, for errors.

    Returns:
        One row for each text or piece, with `input_ids`, special tokens included, and their number, `length`.

    Raises:
        InputError: the column `text` is missing, a text has another type, or the tokenizer cannot cut texts.
    """
    if piece_length is not None and not tokenizer.is_fast:
        # A slow tokenizer returns only the first piece of a long text.
        raise InputError("only a fast tokenizer can cut texts; use one, or --block_packing concatenate")
    # The tokenizer may drop all characters of a text, which leaves special tokens only.
    empty = len(tokenizer("")["input_ids"])

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        texts = [check_text(text, source, "text") for text in batch["text"] if text not in (None, "") and text.strip()]
        options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        if piece_length is not None:
            options |= {"truncation": True, "max_length": piece_length, "return_overflowing_tokens": True}
        pieces = [ids for ids in tokenizer(texts, **options)["input_ids"] if len(ids) > empty] if texts else []
        return {"input_ids": pieces, "length": [len(ids) for ids in pieces]}

    columns = dataset.column_names or list(next(iter(dataset)))
    require_columns(dict.fromkeys(columns), ("text",), source)
    options = {} if isinstance(dataset, IterableDataset) else {"desc": "Tokenizing"}
    return dataset.map(tokenize, batched=True, remove_columns=columns, **options)
