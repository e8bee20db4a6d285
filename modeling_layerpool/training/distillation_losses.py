"""
Losses that draw a student's embeddings to those of a teacher. Pure functions, as in `losses`.

Notation: `b` rows of this process, `C` candidates of all processes, `h` width of the student, `d` of the teacher.
"""

import torch
import torch.nn.functional as F

from ..models.modeling_layerpool_packing import at_least_float32
from . import loss_kernels
from .losses import without_autocast


def distill_similarities(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    teacher_queries: torch.Tensor,
    teacher_candidates: torch.Tensor,
    query_text_ids: torch.Tensor | None = None,
    candidate_text_ids: torch.Tensor | None = None,
    *,
    temperature: float | None = 0.05,
) -> torch.Tensor:
    r"""
    Draws the similarities of each query to the candidates to those that the teacher sees.

    With a temperature `tau`, row i is the divergence `KL(softmax(t_i / tau) || softmax(s_i / tau))` of the student's
    cosines `s_i` from the teacher's `t_i`. Without one, it is the mean of `(s_ij - t_ij)^2`. Computed in at least
    float32, in blocks of rows.

    Args:
        queries (`torch.Tensor` of shape `(b, h)`), candidates (`torch.Tensor` of shape `(C, h)`):
            The student's embeddings.
        teacher_queries (`torch.Tensor` of shape `(b, d)`), teacher_candidates (`torch.Tensor` of shape `(C, d)`):
            The teacher's embeddings of the same texts, of length 1. They get no gradient.
        query_text_ids (`torch.LongTensor` of shape `(b,)`), candidate_text_ids (`torch.LongTensor` of shape `(C,)`):
            Text identities. A candidate with the query's own text says nothing and is left out. Default: none is.
        temperature (`float`, *optional*, defaults to 0.05):
            Divides the cosines; `None` for the squared error.

    Returns:
        `torch.Tensor`: a scalar, the mean over the b rows.
    """
    with without_autocast(queries):
        units = (F.normalize(at_least_float32(embeddings), dim=-1) for embeddings in (queries, candidates))
        queries, candidates = units
        teacher = (teacher_queries.to(queries.dtype), teacher_candidates.to(queries.dtype))
        text_ids = (query_text_ids, candidate_text_ids)
        return _SimilaritiesInBlocks.apply(queries, candidates, teacher, text_ids, temperature) / len(queries)


def distill_vectors(embeddings: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """
    The squared distance of embeddings of length 1 from the teacher's, averaged over the texts.

    Args:
        embeddings: `(b, d)`; divided by their lengths here.
        teacher: `(b, d)`, of length 1.

    Returns:
        `torch.Tensor`: a scalar. Computed in at least float32.
    """
    with without_autocast(embeddings):
        units = F.normalize(at_least_float32(embeddings), dim=-1)
        return (units - teacher.to(units.dtype)).square().sum(dim=-1).mean()


class _SimilaritiesInBlocks(torch.autograd.Function):
    """The sum over the queries of [`distill_similarities`]; the gradient of each block is computed with its loss."""

    @staticmethod
    def forward(ctx, queries, candidates, teacher, text_ids, temperature):
        (teacher_queries, teacher_candidates), (query_text_ids, candidate_text_ids) = teacher, text_ids
        total = queries.new_zeros(())
        to_queries, to_candidates = torch.zeros_like(queries), torch.zeros_like(candidates)
        size = loss_kernels.block_rows(queries, candidates)
        for begin in range(0, len(queries), size):
            rows = slice(begin, begin + size)
            ours, theirs = queries[rows] @ candidates.T, teacher_queries[rows] @ teacher_candidates.T
            same = None
            if query_text_ids is not None:
                same = query_text_ids[rows].unsqueeze(1) == candidate_text_ids
            compute = _squared_error if temperature is None else _divergence
            loss, gradient = compute(ours, theirs, same, temperature)
            total += loss
            to_queries[rows] = gradient @ candidates
            to_candidates.addmm_(gradient.T, queries[rows])
        ctx.save_for_backward(to_queries, to_candidates)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return *(gradient * saved for saved in ctx.saved_tensors), None, None, None


def _divergence(
    ours: torch.Tensor, theirs: torch.Tensor, same: torch.Tensor | None, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the divergences of the rows, and its gradient at `ours`."""
    ours, theirs = ours / temperature, theirs / temperature
    if same is not None:
        # Not -inf, which would give NaN in a row without any other candidate.
        lowest = torch.finfo(ours.dtype).min / 2
        ours, theirs = ours.masked_fill(same, lowest), theirs.masked_fill(same, lowest)
    ours, theirs = ours.log_softmax(dim=1), theirs.log_softmax(dim=1)
    goal = theirs.exp()
    return (goal * (theirs - ours)).sum(), (ours.exp() - goal) / temperature


def _squared_error(
    ours: torch.Tensor, theirs: torch.Tensor, same: torch.Tensor | None, _: None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over the rows of the mean squared errors, and its gradient at `ours`."""
    differences, count = ours - theirs, ours.shape[1]
    if same is not None:
        differences = differences.masked_fill(same, 0)
        count = (~same).sum(dim=1, keepdim=True).clamp(min=1)
    return (differences.square() / count).sum(), 2 * differences / count
