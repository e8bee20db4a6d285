"""Token-level contrast: the loss against its formula, and the draw of pairs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from modeling_layerpool.training import (
    sample_token_pairs,
    semantic_similarity,
)
from modeling_layerpool.training.loss_kernels import BLOCK_ELEMENTS
from modeling_layerpool.training.losses import token_contrast


# --- the loss ---


def cosine(x, y):
    return (x @ y) / (x.norm() * y.norm())


def reference(states, positive_index, negative_index, anchor_index, temperature):
    """The formula, one position after the other."""
    total = 0
    for i, anchor in enumerate(anchor_index):
        positive = torch.exp(cosine(states[anchor], states[positive_index[i]].detach()) / temperature)
        negatives = [torch.exp(cosine(states[anchor], states[n].detach()) / temperature) for n in negative_index[i]]
        total = total - torch.log(positive / (positive + sum(negatives)))
    return total / len(anchor_index)


def make_pairs(states=9, anchors=6, negatives=4, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(states, shape, generator=generator)  # noqa: E731
    vectors = torch.randn(states, width, dtype=torch.float64, generator=generator).requires_grad_()
    return vectors, draw(anchors), draw(anchors, negatives), draw(anchors)


def same_value_and_gradient(fast, slow, states):
    torch.testing.assert_close(fast, slow, atol=1e-10, rtol=1e-10)
    (got,), (expected,) = torch.autograd.grad(fast, states), torch.autograd.grad(slow, states)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), negatives=st.integers(1, 5), temperature=st.sampled_from([0.07, 0.5, 1.0]))
def test_it_equals_the_formula(seed, negatives, temperature):
    states, positives, negatives, anchors = make_pairs(negatives=negatives, seed=seed)
    fast = token_contrast(states, positives, negatives, anchors, temperature=temperature)
    same_value_and_gradient(fast, reference(states, positives, negatives, anchors, temperature), states)


@pytest.mark.parametrize("elements", [1, 70])  # one anchor a block, and blocks of two
def test_computed_in_blocks_it_is_the_same(monkeypatch, elements):
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", elements)
    states, positives, negatives, anchors = make_pairs(anchors=7)
    fast = token_contrast(states, positives, negatives, anchors, temperature=0.07)
    same_value_and_gradient(fast, reference(states, positives, negatives, anchors, 0.07), states)


def test_without_anchors_named_every_state_is_one():
    states, positives, negatives, _ = make_pairs(states=6, anchors=6)
    fast = token_contrast(states, positives, negatives, temperature=0.07)
    same_value_and_gradient(fast, reference(states, positives, negatives, range(6), 0.07), states)


def test_an_anchor_without_positive_is_left_out():
    states, positives, negatives, anchors = make_pairs()
    some = torch.tensor([0, 2, 3, 5])
    expected = reference(states, positives[some], negatives[some], anchors[some], 0.07)
    positives[[1, 4]] = -1
    same_value_and_gradient(token_contrast(states, positives, negatives, anchors, temperature=0.07), expected, states)


def test_positives_and_negatives_get_no_gradient():
    states, _, _, _ = make_pairs()
    loss = token_contrast(states, torch.tensor([1]), torch.tensor([[2, 3, 3]]), torch.tensor([0]), temperature=0.07)
    loss.backward()
    assert states.grad[0].abs().sum() > 0
    assert torch.equal(states.grad[1:], torch.zeros_like(states.grad[1:]))


@pytest.mark.parametrize("anchors", [None, torch.empty(0, dtype=torch.long)])
def test_without_anchors_the_loss_is_zero_and_has_a_graph(anchors):
    states = torch.randn(3, 4, requires_grad=True)
    count = 3 if anchors is None else 0
    loss = token_contrast(
        states, torch.full((count,), -1), torch.zeros(count, 2, dtype=torch.long), anchors, temperature=0.07
    )
    loss.backward()
    assert loss == 0
    assert torch.equal(states.grad, torch.zeros_like(states))


def test_half_precision_states_are_compared_in_float32_also_under_autocast():
    states, positives, negatives, anchors = make_pairs()
    states = states.detach().bfloat16()
    expected = token_contrast(states.float(), positives, negatives, anchors, temperature=0.07)
    assert token_contrast(states, positives, negatives, anchors, temperature=0.07) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert token_contrast(states.float(), positives, negatives, anchors, temperature=0.07) == expected


def test_wrong_arguments_are_named():
    states, positives, negatives, anchors = make_pairs()
    with pytest.raises(ValueError, match="must be positive"):
        token_contrast(states, positives, negatives, anchors, temperature=0)
    with pytest.raises(ValueError, match="9 anchors, but positive_index of shape \\(6,\\)"):
        token_contrast(states, positives, negatives, temperature=1)


# --- the draw ---


@st.composite
def batches(draw):
    """Rows of sequences with padding and special tokens anywhere; numbers in no order."""
    length = draw(st.integers(1, 12))
    rows, number = [], 0
    for _ in range(draw(st.integers(1, 4))):
        row = []
        while len(row) < length:
            size = draw(st.integers(1, length - len(row)))
            is_padding = draw(st.integers(0, 3)) == 0
            row += [-1 if is_padding else 97 * number % 101] * size
            number += not is_padding
        rows.append(row)
    content = draw(
        st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=len(rows), max_size=len(rows))
    )
    ids = torch.tensor(rows)
    return ids, torch.tensor(content) & (ids >= 0)


@settings(max_examples=300)
@given(
    batch=batches(), window=st.integers(2, 9), negatives=st.integers(1, 4), seed=st.integers(0, 1000), data=st.data()
)
def test_pairs_keep_to_sequences_and_content(batch, window, negatives, seed, data):
    sequence_ids, content = batch
    chosen = None
    if data.draw(st.booleans()):
        chosen = torch.rand(content.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    generator = torch.Generator().manual_seed(seed)
    options = {"window": window, "negatives": negatives}
    positive, negative = sample_token_pairs(sequence_ids, content, chosen, **options, generator=generator)
    ids, is_content, length = sequence_ids.flatten(), content.flatten(), sequence_ids.shape[1]
    assert positive.shape == ids.shape
    assert negative.shape == (len(ids), negatives)
    for place in range(len(ids)):
        others = [j for j in range(len(ids)) if is_content[j] and ids[j] == ids[place] and j != place]
        foreign = [j for j in range(len(ids)) if is_content[j] and ids[j] != ids[place]]
        is_anchor = is_content[place] and others and foreign and (chosen is None or chosen.flatten()[place])
        if not is_anchor:
            assert positive[place] == -1
            continue
        assert positive[place] in others
        assert positive[place] // length == place // length
        assert set(negative[place].tolist()) <= set(foreign)
    again = sample_token_pairs(sequence_ids, content, chosen, **options, generator=generator.manual_seed(seed))
    assert torch.equal(again[0], positive)
    assert torch.equal(again[1], negative)
    assert negative.min() >= 0
    assert negative.max() < len(ids)


def counts_of(values, size):
    return torch.bincount(values, minlength=size).tolist()


def test_offsets_are_uniform_and_leave_out_the_token_itself():
    sequence_ids = torch.arange(2).unsqueeze(1).expand(2, 4000)
    positive, _ = sample_token_pairs(
        sequence_ids, torch.ones_like(sequence_ids, dtype=torch.bool), generator=torch.Generator().manual_seed(1)
    )
    inner = torch.arange(10, 3990)
    offsets = positive[inner] - inner
    assert set(offsets.tolist()) == {-2, -1, 1, 2}
    assert chisquare([(offsets == o).sum().item() for o in (-2, -1, 1, 2)]).pvalue > 1e-3


def test_a_positive_that_would_be_outside_or_special_is_any_other_token_of_its_sequence():
    # Two sequences in a row, with a special token in the middle of the first: places 0 to 10, and 11 to 14.
    sequence_ids = torch.tensor([[0] * 11 + [1] * 4 + [-1]])
    content = sequence_ids >= 0
    content[0, 5] = False
    draws = 12000
    positive = sample_token_pairs(
        sequence_ids.repeat(draws, 1) + 2 * torch.arange(draws).unsqueeze(1) * (sequence_ids >= 0),
        content.repeat(draws, 1),
        negatives=1,
        generator=torch.Generator().manual_seed(2),
    )[0].view(draws, 16) - 16 * torch.arange(draws).unsqueeze(1)

    def expected(place, first, last):
        # Each of the four offsets has a quarter; what hits nothing is spread over the other content tokens.
        valid = [j for j in range(first, last + 1) if content[0, j] and j != place]
        shares = dict.fromkeys(valid, 0.0)
        for offset in (-2, -1, 1, 2):
            if place + offset in shares:
                shares[place + offset] += 1 / 4
            else:
                shares = shares | {j: shares[j] + 1 / 4 / len(valid) for j in valid}
        return shares

    for place, first, last in ((0, 0, 10), (4, 0, 10), (10, 0, 10), (11, 11, 14), (13, 11, 14)):
        shares = expected(place, first, last)
        found = counts_of(positive[:, place], 16)
        assert sum(found[j] for j in shares) == draws
        assert chisquare([found[j] for j in shares], [draws * share for share in shares.values()]).pvalue > 1e-3


def test_negatives_are_uniform_over_the_content_of_the_other_sequences():
    sequence_ids = torch.tensor([[7, 7, 7, 2, 2, 2], [5, 5, 5, 5, -1, -1]])
    content = sequence_ids >= 0
    content[0, 0] = content[1, 2] = False
    _, negative = sample_token_pairs(
        sequence_ids, content, negatives=20000, generator=torch.Generator().manual_seed(3)
    )
    for place, foreign in ((1, [3, 4, 5, 6, 7, 9]), (4, [1, 2, 6, 7, 9]), (9, [1, 2, 3, 4, 5])):
        found = counts_of(negative[place], 12)
        assert sum(found[j] for j in foreign) == 20000
        assert chisquare([found[j] for j in foreign]).pvalue > 1e-3


def test_a_batch_of_one_sequence_has_no_anchors():
    content = torch.ones(1, 6, dtype=torch.bool)
    positive, _ = sample_token_pairs(torch.zeros(1, 6, dtype=torch.long), content)
    assert (positive == -1).all()


# --- the analysis ---


@settings(max_examples=30)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_similarities_are_means_over_all_pairs(batch, seed):
    sequence_ids, content = batch
    states = torch.randn(*content.shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    flat, ids, is_content = states.flatten(0, 1), sequence_ids.flatten(), content.flatten()
    within, between = [], []
    for i in range(len(ids)):
        for j in range(len(ids)):
            if i != j and is_content[i] and is_content[j]:
                (within if ids[i] == ids[j] else between).append(cosine(flat[i], flat[j]).item())
    found = semantic_similarity(states, sequence_ids, content)
    for value, pairs in zip(found, (within, between), strict=True):
        if pairs:
            assert value.item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
        else:
            assert math.isnan(value)
