"""Contrastive objectives: a text against itself, or against its positive, with the batch as negatives."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ....common.command_line import Range
from ....common.errors import InputError
from ...losses import info_nce
from .base import EmbeddedBatch, Objective, SoftmaxOptions, TemperatureObjective, yes_or_no


GUIDE = "guide"  # the group of its embeddings
GUIDE_CITATION = """@misc{solatorio2024gistembed,
  title = {{GISTEmbed}: Guided In-sample Selection of Training Negatives for Text Embedding Fine-tuning},
  author = {Solatorio, Aivin V.},
  year = {2024},
  eprint = {2402.16829},
  archivePrefix = {arXiv}
}"""
SSCL_CITATION = """@inproceedings{chen2023alleviating,
  title = {Alleviating Over-smoothing for Unsupervised Sentence Representation},
  author = {Chen, Nuo and Shou, Linjun and Pei, Jian and Gong, Ming and Cao, Bowen and Chang, Jianhui and Li, Jia and
    Jiang, Daxin},
  booktitle = {ACL},
  year = {2023}
}"""


@dataclass
class InfoNCEOptions(SoftmaxOptions):
    """Options of [`InfoNCEObjective`]."""

    GROUP: ClassVar[str] = "objectives 'supervised' and 'unsupervised'"

    symmetric: bool = field(
        default=False,
        metadata={"help": "Average with the loss of the reverse direction, which finds the anchor of each positive."},
    )


@dataclass
class UnsupervisedOptions(InfoNCEOptions):
    """Options of [`UnsupervisedObjective`]."""

    GROUP: ClassVar[str] = InfoNCEOptions.GROUP
    DETAILS: ClassVar[tuple[str, ...]] = ("crop", "layer_negatives")
    RANGES: ClassVar = {"crop": Range(above=0, at_most=1), "layer_negatives": Range(at_least=0)}

    crop: float = field(
        default=1.0,
        metadata={
            "help": "Share of a text's tokens that its second view keeps, as one piece at a random place. With 1, "
            "dropout alone makes the two views different."
        },
    )
    layer_negatives: list[int] | None = field(
        default=None,
        metadata={
            "help": "Hidden states whose vectors, of all texts of the batch, are negatives of every text (SSCL): "
            "states that the pooler reads, below the highest. Default: none."
        },
    )


@dataclass
class SupervisedOptions(InfoNCEOptions):
    """Options of [`SupervisedObjective`]."""

    GROUP: ClassVar[str] = InfoNCEOptions.GROUP
    DETAILS: ClassVar[tuple[str, ...]] = ("guide_margin",)
    RANGES: ClassVar = {"guide_margin": Range(at_least=-1, at_most=1)}

    hard_negative_weight: float = field(
        default=0.0,
        metadata={
            "help": "Constant added to the logits of a row's own negatives: 0 as in SimCSE, 1 as in Oh et al. 2022."
        },
    )
    guide_margin: float = field(
        default=0.0,
        metadata={
            "help": "Texts whose cosine to the anchor is, for the --guide, above that of the positive minus this "
            "margin are no negatives."
        },
    )


class InfoNCEObjective(TemperatureObjective):
    """[`info_nce`] of each row's first text (anchor), its second (positive) and the other ones (negatives)."""

    Options = InfoNCEOptions
    hard_negative_weight = guide_margin = 0.0

    def settings(self, columns: Sequence[str]) -> dict[str, str]:
        settings = super().settings(columns)
        if len(columns) > 2:
            settings["hard negative weight"] = f"{self.hard_negative_weight:g}"
        settings["symmetric"] = yes_or_no(self.options.symmetric)
        settings["mask duplicates"] = yes_or_no(self.options.mask_duplicates)
        return settings

    def forward(self, batch: EmbeddedBatch) -> torch.Tensor:
        options = self.options
        return in_batch_loss(
            batch,
            self.temperature,
            hard_negative_weight=self.hard_negative_weight,
            symmetric=options.symmetric,
            mask_duplicates=options.mask_duplicates,
            guide_margin=self.guide_margin,
        )


def in_batch_loss(
    batch: EmbeddedBatch, temperature: float | torch.Tensor, *, mask_duplicates: bool = True, **options: Any
) -> torch.Tensor:
    """[`info_nce`] of a batch whose columns are anchor, positive and any number of negatives."""
    texts, guide = batch.all_text_ids, batch.all_others.get(GUIDE)
    negatives = batch.all_embeddings[:, 2:] if batch.all_embeddings.shape[1] > 2 else None
    column_texts = torch.cat([texts[:, 1], texts[:, 2:].flatten()])
    if batch.all_states is not None:
        # These have texts of the batch, which must not leave them out.
        negatives, column_texts = batch.all_states.flatten(1, 2), texts[:, 1]
    return info_nce(
        batch.embeddings[:, 0],
        batch.all_embeddings[:, 1],
        negatives,
        temperature=temperature,
        targets=batch.targets,
        anchor_text_ids=batch.text_ids[:, 0] if mask_duplicates else None,
        column_text_ids=column_texts if mask_duplicates else None,
        anchor_columns=batch.all_embeddings[:, 0],
        anchor_column_text_ids=texts[:, 0] if mask_duplicates else None,
        guide_anchors=None if guide is None else guide[:, 0],
        guide_columns=None if guide is None else torch.cat([guide[:, 1], guide[:, 2:].flatten(0, 1)]),
        **options,
    )


class UnsupervisedObjective(InfoNCEObjective):
    """Each text twice: dropout makes the two views, the other texts of the batch are the negatives (SimCSE)."""

    name = "unsupervised"
    summary = "reads the column text; each text is its own positive, with a different dropout mask"
    Options = UnsupervisedOptions
    citation = """@inproceedings{gao2021simcse,
  title = {{SimCSE}: Simple Contrastive Learning of Sentence Embeddings},
  author = {Gao, Tianyu and Yao, Xingcheng and Chen, Danqi},
  booktitle = {EMNLP},
  year = {2021}
}"""

    def select_columns(self, available: Sequence[str], source: str) -> list[str]:
        if "text" not in available:
            raise self.missing_column("'text'", available, source)
        return ["text", "text"]

    def settings(self, columns: Sequence[str]) -> dict[str, str]:
        settings, options = super().settings(columns), self.options
        if options.crop < 1:
            settings["second view"] = f"a piece of {options.crop:.0%} of the tokens"
        if options.layer_negatives:
            settings["negatives of hidden states"] = ", ".join(map(str, options.layer_negatives))
        return settings

    def citations(self) -> list[str]:
        return [*super().citations(), *([SSCL_CITATION] if self.options.layer_negatives else [])]


class SupervisedObjective(InfoNCEObjective):
    """An anchor and its positive. The negatives are the row's own ones and the other rows' texts."""

    name = "supervised"
    summary = "reads anchor, positive and optionally negative (or negative_1, negative_2, ...)"
    citation = UnsupervisedObjective.citation
    Options = SupervisedOptions

    @property
    def hard_negative_weight(self) -> float:
        return self.options.hard_negative_weight

    @property
    def guide_margin(self) -> float:
        return self.options.guide_margin

    def select_columns(self, available: Sequence[str], source: str) -> list[str]:
        columns = triplet_columns(self, available, source)
        if self.hard_negative_weight != 0 and len(columns) == 2:
            raise InputError(f"{source}: hard_negative_weight does nothing without a column 'negative'; leave it out")
        return columns


def triplet_columns(objective: Objective, available: Sequence[str], source: str) -> list[str]:
    """The columns `anchor` and `positive`, and `negative` or `negative_1`, `negative_2`, ... where there are any."""
    for column in ("anchor", "positive"):
        if column not in available:
            raise objective.missing_column(repr(column), available, source)
    unnumbered = next((column for column in available if re.fullmatch(r"negative_0\d*", column)), None)
    if unnumbered is not None:
        raise InputError(f"{source}: the column {unnumbered!r} is not read; number negatives from negative_1 on")
    numbered = sorted(
        (column for column in available if re.fullmatch(r"negative_[1-9]\d*", column)),
        key=lambda column: int(column.removeprefix("negative_")),
    )
    if "negative" in available and numbered:
        raise InputError(f"{source}: has both 'negative' and {numbered[0]!r}; number all of them or none")
    return ["anchor", "positive", *(["negative"] if "negative" in available else numbered)]
