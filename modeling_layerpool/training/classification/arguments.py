"""The arguments of `run_classification.py`."""

from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar

from transformers.trainer_utils import SaveStrategy

from ...common.columns import ColumnNames
from ...common.command_line import Range, check_used
from ...common.errors import InputError
from ...common.labels import PROBLEM_TYPES
from ..data_arguments import HubDataArguments
from ..frozen import FreezeArguments
from ..model_arguments import ModelArguments
from ..run_arguments import RunArguments


# The tasks of GLUE, and the metric by which the best checkpoint of each is chosen.
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
# Names of the columns of the texts. The first entry whose columns are all present is used.
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
LABEL_COLUMNS = ("label", "labels", "score")


@dataclass
class ClassificationModelArguments(ModelArguments):
    """[`ModelArguments`], and whether to replace the classifier of the checkpoint."""

    GROUP: ClassVar = "checkpoint"

    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Start a new classifier if the checkpoint's has other classes than the data."},
    )


@dataclass
class ClassificationDataArguments(HubDataArguments):
    """The data to train on, evaluate on and predict, and the meaning of its columns."""

    GROUP: ClassVar = HubDataArguments.GROUP
    COLUMN_NAMES: ClassVar = (*dict.fromkeys(chain.from_iterable(TEXT_COLUMNS)), *LABEL_COLUMNS)

    task_name: str | None = field(
        default=None, metadata={"help": f"A task of GLUE, from {GLUE_DATASET} on the Hub.", "choices": sorted(GLUE)}
    )
    train_file: str | None = field(
        default=None, metadata={"help": "Training data: jsonl, csv, tsv (also .gz) or parquet."}
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Data to evaluate on and to choose the checkpoint by, like --train_file."}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "Data to predict, like --train_file, with or without labels."}
    )
    train_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})
    validation_split: str | None = field(
        default=None,
        metadata={"help": "Split of a dataset on the Hub. Default: validation, or validation_matched for mnli."},
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Split of a dataset on the Hub. Default: test, or test_matched for mnli."}
    )
    text_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns of the text, or of the two texts; the same as --columns sentence=... or sentence1=... "
            "sentence2=... Default: " + ", ".join(map(" and ".join, TEXT_COLUMNS))
        },
    )
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the label. Default: label, labels or score; for a regression score, label or labels."
        },
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "Kind of labels. Default: regression for a column score or labels with decimals, multi-label "
            "for lists, otherwise one class per row.",
            "choices": PROBLEM_TYPES,
        },
    )

    def __post_init__(self):
        super().__post_init__()
        of_hub = dict.fromkeys(("train_split", "validation_split", "test_split"), self.hub_name is not None)
        check_used(self, of_hub, "without task_name or dataset_name")
        if self.text_columns is not None and len(self.text_columns) > 2:
            raise InputError(f"--text_columns {' '.join(self.text_columns)}: a row has one text or two")
        if self.text_columns is not None:
            names = ("sentence",) if len(self.text_columns) == 1 else ("sentence1", "sentence2")
            values = [f"{name}={column}" for name, column in zip(names, self.text_columns, strict=True)]
            self.column_names = ColumnNames.parse([*values, *(self.columns or [])], self.COLUMN_NAMES)
        if self.label_column is not None and not self.column_names.columns.keys().isdisjoint(LABEL_COLUMNS):
            raise InputError("--columns and --label_column both name the label; leave one out")

    @property
    def hub_name(self) -> str | None:
        """The dataset on the Hub, if one is used."""
        return GLUE_DATASET if self.task_name is not None else self.dataset_name

    @property
    def hub_parts(self) -> dict[str, str]:
        """Configuration, if any, and splits of a dataset on the Hub, as `config`, `train`, `validation` and `test`."""
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
class ClassificationTrainingArguments(FreezeArguments, RunArguments):
    """[`RunArguments`], [`FreezeArguments`] and the defaults of fine-tuning: evaluate and save after every epoch."""

    GROUP: ClassVar = "classification"
    RANGES: ClassVar = {
        "max_seq_length": Range(at_least=3),  # a text needs room between its special tokens
        "early_stopping_patience": Range(at_least=1),
    }

    max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens of a row (the longer text of a pair is cut), special tokens "
            "included; saved with the tokenizer. Default: the tokenizer's model_max_length, at most "
            "the encoder's positions."
        },
    )
    save_head_only: bool = field(
        default=False,
        metadata={
            "help": "With --freeze_encoder, save the pooler and the classifier without the encoder at the end, for "
            "modeling_layerpool.load_heads. Checkpoints of the training hold the whole model; --save_strategy no "
            "leaves them out."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations in a row without improvement."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "Order of the batches: 'group_by_length' (rows of similar length, which saves padding), "
            "'random' or 'sequential'.",
            "choices": ["group_by_length", "random", "sequential"],
        },
    )
    save_strategy: SaveStrategy | str = field(
        default="epoch", metadata={"help": "When to save and evaluate: 'epoch', 'steps' or 'no'."}
    )
    # Without it a resumed run would count the evaluations without improvement from 0.
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Keep the count of --early_stopping_patience when a run is resumed."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_used(self, {"save_head_only": self.freeze_encoder}, "without freeze_encoder")
        if self.save_head_only and (self.push_to_hub or self.fsdp or self.deepspeed):
            raise InputError("save_head_only does not work with push_to_hub, FSDP or DeepSpeed; leave one of them out")
