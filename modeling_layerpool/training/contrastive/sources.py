"""The sources of the training rows: files and datasets on the Hub, as the command line names them."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datasets import Dataset, IterableDataset

from ...common.errors import InputError
from ...common.rows import FORMATS
from ..data import load_hub, rename_columns
from ..run_arguments import RunArguments
from .data import load_file
from .objectives.base import Objective
from .objectives.scored_pairs import ScoredPairsObjective


if TYPE_CHECKING:
    from .arguments import DataArguments


class Source(NamedTuple):
    """
    One source of training rows.

    Args:
        name: a file, or the name of a dataset on the Hub.
        parts: configuration, if any, and split of a dataset on the Hub, as `config` and `train`. None for a file.
        weight: its share of the batches, relative to the weights of the other sources.
    """

    name: str
    parts: dict[str, str] | None = None
    weight: float | None = None

    @property
    def label(self) -> str:
        """The source in messages: its name, and what else identifies it."""
        if self.parts is None:
            return self.name
        split = "" if self.parts["train"] == "train" else f", split {self.parts['train']}"
        return self.name + (f" ({self.parts['config']})" if "config" in self.parts else "") + split


def parse_sources(files: Sequence[str], datasets: Sequence[str], config: str | None, split: str) -> list[Source]:
    """
    The sources of `--train_file` and of `--dataset_name`.

    Args:
        files: `FILE[=WEIGHT]`.
        datasets: `NAME[:CONFIG][:SPLIT][=WEIGHT]`, or `FILE[=WEIGHT]`.
        config, split: for datasets that do not name their own.

    Raises:
        InputError: a weight is not a number above 0, only some sources have one, or a source is given twice.
    """
    sources = []
    for value in [*files, *datasets]:
        name, weight = _split_weight(value)
        if value in files or os.path.isfile(name) or Path(name.removesuffix(".gz")).suffix.lower() in FORMATS:
            sources.append(Source(name, None, weight))
            continue
        name, own_config, own_split = (*name.split(":", 2), "", "")[:3]
        chosen = own_config or config
        parts = ({"config": chosen} if chosen else {}) | {"train": own_split or split}
        sources.append(Source(name, parts, weight))
    labels = [source.label for source in sources]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise InputError(f"the training data {twice} are given twice; give them once, with a weight")
    weighted = [source for source in sources if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        raise InputError(
            "some training data have a weight (=NUMBER) and some have none; give all of them one, or none"
        )
    if weighted and len(sources) == 1:
        raise InputError(f"the weight of {labels[0]} does nothing without other training data; leave it out")
    return sources


def _split_weight(value: str) -> tuple[str, float | None]:
    name, equals, text = value.rpartition("=")
    if not equals or os.path.exists(value):
        return value, None
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (weight > 0 and math.isfinite(weight)):
        raise InputError(f"{value}: the weight after '=' must be a number above 0")
    return name, weight


def read_sources(
    data: "DataArguments", args: RunArguments, objective: Objective
) -> Dataset | IterableDataset | dict[str, Dataset]:
    """The training rows by our names of the columns: one dataset, or several by the labels of their sources."""
    found = {}
    with args.main_process_first(desc="reading the training data"):
        for source in data.sources:
            if source.parts is None:
                dataset = load_file(source.name, objective, data.streaming, data.column_names)
            else:
                dataset = load_hub(source.name, source.parts.get("config"), source.parts["train"], data.streaming)
                dataset = rename_columns(dataset, data.column_names)
            if data.max_train_samples is not None:
                dataset = dataset.select(range(min(data.max_train_samples, len(dataset))))
            found[source.label] = dataset
    if len(found) == 1:
        return dataset
    if isinstance(objective, ScoredPairsObjective) and objective.options.score_range is None:
        scored = [label for label, dataset in found.items() if "score" in dataset.column_names]
        if scored:
            raise InputError(
                f"{scored[0]}: several training data with scores need --score_range, the scale of all of them"
            )
    return found
