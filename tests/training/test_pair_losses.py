"""Losses of labelled pairs against slow float64 references that follow the formulas term by term."""

import math

import pytest
import torch

from modeling_layerpool.training import loss_kernels
from modeling_layerpool.training.losses import batch_softmax_contrastive, cosent, cosine_bce, cosine_mse
from tests.training.test_losses import same_values_and_gradients


LABELS = {"all positive": [1, 1, 1, 1, 1], "all negative": [0, 0, 0, 0, 0], "mixed": [1, 0, 0, 1, 1]}


def pairs(rows=5, extra=0, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda count: torch.randn(count, width, dtype=torch.float64, generator=generator).requires_grad_()  # noqa: E731
    return make(rows), make(rows), make(extra) if extra else None


def normalized(vectors, how):
    """Each vector, as a list, normalised as the paper names it."""
    if how == "l2":
        return [vector / vector.norm() for vector in vectors]
    if how == "none":
        return list(vectors)
    rows = []
    for vector in vectors:
        coordinates = []
        for place in range(len(vector)):
            column = [other[place] for other in vectors]
            coordinates.append(vector[place] / (max(column) - min(column)))
        rows.append(torch.stack(coordinates))
    return rows


def reference(queries, answers, labels, extra, temperature, how="l2", direction="both", texts=None):
    """`texts`: identities of the queries and of the answers, each a list."""
    count = len(queries)
    q = normalized(list(queries), how)
    a = normalized([*answers, *(extra if extra is not None else [])], how)
    by_row, by_column = [], []
    for i in range(count):
        own = {texts[0][i], texts[1][i]} if texts else set()

        def counts(j, of, own=own, i=i):
            return j == i or j >= count or not texts or texts[of][j] not in own

        row = [torch.exp(q[i] @ a[j] / temperature) for j in range(len(a)) if counts(j, 1)]
        column = [torch.exp(q[j] @ a[i] / temperature) for j in range(count) if counts(j, 0)]
        own_term = torch.exp(q[i] @ a[i] / temperature)
        by_row.append(-labels[i] * torch.log(own_term / sum(row)))
        by_column.append(-labels[i] * torch.log(own_term / sum(column)))
    parts = {"rows": [by_row], "columns": [by_column], "both": [by_row, by_column]}[direction]
    return sum(sum(part) / count for part in parts) / len(parts)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("how", ["l2", "coordinate", "none"])
@pytest.mark.parametrize("direction", ["both", "rows", "columns"])
@pytest.mark.parametrize("extra", [0, 3])
def test_batch_softmax_equals_the_formula(labels, how, direction, extra, monkeypatch):
    monkeypatch.setattr(loss_kernels, "BLOCK_LOGITS", 12)  # several blocks
    q, a, n = pairs(extra=extra)
    labels = torch.tensor(labels)
    fast = batch_softmax_contrastive(q, a, labels, n, temperature=0.7, normalization=how, direction=direction)
    slow = reference(q, a, labels, n, 0.7, how, direction)
    same_values_and_gradients(fast, slow, [x for x in (q, a, n) if x is not None])


def test_without_labels_every_pair_is_positive():
    q, a, _ = pairs()
    expected = batch_softmax_contrastive(q, a, torch.ones(5), temperature=0.1)
    assert batch_softmax_contrastive(q, a, temperature=0.1) == expected


def test_a_text_that_is_one_of_the_pairs_own_is_no_negative_of_it():
    q, a, _ = pairs()
    texts = ([1, 2, 1, 4, 5], [6, 7, 8, 7, 2])
    labels = torch.tensor([1, 1, 0, 1, 1])
    ids = [torch.tensor(part) for part in texts]
    fast = batch_softmax_contrastive(q, a, labels, temperature=0.3, query_text_ids=ids[0], answer_text_ids=ids[1])
    same_values_and_gradients(fast, reference(q, a, labels, None, 0.3, texts=texts), [q, a])


@pytest.mark.parametrize("how", ["l2", "coordinate"])
def test_the_mean_over_the_processes_is_the_loss_of_the_whole_batch(how):
    q, a, _ = pairs(rows=6)
    labels = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    whole = batch_softmax_contrastive(q, a, labels, temperature=0.2, normalization=how)
    parts = 0
    for rows in (slice(0, 2), slice(2, 6)):
        places = torch.arange(6)[rows]
        part = batch_softmax_contrastive(
            q[rows], a, labels[rows], temperature=0.2, normalization=how, targets=places, query_columns=q
        )
        parts = parts + part * len(places) / 6
    same_values_and_gradients(parts, whole, [q, a])


def test_a_learned_temperature_gets_its_gradient():
    q, a, _ = pairs()
    labels = torch.tensor([1, 0, 1, 1, 0])
    inverse = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    fast = batch_softmax_contrastive(q, a, labels, temperature=1 / inverse)
    same_values_and_gradients(fast, reference(q, a, labels, None, 1 / inverse), [inverse])


def test_the_pointwise_losses_equal_their_formulas():
    q, a, _ = pairs()
    scores = torch.tensor([0.0, 1.0, 0.5, 0.5, 0.25], dtype=torch.float64)
    cosines = [q[i] @ a[i] / (q[i].norm() * a[i].norm()) for i in range(5)]
    squares = sum((cosine - score) ** 2 for cosine, score in zip(cosines, scores, strict=True)) / 5
    same_values_and_gradients(cosine_mse(q, a, scores), squares, [q, a])
    entropies = 0
    for cosine, score in zip(cosines, scores, strict=True):
        probability = 1 / (1 + torch.exp(-cosine / 0.1))
        entropies = entropies - score * torch.log(probability) - (1 - score) * torch.log(1 - probability)
    same_values_and_gradients(cosine_bce(q, a, scores, temperature=0.1), entropies / 5, [q, a])
    terms = [torch.exp((cosines[j] - cosines[i]) / 0.1) for i in range(5) for j in range(5) if scores[i] > scores[j]]
    assert len(terms) == 9
    same_values_and_gradients(cosent(q, a, scores, temperature=0.1), torch.log(1 + sum(terms)), [q, a])


def test_equal_scores_leave_cosent_nothing_to_order():
    q, a, _ = pairs()
    loss = cosent(q, a, torch.ones(5), temperature=0.05)
    loss.backward()
    assert loss == 0
    assert q.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 1}, "A batch of one pair has nothing to compare it with"),
        ({"normalization": "l1"}, "normalization='l1' is unknown; use one of l2, coordinate, none"),
        ({"direction": "up"}, "direction='up' is unknown; use one of both, rows, columns"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"labels": torch.ones(3)}, "labels of shape \\(3,\\) do not belong to 5 pairs"),
    ],
)
def test_what_cannot_be_is_one_sentence(options, message):
    options = {"rows": 5, "temperature": 0.1} | options
    q, a, _ = pairs(rows=options.pop("rows"))
    with pytest.raises(ValueError, match=message):
        batch_softmax_contrastive(q, a, **options)


def test_half_precision_is_computed_in_float32():
    q, a, _ = pairs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch_softmax_contrastive(q.float(), a.float(), temperature=0.05)
    assert loss.dtype == torch.float32
    expected = batch_softmax_contrastive(q.float(), a.float(), temperature=0.05)
    assert math.isclose(loss.item(), expected.item(), rel_tol=1e-6)
