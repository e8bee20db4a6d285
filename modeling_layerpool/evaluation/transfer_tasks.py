"""The transfer tasks of SentEval: texts or pairs of texts with a label each, from local files or from the Hub."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..common.columns import ColumnNames
from ..common.errors import InputError
from ..common.rows import check_text, is_folder, read_rows, require_columns, row_name, shown


FOLDS = 10  # of a task without parts
INNER_FOLDS = 3  # of a training part, where the task has no dev part
PARTS = ("train", "dev", "test")
PAIR = ("sentence1", "sentence2")


class HubTask(NamedTuple):
    """Where the Hub has a task: the splits that make up each part (or, as `all`, the rows of the folds)."""

    repository: str
    splits: dict[str, str]
    configuration: str | None = None
    label: str = "label"


TRANSFER_TASKS = {
    "mr": HubTask("cornell-movie-review-data/rotten_tomatoes", {"all": "train+validation+test"}),
    "cr": HubTask("SetFit/CR", {"all": "train+test"}),
    "subj": HubTask("SetFit/subj", {"all": "train+test"}),
    "mpqa": HubTask("jxm/mpqa", {"all": "train+dev+test"}),
    "sst2": HubTask("SetFit/sst2", {"train": "train", "dev": "validation", "test": "test"}),
    "trec": HubTask("SetFit/TREC-QC", {"train": "train", "test": "test"}, label="label_coarse_text"),
    "mrpc": HubTask("nyu-mll/glue", {"train": "train+validation", "test": "test"}, "mrpc"),
}


class TransferTask(NamedTuple):
    """The rows of a task, those of train first, then those of dev and of test.

    `first` are the texts or the first texts of the pairs, `second` the second texts (None for single texts), `labels`
    (rows,) the index of each row's label among the sorted ones, `sizes` the rows of each part (None: a task of folds).
    """

    first: list[str]
    second: list[str] | None
    labels: np.ndarray
    sizes: dict[str, int] | None = None


def read_transfer_task(path: str | Path, columns: ColumnNames | None = None) -> TransferTask:
    """Read a local task: `evaluate_transfer(encoder, read_transfer_task(path))`.

    Args:
        path: a file (jsonl, csv, tsv or parquet), whose rows are divided into 10 folds; or a folder with
            `train.jsonl`, `test.jsonl` and perhaps `dev.jsonl`, or the same as `.jsonl.gz`. The columns are
            `sentence` (or `text`), or `sentence1` and `sentence2`, and `label`, a text or an integer.
        columns: the names of the columns in the files. Default: those above.

    Raises:
        InputError: a file is missing; a row (named by its line) lacks a column, has an empty text, or a label of
            another type; all labels are equal; or a label has too few rows to be in each fold.
    """
    path = Path(path)
    if not is_folder(path):
        return _task({"all": _numbered(path)}, str(path), columns)
    files = {part: _find(path, part) for part in PARTS}
    missing = [part for part in ("train", "test") if files[part] is None]
    if missing:
        raise InputError(
            f"{path}: has no {missing[0]}.jsonl or {missing[0]}.jsonl.gz; for {FOLDS} folds give a file, not a folder"
        )
    return _task({part: _numbered(file) for part, file in files.items() if file}, str(path), columns)


def load_transfer_task(name: str) -> TransferTask:
    """Load one of [`TRANSFER_TASKS`] from the Hub.

    Raises:
        InputError: the name is not a built-in one, or the task cannot be loaded, for example without a network.
    """
    if name not in TRANSFER_TASKS:
        known = ", ".join(TRANSFER_TASKS)
        raise InputError(f"--transfer {name}: no built-in task of this name ({known}); give NAME=FILE or NAME=FOLDER")
    import datasets

    task = TRANSFER_TASKS[name]
    try:
        parts = {
            part: datasets.load_dataset(task.repository, task.configuration, split=split)
            for part, split in task.splits.items()
        }
    except Exception as error:  # datasets raises many types for a missing set or network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"--transfer {name}: {task.repository} could not be loaded from the Hub ({reason}); give a local task as "
            f"{name}=FILE or {name}=FOLDER"
        ) from error
    rows = {
        part: ((f"{task.repository}, {part}, row {index}", row) for index, row in enumerate(found))
        for part, found in parts.items()
    }
    return _task(rows, task.repository, ColumnNames({"label": [task.label]}))


def _find(folder: Path, part: str) -> Path | None:
    return next((path for end in ("", ".gz") if (path := folder / f"{part}.jsonl{end}").is_file()), None)


def _numbered(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    return ((row_name(path, number), row) for number, row in read_rows(path))


def _task(
    parts: dict[str, Iterable[tuple[str, dict[str, Any]]]], source: str, columns: ColumnNames | None
) -> TransferTask:
    needed: list[str] = []
    texts: list[list[str]] = [[], []]
    names: list[str] = []
    sizes = {}
    for part, rows in parts.items():
        before = len(names)
        for where, row in rows:
            if not needed:  # the first row decides
                known = (columns or ColumnNames()).of(row)
                of_texts = (
                    PAIR
                    if PAIR[0] in known
                    else ("text" if "sentence" not in known and "text" in known else "sentence",)
                )
                needed = [known.get(name, name) for name in (*of_texts, "label")]
            require_columns(row, needed, where)
            *text_columns, label_column = needed
            for side, name in zip(texts, text_columns, strict=False):
                side.append(check_text(row[name], where, name))
            names.append(_label(row[label_column], where, label_column))
        sizes[part] = len(names) - before
        if not sizes[part]:
            raise InputError(f"{source}: no rows{'' if part == 'all' else f' in {part}'}")
    first, second = texts
    _check_labels(names, sizes, source)
    labels = np.unique(names, return_inverse=True)[1]
    return TransferTask(first, second or None, labels, None if "all" in sizes else sizes)


def _label(value: Any, where: str, column: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value
    raise InputError(f"{where}: the column {column!r} must be a text or an integer, got {shown(value)}")


def _check_labels(names: list[str], sizes: dict[str, int], source: str) -> None:
    """Every label needs a row in each fold that regularization is chosen on, so that each fit knows all labels."""
    in_folds = "all" in sizes
    train = Counter(names if in_folds else names[: sizes["train"]])
    if len(train) < 2:
        raise InputError(f"{source}: every label is {next(iter(train))!r}, and a classifier needs at least two labels")
    folds = FOLDS if in_folds else 1 if "dev" in sizes else INNER_FOLDS
    rarest, rows = min(train.items(), key=lambda item: (item[1], item[0]))
    if rows < folds:
        raise InputError(f"{source}: the label {rarest!r} has {rows} rows, and {folds} folds need one in each")
    if unknown := sorted(set(names) - set(train)):
        raise InputError(f"{source}: the label {unknown[0]!r} of dev or test is not in train")
