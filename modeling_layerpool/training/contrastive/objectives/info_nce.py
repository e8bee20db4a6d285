"""Contrastive objectives: a text against itself, or against its positive, with the batch as negatives."""

import re
from collections.abc import Sequence

import torch
from torch import nn

from ....common.errors import InputError
from ...losses import info_nce
from .base import EmbeddedBatch, Objective


class InfoNCEObjective(Objective):
    """
    [`info_nce`] over the first text of each row (anchor), the second (positive) and any further ones (negatives).

    Args:
        temperature (`float`): what cosines are divided by.
        learn_temperature (`bool`): learn `1 / temperature`, as a parameter of the objective.
        hard_negative_weight, symmetric: see [`info_nce`].
        mask_duplicates (`bool`): leave out columns with one of the row's own texts.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        hard_negative_weight: float = 0.0,
        symmetric: bool = False,
        mask_duplicates: bool = True,
    ):
        super().__init__()
        if temperature <= 0:
            raise InputError(f"temperature={temperature} must be positive")
        self.fixed_temperature = temperature
        self.hard_negative_weight = hard_negative_weight
        self.symmetric = symmetric
        self.mask_duplicates = mask_duplicates
        if learn_temperature:
            self.inverse_temperature = nn.Parameter(torch.tensor(1 / temperature))

    @classmethod
    def from_arguments(cls, args) -> "InfoNCEObjective":
        return cls(
            args.temperature, args.learn_temperature, args.hard_negative_weight, args.symmetric, args.mask_duplicates
        )

    @property
    def temperature(self) -> float | torch.Tensor:
        return 1 / self.inverse_temperature if hasattr(self, "inverse_temperature") else self.fixed_temperature

    def logs(self) -> dict[str, float]:
        return {"temperature": self.temperature.item()} if torch.is_tensor(self.temperature) else {}

    def forward(self, batch: EmbeddedBatch) -> torch.Tensor:
        texts = batch.column_text_ids
        return info_nce(
            batch.embeddings[:, 0],
            batch.columns[:, 1],
            batch.columns[:, 2:] if batch.columns.shape[1] > 2 else None,
            temperature=self.temperature,
            hard_negative_weight=self.hard_negative_weight,
            symmetric=self.symmetric,
            targets=batch.targets,
            anchor_text_ids=batch.text_ids[:, 0] if self.mask_duplicates else None,
            column_text_ids=torch.cat([texts[:, 1], texts[:, 2:].flatten()]) if self.mask_duplicates else None,
            anchor_columns=batch.columns[:, 0],
            anchor_column_text_ids=texts[:, 0] if self.mask_duplicates else None,
        )


class UnsupervisedObjective(InfoNCEObjective):
    """Each text twice: dropout makes the two views, the other texts of the batch are the negatives (SimCSE)."""

    name = "unsupervised"
    citation = """@inproceedings{gao2021simcse,
  title = {{SimCSE}: Simple Contrastive Learning of Sentence Embeddings},
  author = {Gao, Tianyu and Yao, Xingcheng and Chen, Danqi},
  booktitle = {EMNLP},
  year = {2021}
}"""

    def select_columns(self, available: Sequence[str], source: str) -> list[str]:
        if "text" not in available:
            raise InputError(_missing(source, "text", self.name, available))
        return ["text", "text"]


class SupervisedObjective(InfoNCEObjective):
    """An anchor and its positive, with the negatives that the row may have and the other rows' texts as negatives."""

    name = "supervised"
    citation = UnsupervisedObjective.citation

    def select_columns(self, available: Sequence[str], source: str) -> list[str]:
        for column in ("anchor", "positive"):
            if column not in available:
                raise InputError(_missing(source, column, self.name, available))
        unnumbered = next((column for column in available if re.fullmatch(r"negative_0\d*", column)), None)
        if unnumbered is not None:
            raise InputError(f"{source}: the column {unnumbered!r} is not read; number negatives from negative_1 on")
        numbered = sorted(
            (column for column in available if re.fullmatch(r"negative_[1-9]\d*", column)),
            key=lambda column: int(column.removeprefix("negative_")),
        )
        if "negative" in available and numbered:
            raise InputError(f"{source}: has both 'negative' and {numbered[0]!r}; number all of them or none")
        negatives = ["negative"] if "negative" in available else numbered
        if self.hard_negative_weight != 0 and not negatives:
            raise InputError(f"{source}: hard_negative_weight does nothing without a column 'negative'; leave it out")
        return ["anchor", "positive", *negatives]


def _missing(source: str, column: str, objective: str, available: Sequence[str]) -> str:
    return (
        f"{source}: no column {column!r}, which the {objective} objective needs (columns here: {', '.join(available)})"
    )
