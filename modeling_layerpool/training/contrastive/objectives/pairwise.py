"""The objective of labelled or scored pairs: batch-softmax contrastive loss, pointwise losses, or both in turn."""

from collections.abc import Sequence

import torch
from torch import nn

from ....common.errors import InputError
from ...losses import batch_softmax_contrastive, cosent, cosine_bce, cosine_mse
from .base import EmbeddedBatch, Objective


PAIRWISE_LOSSES = ("bsc", "mse", "combined", "bce", "cosent")


class PairwiseObjective(Objective):
    """
    Pairs that say how alike they are (Chernyavskiy et al., NAACL 2022): columns `sentence1`, `sentence2`, and `score`
    or `label`, whose values are scaled to [0, 1].

    Args:
        loss (`str`): `"bsc"` ([`batch_softmax_contrastive`], where a value of at least 0.5 is a positive pair),
            `"mse"` ([`cosine_mse`]), `"combined"` (`combined_weight` of the first, the rest of the second), `"bce"`
            ([`cosine_bce`]) or `"cosent"` ([`cosent`]).
        temperature (`float`): what similarities are divided by; `"mse"` has none.
        learn_temperature (`bool`): learn `1 / temperature`, as a parameter of the objective.
        normalization, direction (`str`): see [`batch_softmax_contrastive`].
        combined_weight (`float`): the paper's mu.
        second_loss (`str`, *optional*): the loss of the last `second_loss_share` of the steps.
        second_loss_share (`float`): their share of all steps.
        score_range (`tuple[float, float]`, *optional*): the scores that become 0 and 1; by default the lowest and the
            highest of the training data. Labels are 0 and 1.
        mask_duplicates (`bool`): in `"bsc"`, leave out other rows' texts that are also one of the row's own.
    """

    name = "pairwise"
    citation = """@inproceedings{chernyavskiy2022batch,
  title = {Batch-Softmax Contrastive Loss for Pairwise Sentence Scoring Tasks},
  author = {Chernyavskiy, Anton and Ilvovsky, Dmitry and Kalinin, Pavel and Nakov, Preslav},
  booktitle = {NAACL},
  year = {2022}
}"""

    def __init__(
        self,
        loss: str = "bsc",
        temperature: float = 0.05,
        learn_temperature: bool = False,
        normalization: str = "l2",
        direction: str = "both",
        combined_weight: float = 0.1,
        second_loss: str | None = None,
        second_loss_share: float = 0.5,
        score_range: tuple[float, float] | None = None,
        mask_duplicates: bool = True,
    ):
        super().__init__()
        if temperature <= 0:
            raise InputError(f"temperature={temperature} must be positive")
        losses = {loss, second_loss} - {None}
        if learn_temperature and losses == {"mse"}:
            raise InputError("learn_temperature does nothing with pairwise_loss=mse, which has no temperature")
        self.loss = loss
        self.fixed_temperature = temperature
        self.normalization = normalization
        self.direction = direction
        self.combined_weight = combined_weight
        self.second_loss = second_loss
        self.second_loss_share = second_loss_share
        self.value_range = score_range
        self.mask_duplicates = mask_duplicates
        if learn_temperature:
            self.inverse_temperature = nn.Parameter(torch.tensor(1 / temperature))

    @classmethod
    def from_arguments(cls, args) -> "PairwiseObjective":
        return cls(
            args.pairwise_loss,
            args.temperature,
            args.learn_temperature,
            args.bsc_normalization,
            args.bsc_direction,
            args.combined_weight,
            args.second_loss,
            args.second_loss_share,
            None if args.score_range is None else tuple(args.score_range),
            args.mask_duplicates,
        )

    @property
    def temperature(self) -> float | torch.Tensor:
        return 1 / self.inverse_temperature if hasattr(self, "inverse_temperature") else self.fixed_temperature

    @property
    def current_loss(self) -> str:
        """The loss at this point of the training."""
        is_second = self.second_loss is not None and self.progress >= 1 - self.second_loss_share
        return self.second_loss if is_second else self.loss

    @property
    def compares_batch(self) -> bool:
        return not {self.loss, self.second_loss}.isdisjoint({"bsc", "combined", "cosent"})

    def settings(self) -> dict[str, str]:
        low, high = self.value_range
        told = {"pairwise loss": self.loss, "values": f"{low:g} to {high:g}"}
        if "combined" in (self.loss, self.second_loss):
            told["combined"] = f"{self.combined_weight:g} bsc + {1 - self.combined_weight:g} mse"
        if not {"bsc", "combined"}.isdisjoint({self.loss, self.second_loss}):
            told["batch softmax"] = f"normalisation {self.normalization}, direction {self.direction}"
        if self.second_loss is not None:
            told["pairwise loss"] += (
                f", then {self.second_loss} for the last {100 * self.second_loss_share:g} % of steps"
            )
        return told

    def select_columns(self, available: Sequence[str], source: str) -> list[str]:
        for column in ("sentence1", "sentence2"):
            if column not in available:
                raise InputError(
                    f"{source}: no column {column!r}, which the pairwise objective needs (columns here: "
                    f"{', '.join(available)})"
                )
        return ["sentence1", "sentence2"]

    def value_column(self, available: Sequence[str], source: str) -> str:
        found = next((column for column in ("score", "label") if column in available), None)
        if found is None:
            raise InputError(
                f"{source}: no column 'score' or 'label', which the pairwise objective needs (columns here: "
                f"{', '.join(available)})"
            )
        if found == "label":
            if self.value_range not in (None, (0.0, 1.0)):
                raise InputError(
                    f"{source}: score_range does nothing with the column 'label', whose values are 0 and 1"
                )
            self.value_range = (0.0, 1.0)
        return found

    def logs(self) -> dict[str, float]:
        return {"temperature": self.temperature.item()} if torch.is_tensor(self.temperature) else {}

    def forward(self, batch: EmbeddedBatch) -> torch.Tensor:
        first, second = batch.embeddings.unbind(1)
        loss = self.current_loss
        if loss == "mse":
            return cosine_mse(first, second, batch.values)
        if loss == "bce":
            return cosine_bce(first, second, batch.values, temperature=self.temperature)
        if loss == "cosent":
            # Of all processes' pairs, on each of them: its gradients add up to that of the whole batch.
            return cosent(*batch.columns.unbind(1), batch.column_values, temperature=self.temperature)
        contrastive = batch_softmax_contrastive(
            first,
            batch.columns[:, 1],
            batch.values >= 0.5,
            temperature=self.temperature,
            normalization=self.normalization,
            direction=self.direction,
            targets=batch.targets,
            query_columns=batch.columns[:, 0],
            query_text_ids=batch.text_ids[:, 0] if self.mask_duplicates else None,
            answer_text_ids=batch.column_text_ids[:, 1] if self.mask_duplicates else None,
            query_column_text_ids=batch.column_text_ids[:, 0] if self.mask_duplicates else None,
        )
        if loss == "bsc":
            return contrastive
        mu = self.combined_weight
        return mu * contrastive + (1 - mu) * cosine_mse(first, second, batch.values)
