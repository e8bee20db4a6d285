"""
The two kernels of the losses. Each computes a block of rows at a time, so that memory is linear in the batch.

A block of rows is turned into its loss and at once into its gradient. No matrix of all logits exists, and nothing is
computed twice.
"""

from dataclasses import dataclass

import torch


# Logits per block: 2^21 take 8 MiB in float32.
BLOCK_LOGITS = 2**21
# Elements of gathered states per block of the token contrast: 2^20 take 4 MiB in float32 and fit a CPU's cache. An
# accelerator has more threads to keep busy and gets 256 MiB.
BLOCK_ELEMENTS = {"cpu": 2**20, "accelerator": 2**26}


@dataclass
class Classification:
    """Queries that each have to find their target among the same candidates, as the rows of a batch do."""

    queries: torch.Tensor  # (b, h)
    candidates: torch.Tensor  # (c, h)
    temperature: float | torch.Tensor  # divides the dot products; a tensor gets a gradient
    targets: torch.Tensor  # (b,), the index of each query's target among the candidates
    query_text_ids: list[torch.Tensor]  # tensors (b,): the identities of the texts that belong to each query
    # The identities of the first candidates. One with a text of the query, other than the target, is left out.
    candidate_text_ids: torch.Tensor | None
    weights: torch.Tensor | None = None  # (b,), a factor of each query's term. Default: 1
    hard_negatives: torch.Tensor | None = None  # (b, k), candidates whose logits are raised by the weight
    hard_negative_weight: float = 0.0

    def mean_cross_entropy(self) -> torch.Tensor:
        """The cross-entropy of each target, times its weight, averaged over the queries."""
        queries = self.queries
        scale = 1 / self.temperature
        # Copying a number to a GPU would wait for the GPU; filling a tensor there does not.
        scale = scale.to(queries) if isinstance(scale, torch.Tensor) else queries.new_full((), scale)
        weights = queries.new_ones(len(queries)) if self.weights is None else self.weights.to(queries.dtype)
        total = _CrossEntropyInBlocks.apply(
            queries, self.candidates, scale, self.targets, weights, self._weight_and_mask
        )
        return total / len(queries)

    def _weight_and_mask(self, logits: torch.Tensor, rows: slice) -> None:
        """Raise the logits of hard negatives and mask duplicates, in place."""
        if self.hard_negatives is not None:
            own = self.hard_negatives[rows]
            logits.scatter_add_(1, own, logits.new_full(own.shape, self.hard_negative_weight))
        if self.candidate_text_ids is not None and self.query_text_ids:
            same = torch.zeros_like(logits, dtype=torch.bool)
            for ids in self.query_text_ids:
                same[:, : len(self.candidate_text_ids)] |= ids[rows].unsqueeze(1) == self.candidate_text_ids
            logits.masked_fill_(same.scatter_(1, self.targets[rows].unsqueeze(1), False), float("-inf"))


class _CrossEntropyInBlocks(torch.autograd.Function):
    """
    Weighted sum of the cross-entropies of `scale * queries @ candidates.T`.

    `change(logits, rows)` edits the logits of a block in place. The gradient of a block is `softmax - target`.
    """

    @staticmethod
    def forward(ctx, queries, candidates, scale, targets, weights, change):
        needs_gradient = any(ctx.needs_input_grad)
        total = queries.new_zeros(())
        to_queries, to_candidates, to_scale = (torch.zeros_like(x) for x in (queries, candidates, scale))
        size = min(len(queries), max(1, BLOCK_LOGITS // len(candidates)))
        memory = queries.new_empty(size, len(candidates))
        for begin in range(0, len(queries), size):
            rows = slice(begin, begin + size)
            block, target, weight = queries[rows], targets[rows].unsqueeze(1), weights[rows].unsqueeze(1)
            logits = torch.mm(block, candidates.T, out=memory[: len(block)]).mul_(scale)
            change(logits, rows)
            highest = logits.amax(dim=1, keepdim=True)
            total -= (weight * (logits.gather(1, target) - highest)).sum()
            exponentials = logits.sub_(highest).exp_()
            normalizer = exponentials.sum(dim=1, keepdim=True)
            total += (weight * normalizer.log()).sum()
            if needs_gradient:
                gradient = exponentials.div_(normalizer)
                gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0)).mul_(weight)
                to_block = gradient @ candidates
                to_scale += (to_block * block).sum()
                to_queries[rows] = to_block * scale
                to_candidates.addmm_(gradient.T, block * scale)
        ctx.save_for_backward(to_queries, to_candidates, to_scale)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return *(gradient * saved for saved in ctx.saved_tensors), None, None, None


class TokenContrastInBlocks(torch.autograd.Function):
    """
    Mean cross-entropy of each anchor's positive among its negatives, gathered from unit vectors.

    The gathered states have `anchors * (1 + k) * h` elements in total, of which one block exists at a time.
    """

    @staticmethod
    def forward(ctx, units, anchor_index, positive_index, negative_index, scale):
        needs_gradient = ctx.needs_input_grad[0]
        counts = positive_index >= 0
        weights = counts.to(units.dtype) / counts.sum().clamp(min=1)  # in the mean over the anchors
        # The positive is candidate 0.
        candidates = torch.cat([positive_index.clamp(min=0).unsqueeze(1), negative_index], dim=1)
        total = units.new_zeros(())
        gradient = units.new_empty(len(candidates), units.shape[1]) if needs_gradient else None
        block = BLOCK_ELEMENTS["cpu" if units.device.type == "cpu" else "accelerator"]
        size = max(1, block // (candidates.shape[1] * units.shape[1]))
        memory = units.new_empty(min(size, len(candidates)) * candidates.shape[1], units.shape[1])
        for begin in range(0, len(candidates), size):
            rows = slice(begin, begin + size)
            anchors = units[rows] if anchor_index is None else units[anchor_index[rows]]
            # On a CPU, index_select and bmm are at least 5 times faster than other ways to gather and multiply.
            indices = candidates[rows].flatten()
            gathered = torch.index_select(units, 0, indices, out=memory[: len(indices)])
            gathered = gathered.view(len(anchors), -1, units.shape[1])  # (rows, 1 + k, h)
            logits = torch.bmm(anchors.unsqueeze(1), gathered.transpose(1, 2)).squeeze(1).mul_(scale)
            log_probabilities = logits.log_softmax(dim=1)
            total -= log_probabilities[:, 0] @ weights[rows]
            if needs_gradient:
                to_logits = log_probabilities.exp_()
                to_logits[:, 0] -= 1
                to_logits *= weights[rows].unsqueeze(1) * scale
                torch.bmm(to_logits.unsqueeze(1), gathered, out=gradient[rows].unsqueeze(1))
        ctx.states = len(units)
        ctx.save_for_backward(gradient, anchor_index)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        to_anchors, anchor_index = ctx.saved_tensors
        to_anchors = gradient * to_anchors
        if anchor_index is not None:
            to_units = to_anchors.new_zeros(ctx.states, to_anchors.shape[1])
            to_anchors = to_units.index_add_(0, anchor_index, to_anchors)
        return to_anchors, None, None, None, None
