"""The objective of labeled or scored pairs: batch-softmax contrastive loss, pointwise losses, or both in turn."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ....common.command_line import Range, check_used
from ...losses import batch_softmax_contrastive, cosent, cosine_bce, cosine_mse
from .base import EmbeddedBatch, SoftmaxOptions, yes_or_no
from .scored_pairs import ScoredPairsObjective, ScoredPairsOptions


PAIRWISE_LOSSES = ("bsc", "mse", "combined", "bce", "cosent")


@dataclass
class PairwiseOptions(ScoredPairsOptions, SoftmaxOptions):
    """Options of [`PairwiseObjective`]."""

    GROUP: ClassVar[str] = ScoredPairsOptions.GROUP
    DETAILS: ClassVar[tuple[str, ...]] = (
        "bsc_normalization",
        "bsc_direction",
        "combined_weight",
        "second_loss",
        "second_loss_share",
    )
    RANGES: ClassVar = dict.fromkeys(("combined_weight", "second_loss_share"), Range(at_least=0, at_most=1))

    pairwise_loss: str = field(
        default="bsc",
        metadata={
            "help": "Loss of 'pairwise': bsc (batch-softmax contrastive), mse (squared error of the cosine), combined "
            "(bsc and mse), bce (binary cross-entropy of the cosine) or cosent (ranking by cosine).",
            "choices": PAIRWISE_LOSSES,
        },
    )
    bsc_normalization: str = field(
        default="l2",
        metadata={
            "help": "Normalization of the embeddings in bsc: l2, coordinate (divides each coordinate by its range in "
            "the batch; needs a temperature of about 1.2) or none.",
            "choices": ["l2", "coordinate", "none"],
        },
    )
    bsc_direction: str = field(
        default="both",
        metadata={
            "help": "Direction of bsc: rows (first text to second), columns (second text to first) or both.",
            "choices": ["both", "rows", "columns"],
        },
    )
    combined_weight: float = field(
        default=0.1,
        metadata={"help": "Weight of bsc in the combined loss (mu in the paper); mse has 1 minus this weight."},
    )
    second_loss: str | None = field(
        default=None,
        metadata={
            "help": "Loss that replaces --pairwise_loss late in training, such as mse after bsc. Default: none.",
            "choices": PAIRWISE_LOSSES,
        },
    )
    second_loss_share: float = field(
        default=0.5, metadata={"help": "Fraction of the steps, at the end of training, that use --second_loss."}
    )


class PairwiseObjective(ScoredPairsObjective):
    """
    Pairs that are scored or labeled by similarity (Chernyavskiy et al., NAACL 2022).

    The losses are `"bsc"` ([`batch_softmax_contrastive`], where a value of at least 0.5 is a positive pair), `"mse"`
    ([`cosine_mse`]), `"combined"` (`combined_weight` times the first plus the rest times the second), `"bce"`
    ([`cosine_bce`]) and `"cosent"` ([`cosent`]). `"mse"` has no temperature.
    """

    name = "pairwise"
    summary = "reads sentence1, sentence2 and score or label; --pairwise_loss chooses the loss"
    citation = """@inproceedings{chernyavskiy2022batch,
  title = {Batch-Softmax Contrastive Loss for Pairwise Sentence Scoring Tasks},
  author = {Chernyavskiy, Anton and Ilvovsky, Dmitry and Kalinin, Pavel and Nakov, Preslav},
  booktitle = {NAACL},
  year = {2022}
}"""
    Options = PairwiseOptions

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.losses = {self.options.pairwise_loss, self.options.second_loss} - {None}
        self.on_step_begin(0.0)

    @classmethod
    def check_options(cls, options: Any) -> None:
        super().check_options(options)
        losses = {options.pairwise_loss, options.second_loss} - {None}
        for names, is_read, reason in (
            (
                ("bsc_normalization", "bsc_direction"),
                not losses.isdisjoint({"bsc", "combined"}),
                "without pairwise_loss=bsc or combined",
            ),
            (("combined_weight",), "combined" in losses, "without pairwise_loss=combined"),
            (("second_loss_share",), options.second_loss is not None, "without second_loss"),
            (("temperature", "learn_temperature"), losses != {"mse"}, "with pairwise_loss=mse"),
        ):
            check_used(options, dict.fromkeys(names, is_read), reason)

    def on_step_begin(self, progress: float) -> None:
        options = self.options
        is_second = options.second_loss is not None and progress >= 1 - options.second_loss_share
        self.current_loss = options.second_loss if is_second else options.pairwise_loss

    @property
    def compares_batch(self) -> bool:
        return not self.losses.isdisjoint({"bsc", "combined", "cosent"})

    def settings(self, columns: Sequence[str]) -> dict[str, str]:
        options = self.options
        settings = super().settings(columns) | {
            "mask duplicates": yes_or_no(options.mask_duplicates),
            "pairwise loss": options.pairwise_loss,
        }
        if options.second_loss is not None:
            settings["pairwise loss"] += (
                f", then {options.second_loss} for the last {100 * options.second_loss_share:g} % of steps"
            )
        if "combined" in self.losses:
            settings["combined"] = f"{options.combined_weight:g} bsc + {1 - options.combined_weight:g} mse"
        if not self.losses.isdisjoint({"bsc", "combined"}):
            settings["batch softmax"] = f"normalization {options.bsc_normalization}, direction {options.bsc_direction}"
        return settings

    def forward(self, batch: EmbeddedBatch) -> torch.Tensor:
        first, second = batch.embeddings.unbind(1)
        loss = self.current_loss
        if loss == "mse":
            return cosine_mse(first, second, batch.values)
        if loss == "bce":
            return cosine_bce(first, second, batch.values, temperature=self.temperature)
        if loss == "cosent":
            # Every process computes the loss of all pairs; the gradients add up to that of the whole batch.
            return cosent(*batch.all_embeddings.unbind(1), batch.all_values, temperature=self.temperature)
        options = self.options
        contrastive = batch_softmax_contrastive(
            first,
            batch.all_embeddings[:, 1],
            batch.values >= 0.5,
            temperature=self.temperature,
            normalization=options.bsc_normalization,
            direction=options.bsc_direction,
            targets=batch.targets,
            query_columns=batch.all_embeddings[:, 0],
            query_text_ids=batch.text_ids[:, 0] if options.mask_duplicates else None,
            answer_text_ids=batch.all_text_ids[:, 1] if options.mask_duplicates else None,
            query_column_text_ids=batch.all_text_ids[:, 0] if options.mask_duplicates else None,
        )
        if loss == "bsc":
            return contrastive
        mu = options.combined_weight
        return mu * contrastive + (1 - mu) * cosine_mse(first, second, batch.values)
