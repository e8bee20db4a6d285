"""The rows of a classification dataset, from files or from the Hub."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datasets import ClassLabel, Features, List

from ...common.columns import ColumnNames
from ...common.errors import InputError
from ...common.rows import check_text, read_rows, row_word
from ..data import load_hub
from .arguments import LABEL_COLUMNS, TEXT_COLUMNS, ClassificationDataArguments


@dataclass
class LabelledTexts:
    """
    One part of the data: train, validation or test.

    Args:
        source: the file, or dataset and split, for errors.
        row_word: what `row_numbers` counts: `"line"` of a file, or `"row"`.
        row_numbers: the line or row that each row comes from.
        text_columns: the one or two columns of the texts.
        texts: for each column, the texts of all rows.
        label_column: the column of the labels, or None if there is none.
        labels: the label of each row as read, or None if no row has one.
        is_score: whether the labels are in a column `score`.
        is_csv: whether all values are texts, because a csv file has no numbers.
        class_names: the names of the classes in the order of their IDs, if the dataset defines them.
    """

    source: str
    row_word: str
    row_numbers: list[int]
    text_columns: tuple[str, ...]
    texts: tuple[list[str], ...]
    label_column: str | None
    labels: list[Any] | None
    is_score: bool = False
    is_csv: bool = False
    class_names: tuple[str, ...] | None = None

    def where(self, index: int) -> str:
        return f"{self.source}, {self.row_word} {self.row_numbers[index]}"


def read_part(
    data: ClassificationDataArguments, part: str, problem_type: str | None = None, limit: int | None = None
) -> LabelledTexts:
    """
    Read the rows of one part of the data.

    Args:
        part: `"train"`, `"validation"` or `"test"`. Only the rows of `"test"` may all be without labels.
        problem_type: one of `PROBLEM_TYPES` if it is known; it decides the column of the labels.
        limit: maximum number of rows to read.

    Raises:
        InputError: the data cannot be reached or read, is empty or lacks the columns, or a row lacks a text or a
            label; with file and line.
    """
    path = getattr(data, f"{part}_file")
    class_names = None
    if data.hub_name is None:
        source, word, rows = path, row_word(path), read_rows(path)
    else:
        config, split = data.hub_parts.get("config"), data.hub_parts[part]
        dataset = load_hub(data.hub_name, config, split)
        name = data.hub_name if config is None else f"{data.hub_name} ({config})"
        source, word, rows = f"{name}, split {split}", "row", enumerate(dataset)
    rows = list(islice(rows, limit))
    if not rows:
        raise InputError(f"{source}: there are no rows" if data.hub_name else f"{source}: the file is empty")
    first = rows[0][1]
    begin = f"{source}, {word} {rows[0][0]}"
    names = data.column_names.of(first)
    text_columns = _find_text_columns(names, data.column_names, begin)
    candidates = {"single_label_classification": LABEL_COLUMNS[:2], "regression": ("score", "label", "labels")}.get(
        problem_type, LABEL_COLUMNS
    )
    if data.label_column is not None:
        candidates, names = (data.label_column,), {column: column for column in first}
    found = [name for name in candidates if name in names]
    # A column that was named for a label goes first.
    label_name = next((name for name in found if name in data.column_names.columns), next(iter(found), None))
    label_column = names.get(label_name)
    if label_column is None and part != "test":
        raise InputError(
            f"{begin}: no column {' or '.join(map(repr, candidates))} (columns here: {', '.join(first)}); add it, or "
            "name another column with --label_column"
        )
    # GLUE has rows with an empty text, which users cannot correct; in a file it is a mistake.
    check = check_text if data.hub_name is None else _check_hub_text
    texts = tuple(
        [check(row.get(column), f"{source}, {word} {number}", column) for number, row in rows]
        for column in text_columns
    )
    labels = None
    if label_column is not None:
        labels = [row.get(label_column) for _, row in rows]
        if data.hub_name is not None:
            labels, class_names = _named_labels(labels, dataset.features, label_column)
            if data.task_name is not None and part == "test":
                labels = None  # GLUE does not publish them; the values are placeholders
    result = LabelledTexts(
        source,
        word,
        [number for number, _ in rows],
        text_columns,
        texts,
        label_column,
        labels,
        is_score="score" in (label_name, label_column),
        is_csv=path is not None and data.hub_name is None and bool(re.search(r"\.[ct]sv(\.gz)?$", path.lower())),
        class_names=class_names,
    )
    if labels is not None:
        without = [index for index, label in enumerate(labels) if label is None or not str(label).strip()]
        if part == "test" and len(without) == len(labels):
            result.labels = None
        elif without:
            raise InputError(
                f"{result.where(without[0])}: the column {label_column!r} is missing, null or empty; give every row "
                "a label, or remove the row"
            )
    return result


def _find_text_columns(names: Mapping[str, str], given: ColumnNames, where: str) -> tuple[str, ...]:
    """The columns of the texts. `names` are all columns by our names."""

    def share_given(columns: tuple[str, ...]) -> float:
        return sum(column in given.columns for column in columns) / len(columns)

    known = sorted(TEXT_COLUMNS, key=share_given, reverse=True)  # what was given goes first
    found = next((columns for columns in known if all(column in names for column in columns)), None)
    if found is None:
        expected = " or ".join(" and ".join(map(repr, columns)) for columns in TEXT_COLUMNS)
        raise InputError(
            f"{where}: no columns {expected} (columns here: {', '.join(names.values())}); rename them, or name them "
            "with --columns"
        )
    return tuple(names[column] for column in found)


def _check_hub_text(value: Any, where: str, column: str) -> str:
    return value if value == "" else check_text(value, where, column)


def _named_labels(labels: list[Any], features: Features, column: str) -> tuple[list[Any], tuple[str, ...] | None]:
    """Replace class IDs by the class names of the dataset, if it has any; -1 is no label."""
    feature = features[column]
    is_list = isinstance(feature, List)
    inner = feature.feature if is_list else feature
    if not isinstance(inner, ClassLabel):
        return labels, None
    names = inner.names
    if is_list:
        return [None if row is None else [names[number] for number in row] for row in labels], tuple(names)
    return [None if number in (None, -1) else names[number] for number in labels], tuple(names)
