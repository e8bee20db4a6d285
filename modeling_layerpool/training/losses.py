"""
Losses: pure functions of embeddings and text identities. No model, no tokenizer, no process group.

Notation: `b` rows of this process, `B` columns gathered from all processes (`B = b` on one), `k` negatives a row,
`h` width, `tau` temperature.
"""

import torch
import torch.nn.functional as F


# Logits held at once: 2^21 are 8 MiB in float32.
BLOCK_LOGITS = 2**21
# Numbers of states gathered at once by the token contrast: 2^20 are 4 MiB in float32, which a CPU's cache holds. An
# accelerator has as many threads to feed, and takes 256 MiB.
BLOCK_ELEMENTS = {"cpu": 2**20, "accelerator": 2**26}


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
        anchor_columns (`torch.Tensor` of shape `(B, h)`, *optional*):
            `symmetric` with `B > b` only: the anchors of all processes.
        anchor_column_text_ids (`torch.LongTensor` of shape `(B,)`, *optional*):
            Identity of the texts of `anchor_columns`.

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
        queries, candidates = _normalize(anchors), _normalize(candidates)
        loss = _mean_cross_entropy(
            *(queries, candidates, temperature, targets, row_text_ids, column_text_ids),
            own_negatives=own_negatives,
            hard_negative_weight=hard_negative_weight,
        )
        if symmetric:
            back = _mean_cross_entropy(
                *(candidates[targets], _normalize(anchor_columns), temperature, targets),
                *(row_text_ids, anchor_column_text_ids),
            )
            loss = (loss + back) / 2
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
    Batch-softmax contrastive loss for labelled pairs (Chernyavskiy et al., NAACL 2022, arXiv 2110.15725).

    With `S = norm(Q) norm(A)^T / tau` over M pairs of which `y_i` says whether pair i is positive, the mean of
    `-1/M sum_i y_i log softmax_row(S)_ii` and `-1/M sum_i y_i log softmax_column(S)_ii`. A pair that is labelled
    negative has no term of its own, but stays among the negatives of the others; the divisor stays M. Computed in at
    least float32.

    Args:
        queries (`torch.Tensor` of shape `(b, h)`):
            The first texts of this process's pairs.
        answers (`torch.Tensor` of shape `(B, h)`):
            The second texts of all processes' pairs.
        labels (`torch.Tensor` of shape `(b,)`, *optional*):
            1 for a positive pair, 0 for a negative one. Defaults to all 1.
        negatives (`torch.Tensor` of shape `(e, h)` or `(B, k, h)`, *optional*):
            Further texts, negatives of every query.
        temperature (`float` or scalar `torch.Tensor`):
            What similarities are divided by; a tensor is learned through. The paper: 0.055 to 0.1 with `"l2"`, 1.2
            with `"coordinate"`.
        normalization (`str`, *optional*, defaults to `"l2"`):
            `"l2"`: each vector to length 1. `"coordinate"`: each coordinate divided by its range, largest minus
            smallest, over the first texts of the batch, and likewise over the others. `"none"`.
        direction (`str`, *optional*, defaults to `"both"`):
            `"rows"`: only the answer is looked for among all; `"columns"`: only the query; or `"both"`.
        targets (`torch.LongTensor` of shape `(b,)`, *optional*):
            The place of each pair's answer among all. Defaults to the pair's own number, which needs `B = b`.
        query_columns (`torch.Tensor` of shape `(B, h)`, *optional*):
            With `B > b` only: the first texts of all processes.
        query_text_ids (`torch.LongTensor` of shape `(b,)`, *optional*):
            Identity of each query's text. A text that is also one of the pair's own is no negative of it.
        answer_text_ids (`torch.LongTensor` of shape `(B + extra,)`, *optional*):
            Identity of each answer's text, then of each of the `negatives`. Of shape `(B,)`: of the answers alone.
        query_column_text_ids (`torch.LongTensor` of shape `(B,)`, *optional*):
            Identity of the texts of `query_columns`.

    Returns:
        `torch.Tensor`: a scalar.

    Raises:
        ValueError: an option is unknown, `temperature` is not positive, shapes do not fit, or a batch of one pair has
            nothing to be compared with.
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
    losses = []
    with torch.autocast(queries.device.type, enabled=False):
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
            losses.append(
                _mean_cross_entropy(
                    queries, candidates, temperature, targets, row_text_ids, answer_text_ids, weights=labels
                )
            )
        if direction != "rows":
            own_answers = candidates[targets]
            losses.append(
                _mean_cross_entropy(
                    *(own_answers, all_queries, temperature, targets, row_text_ids, query_column_text_ids),
                    weights=labels,
                )
            )
    return sum(losses) / len(losses)


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
    CoSENT, a ranking loss over pairs (Su 2022): `log(1 + sum e^{(cos_j - cos_i) / tau})` over all i, j with
    `score_i > score_j`, so that pairs are ordered by cosine as they are by score.

    Args:
        queries, answers: `(b, h)` each; of all processes, as every pair is compared with every other.
        scores: `(b,)`; only their order matters. Equal scores are not compared.
        temperature: what cosines are divided by; 0.05 is usual.

    Returns:
        `torch.Tensor`: a scalar, 0 where all scores are equal. Computed in at least float32.
    """
    scaled = _cosines(queries, answers) / temperature
    differences = scaled.unsqueeze(0) - scaled.unsqueeze(1)  # of row i: cos_j - cos_i
    is_ordered = scores.unsqueeze(1) > scores.unsqueeze(0)
    exponents = differences.masked_fill(~is_ordered, float("-inf")).flatten()
    return torch.cat([exponents.new_zeros(1), exponents]).logsumexp(dim=0)


def _cosines(queries: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    with torch.autocast(queries.device.type, enabled=False):
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

    With `s = cos / tau`, anchor i with its positive j and its negatives N_i costs
    `-log( e^{s(g_i, g_j)} / (e^{s(g_i, g_j)} + sum_{n in N_i} e^{s(g_i, g_n)}) )`. Positives and negatives are
    constants: the gradient reaches the anchors alone. Computed in at least float32, also under autocast; memory is
    linear in the states and in the negatives' numbers, whatever the width.

    Args:
        states (`torch.Tensor` of shape `(s, h)`):
            One vector for each token; TACO's is `g = H_l - H_0`.
        positive_index (`torch.LongTensor` of shape `(p,)`):
            The state that is the positive of each anchor; -1 leaves the anchor out of the loss.
        negative_index (`torch.LongTensor` of shape `(p, k)`):
            The states that are its negatives. The same one may stand there twice, and counts twice.
        anchor_index (`torch.LongTensor` of shape `(p,)`, *optional*):
            The state that is the anchor. Defaults to every state, which needs `p = s`.
        temperature (`float`):
            What cosines are divided by; the paper's is 0.07.

    Returns:
        `torch.Tensor`: a scalar, the mean over the anchors; 0, with a graph, if there is none.

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
    with torch.autocast(states.device.type, enabled=False):
        units = _normalize(states)
        return _TokenContrastInBlocks.apply(units, anchor_index, positive_index, negative_index, 1 / temperature)


class _TokenContrastInBlocks(torch.autograd.Function):
    """
    The mean cross-entropy of each anchor's positive among its negatives, all of them gathered from unit vectors.

    As in [`_CrossEntropyInBlocks`] a block of anchors is turned into its loss and at once into its gradient, so that
    the gathered states, `anchors * (1 + k) * h` numbers, are never there as a whole, and never gathered twice.
    """

    @staticmethod
    def forward(ctx, units, anchor_index, positive_index, negative_index, scale):
        needs_gradient = ctx.needs_input_grad[0]
        counts = positive_index >= 0
        weights = counts.to(units.dtype) / counts.sum().clamp(min=1)  # of each anchor in the mean
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
            # Selected and multiplied in the ways that are fastest on a CPU, by a factor of 5 and more.
            places = candidates[rows].flatten()
            gathered = torch.index_select(units, 0, places, out=memory[: len(places)])
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


def _mean_cross_entropy(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    temperature: float | torch.Tensor,
    targets: torch.Tensor,
    row_text_ids: list[torch.Tensor],
    column_text_ids: torch.Tensor | None,
    weights: torch.Tensor | None = None,
    own_negatives: torch.Tensor | None = None,
    hard_negative_weight: float = 0.0,
) -> torch.Tensor:
    """Mean over the queries of the cross-entropy, times `weights (b,)`, of each one's target among all candidates."""
    scale = torch.as_tensor(1 / temperature, dtype=queries.dtype, device=queries.device)

    def add_weights_and_drop_duplicates(logits: torch.Tensor, rows: slice) -> None:
        if own_negatives is not None:
            own = own_negatives[rows]
            logits.scatter_add_(1, own, logits.new_full(own.shape, hard_negative_weight))
        if column_text_ids is not None and row_text_ids:
            # Columns that hold one of the row's own texts, other than the target, are left out.
            same = torch.zeros_like(logits, dtype=torch.bool)
            for ids in row_text_ids:
                same[:, : len(column_text_ids)] |= ids[rows].unsqueeze(1) == column_text_ids
            logits.masked_fill_(same.scatter_(1, targets[rows].unsqueeze(1), False), float("-inf"))

    weights = queries.new_ones(len(queries)) if weights is None else weights.to(queries.dtype)
    total = _CrossEntropyInBlocks.apply(queries, candidates, scale, targets, weights, add_weights_and_drop_duplicates)
    return total / len(queries)


class _CrossEntropyInBlocks(torch.autograd.Function):
    """
    Weighted sum of the cross-entropies of `scale * queries @ candidates.T`, whose matrix is never whole.

    A block of rows is made, changed in place by `change(logits, rows)`, and turned into its loss and at once into its
    gradient, `softmax - target`: memory is linear in the batch, and nothing is computed twice.
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


def _take(ids: torch.Tensor | None, places: torch.Tensor) -> torch.Tensor | None:
    return None if ids is None else ids[places]


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalize(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(at_least_float32(x), dim=-1)
