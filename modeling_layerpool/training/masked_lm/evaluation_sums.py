"""Sums over the batches of an evaluation of a masked language model."""

import math

import torch
import torch.distributed as dist

from ..distributed import world_size
from .token_contrast import widest_float


class EvaluationSums:
    """Sums over the batches of an evaluation, kept on the device, and the generator of its draws."""

    # Each metric is a sum over a count, in this order.
    NAMES = ("mlm_loss", "masked_accuracy", "token_contrast_loss", "similarity_within", "similarity_between")

    def __init__(self, device: torch.device, seed: int):
        self.generator = torch.Generator(device).manual_seed(seed)
        self.sums = torch.zeros(2 * len(self.NAMES), dtype=widest_float(device), device=device)

    def add(
        self,
        mlm_loss: torch.Tensor,
        right: torch.Tensor,
        predicted: torch.Tensor,
        contrast: torch.Tensor,
        anchors: torch.Tensor,
        similarity: torch.Tensor | None,
    ) -> None:
        """
        Add a batch: both terms of the loss as means over its predicted tokens and its anchors, the number of predicted
        tokens that are right, and [`similarity_sums`] where similarities are measured.
        """
        counts = [mlm_loss * predicted, predicted, 100 * right, predicted, contrast * anchors, anchors]
        counts = torch.stack([count.detach().to(self.sums.dtype) for count in counts])
        similarity = counts.new_zeros(4) if similarity is None else similarity.detach()
        self.sums += torch.cat([counts, similarity])

    def metrics(self) -> dict[str, float]:
        """The metrics over the batches of all processes. A similarity without any pair of tokens is left out."""
        if world_size() > 1:
            dist.all_reduce(self.sums)
        sums = self.sums.tolist()
        means = zip(self.NAMES, sums[::2], sums[1::2], strict=True)
        # A loss over no token is 0, as in training.
        metrics = {
            name: total / max(1.0, count)
            for name, total, count in means
            if count > 0 or not name.startswith("similarity")
        }
        return metrics | {"perplexity": math.exp(min(700.0, metrics["mlm_loss"]))}
