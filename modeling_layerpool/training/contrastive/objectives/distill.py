"""The objective of distillation: the embeddings of a teacher, as similarities in the batch or as vectors."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from ....common.command_line import Range, check_used
from ....common.errors import InputError
from ....models.modeling_layerpool_packing import at_least_float32
from ...distillation_losses import distill_similarities, distill_vectors
from .base import EmbeddedBatch, Objective, Options, yes_or_no
from .info_nce import SupervisedObjective


TEACHER = "teacher"  # the group of its embeddings
DISTILL_LOSSES = ("rows", "cosines", "vectors")


@dataclass
class DistillOptions(Options):
    """Options of [`DistillObjective`]."""

    GROUP: ClassVar[str] = "teacher and guide"
    DETAILS: ClassVar[tuple[str, ...]] = ("distill_loss", "distill_temperature", "distill_projection")
    RANGES: ClassVar = {"distill_temperature": Range(above=0)}

    distill_loss: str = field(
        default="rows",
        metadata={
            "help": "What is learned from --teacher: rows (the softmax of the cosines of each first text to the other "
            "texts of the batch, by its KL divergence), cosines (the same cosines, by their squared error) or vectors "
            "(the embeddings themselves).",
            "choices": DISTILL_LOSSES,
        },
    )
    distill_temperature: float = field(
        default=0.05, metadata={"help": "Temperature that divides both sides' cosines for --distill_loss rows."}
    )
    distill_projection: bool = field(
        default=False,
        metadata={
            "help": "Learn a linear map from the embedding to the teacher's for --distill_loss vectors, as different "
            "widths need. The map is saved next to the model and is no part of it."
        },
    )


class DistillObjective(Objective):
    """
    Draws the embeddings to those of a teacher: [`distill_similarities`] of the first text of each row to the other
    texts of the batch, or [`distill_vectors`]. Rows of one text are compared with the other rows.
    """

    name = "distill"
    summary = "learns from --teacher alone; reads text, or anchor, positive and optionally negative"
    citation = """@inproceedings{hinton2015distilling,
  title = {Distilling the Knowledge in a Neural Network},
  author = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  booktitle = {NIPS Deep Learning Workshop},
  year = {2015}
}"""
    Options = DistillOptions
    parameter_name = "map to the teacher"
    # The map starts far from its goal, and the encoder does not.
    parameter_learning_rate = 1e-3

    @classmethod
    def check_options(cls, options: Any) -> None:
        loss = options.distill_loss
        check_used(options, {"distill_temperature": loss == "rows"}, f"with distill_loss={loss}")
        check_used(options, {"distill_projection": loss == "vectors"}, f"with distill_loss={loss}")

    def set_widths(self, student: int, teacher: int) -> None:
        """Make the map from the one to the other. Raises an `InputError` if one is needed and not asked for."""
        if self.options.distill_projection:
            self.map = nn.Linear(student, teacher, bias=False)
            nn.init.eye_(self.map.weight)  # equal on all processes
        elif self.options.distill_loss == "vectors" and student != teacher:
            raise InputError(
                f"distill_loss=vectors compares {student} numbers of the model with {teacher} of the teacher; give "
                "--distill_projection, or another --distill_loss"
            )

    def select_columns(self, available: Collection[str], source: str) -> list[str]:
        if "text" in available:
            return ["text"]
        if "anchor" not in available:
            raise self.missing_column("'text' or 'anchor'", available, source)
        return SupervisedObjective().select_columns(available, source)

    @property
    def compares_batch(self) -> bool:
        return self.options.distill_loss != "vectors"

    def settings(self, columns: Sequence[str]) -> dict[str, str]:
        return super().settings(columns) | self.distillation_settings()

    def distillation_settings(self) -> dict[str, str]:
        """What is learned from the teacher, for the plan of a run and for the model card."""
        options = self.options
        settings = {"distillation": options.distill_loss}
        if options.distill_loss == "rows":
            settings["distillation"] += f" (temperature {options.distill_temperature:g})"
        if options.distill_loss == "vectors":
            settings["map to the teacher"] = yes_or_no(options.distill_projection)
        return settings

    def forward(self, batch: EmbeddedBatch) -> torch.Tensor:
        options, teacher = self.options, batch.others[TEACHER]
        if options.distill_loss == "vectors":
            embeddings = batch.embeddings.flatten(0, 1)
            if options.distill_projection:
                embeddings = self.map(at_least_float32(embeddings))
            return distill_vectors(embeddings, teacher.flatten(0, 1))
        # The texts that a row's first text is compared with: the others of all rows, or the only one of each.
        further = slice(min(1, batch.text_ids.shape[1] - 1), None)
        return distill_similarities(
            batch.embeddings[:, 0],
            batch.all_embeddings[:, further].flatten(0, 1),
            teacher[:, 0],
            batch.all_others[TEACHER][:, further].flatten(0, 1),
            batch.text_ids[:, 0],
            batch.all_text_ids[:, further].flatten(),
            temperature=options.distill_temperature if options.distill_loss == "rows" else None,
        )
