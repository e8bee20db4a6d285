"""AnglE: ranks scored pairs by an angle in complex space, where the gradient of the cosine would vanish."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from ....common.command_line import Range, check_used
from ....common.errors import InputError
from ....models.modeling_layerpool_packing import at_least_float32
from ...losses import cosent, rank_by_score, without_autocast
from .base import EmbeddedBatch
from .info_nce import in_batch_loss, triplet_columns
from .scored_pairs import ScoredPairsObjective, ScoredPairsOptions


@dataclass
class AngleOptions(ScoredPairsOptions):
    """Options of [`AngleObjective`]."""

    GROUP: ClassVar[str] = ScoredPairsOptions.GROUP
    DETAILS: ClassVar[tuple[str, ...]] = ("angle_weight", "angle_temperature", "cosine_weight")
    RANGES: ClassVar = {
        **dict.fromkeys(("angle_weight", "cosine_weight"), Range(at_least=0)),
        "angle_temperature": Range(above=0),
    }

    angle_weight: float = field(default=1.0, metadata={"help": "Weight of the angle loss."})
    angle_temperature: float = field(
        default=1.0, metadata={"help": "Temperature that divides the similarities of the angle loss; above 0."}
    )
    cosine_weight: float = field(
        default=1.0, metadata={"help": "Weight of the CoSENT loss, which ranks pairs by cosine / --temperature."}
    )


class AngleObjective(ScoredPairsObjective):
    """
    The angle loss and the cosine loss of AnglE (Li and Li, arXiv 2309.12871), weighted and added.

    Both rank the pairs of a batch by score ([`rank_by_score`]). Triplets are pairs too, with score 1 for the anchor
    with its positive and 0 with each of its negatives; their loss over in-batch negatives ([`info_nce`]) is added with
    weight 1. The paper also adds such a loss for scored pairs, which is left out here.
    """

    name = "angle"
    summary = "reads the columns of 'pairwise', or triplets, and ranks pairs by cosine and by angle in complex space"
    citation = """@misc{li2023angle,
  title = {{AnglE}-optimized Text Embeddings},
  author = {Li, Xianming and Li, Jing},
  year = {2023},
  eprint = {2309.12871},
  archivePrefix = {arXiv}
}"""
    Options = AngleOptions

    @classmethod
    def check_options(cls, options: Any) -> None:
        super().check_options(options)
        if options.angle_weight == options.cosine_weight == 0:
            raise InputError("angle_weight and cosine_weight are both 0, which leaves nothing to rank")
        check_used(options, {"angle_temperature": options.angle_weight > 0}, "with angle_weight=0")

    def select_columns(self, available: Sequence[str], source: str) -> list[str]:
        options = self.options
        if "anchor" in available and "sentence1" not in available:
            check_used(options, {"score_range": False}, "with triplets")
            columns = triplet_columns(self, available, source)
            if len(columns) == 2:
                raise self.missing_column("'negative'", available, source)
            return columns
        is_read = dict.fromkeys(("temperature", "learn_temperature"), options.cosine_weight > 0)
        check_used(options, is_read, "with cosine_weight=0")
        return super().select_columns(available, source)

    def value_column(self, available: Sequence[str], source: str) -> str | None:
        is_triplet = "anchor" in self.select_columns(available, source)
        return None if is_triplet else super().value_column(available, source)

    def settings(self, columns: Sequence[str]) -> dict[str, str]:
        options, in_batch = self.options, " + 1 in-batch negatives" if "anchor" in columns else ""
        return super().settings(columns) | {
            "angle": f"{options.angle_weight:g} angle (temperature {options.angle_temperature:g}) + "
            f"{options.cosine_weight:g} cosine{in_batch}"
        }

    def forward(self, batch: EmbeddedBatch) -> torch.Tensor:
        # Every process ranks all pairs; the gradients add up to that of the whole batch.
        first, second, values = batch.all_embeddings[:, :1], batch.all_embeddings[:, 1:], batch.all_values
        options, loss = self.options, 0
        if values is None:
            values = torch.zeros_like(second[..., 0])
            values[:, 0] = 1
            values = values.flatten()
            loss = in_batch_loss(batch, self.temperature)
        first, second = first.expand_as(second).flatten(0, 1), second.flatten(0, 1)
        if options.angle_weight > 0:
            similarities = angle_similarities(first, second) / options.angle_temperature
            loss = loss + options.angle_weight * rank_by_score(similarities, values)
        if options.cosine_weight > 0:
            loss = loss + options.cosine_weight * cosent(first, second, values, temperature=self.temperature)
        return loss


def angle_similarities(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """
    The similarity of AnglE for pairs of embeddings, `(B, h)` and `(B, h)`, as in the authors' code.

    The halves of an embedding are the real and the imaginary parts of a complex vector of length 1. The similarity is
    the absolute value of the summed real and imaginary parts of `x * conj(y)`. An odd width is padded with a zero.
    """
    with without_autocast(first):
        x, y = (_complex_halves(embeddings) for embeddings in (first, second))
        product = (x * y.conj()).sum(dim=-1)
        return (product.real + product.imag).abs()


def _complex_halves(embeddings: torch.Tensor) -> torch.Tensor:
    padded = F.pad(at_least_float32(embeddings), (0, embeddings.shape[-1] % 2))
    units = F.normalize(padded, dim=-1)
    return torch.complex(*units.chunk(2, dim=-1))
