"""The embeddings of other encoders, a teacher or a guide, next to the rows of a contrastive run."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset

from ...common.command_line import check_used
from ...common.errors import InputError
from ...common.text_embeddings import TextEmbeddings
from ..distributed import RunningMean
from .objectives.base import EmbeddedBatch, Objective
from .objectives.distill import TEACHER, DistillObjective, DistillOptions
from .objectives.info_nce import GUIDE, SupervisedObjective


if TYPE_CHECKING:
    from .arguments import ContrastiveTrainingArguments

SUFFIX = "_embedding"  # of the column with the index of a text among the text embeddings


def with_indices(
    tokenized: Dataset, dataset: Dataset | IterableDataset, columns: Sequence[str], texts: TextEmbeddings, source: str
) -> Dataset:
    """Tokenized rows with the index of each text, in `<column>_embedding`. `dataset` holds the texts."""
    if isinstance(dataset, IterableDataset):
        raise InputError(f"{source}: a teacher or guide embeds a dataset with a length, not a stream; leave one out")
    for column in dict.fromkeys(columns):
        tokenized = tokenized.add_column(column + SUFFIX, texts.indices(dataset[column]))
    return tokenized


class EmbeddingCollator:
    """
    Adds to each batch that another collator makes the embeddings of its texts by other encoders.

    Args:
        collate: makes the batch.
        columns: the text columns of each row, as for the collator.
        texts: the embeddings. Batches get `<group>_embeddings (b, c, d)` for each group of them.
    """

    def __init__(self, collate: Callable[[list[dict]], dict[str, Any]], columns: Sequence[str], texts: TextEmbeddings):
        self.collate, self.columns, self.texts = collate, list(columns), texts

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        # Datasets may differ in their columns, but a batch is of one dataset.
        names = [name for column in self.columns if features[0].get(name := column + SUFFIX) is not None]
        indices = np.array([[feature[name] for name in names] for feature in features])
        embeddings = {f"{group}_embeddings": self.texts.read(group, indices) for group in self.texts.files}
        return self.collate(features) | embeddings


def other_embeddings(inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The embeddings that an [`EmbeddingCollator`] added to a batch, by group."""
    return {group: inputs[name] for group in (TEACHER, GUIDE) if (name := f"{group}_embeddings") in inputs}


class DistillationTerm:
    """
    The loss of distillation that `distill_weight` adds to another objective.

    Args:
        objective: computes the loss.
        weight: its factor.
    """

    def __init__(self, objective: DistillObjective, weight: float):
        self.objective, self.weight = objective, weight
        self.mean = RunningMean()

    def loss(self, batch: EmbeddedBatch, share: float) -> torch.Tensor:
        """The weighted loss of a batch, of which this process has so large a share, times the number of processes."""
        loss = share * self.objective(batch)
        self.mean.add(loss)
        return self.weight * loss

    def logs(self) -> dict[str, float]:
        """The mean loss of all processes, without its weight, since the last call. Empty if there was no step."""
        mean = self.mean.read()
        return {} if mean is None else {"distill_loss": mean}


def check_groups(
    objective: Objective, args: "ContrastiveTrainingArguments", groups: Collection[str], has_rows: bool = True
) -> None:
    """
    Raise an `InputError` if the objective needs a teacher that is missing, or a teacher, a guide or their options have
    no effect.

    Args:
        objective: the objective of the run.
        args: its arguments.
        groups: the groups of encoders that there are.
        has_rows: whether there are rows to compute a loss of.
    """
    if unknown := sorted(set(groups) - {TEACHER, GUIDE}):
        raise InputError(f"{unknown[0]!r} is no group of text embeddings; use {TEACHER!r} or {GUIDE!r}")
    without = "(--teacher; in Python, text_embeddings)"
    is_alone, has_teacher, has_guide = isinstance(objective, DistillObjective), TEACHER in groups, GUIDE in groups
    if is_alone and has_rows and not has_teacher:
        raise InputError(f"objective=distill learns from a teacher; give one {without}")
    names = [option.name for option in fields(DistillOptions)]
    check_used(args, dict.fromkeys(names, has_teacher or is_alone), f"without a teacher {without}")
    check_used(args, {"distill_weight": not is_alone}, "with objective=distill, which is distillation alone")
    check_used(args, {"distill_weight": has_teacher}, f"without a teacher {without}")
    if has_guide and not isinstance(objective, SupervisedObjective):
        raise InputError(f"a guide does nothing with objective={objective.name}; leave it out (--guide)")
    check_used(args, {"guide_margin": has_guide}, "without a guide (--guide; in Python, text_embeddings)")


def prepare_distillation(
    objective: Objective, args: "ContrastiveTrainingArguments", texts: TextEmbeddings | None, width: int
) -> DistillationTerm | None:
    """
    The distillation to add to an objective, if there is a teacher. `width` is that of the model's embeddings. Raises
    an `InputError` if widths differ without a map.
    """
    if texts is None or TEACHER not in texts:
        return None
    is_alone = isinstance(objective, DistillObjective)
    distill = objective if is_alone else DistillObjective.from_arguments(args)
    distill.set_widths(width, texts.width(TEACHER))
    return None if is_alone else DistillationTerm(distill, 1.0 if args.distill_weight is None else args.distill_weight)
