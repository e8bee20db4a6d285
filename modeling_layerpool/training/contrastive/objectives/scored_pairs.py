"""The rows of objectives that learn from two texts and a score or a label."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from datasets import Dataset, IterableDataset

from ....common.errors import InputError
from ....common.rows import check_number
from .base import TemperatureObjective, TemperatureOptions


@dataclass
class ScoredPairsOptions(TemperatureOptions):
    """Options of [`ScoredPairsObjective`]."""

    GROUP: ClassVar[str] = "objectives 'pairwise' and 'angle'"

    score_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "Lowest and highest possible score, which are mapped to 0 and 1. Default: the lowest and highest "
            "score in the training data. Required for scores with --streaming. Not for labels, which are 0 or 1."
        },
    )


class ScoredPairsObjective(TemperatureObjective):
    """Reads the columns `sentence1` and `sentence2`, and `score` or `label`, whose values are scaled to [0, 1]."""

    Options = ScoredPairsOptions

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.value_range: tuple[float, float] | None = None  # known once the training data are read

    @classmethod
    def check_options(cls, options: Any) -> None:
        super().check_options(options)
        score_range = options.score_range
        if score_range is not None and not (len(score_range) == 2 and score_range[0] < score_range[1]):
            raise InputError(f"score_range={score_range} must be two numbers, the lower one first")

    def select_columns(self, available: Sequence[str], source: str) -> list[str]:
        for column in ("sentence1", "sentence2"):
            if column not in available:
                raise self.missing_column(repr(column), available, source)
        return ["sentence1", "sentence2"]

    def value_column(self, available: Sequence[str], source: str) -> str:
        found = next((column for column in ("score", "label") if column in available), None)
        if found is None:
            raise self.missing_column("'score' or 'label'", available, source)
        score_range = self.options.score_range
        if found == "label" and score_range is not None and tuple(score_range) != (0.0, 1.0):
            raise InputError(f"{source}: score_range does nothing with the column 'label', whose values are 0 and 1")
        return found

    def prepare(
        self, dataset: Dataset | IterableDataset, value_column: str | None, source: str
    ) -> tuple[float, float]:
        if value_column is None:
            return super().prepare(dataset, value_column, source)
        if value_column == "label":
            value_range = (0.0, 1.0)
        elif self.options.score_range is not None:
            value_range = tuple(self.options.score_range)
        else:
            value_range = self.value_range or _range_of(dataset, value_column, source)
        self.value_range = self.value_range or value_range
        return value_range

    def settings(self, columns: Sequence[str]) -> dict[str, str]:
        settings = super().settings(columns)
        if self.value_range is not None:
            settings["values"] = "{:g} to {:g}".format(*self.value_range)
        return settings


def _range_of(dataset: Dataset | IterableDataset, column: str, source: str) -> tuple[float, float]:
    """The lowest and the highest number of a column."""
    if isinstance(dataset, IterableDataset):
        raise InputError(f"{source}: a stream has no known range of {column!r}; give --score_range")
    values = [check_number(value, f"{source}, row {row}", column) for row, value in enumerate(dataset[column])]
    if min(values) == max(values):
        raise InputError(
            f"{source}: every {column} is {values[0]:g}, which leaves nothing to learn; see --score_range"
        )
    return min(values), max(values)
