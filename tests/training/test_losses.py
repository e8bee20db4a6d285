"""`info_nce` against a slow float64 reference that follows the formula term by term."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_layerpool.training import info_nce


def cosine(x, y):
    return (x @ y) / (x.norm() * y.norm())


def reference(anchors, positives, negatives, temperature, weight=0.0, symmetric=False, texts=None, rows=None):
    """
    Mean over `rows` (default all) of -log(e^s(a_i, p_i) / sum of e^s over all columns that count), one at a time.

    `texts`: identities of (anchors, positives, negatives), each a list; negatives (B, k, h).
    """
    total = 0
    rows = range(len(anchors)) if rows is None else rows
    for i in rows:
        own_texts = {texts[0][i], texts[1][i]} if texts else set()
        terms = []
        for j in range(len(positives)):
            if j == i or not texts or texts[1][j] not in own_texts:
                terms.append(torch.exp(cosine(anchors[i], positives[j]) / temperature))
            for k in range(negatives.shape[1] if negatives is not None else 0):
                if not texts or texts[2][j][k] not in own_texts:
                    factor = math.exp(weight) if j == i else 1.0
                    terms.append(factor * torch.exp(cosine(anchors[i], negatives[j, k]) / temperature))
        loss = -torch.log(torch.exp(cosine(anchors[i], positives[i]) / temperature) / sum(terms))
        if symmetric:
            back = [
                torch.exp(cosine(positives[i], anchors[j]) / temperature)
                for j in range(len(anchors))
                if j == i or not texts or texts[0][j] not in own_texts
            ]
            loss = (loss - torch.log(torch.exp(cosine(positives[i], anchors[i]) / temperature) / sum(back))) / 2
        total = total + loss
    return total / len(rows)


def batch(rows=5, negatives=2, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, width, dtype=torch.float64, generator=generator).requires_grad_()  # noqa: E731
    return make(rows), make(rows), make(rows, negatives) if negatives else None


def same_values_and_gradients(fast, slow, inputs):
    torch.testing.assert_close(fast, slow, atol=1e-10, rtol=1e-10)
    for got, expected in zip(
        torch.autograd.grad(fast, inputs, materialize_grads=True),
        torch.autograd.grad(slow, inputs, materialize_grads=True, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_it_equals_the_formula(negatives, weight, symmetric):
    a, p, n = batch(negatives=negatives)
    fast = info_nce(a, p, n, temperature=0.1, hard_negative_weight=weight, symmetric=symmetric)
    slow = reference(a, p, n, 0.1, weight, symmetric)
    same_values_and_gradients(fast, slow, [x for x in (a, p, n) if x is not None])


@pytest.mark.parametrize("symmetric", [False, True])
def test_computed_in_blocks_it_is_the_same(monkeypatch, symmetric):
    a, p, n = batch(rows=7)
    alpha = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    options = {
        "hard_negative_weight": 1.0,
        "symmetric": symmetric,
        "anchor_text_ids": torch.tensor([0, 1, 2, 3, 0, 5, 6]),
        "column_text_ids": torch.cat([torch.tensor([10, 11, 2, 13, 14, 10, 16]), torch.arange(20, 34)]),
    }
    whole = info_nce(a, p, n, temperature=1 / alpha, **options)
    for logits in (1, 50):  # one row a block, and blocks of two with a shorter last one
        monkeypatch.setattr("modeling_layerpool.training.loss_kernels.BLOCK_LOGITS", logits)
        same_values_and_gradients(info_nce(a, p, n, temperature=1 / alpha, **options), whole, [a, p, n, alpha])


def test_one_negative_a_row_may_come_without_its_own_dimension():
    a, p, n = batch(negatives=1)
    assert info_nce(a, p, n[:, 0], temperature=0.1) == info_nce(a, p, n, temperature=0.1)


def test_a_learned_temperature_gets_the_gradient_of_the_formula():
    a, p, n = batch()
    alpha = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    fast = info_nce(a, p, n, temperature=1 / alpha, hard_negative_weight=0.5)
    slow = reference(a, p, n, 1 / alpha, 0.5)
    same_values_and_gradients(fast, slow, [alpha])


# Few identities, so that anchors, positives and negatives share texts in every way.
identities = st.integers(0, 3)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), negatives=st.integers(0, 2), symmetric=st.booleans())
def test_columns_with_a_text_of_the_row_are_no_negatives(data, negatives, symmetric):
    a, p, n = batch(rows=4, negatives=negatives)
    texts = (
        data.draw(st.lists(identities, min_size=4, max_size=4)),
        data.draw(st.lists(identities, min_size=4, max_size=4)),
        data.draw(st.lists(st.lists(identities, min_size=negatives, max_size=negatives), min_size=4, max_size=4)),
    )
    fast = info_nce(
        a,
        p,
        n,
        temperature=0.2,
        hard_negative_weight=1.0,
        symmetric=symmetric,
        anchor_text_ids=torch.tensor(texts[0]),
        column_text_ids=torch.tensor([*texts[1], *(text for row in texts[2] for text in row)]),
    )
    slow = reference(a, p, n, 0.2, 1.0, symmetric, texts)
    same_values_and_gradients(fast, slow, [x for x in (a, p, n) if x is not None])


@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_of_one_process_against_the_columns_of_all(symmetric):
    a, p, n = batch(rows=6)
    texts = ([0, 1, 2, 3, 0, 5], [10, 11, 2, 13, 14, 10], [[20, 21], [2, 23], [24, 25], [26, 27], [0, 29], [30, 31]])
    for rows in ([0, 1], [2, 3, 4, 5]):
        fast = info_nce(
            a[rows],
            p,
            n,
            temperature=0.1,
            hard_negative_weight=1.0,
            symmetric=symmetric,
            targets=torch.tensor(rows),
            anchor_text_ids=torch.tensor(texts[0])[rows],
            column_text_ids=torch.tensor([*texts[1], *(text for row in texts[2] for text in row)]),
            anchor_columns=a,
            anchor_column_text_ids=torch.tensor(texts[0]),
        )
        same_values_and_gradients(fast, reference(a, p, n, 0.1, 1.0, symmetric, texts, rows), [a, p, n])


def test_texts_of_the_positives_alone_leave_the_negatives_in():
    a, p, n = batch()
    ids = torch.tensor([0, 1, 1, 3, 4])
    texts = ([10, 11, 12, 13, 14], ids.tolist(), [[20 + 2 * row, 21 + 2 * row] for row in range(5)])
    fast = info_nce(a, p, n, temperature=0.1, column_text_ids=ids)
    same_values_and_gradients(fast, reference(a, p, n, 0.1, texts=texts), [a, p, n])


def test_half_precision_embeddings_are_compared_in_float32_also_under_autocast():
    a, p, n = (x.detach().bfloat16() for x in batch())
    expected = info_nce(a.float(), p.float(), n.float(), temperature=0.05)
    assert info_nce(a, p, n, temperature=0.05) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert info_nce(a.float(), p.float(), n.float(), temperature=0.05) == expected


@pytest.mark.parametrize("temperature", [0, -0.1])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    a, p, _ = batch()
    with pytest.raises(ValueError, match="must be positive"):
        info_nce(a, p, temperature=temperature)


def test_shapes_that_do_not_fit_are_named():
    a, p, n = batch()
    with pytest.raises(ValueError, match="5 anchors and 3 positives"):
        info_nce(a, p[:3], temperature=0.1)
    with pytest.raises(ValueError, match="do not belong to 5 positives"):
        info_nce(a, p, n[:3], temperature=0.1)
    with pytest.raises(ValueError, match="no negatives"):
        info_nce(a[:1], p[:1], temperature=0.1)
    with pytest.raises(ValueError, match="needs anchor_columns"):
        info_nce(a[:2], p, temperature=0.1, symmetric=True, targets=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="names 7 texts"):
        info_nce(a, p, n, temperature=0.1, column_text_ids=torch.arange(7))
