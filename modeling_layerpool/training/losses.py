"""
Losses: pure functions of embeddings and text identities. No model, no tokenizer, no process group.

Notation: `b` rows of this process, `B` columns gathered from all processes (`B = b` on one), `k` negatives a row,
`h` width, `tau` temperature.
"""

import torch
import torch.nn.functional as F


# Logits held at once: 2^21 are 8 MiB in float32.
BLOCK_LOGITS = 2**21


def info_nce(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor | None = None,
    *,
    temperature: float | torch.Tensor,
    hard_negative_weight: float = 0.0,
    symmetric: bool = False,
    targets: torch.Tensor | None = None,
    anchor_text_ids: torch.Tensor | None = None,
    column_text_ids: torch.Tensor | None = None,
    anchor_columns: torch.Tensor | None = None,
    anchor_column_text_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Contrastive loss over a batch (InfoNCE), with weighted hard negatives.

    With `s = cos / tau`, row i of the supervised loss of SimCSE and of Oh et al. 2022 is
    `-log( e^{s(a_i, p_i)} / sum_j (e^{s(a_i, p_j)} + w_ij e^{s(a_i, n_j)}) )`, where `w_ii = e^{hard_negative_weight}`
    and the other weights are 1. Computed in at least float32.

    Args:
        anchors (`torch.Tensor` of shape `(b, h)`):
            The rows of this process.
        positives (`torch.Tensor` of shape `(B, h)`):
            The columns: positives of all processes.
        negatives (`torch.Tensor` of shape `(B, h)` or `(B, k, h)`, *optional*):
            Hard negatives, further columns of every row.
        temperature (`float` or scalar `torch.Tensor`):
            What cosines are divided by; a tensor is learned through.
        hard_negative_weight (`float`, *optional*, defaults to 0):
            Added to the logits of a row's own negatives. 0 is SimCSE's, 1 the default of Oh et al.
        symmetric (`bool`, *optional*, defaults to `False`):
            Average with the loss of finding the anchor by its positive, among the anchors.
        targets (`torch.LongTensor` of shape `(b,)`, *optional*):
            The column of each row's positive. Defaults to the row's own number, which needs `B = b`.
        anchor_text_ids (`torch.LongTensor` of shape `(b,)`, *optional*):
            Identity of each anchor's text.
        column_text_ids (`torch.LongTensor` of shape `(B + B * k,)`, *optional*):
            Identity of each column's text, positives first, then the negatives row by row. Columns with the text of
            the row's anchor or of its positive, other than the target, are no negatives and are left out. Of shape
            `(B,)`: of the positives alone.
        anchor_columns (`torch.Tensor` of shape `(B, h)`, *optional*), anchor_column_text_ids (*optional*):
            `symmetric` with `B > b` only: the anchors of all processes, and their texts.

    Returns:
        `torch.Tensor`: a scalar, the mean over the b rows.

    Raises:
        ValueError: `temperature` is not positive, shapes do not fit, or there is no negative at all.
    """
    rows, columns = anchors.shape[0], positives.shape[0]
    if not isinstance(temperature, torch.Tensor) and temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive.")
    if targets is None:
        if rows != columns:
            raise ValueError(f"{rows} anchors and {columns} positives: name each row's positive with targets.")
        targets = torch.arange(rows, device=anchors.device)
    negatives = positives[:0].unsqueeze(1) if negatives is None else negatives
    negatives = negatives.unsqueeze(1) if negatives.dim() == 2 and len(negatives) == columns else negatives
    if negatives.dim() != 3 or (len(negatives) not in (0, columns)):
        raise ValueError(f"negatives of shape {tuple(negatives.shape)} do not belong to {columns} positives.")
    if columns + negatives.shape[0] * negatives.shape[1] < 2:
        raise ValueError("A batch of one row has no negatives: use a larger batch, or give hard negatives.")
    if symmetric and anchor_columns is None:
        if rows != columns:
            raise ValueError("symmetric=True with gathered columns needs anchor_columns, the anchors of all.")
        anchor_columns, anchor_column_text_ids = anchors, anchor_text_ids
    if column_text_ids is not None and len(column_text_ids) not in (columns, columns + negatives[..., 0].numel()):
        raise ValueError(f"column_text_ids names {len(column_text_ids)} texts, which are not those of the columns.")
    row_text_ids = [ids for ids in (anchor_text_ids, _take(column_text_ids, targets)) if ids is not None]

    candidates = torch.cat([positives, negatives.flatten(0, 1)])
    own_negatives = None
    if hard_negative_weight != 0 and len(negatives) > 0:
        count = negatives.shape[1]
        own_negatives = columns + targets.unsqueeze(1) * count + torch.arange(count, device=targets.device)
    # Under autocast the products would be made in half precision, and a temperature of 0.05 multiplies their error.
    with torch.autocast(anchors.device.type, enabled=False):
        loss = _mean_cross_entropy(
            *(anchors, candidates, temperature, targets, row_text_ids, column_text_ids),
            *(own_negatives, hard_negative_weight),
        )
        if symmetric:
            queries = positives[targets]
            back = _mean_cross_entropy(
                queries, anchor_columns, temperature, targets, row_text_ids, anchor_column_text_ids
            )
            loss = (loss + back) / 2
    return loss


def _mean_cross_entropy(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    temperature: float | torch.Tensor,
    targets: torch.Tensor,
    row_text_ids: list[torch.Tensor],
    column_text_ids: torch.Tensor | None,
    own_negatives: torch.Tensor | None = None,
    hard_negative_weight: float = 0.0,
) -> torch.Tensor:
    """Mean cross-entropy of each query's target among all candidates that count."""
    queries, candidates = _normalize(queries), _normalize(candidates)
    scale = torch.as_tensor(1 / temperature, dtype=queries.dtype, device=queries.device)

    def add_weights_and_drop_duplicates(logits: torch.Tensor, rows: slice) -> None:
        if own_negatives is not None:
            own = own_negatives[rows]
            logits.scatter_add_(1, own, logits.new_full(own.shape, hard_negative_weight))
        if column_text_ids is not None and row_text_ids:
            # Columns that hold one of the row's own texts beside the target are left out.
            same = torch.zeros_like(logits, dtype=torch.bool)
            for ids in row_text_ids:
                same[:, : len(column_text_ids)] |= ids[rows].unsqueeze(1) == column_text_ids
            logits.masked_fill_(same.scatter_(1, targets[rows].unsqueeze(1), False), float("-inf"))

    total = _CrossEntropyInBlocks.apply(queries, candidates, scale, targets, add_weights_and_drop_duplicates)
    return total / len(queries)


class _CrossEntropyInBlocks(torch.autograd.Function):
    """
    Sum of the cross-entropies of `scale * queries @ candidates.T`, whose matrix is never whole.

    A block of rows is made, changed in place by `change(logits, rows)`, and turned into its loss and at once into its
    gradient, `softmax - target`: memory is linear in the batch, and nothing is computed twice.
    """

    @staticmethod
    def forward(ctx, queries, candidates, scale, targets, change):
        needs_gradient = any(ctx.needs_input_grad)
        total = queries.new_zeros(())
        to_queries, to_candidates, to_scale = (torch.zeros_like(x) for x in (queries, candidates, scale))
        size = min(len(queries), max(1, BLOCK_LOGITS // len(candidates)))
        memory = queries.new_empty(size, len(candidates))
        for begin in range(0, len(queries), size):
            rows = slice(begin, begin + size)
            block, target = queries[rows], targets[rows].unsqueeze(1)
            logits = torch.mm(block, candidates.T, out=memory[: len(block)]).mul_(scale)
            change(logits, rows)
            highest = logits.amax(dim=1, keepdim=True)
            total -= (logits.gather(1, target) - highest).sum()
            exponentials = logits.sub_(highest).exp_()
            normalizer = exponentials.sum(dim=1, keepdim=True)
            total += normalizer.log().sum()
            if needs_gradient:
                gradient = exponentials.div_(normalizer)
                gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0))
                to_block = gradient @ candidates
                to_scale += (to_block * block).sum()
                to_queries[rows] = to_block * scale
                to_candidates.addmm_(gradient.T, block * scale)
        ctx.save_for_backward(to_queries, to_candidates, to_scale)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return *(gradient * saved for saved in ctx.saved_tensors), None, None


def _take(ids: torch.Tensor | None, places: torch.Tensor) -> torch.Tensor | None:
    return None if ids is None else ids[places]


def _normalize(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
