"""
Losses: pure functions of embeddings and text identities. No model, no tokenizer, no process group.

Notation: `b` rows of this process, `B` columns gathered from all processes (`B = b` on one), `k` negatives a row,
`h` width, `tau` temperature.
"""

import torch
import torch.nn.functional as F


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

    # Under autocast the products would be made in half precision, and a temperature of 0.05 multiplies their error.
    with torch.autocast(anchors.device.type, enabled=False):
        logits = _cosines(anchors, torch.cat([positives, negatives.flatten(0, 1)])) / temperature
        if hard_negative_weight != 0 and len(negatives) > 0:
            count = negatives.shape[1]
            own = columns + targets.unsqueeze(1) * count + torch.arange(count, device=targets.device)
            logits = logits.scatter_add(1, own, logits.new_full(own.shape, hard_negative_weight))
        loss = _cross_entropy(logits, targets, row_text_ids, column_text_ids)
        if symmetric:
            logits = _cosines(positives[targets], anchor_columns) / temperature
            loss = (loss + _cross_entropy(logits, targets, row_text_ids, anchor_column_text_ids)) / 2
    return loss


def _take(ids: torch.Tensor | None, places: torch.Tensor) -> torch.Tensor | None:
    return None if ids is None else ids[places]


def _cosines(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return F.normalize(x.to(dtype), dim=-1) @ F.normalize(y.to(dtype), dim=-1).T


def _cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    row_text_ids: list[torch.Tensor],
    column_text_ids: torch.Tensor | None,
) -> torch.Tensor:
    """Mean cross-entropy, without the columns that hold one of the row's own texts beside the target."""
    if column_text_ids is not None:
        same = torch.zeros_like(logits, dtype=torch.bool)
        for ids in row_text_ids:
            same[:, : len(column_text_ids)] |= ids.unsqueeze(1) == column_text_ids
        same = same.scatter(1, targets.unsqueeze(1), False)
        logits = logits.masked_fill(same, float("-inf"))
    return F.cross_entropy(logits, targets)
