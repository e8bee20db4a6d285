"""Arguments of the scripts about the data: local files, or a dataset on the Hub."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..common.columns import COLUMNS, ColumnNames
from ..common.command_line import Range, check_arguments, check_used
from ..common.errors import InputError


@dataclass
class HubDataArguments:
    """A dataset on the Hub."""

    RANGES: ClassVar = {"max_train_samples": Range(at_least=1)}
    # The names that --columns takes. Each kind of training has its own.
    COLUMN_NAMES: ClassVar[tuple[str, ...]] = ()

    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub, used instead of files."})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the dataset on the Hub."}
    )
    columns: list[str] | None = field(default=None, metadata=COLUMNS)
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only the first N rows of the training data. Default: all rows."}
    )

    def __post_init__(self):
        check_arguments(self)
        check_used(self, {"dataset_config_name": self.dataset_name is not None}, "without dataset_name")
        self.column_names = ColumnNames.parse(self.columns, self.COLUMN_NAMES)


@dataclass
class TrainDataArguments(HubDataArguments):
    """Training data from files or from the Hub, read before or during the training."""

    RANGES: ClassVar = {"shuffle_buffer_size": Range(at_least=1)}

    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset on the Hub."})
    streaming: bool = field(
        default=False, metadata={"help": "Stream the training data instead of loading it first; needs --max_steps."}
    )
    shuffle_buffer_size: int = field(default=10_000, metadata={"help": "Rows in the shuffle buffer of --streaming."})
    train_file: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.train_file is not None and self.dataset_name is not None:
            raise InputError("give the training data as either --train_file or --dataset_name")
        if self.streaming and self.max_train_samples is not None:
            raise InputError("max_train_samples does nothing with streaming; use max_steps")
        check_used(self, {"shuffle_buffer_size": self.streaming}, "without streaming")
        check_used(self, {"dataset_split": self.dataset_name is not None}, "without dataset_name")

    @property
    def has_train_data(self) -> bool:
        return self.train_file is not None or self.dataset_name is not None

    @property
    def hub_parts(self) -> dict[str, str]:
        """Configuration, if any, and training split of a dataset on the Hub, as `config` and `train`."""
        if self.dataset_name is None:
            return {}
        config = self.dataset_config_name
        return ({} if config is None else {"config": config}) | {"train": self.dataset_split}
