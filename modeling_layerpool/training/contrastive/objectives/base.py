"""What an objective is: the columns it needs, the loss it makes of their embeddings, and where it is from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class EmbeddedBatch:
    """
    Embeddings of a batch, as an objective gets them.

    Args:
        embeddings (`torch.Tensor` of shape `(b, c, h)`): the c texts of each of this process's b rows.
        text_ids (`torch.LongTensor` of shape `(b, c)`): equal numbers are equal texts.
        columns (`torch.Tensor` of shape `(B, c, h)`): the rows of all processes, in the order of the ranks.
        column_text_ids (`torch.LongTensor` of shape `(B, c)`): their texts.
        first_row (`int`): the place of this process's first row among them.
        values (`torch.Tensor` of shape `(b,)`, *optional*): the number of each row, scaled to [0, 1], if the
            objective has a [`~Objective.value_column`].
        column_values (`torch.Tensor` of shape `(B,)`, *optional*): those of all processes.
    """

    embeddings: torch.Tensor
    text_ids: torch.Tensor
    columns: torch.Tensor
    column_text_ids: torch.Tensor
    first_row: int
    values: torch.Tensor | None = None
    column_values: torch.Tensor | None = None

    @property
    def targets(self) -> torch.Tensor:
        """The place of each of this process's rows among all rows, `(b,)`."""
        return torch.arange(len(self.embeddings), device=self.embeddings.device) + self.first_row


class Objective(nn.Module):
    """
    Base of all objectives. Its parameters (a learned temperature) belong to it and not to the model: the trainer
    optimises, saves and restores them.
    """

    name: str
    citation: str
    # The share of the steps that are done, which the trainer keeps up to date.
    progress: float = 0.0
    # The values of `value_column` that become 0 and 1; None for the lowest and the highest of the training data.
    value_range: tuple[float, float] | None = None

    @property
    def compares_batch(self) -> bool:
        """Whether the rows of a batch are compared with each other."""
        return True

    def settings(self) -> dict[str, str]:
        """What a model card has to say of this objective's own options, by name."""
        return {}

    def logs(self) -> dict[str, float]:
        """What to log of this objective with each training loss, by name: a learned temperature, for instance."""
        return {}

    @classmethod
    def from_arguments(cls, args) -> "Objective":
        """The objective with the options of a [`ContrastiveTrainingArguments`]."""
        raise NotImplementedError

    def select_columns(self, available: Sequence[str], source: str) -> list[str]:
        """The text columns of each row, in the order in which `forward` wants their embeddings.

        Raises an [`~modeling_layerpool.common.errors.InputError`] that begins with `source` if a needed one is not
        available.
        """
        raise NotImplementedError

    def value_column(self, available: Sequence[str], source: str) -> str | None:
        """The column of a number of each row, such as a score, or None if there is none to read."""
        return None

    def forward(self, batch: EmbeddedBatch) -> torch.Tensor:
        """The mean loss over this process's rows."""
        raise NotImplementedError
