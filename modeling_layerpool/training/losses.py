"""
Losses: pure functions of embeddings and text identities, without a model, a tokenizer or a process group.

Notation: `b` rows of this process, `B` columns gathered from all processes (`B = b` with one process), `k` negatives
per row, `h` width, `tau` temperature.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F

from ..models.modeling_layerpool_packing import at_least_float32
from .loss_kernels import Classification, Guide, TokenContrastInBlocks


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
    guide_anchors: torch.Tensor | None = None,
    guide_columns: torch.Tensor | None = None,
    guide_margin: float = 0.0,
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
            Divides the cosines. A tensor gets a gradient.
        hard_negative_weight (`float`, *optional*, defaults to 0):
            Added to the logits of a row's own negatives. SimCSE uses 0, Oh et al. use 1 by default.
        symmetric (`bool`, *optional*, defaults to `False`):
            Average with the loss in the other direction, which finds the anchor of each positive.
        targets (`torch.LongTensor` of shape `(b,)`, *optional*):
            The column of each row's positive. Defaults to the row's own index, which needs `B = b`.
        anchor_text_ids (`torch.LongTensor` of shape `(b,)`, *optional*):
            Text identity of each anchor.
        column_text_ids (`torch.LongTensor` of shape `(B + B * k,)` or `(B,)`, *optional*):
            Text identity of each column: the positives, then the negatives row by row; or the positives alone. Columns
            with the text of the row's anchor or positive, other than the target, are left out.
        anchor_columns (`torch.Tensor` of shape `(B, h)`, *optional*):
            The anchors of all processes, needed for `symmetric` with `B > b`.
        anchor_column_text_ids (`torch.LongTensor` of shape `(B,)`, *optional*):
            Text identities of `anchor_columns`.
        guide_anchors (`torch.Tensor` of shape `(B, d)`, *optional*):
            A guide's embeddings, of length 1, of the anchors of all processes (GISTEmbed, Solatorio 2024).
        guide_columns (`torch.Tensor` of shape `(B + B * k, d)`, *optional*):
            The guide's embeddings of the columns. A column that the guide finds more similar to the anchor than its
            positive is left out.
        guide_margin (`float`, *optional*, defaults to 0):
            Also leaves out columns that are less similar than the positive by less than this cosine.

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
    guide = guide_of_positives = None
    # Autocast would multiply in half precision, and a temperature of 0.05 makes the error 20 times larger.
    with without_autocast(anchors):
        if guide_anchors is not None:
            own, of_positives = guide_anchors[targets], guide_columns[targets]
            limits = (own * of_positives).sum(dim=-1) - guide_margin
            guide = Guide(own, guide_columns, limits)
            guide_of_positives = Guide(of_positives, guide_anchors, limits)
        queries, candidates = _normalize(anchors), _normalize(candidates)
        loss = Classification(
            queries,
            candidates,
            temperature,
            targets,
            row_text_ids,
            column_text_ids,
            hard_negatives=own_negatives,
            hard_negative_weight=hard_negative_weight,
            guide=guide,
        ).mean_cross_entropy()
        if symmetric:
            own_positives, all_anchors = candidates[targets], _normalize(anchor_columns)
            of_rows = (targets, row_text_ids, anchor_column_text_ids)
            find_anchors = Classification(own_positives, all_anchors, temperature, *of_rows, guide=guide_of_positives)
            loss = (loss + find_anchors.mean_cross_entropy()) / 2
    return loss


def batch_softmax_contrastive(
    queries: torch.Tensor,
    answers: torch.Tensor,
    labels: torch.Tensor | None = None,
    negatives: torch.Tensor | None = None,
    *,
    temperature: float | torch.Tensor,
    normalization: str = "l2",
    direction: str = "both",
    targets: torch.Tensor | None = None,
    query_columns: torch.Tensor | None = None,
    query_text_ids: torch.Tensor | None = None,
    answer_text_ids: torch.Tensor | None = None,
    query_column_text_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Batch-softmax contrastive loss for labeled pairs (Chernyavskiy et al., NAACL 2022, arXiv 2110.15725).

    With `S = norm(Q) norm(A)^T / tau` over M pairs and a label `y_i` for each, the loss is the mean of
    `-1/M sum_i y_i log softmax_row(S)_ii` and `-1/M sum_i y_i log softmax_column(S)_ii`. A pair labeled negative has
    no term of its own but remains a negative of the other pairs; the divisor is always M. Computed in at least
    float32.

    Args:
        queries (`torch.Tensor` of shape `(b, h)`):
            The first texts of this process's pairs.
        answers (`torch.Tensor` of shape `(B, h)`):
            The second texts of all processes' pairs.
        labels (`torch.Tensor` of shape `(b,)`, *optional*):
            1 for a positive pair, 0 for a negative one. Defaults to all 1.
        negatives (`torch.Tensor` of shape `(e, h)` or `(B, k, h)`, *optional*):
            More texts that are negatives of every query.
        temperature (`float` or scalar `torch.Tensor`):
            Divides the similarities. A tensor gets a gradient. The paper uses 0.055 to 0.1 with `"l2"` and 1.2 with
            `"coordinate"`.
        normalization (`str`, *optional*, defaults to `"l2"`):
            `"l2"` scales each vector to length 1. `"coordinate"` divides each coordinate by its range (largest minus
            smallest value), separately over the first and the second texts of the batch. `"none"` changes nothing.
        direction (`str`, *optional*, defaults to `"both"`):
            `"rows"` finds the answer of each query, `"columns"` the query of each answer, `"both"` averages the two.
        targets (`torch.LongTensor` of shape `(b,)`, *optional*):
            The index of each pair's answer. Defaults to the pair's own index, which needs `B = b`.
        query_columns (`torch.Tensor` of shape `(B, h)`, *optional*):
            The first texts of all processes, needed with `B > b`.
        query_text_ids (`torch.LongTensor` of shape `(b,)`, *optional*):
            Text identity of each query. Texts equal to one of the pair's own are left out of its negatives.
        answer_text_ids (`torch.LongTensor` of shape `(B + extra,)` or `(B,)`, *optional*):
            Text identity of each answer, then of each of the `negatives`; or of the answers alone.
        query_column_text_ids (`torch.LongTensor` of shape `(B,)`, *optional*):
            Text identities of `query_columns`.

    Returns:
        `torch.Tensor`: a scalar.

    Raises:
        ValueError: an option is unknown, `temperature` is not positive, shapes do not fit, or the batch is one pair.
    """
    if normalization not in ("l2", "coordinate", "none"):
        raise ValueError(f"normalization={normalization!r} is unknown; use one of l2, coordinate, none.")
    if direction not in ("both", "rows", "columns"):
        raise ValueError(f"direction={direction!r} is unknown; use one of both, rows, columns.")
    if not isinstance(temperature, torch.Tensor) and temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive.")
    rows, columns = len(queries), len(answers)
    if labels is not None and labels.shape != (rows,):
        raise ValueError(f"labels of shape {tuple(labels.shape)} do not belong to {rows} pairs.")
    if targets is None:
        if rows != columns:
            raise ValueError(f"{rows} queries and {columns} answers: name each query's answer with targets.")
        targets = torch.arange(rows, device=queries.device)
    if query_columns is None:
        if rows != columns:
            raise ValueError("Gathered answers need query_columns, the queries of all.")
        query_columns, query_column_text_ids = queries, query_text_ids
    extra = answers[:0] if negatives is None else negatives.flatten(0, -2)
    if columns + (len(extra) if direction == "rows" else 0) < 2:
        raise ValueError("A batch of one pair has nothing to compare it with: use a larger batch.")
    if answer_text_ids is not None and len(answer_text_ids) not in (columns, columns + len(extra)):
        raise ValueError(f"answer_text_ids names {len(answer_text_ids)} texts, which are not those of the columns.")
    row_text_ids = [ids for ids in (query_text_ids, _take(answer_text_ids, targets)) if ids is not None]
    directions = []
    with without_autocast(queries):
        all_queries, candidates = query_columns, torch.cat([answers, extra])
        if normalization == "l2":
            queries, all_queries, candidates = map(_normalize, (queries, all_queries, candidates))
        else:
            queries, all_queries, candidates = map(at_least_float32, (queries, all_queries, candidates))
        if normalization == "coordinate":
            ranges = _coordinate_ranges(all_queries)
            queries, all_queries = queries / ranges, all_queries / ranges
            candidates = candidates / _coordinate_ranges(candidates)
        if direction != "columns":
            directions.append(
                Classification(
                    queries, candidates, temperature, targets, row_text_ids, answer_text_ids, weights=labels
                )
            )
        if direction != "rows":
            own_answers = candidates[targets]
            directions.append(
                Classification(
                    own_answers,
                    all_queries,
                    temperature,
                    targets,
                    row_text_ids,
                    query_column_text_ids,
                    weights=labels,
                )
            )
        return sum(direction.mean_cross_entropy() for direction in directions) / len(directions)


def _coordinate_ranges(x: torch.Tensor) -> torch.Tensor:
    """Largest minus smallest value of each coordinate, `(h,)`; 1 where all are equal."""
    ranges = x.amax(dim=0) - x.amin(dim=0)
    return torch.where(ranges > 0, ranges, 1)


def cosine_mse(queries: torch.Tensor, answers: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """
    Mean squared error of the cosines of pairs, `(b, h)` and `(b, h)`, against `scores (b,)`, usually in [0, 1].

    Returns:
        `torch.Tensor`: a scalar, the mean over the pairs. Computed in at least float32.
    """
    cosines = _cosines(queries, answers)
    return F.mse_loss(cosines, scores.to(cosines.dtype))


def cosine_bce(
    queries: torch.Tensor, answers: torch.Tensor, labels: torch.Tensor, *, temperature: float | torch.Tensor
) -> torch.Tensor:
    """
    Binary cross-entropy of `sigmoid(cos / tau)` of pairs, `(b, h)` and `(b, h)`, against `labels (b,)` in [0, 1].

    Returns:
        `torch.Tensor`: a scalar, the mean over the pairs. Computed in at least float32.
    """
    cosines = _cosines(queries, answers)
    return F.binary_cross_entropy_with_logits(cosines / temperature, labels.to(cosines.dtype))


def cosent(
    queries: torch.Tensor, answers: torch.Tensor, scores: torch.Tensor, *, temperature: float | torch.Tensor
) -> torch.Tensor:
    """
    CoSENT, a ranking loss over pairs (Su 2022): [`rank_by_score`] of `cos / tau`.

    Args:
        queries, answers: `(B, h)` each, from all processes, because every pair is compared with every other.
        scores: `(B,)`; only their order matters.
        temperature: divides the cosines; 0.05 is usual.

    Returns:
        `torch.Tensor`: a scalar, 0 if all scores are equal. Computed in at least float32.
    """
    return rank_by_score(_cosines(queries, answers) / temperature, scores)


def rank_by_score(similarities: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """
    `log(1 + sum e^{s_j - s_i})` over all i, j with `score_i > score_j`: orders pairs by similarity as by score.

    Args:
        similarities: `(B,)`, one for each pair.
        scores: `(B,)`; pairs with equal scores are not compared.
    """
    differences = similarities.unsqueeze(0) - similarities.unsqueeze(1)  # row i holds s_j - s_i
    is_ordered = scores.unsqueeze(1) > scores.unsqueeze(0)
    exponents = differences.masked_fill(~is_ordered, float("-inf")).flatten()
    return torch.cat([exponents.new_zeros(1), exponents]).logsumexp(dim=0)


def _cosines(queries: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    with without_autocast(queries):
        return (_normalize(queries) * _normalize(answers)).sum(dim=-1)


def token_contrast(
    states: torch.Tensor,
    positive_index: torch.Tensor,
    negative_index: torch.Tensor,
    anchor_index: torch.Tensor | None = None,
    *,
    temperature: float,
) -> torch.Tensor:
    r"""
    Token-level contrastive loss of TACO (Fu et al., ACL 2022, arXiv 2204.04163).

    With `s = cos / tau`, the loss of anchor i with its positive j and its negatives N_i is
    `-log( e^{s(g_i, g_j)} / (e^{s(g_i, g_j)} + sum_{n in N_i} e^{s(g_i, g_n)}) )`. Positives and negatives are
    constants: only anchors get a gradient. Computed in at least float32, also under autocast. Memory is linear in the
    number of states and of negatives, and independent of the width.

    Args:
        states (`torch.Tensor` of shape `(s, h)`):
            One vector for each token; TACO uses `g = H_l - H_0`.
        positive_index (`torch.LongTensor` of shape `(p,)`):
            The index of each anchor's positive; -1 leaves the anchor out of the loss.
        negative_index (`torch.LongTensor` of shape `(p, k)`):
            The indices of its negatives. An index that occurs twice counts twice.
        anchor_index (`torch.LongTensor` of shape `(p,)`, *optional*):
            The index of each anchor. Defaults to every state, which needs `p = s`.
        temperature (`float`):
            Divides the cosines; the paper uses 0.07.

    Returns:
        `torch.Tensor`: a scalar, the mean over the anchors; 0, with a graph, if there are none.

    Raises:
        ValueError: `temperature` is not positive, or shapes do not fit.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive.")
    anchors = len(states) if anchor_index is None else len(anchor_index)
    if positive_index.shape != (anchors,) or negative_index.dim() != 2 or len(negative_index) != anchors:
        raise ValueError(
            f"{anchors} anchors, but positive_index of shape {tuple(positive_index.shape)} and negative_index of "
            f"shape {tuple(negative_index.shape)}."
        )
    with without_autocast(states):
        units = _normalize(states)
        return TokenContrastInBlocks.apply(units, anchor_index, positive_index, negative_index, 1 / temperature)


def without_autocast(x: torch.Tensor) -> AbstractContextManager:
    """Operations in the precision of their inputs, on the device of `x`."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _take(ids: torch.Tensor | None, indices: torch.Tensor) -> torch.Tensor | None:
    return None if ids is None else ids[indices]


def _normalize(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(at_least_float32(x), dim=-1)
