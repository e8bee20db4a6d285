"""Batches of rows of similar length."""

from collections.abc import Sequence
from typing import Any

import torch

from ..batching import GlobalBatchSampler


class LengthGroupedBatchSampler(GlobalBatchSampler):
    """
    Global batches of rows of similar length; a batch needs only one row for each process.

    The rows of an epoch are shuffled, cut into pools of at most 50 batches and at most a quarter of the data, and
    sorted by length in each pool; then the batches are shuffled. A smaller last batch stays the last.

    Args:
        lengths: number of tokens of each row; None keeps the order of [`GlobalBatchSampler`].
    """

    POOL = 50

    def __init__(self, lengths: Sequence[int] | None, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lengths = lengths

    @property
    def smallest(self) -> int:
        return self.batch_size if self.drop_last else self.world_size

    def order(self, epoch: int) -> list[int]:
        order = super().order(epoch)
        if self.lengths is None:
            return order
        size = self.batch_size
        pool = size * max(1, min(self.POOL, len(order) // (4 * size)))
        batches = []
        for begin in range(0, len(order), pool):
            rows = sorted(order[begin : begin + pool], key=self.lengths.__getitem__, reverse=True)
            batches += [rows[start : start + size] for start in range(0, len(rows), size)]
        last = [batches.pop()] if len(batches[-1]) < size else []
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shuffled = [batches[index] for index in torch.randperm(len(batches), generator=generator)]
        return [row for batch in shuffled + last for row in batch]
