"""The base of all objectives, and the parts that several of them share."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from torch import nn

from ....common.command_line import Range, check_arguments
from ....common.errors import InputError
from ...distributed import gather_rows


@dataclass
class EmbeddedBatch:
    """
    Embeddings of a batch, the input of an objective.

    Args:
        embeddings (`torch.Tensor` of shape `(b, c, h)`): the c texts of each of this process's b rows.
        text_ids (`torch.LongTensor` of shape `(b, c)`): equal numbers are equal texts.
        all_embeddings (`torch.Tensor` of shape `(B, c, h)`): the rows of all processes, in the order of the ranks.
        all_text_ids (`torch.LongTensor` of shape `(B, c)`): their texts.
        first_row (`int`): the index of this process's first row among all rows.
        values (`torch.Tensor` of shape `(b,)`, *optional*): the number of each row, scaled to [0, 1], if the
            objective has a [`~Objective.value_column`].
        all_values (`torch.Tensor` of shape `(B,)`, *optional*): the numbers of all processes' rows.
        others (`dict` of `torch.Tensor` of shape `(b, c, d)`): embeddings of the same texts by other encoders, of
            length 1, by the name of their group, such as `"teacher"`.
        all_others (`dict` of `torch.Tensor` of shape `(B, c, d)`): those of all processes' rows.
        all_states (`torch.Tensor` of shape `(B, c, k, h)`, *optional*): k intermediate hidden states of the texts of
            all processes, if the objective has `layer_negatives`.
    """

    embeddings: torch.Tensor
    text_ids: torch.Tensor
    all_embeddings: torch.Tensor
    all_text_ids: torch.Tensor
    first_row: int
    values: torch.Tensor | None = None
    all_values: torch.Tensor | None = None
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)
    all_others: Mapping[str, torch.Tensor] = field(default_factory=dict)
    all_states: torch.Tensor | None = None

    @classmethod
    def gather(
        cls,
        embeddings: torch.Tensor,
        text_ids: torch.Tensor,
        values: torch.Tensor | None,
        sizes: list[int],
        rank: int,
        others: Mapping[str, torch.Tensor] | None = None,
        states: torch.Tensor | None = None,
    ) -> "EmbeddedBatch":
        """The batch of all processes, from the rows of this one. `sizes` are the numbers of rows of the processes."""
        others = others or {}
        return cls(
            embeddings,
            text_ids,
            gather_rows(embeddings, sizes),
            gather_rows(text_ids, sizes),
            sum(sizes[:rank]),
            values,
            None if values is None else gather_rows(values, sizes),
            others,
            {group: gather_rows(of_group, sizes) for group, of_group in others.items()},
            None if states is None else gather_rows(states, sizes),
        )

    @property
    def targets(self) -> torch.Tensor:
        """The index of each of this process's rows among all rows, `(b,)`."""
        return torch.arange(len(self.embeddings), device=self.embeddings.device) + self.first_row


@dataclass
class Options:
    """The options of an objective: fields with a default and a help text. An objective without options uses this."""

    # The title of these options in --help.
    GROUP: ClassVar[str]


@dataclass
class TemperatureOptions(Options):
    """Options of objectives that divide similarities by a temperature."""

    GROUP: ClassVar[str] = "options of several objectives"
    RANGES: ClassVar = {"temperature": Range(above=0)}

    temperature: float = field(default=0.05, metadata={"help": "Temperature that cosines are divided by; above 0."})
    learn_temperature: bool = field(
        default=False, metadata={"help": "Learn the temperature (as 1 / temperature), starting from --temperature."}
    )


@dataclass
class SoftmaxOptions(TemperatureOptions):
    """Options of objectives whose negatives are the other texts of the batch."""

    GROUP: ClassVar[str] = TemperatureOptions.GROUP

    mask_duplicates: bool = field(
        default=True,
        metadata={"help": "Exclude negatives whose text is the same as the row's own anchor or positive."},
    )


class Objective(nn.Module):
    """
    Base of all objectives.

    Its parameters (a learned temperature) belong to the objective and not to the model. The trainer optimizes, saves
    and restores them.

    Args:
        options: the fields of the class's `Options`.

    Raises:
        InputError: an option is out of its range or has no effect.
    """

    name: str
    # BibTeX of the paper, for the model card.
    citation: str = ""
    # The columns and the idea, for --help, as a sentence whose subject is the objective.
    summary: str = ""
    Options: type[Options] = Options
    # What its parameters are, and their recommended learning rate. None is the rate of the run.
    parameter_name: str = ""
    parameter_learning_rate: float | None = None

    def __init__(self, **options: Any):
        super().__init__()
        self.options = self.Options(**options)
        check_arguments(self.options)
        self.check_options(self.options)

    @classmethod
    def from_arguments(cls, args: Any) -> "Objective":
        """The objective with the options of a [`ContrastiveTrainingArguments`]."""
        return cls(**{option.name: getattr(args, option.name) for option in fields(cls.Options)})

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Raise an `InputError` for options that contradict each other or have no effect. Ranges are checked before.

        Args:
            options: an instance of `Options`, or of a class that inherits from it, as the arguments of a run do.
        """

    def select_columns(self, available: Collection[str], source: str) -> list[str]:
        """The text columns of each row, in the order in which `forward` expects their embeddings. `available` may map
        our names of the columns to those in the data, which errors then name.

        Raises an [`~modeling_layerpool.common.errors.InputError`] that begins with `source` if one is missing.
        """
        raise NotImplementedError

    def value_column(self, available: Sequence[str], source: str) -> str | None:
        """The column with a number for each row, such as a score, or None if the objective reads none."""
        return None

    def prepare(
        self, dataset: Dataset | IterableDataset, value_column: str | None, source: str
    ) -> tuple[float, float]:
        """
        Called with each dataset before it is tokenized, the training rows first.

        Returns:
            The numbers of `value_column` that become 0 and 1.
        """
        return 0.0, 1.0

    def on_step_begin(self, progress: float) -> None:
        """Called before each training step with the share of steps that are done."""

    @property
    def compares_batch(self) -> bool:
        """Whether the rows of a batch are compared with each other."""
        return True

    def settings(self, columns: Sequence[str]) -> dict[str, str]:
        """The objective and its options in words, for the plan of a run and for the model card.

        Args:
            columns: the text columns, as `select_columns` returned them.
        """
        return {"objective": f"{self.name}, on the columns {', '.join(dict.fromkeys(columns))}"}

    def citations(self) -> list[str]:
        """BibTeX of the papers that the objective follows with its options, for the model card."""
        return [self.citation] if self.citation else []

    def logs(self) -> dict[str, float]:
        """Numbers to log with each training loss, by name: a learned temperature, for instance."""
        return {}

    def forward(self, batch: EmbeddedBatch) -> torch.Tensor:
        """The mean loss over this process's rows."""
        raise NotImplementedError

    def missing_column(self, missing: str, available: Collection[str], source: str) -> InputError:
        if isinstance(available, Mapping):  # the user's columns by our names
            available = available.values()
        return InputError(
            f"{source}: no column {missing}, which the {self.name} objective needs (columns here: "
            f"{', '.join(available)}); rename it, or name it with --columns"
        )


class TemperatureObjective(Objective):
    """An objective with a temperature, fixed or learned."""

    Options = TemperatureOptions
    parameter_name = "1 / temperature"

    def __init__(self, **options: Any):
        super().__init__(**options)
        if self.options.learn_temperature:
            self.inverse_temperature = nn.Parameter(torch.tensor(1 / self.options.temperature))

    @property
    def temperature(self) -> float | torch.Tensor:
        return 1 / self.inverse_temperature if self.options.learn_temperature else self.options.temperature

    def settings(self, columns: Sequence[str]) -> dict[str, str]:
        temperature = f"{self.options.temperature:g}"
        if self.options.learn_temperature:
            current = f"{self.temperature.item():.4g}"
            moved = "" if current == temperature else f", {current} in the end"
            temperature = f"learned: {temperature} at first{moved}"
        return super().settings(columns) | {"temperature": temperature}

    def logs(self) -> dict[str, float]:
        return {"temperature": self.temperature.item()} if self.options.learn_temperature else {}


def yes_or_no(value: bool) -> str:
    return "yes" if value else "no"
