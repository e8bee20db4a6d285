"""Fine-tuning a layer-pooled classifier: its arguments, its rows and labels, and its trainer."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from datasets import ClassLabel, Dataset, Features, List
from torch.utils.data import DataLoader, SequentialSampler
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalPrediction, PredictionOutput, SaveStrategy

from ..command_line import Range, check_arguments, check_used
from ..errors import InputError
from ..rows import check_number, check_text, check_unicode, read_rows, shown
from .arguments import ModelArguments
from .base import LayerPoolTrainer, RunArguments
from .batching import EpochDataLoader, GlobalBatchSampler
from .data import load_hub


PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
# GLUE by name, and the metric that a checkpoint of each task is chosen by.
GLUE = {
    "cola": "matthews",
    "mnli": "accuracy",
    "mrpc": "f1",
    "qnli": "accuracy",
    "qqp": "f1",
    "rte": "accuracy",
    "sst2": "accuracy",
    "stsb": "spearman",
    "wnli": "accuracy",
}
GLUE_DATASET = "nyu-mll/glue"
# What is measured, the headline first; f1 is there for two classes only.
METRIC_NAMES = {
    "single_label_classification": ("accuracy", "f1", "macro_f1", "matthews", "loss"),
    "multi_label_classification": ("micro_f1", "macro_f1", "accuracy", "loss"),
    "regression": ("spearman", "pearson", "loss"),
}
# The columns of the texts, by their names: the first of these that a file has all of.
TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("sentence", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("sentence",),
    ("text",),
)
WHOLE_NUMBER = re.compile(r"[+-]?\d+")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# How a csv file spells a number that is none.
UNDEFINED = ("nan", "inf", "-inf", "+inf", "infinity", "-infinity")
MOST_CLASSES_NAMED = 10


@dataclass
class ClassificationModelArguments(ModelArguments):
    """[`ModelArguments`], and what becomes of a classifier that the checkpoint has."""

    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Start a new classifier where that of the checkpoint has other classes than the data."},
    )


@dataclass
class ClassificationDataArguments:
    """Which rows to train on, choose by and predict, and what their columns mean."""

    RANGES: ClassVar = {"max_train_samples": Range(at_least=1)}

    task_name: str | None = field(
        default=None, metadata={"help": f"A task of GLUE, from {GLUE_DATASET} on the Hub.", "choices": sorted(GLUE)}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A dataset on the Hub, in place of files."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(default=None, metadata={"help": "jsonl, csv or tsv, also .gz."})
    validation_file: str | None = field(
        default=None, metadata={"help": "What to evaluate on, and to choose the checkpoint by; like --train_file."}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "What to predict; like --train_file, with or without labels."}
    )
    train_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split of a dataset on the Hub. Default: validation; of mnli _matched."}
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Split of a dataset on the Hub. Default: test; of mnli test_matched."}
    )
    text_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns of the text, or of the two texts. Default: " + ", ".join(map(" and ".join, TEXT_COLUMNS))
        },
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Default: label, labels or score; for a regression score, label or labels."}
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "Default: regression for a column score or labels with decimals, multi-label for lists, else one "
            "class a row.",
            "choices": PROBLEM_TYPES,
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first rows of the data only."})

    def __post_init__(self):
        check_arguments(self)
        check_used(self, {"dataset_config_name": self.dataset_name is not None}, "without dataset_name")
        of_hub = dict.fromkeys(("train_split", "validation_split", "test_split"), self.hub_name is not None)
        check_used(self, of_hub, "without task_name or dataset_name")
        if self.text_columns is not None and len(self.text_columns) > 2:
            raise InputError(f"--text_columns {' '.join(self.text_columns)}: a row has one text or two")

    @property
    def hub_name(self) -> str | None:
        """The dataset on the Hub, if the rows come from there."""
        return GLUE_DATASET if self.task_name is not None else self.dataset_name

    @property
    def hub_parts(self) -> dict[str, str]:
        """Of data on the Hub: the configuration, if any, under `config`, and the split of each part of the data."""
        if self.hub_name is None:
            return {}
        config = self.task_name or self.dataset_config_name
        end = "_matched" if self.task_name == "mnli" else ""
        return ({} if config is None else {"config": config}) | {
            "train": self.train_split,
            "validation": self.validation_split or f"validation{end}",
            "test": self.test_split or f"test{end}",
        }


@dataclass
class ClassificationTrainingArguments(RunArguments):
    """[`RunArguments`] with the defaults of fine-tuning: measured and saved after every epoch."""

    RANGES: ClassVar = {
        "max_seq_length": Range(at_least=3),  # a text needs room between its special tokens
        "early_stopping_patience": Range(at_least=1),
    }

    max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens at which a row is cut (of two texts the longer one), special tokens included; saved with "
            "the tokenizer. Default: the tokenizer's model_max_length, at most the encoder's positions."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations in a row without a better one."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "How rows are put in batches: 'group_by_length' (of similar length, which saves padding), "
            "'random' or 'sequential'.",
            "choices": ["group_by_length", "random", "sequential"],
        },
    )
    save_strategy: SaveStrategy | str = field(
        default="epoch", metadata={"help": "When to save, and to measure: 'epoch', 'steps' or 'no'."}
    )
    # Without it a resumed run would count the evaluations without a better one from the start.
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Go on counting for --early_stopping_patience when a run is resumed."}
    )

    def __post_init__(self):
        known = ("group_by_length", "random", "sequential")
        if self.train_sampling_strategy not in known:
            raise InputError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} does not work here; use one of "
                f"{', '.join(known)}"
            )
        super().__post_init__()


# --- rows ---


@dataclass
class LabelledTexts:
    """
    One part of the data, as its rows have it.

    Args:
        source: file, or dataset and split, with which errors begin.
        row_word: what `row_numbers` counts: `"line"` of a file, or `"row"`.
        row_numbers: where each row is from.
        text_columns: the one or two columns that the texts are from.
        texts: the texts of each column, each as many as there are rows.
        label_column: the column of the labels, or None if there is none.
        labels: the label of each row as it stands there, or None if no row has one.
        is_csv: whether all values are texts, as a csv file knows no numbers.
        class_names: the names of the classes in the order of their numbers, where the dataset says so.
    """

    source: str
    row_word: str
    row_numbers: list[int]
    text_columns: tuple[str, ...]
    texts: tuple[list[str], ...]
    label_column: str | None
    labels: list[Any] | None
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
        problem_type: one of `PROBLEM_TYPES` if it is known, which decides the column of the labels.
        limit: read so many rows only.

    Raises:
        InputError: the data cannot be reached or read, is empty, has no columns of that meaning, or a row lacks a text
            or a label; with file and line.
    """
    path = getattr(data, f"{part}_file")
    class_names = None
    if data.hub_name is None:
        source, row_word, rows = path, "line", read_rows(path)
    else:
        config, split = data.hub_parts.get("config"), data.hub_parts[part]
        dataset = load_hub(data.hub_name, config, split)
        name = data.hub_name if config is None else f"{data.hub_name} ({config})"
        source, row_word, rows = f"{name}, split {split}", "row", enumerate(dataset)
    rows = list(islice(rows, limit))
    if not rows:
        raise InputError(f"{source}: there are no rows" if data.hub_name else f"{source}: the file is empty")
    first = rows[0][1]
    begin = f"{source}, {row_word} {rows[0][0]}"
    text_columns = _find_text_columns(first, data.text_columns, begin)
    candidates = ("label", "labels") if problem_type == "single_label_classification" else ("label", "labels", "score")
    if problem_type == "regression":
        candidates = ("score", "label", "labels")
    if data.label_column is not None:
        candidates = (data.label_column,)
    label_column = next((column for column in candidates if column in first), None)
    if label_column is None and part != "test":
        raise InputError(
            f"{begin}: no column {' or '.join(map(repr, candidates))} (columns here: {', '.join(first)}); add it, or "
            "name another one with --label_column"
        )
    # A dataset on the Hub is as it is, and GLUE has rows with an empty text; in a file it is a mistake to mend.
    check = check_text if data.hub_name is None else _check_hub_text
    texts = tuple(
        [check(row.get(column), f"{source}, {row_word} {number}", column) for number, row in rows]
        for column in text_columns
    )
    labels = None
    if label_column is not None:
        labels = [row.get(label_column) for _, row in rows]
        if data.hub_name is not None:
            labels, class_names = _named_labels(labels, dataset.features, label_column)
            if data.task_name is not None and part == "test":
                labels = None  # GLUE keeps them to itself; what stands there means nothing
    result = LabelledTexts(
        source,
        row_word,
        [number for number, _ in rows],
        text_columns,
        texts,
        label_column,
        labels,
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
                "its label, or take the row out"
            )
    return result


def _find_text_columns(row: Mapping[str, Any], named: Sequence[str] | None, where: str) -> tuple[str, ...]:
    known = TEXT_COLUMNS if named is None else (tuple(named),)
    found = next((columns for columns in known if all(column in row for column in columns)), None)
    if found is None:
        expected = " or ".join(" and ".join(map(repr, columns)) for columns in known)
        hint = "" if named else "; rename them, or name yours with --text_columns"
        raise InputError(f"{where}: no columns {expected} (columns here: {', '.join(row)}){hint}")
    return found


def _check_hub_text(value: Any, where: str, column: str) -> str:
    return value if value == "" else check_text(value, where, column)


def _named_labels(labels: list[Any], features: Features, column: str) -> tuple[list[Any], tuple[str, ...] | None]:
    """Class numbers by their names, where the dataset has names for them; -1 is no label."""
    feature = features[column]
    is_list = isinstance(feature, List)
    inner = feature.feature if is_list else feature
    if not isinstance(inner, ClassLabel):
        return labels, None
    names = inner.names
    if is_list:
        return [None if row is None else [names[number] for number in row] for row in labels], tuple(names)
    return [None if number in (None, -1) else names[number] for number in labels], tuple(names)


# --- labels ---


@dataclass(frozen=True)
class Labels:
    """
    What a classifier says of a row.

    Args:
        problem_type: one of `PROBLEM_TYPES`, as in the library's configuration.
        names: the names of the classes, in the order of their numbers; of a regression the one name of its number.
    """

    problem_type: str
    names: tuple[str, ...]

    @classmethod
    def from_rows(cls, part: LabelledTexts, problem_type: str | None = None) -> "Labels":
        """
        The labels of training rows: class names sorted, whole numbers among them by value; or those of the dataset.

        Raises:
            InputError: a label is of another kind than the others, or all rows have the same one.
        """
        problem_type = problem_type or _find_problem_type(part)
        if problem_type == "regression":
            return cls(problem_type, (part.label_column,))
        several = problem_type == "multi_label_classification"
        said = {name for index in range(len(part.labels)) for name in _names_of(part, index, several)}
        if not several and len(said) == 1:
            raise InputError(
                f"{part.source}: the column {part.label_column!r} says {said.pop()!r} in every row; at least two "
                "classes are needed"
            )
        if not said:
            raise InputError(f"{part.source}: the column {part.label_column!r} names no class in any row")
        if part.class_names is not None:
            return cls(problem_type, part.class_names)
        are_numbers = all(WHOLE_NUMBER.fullmatch(name) for name in said)
        return cls(problem_type, tuple(sorted(said, key=lambda name: (int(name) if are_numbers else 0, name))))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Labels":
        """The labels of a saved classifier, from its configuration as a dictionary."""
        id2label = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}
        names = tuple(id2label[key] for key in sorted(id2label, key=int))
        default = "regression" if len(names) == 1 else "single_label_classification"
        return cls(config.get("problem_type") or default, names)

    @property
    def config_fields(self) -> dict[str, Any]:
        """The fields of the configuration that say the same."""
        return {
            "problem_type": self.problem_type,
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
        }

    def encode(self, part: LabelledTexts, whose: str, fix: str) -> list[Any]:
        """
        The labels of rows as the model's loss takes them: a number, a class number, or a 0 or 1 for each class.

        Args:
            whose: what has these classes, for the error: `"train.jsonl"`.
            fix: what to do about a label that it has not.

        Raises:
            InputError: a label is no number, or not one of the classes; or numbers without a correlation, as they are
                all equal. With file, line and column.
        """
        if self.problem_type == "regression":
            rows = enumerate(part.labels)
            numbers = [check_number(label, part.where(index), part.label_column) for index, label in rows]
            if len(set(numbers)) == 1:
                raise InputError(
                    f"{part.source}: the column {part.label_column!r} is {numbers[0]:g} in every row, so no "
                    "correlation is defined; at least two different numbers are needed"
                )
            return numbers
        several = self.problem_type == "multi_label_classification"
        number_of = {name: number for number, name in enumerate(self.names)}
        encoded = []
        for index in range(len(part.labels)):
            said = _names_of(part, index, several)
            unknown = next((name for name in said if name not in number_of), None)
            if unknown is not None:
                raise InputError(
                    f"{part.where(index)}: the column {part.label_column!r} says {unknown!r}, which is not among the "
                    f"classes of {whose} ({_enumerate(self.names)}); mend the row, or {fix}"
                )
            numbers = [number_of[name] for name in said]
            encoded.append([float(number in numbers) for number in range(len(self.names))] if several else numbers[0])
        return encoded

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Of logits `(n, c)`: the numbers or class numbers `(n,)`, or a 0 or 1 for each class `(n, c)`."""
        if self.problem_type == "regression":
            return logits.reshape(-1)
        return (logits > 0).astype(int) if self.problem_type == "multi_label_classification" else logits.argmax(-1)

    def predictions(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """`prediction` of each row, by name, and the `scores` of all classes, of logits `(n, c)`."""
        decided = self.decide(logits)
        if self.problem_type == "regression":
            return [{"prediction": float(number)} for number in decided]
        scores = torch.from_numpy(np.asarray(logits, dtype=np.float64))
        if self.problem_type == "multi_label_classification":
            said = [[name for name, has in zip(self.names, row, strict=True) if has] for row in decided]
            scores = scores.sigmoid()
        else:
            said = [self.names[number] for number in decided]
            scores = scores.softmax(dim=-1)
        return [
            {"prediction": prediction, "scores": dict(zip(self.names, row, strict=True))}
            for prediction, row in zip(said, scores.tolist(), strict=True)
        ]


def _find_problem_type(part: LabelledTexts) -> str:
    labels = part.labels
    if part.label_column == "score":
        return "regression"
    if any(isinstance(label, list) for label in labels):
        return "multi_label_classification"
    if part.is_csv:
        undefined = [index for index, label in enumerate(labels) if label.strip().lower() in UNDEFINED]
        are_numbers = all(NUMBER.fullmatch(label.strip()) for label in labels)
        if undefined and all(
            NUMBER.fullmatch(label.strip()) for label in labels if label.strip().lower() not in UNDEFINED
        ):
            check_number(labels[undefined[0]], part.where(undefined[0]), part.label_column)
        have_decimals = not all(WHOLE_NUMBER.fullmatch(label.strip()) for label in labels)
    else:
        are_numbers = all(isinstance(label, (int, float)) for label in labels)
        have_decimals = any(isinstance(label, float) for label in labels)
    return "regression" if are_numbers and have_decimals else "single_label_classification"


def _names_of(part: LabelledTexts, index: int, several: bool) -> list[str]:
    """The class names that a row's label says."""
    label = part.labels[index]
    if several and not isinstance(label, list):
        raise InputError(
            f"{part.where(index)}: the column {part.label_column!r} must be a list of classes, got {shown(label)}"
        )
    names = []
    for value in label if several else [label]:
        if isinstance(value, float):
            # NaN would become a class of its own.
            check_number(value, part.where(index), part.label_column)
            value = int(value) if value.is_integer() else value
        if not isinstance(value, (str, int, float)) or value == "":
            is_list = isinstance(label, list) and not several
            hint = "; several classes a row need --problem_type multi_label_classification" if is_list else ""
            raise InputError(
                f"{part.where(index)}: the column {part.label_column!r} must be a class, as a text or a whole number, "
                f"got {shown(value)}{hint}"
            )
        names.append(check_unicode(str(value).strip(), part.where(index), part.label_column))
    return names


def _enumerate(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_CLASSES_NAMED])
    return shown if len(names) <= MOST_CLASSES_NAMED else f"{shown} and {len(names) - MOST_CLASSES_NAMED} more"


def tokenize_part(part: LabelledTexts, labels: Iterable[Any] | None, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """
    The model's input of each row, cut at the tokenizer's `model_max_length`: its own columns, `length` in tokens,
    `labels` where they are given, and `row_number`.
    """
    columns = {"row_number": part.row_numbers, "text": part.texts[0]}
    if len(part.texts) == 2:
        columns["text_pair"] = part.texts[1]
    if labels is not None:
        columns["labels"] = list(labels)

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        inputs = tokenizer(batch["text"], batch.get("text_pair"), truncation=True, verbose=False)
        return {**inputs, "length": [len(ids) for ids in inputs["input_ids"]]}

    unneeded = [column for column in ("text", "text_pair") if column in columns]
    return Dataset.from_dict(columns).map(tokenize, batched=True, remove_columns=unneeded, desc="Tokenising")


# --- training ---


def restart_classifier(model: PreTrainedModel) -> None:
    """Start the classifier afresh, whatever the checkpoint had there for other classes or another vector."""
    torch.nn.init.normal_(model.classifier.weight, std=model.config.initializer_range)
    torch.nn.init.zeros_(model.classifier.bias)


class LengthGroupedBatchSampler(GlobalBatchSampler):
    """
    The batches of [`GlobalBatchSampler`], of rows of similar length; one may have a single row for each process.

    The rows of an epoch are shuffled, cut into pools of at most 50 batches and at least a quarter of the data, and
    sorted in each; then the batches are shuffled. A smaller last batch stays the last.

    Args:
        lengths: tokens of each row; or None, to leave the rows in the order of [`GlobalBatchSampler`].
    """

    POOL = 50

    def __init__(self, lengths: Sequence[int] | None, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lengths = lengths

    @property
    def smallest(self) -> int:
        return self.batch_size if self.drop_last else self.world_size

    def order(self, epoch: int) -> list[int]:
        order = super().order(epoch)
        if self.lengths is None:
            return order
        size = self.batch_size
        pool = size * max(1, min(self.POOL, len(order) // (4 * size)))
        batches = []
        for begin in range(0, len(order), pool):
            rows = sorted(order[begin : begin + pool], key=self.lengths.__getitem__, reverse=True)
            batches += [rows[place : place + size] for place in range(0, len(rows), size)]
        last = [batches.pop()] if len(batches[-1]) < size else []
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shuffled = [batches[place] for place in torch.randperm(len(batches), generator=generator)]
        return [row for batch in shuffled + last for row in batch]


class ClassificationTrainer(LayerPoolTrainer):
    r"""
    Trains a layer-pooled classifier on padded batches.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A layer-pooled classifier.
        args ([`ClassificationTrainingArguments`]):
            The options of the run.
        train_dataset, eval_dataset (`datasets.Dataset`, *optional*):
            Tokenised and labelled rows, from [`tokenize_part`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer that made them.
        compute_metrics (`Callable`, *optional*):
            As in the library: metrics by name, of logits and labels.
        write_model_card (`Callable`, *optional*):
            Called with this trainer to write the card of `args.output_dir`, in place of the library's.

    Other arguments are the Trainer's.

    Raises:
        InputError: several devices without `accelerate launch`, fewer rows than processes, or label smoothing of
            anything but one class a row.
        NonFiniteLossError: the loss is NaN or infinite; raised at the next logging or saving step.
        CheckpointWriteError: a checkpoint could not be written, as on a full disk; older ones stay whole.
    """

    METRICS: ClassVar = {name: name != "loss" for names in METRIC_NAMES.values() for name in names}

    def __init__(
        self,
        model: PreTrainedModel,
        args: ClassificationTrainingArguments,
        *,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ):
        if args.n_gpu > 1:
            raise InputError(
                f"{args.n_gpu} devices are visible to one process: start one process for each with `accelerate "
                "launch`, or choose one with CUDA_VISIBLE_DEVICES"
            )
        if args.label_smoothing_factor != 0 and model.config.problem_type != "single_label_classification":
            raise InputError("--label_smoothing_factor needs labels that are one class a row; leave it out")
        if train_dataset is not None:
            needed = args.world_size * (args.per_device_train_batch_size if args.dataloader_drop_last else 1)
            if len(train_dataset) < needed:
                raise InputError(f"{len(train_dataset)} training row(s) do not make a batch; {needed} are needed")
        if eval_dataset is not None:
            eval_dataset = _inputs_of(eval_dataset.select(_longest_first(eval_dataset)), processing_class)
        # Tensor cores want widths in eights; but a row must not grow beyond the positions of the model.
        fits = -(-processing_class.model_max_length // 8) * 8 <= model.max_tokens
        super().__init__(
            model,
            args,
            data_collator=DataCollatorWithPadding(processing_class, pad_to_multiple_of=8 if fits else None),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def get_train_dataloader(self) -> DataLoader:
        """
        Batches of this process, of rows of similar length unless `train_sampling_strategy` says otherwise.

        The library's own sampler draws from the global random state: a resumed run would get other batches, and
        processes could disagree about them. Not prepared by accelerate: they are already this process's share.
        """
        args, dataset = self.args, self.train_dataset
        sampler = LengthGroupedBatchSampler(
            list(dataset["length"]) if args.train_sampling_strategy == "group_by_length" else None,
            len(dataset),
            self._train_batch_size * args.world_size,
            rank=args.process_index,
            world_size=args.world_size,
            shuffle=args.train_sampling_strategy != "sequential",
            seed=args.seed if args.data_seed is None else args.data_seed,
            drop_last=args.dataloader_drop_last,
        )
        return EpochDataLoader(
            _inputs_of(dataset, self.processing_class),
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            **self.worker_options(),
        )

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        # The library's, for rows to measure or to predict: `dataloader_drop_last` would leave some of them out.
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_eval_sampler(self, eval_dataset: Dataset) -> SequentialSampler:
        # With group_by_length the library's is a shuffled one, and predictions would belong to other rows.
        return SequentialSampler(eval_dataset)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        """The model's loss, so weighted that the mean over the processes is that over all rows of the batch."""
        rows = len(inputs["labels"])
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training and self.args.world_size > 1:
            total = torch.tensor(float(rows), device=loss.device)
            dist.all_reduce(total)
            loss = loss * (rows * self.args.world_size / total)
        return (loss, outputs) if return_outputs else loss

    def predict(
        self, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """As in the library, in the order of the rows; on the way rows of similar length are computed together."""
        order = _longest_first(test_dataset)
        rows = _inputs_of(test_dataset.select(order), self.processing_class)
        output = super().predict(rows, ignore_keys, metric_key_prefix)
        back = np.argsort(order)
        labels = None if output.label_ids is None else output.label_ids[back]
        return output._replace(predictions=output.predictions[back], label_ids=labels)

    def _init_training_state(self, max_steps: int, steps_an_epoch: int, epochs: int, *args: Any) -> tuple[int, int]:
        trained = super()._init_training_state(max_steps, steps_an_epoch, epochs, *args)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback) and self.args.early_stopping_patience is not None:
                # A resumed callback comes with the patience of the run before.
                callback.early_stopping_patience = self.args.early_stopping_patience
                if callback.early_stopping_patience_counter >= callback.early_stopping_patience:
                    return epochs, 0  # that run had stopped; the library would train on to the next evaluation
        return trained


def _inputs_of(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """What the collator makes batches of."""
    columns = {*tokenizer.model_input_names, "labels"}
    return dataset.select_columns([column for column in dataset.column_names if column in columns])


def _longest_first(dataset: Dataset) -> np.ndarray:
    return np.argsort(dataset["length"], kind="stable")[::-1]
