"""Texts to pre-train on: read, checked and tokenised."""

from collections.abc import Iterator, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ...common.errors import InputError
from ...common.rows import check_text, read_rows, require_columns
from ..data import dataset_of_files, first_row


def load_texts(paths: Sequence[str], streaming: bool = False) -> Dataset | IterableDataset:
    """
    The texts of local files, one file after the other (see [`~modeling_layerpool.common.rows.read_rows`]): rows with
    `text`.

    Args:
        paths: txt files, or jsonl, csv or tsv ones with a column `text`, also gzipped.
        streaming: read the files as they are needed, and check them then; several data workers share them.

    Raises:
        InputError: a file is missing, empty or broken, or a row has no text; with file and line.
    """
    for path in paths:
        first_row(path)  # so that an empty file is an error before anything is read
    return dataset_of_files(_checked_texts, paths, streaming)


def _checked_texts(paths: Sequence[str], identities: Any) -> Iterator[dict[str, str]]:
    for path in paths:
        for line, row in read_rows(path):
            where = f"{path}, line {line}"
            require_columns(row, ("text",), where)
            yield {"text": check_text(row["text"], where, "text")}


def tokenize_texts(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, piece_length: int | None, source: str
) -> Dataset | IterableDataset:
    """
    Tokenise texts, once: `datasets` caches the result, or does it on the fly when streaming.

    Args:
        dataset: rows with `text`. Empty texts, as a dataset on the Hub may have, are left out.
        piece_length: a longer text is cut into pieces of at most so many tokens, each between special tokens of its
            own. None: texts stay whole.
        source: the name of the data, for errors.

    Returns:
        Rows with `input_ids`, special tokens included, and their number, `length`; one for each text or piece.

    Raises:
        InputError: there is no column `text`, a text is of another type, or the tokenizer cannot cut.
    """
    if piece_length is not None and not tokenizer.is_fast:
        # Of a long text the other kind gives the first piece only.
        raise InputError("texts are cut by a fast tokenizer only; give one, or --block_packing concatenate")
    # A text whose every letter is dropped by the tokenizer would be special tokens around nothing.
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
    options = {} if isinstance(dataset, IterableDataset) else {"desc": "Tokenising"}
    return dataset.map(tokenize, batched=True, remove_columns=columns, **options)
