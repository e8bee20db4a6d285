"""
The two kernels of the losses. Each computes a block of rows at a time, so that memory is linear in the batch.

A block of rows is turned into its loss and at once into its gradient. No matrix of all logits exists, and nothing is
computed twice.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Logits per block: 2^21 take 8 MiB in float32, and 2^24, which keep an accelerator busy, 64 MiB.
BLOCK_LOGITS = 2**21
BLOCK_LOGITS_OF_ACCELERATOR = 2**24
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
    guide: "Guide | None" = None  # leaves out further candidates

    def mean_cross_entropy(self) -> torch.Tensor:
        """The cross-entropy of each target, times its weight, averaged over the queries."""
        queries = self.queries
        scale = 1 / self.temperature
        # Copying a number to a GPU would wait for the GPU; filling a tensor there does not.
        scale = scale.to(queries) if isinstance(scale, torch.Tensor) else queries.new_full((), scale)
        weights = queries.new_ones(len(queries)) if self.weights is None else self.weights.to(queries.dtype)
        hard_negatives, text_ids = self.hard_negatives, self.candidate_text_ids
        of_rows = [weights, self.targets, hard_negatives, *(self.query_text_ids if text_ids is not None else ())]
        of_all = (self.hard_negative_weight, text_ids)
        return _CrossEntropyInBlocks.apply(queries, self.candidates, scale, of_rows, of_all, self.guide) / len(queries)


@dataclass
class Guide:
    """Another encoder's view of the same texts. Candidates that it finds too similar to the query are left out."""

    queries: torch.Tensor  # (b, d), of length 1
    candidates: torch.Tensor  # (c, d), of length 1
    limits: torch.Tensor  # (b,), the highest cosine of a candidate that is kept

    def left_out(self, rows: slice, targets: torch.Tensor) -> torch.Tensor:
        """Whether each candidate is left out for the queries of a block, `(rows, c)`; never their targets."""
        too_similar = self.queries[rows] @ self.candidates.T > self.limits[rows].unsqueeze(1)
        return too_similar.scatter_(1, targets.unsqueeze(1), False)


class _CrossEntropyInBlocks(torch.autograd.Function):
    """
    Weighted sum of the cross-entropies of `scale * queries @ candidates.T`.

    `of_rows` and `of_all` are the last arguments of [`loss_to_gradient`]; the tensors of `of_rows` have a row for each
    query.
    """

    @staticmethod
    def forward(ctx, queries, candidates, scale, of_rows, of_all, guide):
        needs_gradient = any(ctx.needs_input_grad)
        total = queries.new_zeros(())
        to_queries, to_candidates, to_scale = (torch.zeros_like(x) for x in (queries, candidates, scale))
        size = block_rows(queries, candidates)
        # A batch of one block would not make up for the seconds that a compilation takes.
        compute = loss_to_gradient if size == len(queries) else chosen_loss_to_gradient(queries.device)
        memory = queries.new_empty(size, len(candidates))
        for begin in range(0, len(queries), size):
            rows = slice(begin, begin + size)
            block = queries[rows]
            # A shorter last block is no view of the memory, for which the function would be compiled again.
            logits = torch.mm(block, candidates.T, out=memory if len(block) == size else None)
            of_block = [None if tensor is None else tensor[rows] for tensor in of_rows]
            left_out = None if guide is None else guide.left_out(rows, of_rows[1][rows])
            total += compute(logits, scale, of_block, of_all, needs_gradient, left_out)
            if needs_gradient:
                gradient = logits
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


def block_rows(queries: torch.Tensor, candidates: torch.Tensor) -> int:
    """The number of queries whose similarities to all candidates are computed at once."""
    block_logits = BLOCK_LOGITS if queries.device.type == "cpu" else BLOCK_LOGITS_OF_ACCELERATOR
    return min(len(queries), max(1, block_logits // len(candidates)))


def loss_to_gradient(
    logits: torch.Tensor,
    scale: torch.Tensor,
    of_rows: list[torch.Tensor | None],
    of_all: tuple[float, torch.Tensor | None],
    needs_gradient: bool,
    left_out: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    The weighted sum of the cross-entropies of a block. Its logits, of which `softmax - target` times the weight is the
    gradient, are overwritten by that gradient.

    Args:
        logits: `(rows, c)`, not yet multiplied by the scale.
        scale: a scalar.
        of_rows: the weights `(rows,)`, the targets `(rows,)`, the hard negatives `(rows, k)` or None, and any number
            of text identities `(rows,)`.
        of_all: the weight of hard negatives, and the text identities of the first candidates or None.
        needs_gradient: leave the logits undefined if not.
        left_out: `(rows, c)`, candidates to leave out in addition to those with a text of the query.
    """
    (weights, targets, hard_negatives, *text_ids), (hard_negative_weight, candidate_text_ids) = of_rows, of_all
    weights, targets = weights.unsqueeze(1), targets.unsqueeze(1)
    logits.mul_(scale)
    if hard_negatives is not None:
        logits.scatter_add_(
            1, hard_negatives, torch.full_like(hard_negatives, hard_negative_weight, dtype=logits.dtype)
        )
    if candidate_text_ids is not None and text_ids:
        same = torch.zeros_like(logits, dtype=torch.bool)
        for ids in text_ids:
            same[:, : len(candidate_text_ids)] |= ids.unsqueeze(1) == candidate_text_ids
        logits.masked_fill_(same.scatter_(1, targets, False), float("-inf"))
    if left_out is not None:
        logits.masked_fill_(left_out, float("-inf"))
    highest = logits.amax(dim=1, keepdim=True)
    of_targets = logits.gather(1, targets) - highest
    exponentials = logits.sub_(highest).exp_()
    normalizer = exponentials.sum(dim=1, keepdim=True)
    if needs_gradient:
        exponentials.mul_(weights / normalizer).scatter_add_(1, targets, -weights)
    return (weights * (normalizer.log() - of_targets)).sum()


@lru_cache
def compiled_loss_to_gradient():
    """
    The same, compiled: the matrix products stay those of the vendor, and a few kernels read and write the logits
    instead of a dozen. Falls back to the function itself, with a warning, where there is no compiler.
    """
    compiled, works = torch.compile(loss_to_gradient, dynamic=True), [True]

    def compute(*args):
        if works[0]:
            try:
                return compiled(*args)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # compilation fails before anything is computed
                works[0] = False
                logger.warning(f"the contrastive loss is not compiled, which makes it slower: {error}")
        return loss_to_gradient(*args)

    return compute


def chosen_loss_to_gradient(device: torch.device):
    """[`loss_to_gradient`], compiled on CUDA if Triton is installed."""
    if device.type == "cuda" and find_spec("triton") is not None:
        return compiled_loss_to_gradient()
    return loss_to_gradient


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
