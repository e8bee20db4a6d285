"""
Reads local files and tokenizes rows.

A tokenized row holds the token ids of each text column in `<column>_input_ids` and their total number in `tokens`.
`row_number` is its line in a local file or its index in the dataset. `value` is the number that an objective reads,
scaled to [0, 1].
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...common.columns import ColumnNames
from ...common.errors import InputError
from ...common.rows import check_number, check_text, read_rows, require_columns, row_name
from ..batching import PackingCollator
from ..cropping import Cropping
from ..data import dataset_of_files, first_row
from ..masking import TokenMasking
from .objectives.base import Objective
from .prompts import RunPrompts


if TYPE_CHECKING:
    from .arguments import ContrastiveTrainingArguments


def load_file(
    path: str, objective: Objective, streaming: bool = False, columns: ColumnNames | None = None
) -> Dataset | IterableDataset:
    """
    The rows of a local file (see [`~modeling_layerpool.common.rows.read_rows`]): the columns that the objective needs,
    and `row_number`.

    Args:
        path: a jsonl, csv, tsv or txt file, possibly gzipped, or a parquet file.
        objective: selects the columns.
        streaming: read and check the file during training.
        columns: the names of the columns in the file. Default: ours.

    Raises:
        InputError: the file is missing, empty or broken, or a row lacks a needed text or number; with file and
            line.
    """
    names, where = (columns or ColumnNames()).of(first_row(path)), row_name(path, 1)
    texts = {column: names[column] for column in sorted(set(objective.select_columns(names, where)))}
    value_column = objective.value_column(names, where)
    values = {} if value_column is None else {value_column: names[value_column]}
    return dataset_of_files(_checked_rows, [path], streaming, texts=texts, values=values)


def _checked_rows(
    paths: Sequence[str], identities: Any, texts: dict[str, str], values: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """The rows by our names. `texts` and `values` map these to the columns of the file, which errors name."""
    [path] = paths
    for number, row in read_rows(path):
        where = row_name(path, number)
        require_columns(row, (*texts.values(), *values.values()), where)
        checked = {name: check_text(row[column], where, column) for name, column in texts.items()}
        checked |= {name: check_number(row[column], where, column) for name, column in values.items()}
        yield {"row_number": number} | checked


def text_names(dataset: Dataset | IterableDataset) -> list[str]:
    """The columns of a dataset, under the names that they have before they are tokenized."""
    return [column.removesuffix("_input_ids") for column in dataset.column_names or next(iter(dataset))]


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
    prompts: Mapping[str, str] | None = None,
) -> Dataset | IterableDataset:
    """
    Tokenize the text columns of a dataset. `datasets` caches the result, or tokenizes a stream as it is read.

    Args:
        dataset: rows with the text columns `columns`.
        max_seq_length: maximum number of tokens of a text, special tokens included.
        source: name of the data, for errors.
        value_column: column of numbers, kept as `value`.
        value_range: numbers that become 0 and 1.
        prompts: texts to put before those of a column, by its name.

    Raises:
        InputError: a text is missing, empty or not a string, or a number is missing or out of range. Names the row.
    """
    columns = list(dict.fromkeys(columns))
    low, high = value_range
    prompts = dict(prompts or {})

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
            prompt = prompts.get(column, "")
            texts = [
                prompt + check_text(text, f"{source}, row {row}", column)
                for text, row in zip(batch[column], rows, strict=True)
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

    options = {} if isinstance(dataset, IterableDataset) else {"desc": "Tokenizing"}
    return dataset.map(tokenize, batched=True, with_indices=True, remove_columns=dataset.column_names, **options)


def check_row_length(row_length: int | None, dataset: Dataset | IterableDataset | None, max_seq_length: int) -> None:
    """Raise an `InputError` if a text does not fit into a packed row. A stream may hold texts of any length."""
    if row_length is None or dataset is None:
        return
    longest = max_seq_length
    if isinstance(dataset, Dataset):
        names = [name for name in dataset.column_names if name.endswith("_input_ids")]
        batches = dataset.select_columns(names).with_format("arrow").iter(batch_size=10_000)
        lengths = (pc.max(pc.list_value_length(batch[name])).as_py() for batch in batches for name in names)
        longest = max(length or 0 for length in lengths)  # a dataset of several may lack a column
    if longest > row_length:
        raise InputError(
            f"row_length={row_length} is shorter than the longest text, {longest} tokens; raise it, or lower "
            "max_seq_length"
        )


def make_collator(
    columns: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: "ContrastiveTrainingArguments",
    prompts: RunPrompts,
    masks: bool,
    crop: float,
) -> PackingCollator:
    """The collator of a run. `masks`: also mask tokens. `crop`: the share of a text that its second view keeps."""
    seed = args.sampling_seed
    return PackingCollator(
        columns,
        model.config.pad_token_id or 0,
        args.row_length,
        args.gradient_cache,
        TokenMasking(tokenizer, args.mlm_probability, seed) if masks else None,
        prompts.leading,
        prompts.left_out,
        # A compiled model would be compiled anew for each list of lengths.
        with_lengths=model.pooler.reads_tokens and not args.torch_compile,
        cropping=Cropping(crop, tokenizer.all_special_ids, seed) if crop < 1 else None,
    )
