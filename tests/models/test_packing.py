import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_layerpool.models.modeling_layerpool_packing import (
    PackedSentences,
    PaddedSentences,
    best_fit,
    best_rows,
    cumulative_lengths,
    find_sequence_starts,
    pack_sentences,
    restarting_positions,
    sequences_from_lengths,
)


sentence_lists = st.lists(st.lists(st.integers(1, 999), min_size=1, max_size=40), min_size=1, max_size=30)


@given(lengths=st.lists(st.integers(1, 64), max_size=60))
def test_every_sentence_lies_in_one_row_that_holds_it(lengths):
    rows = best_fit(lengths, 64)
    assert sorted(sentence for row in rows for sentence in row) == list(range(len(lengths)))
    assert all(sum(lengths[sentence] for sentence in row) <= 64 for row in rows)


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=60))
def test_a_row_is_opened_only_when_no_row_before_has_room(lengths):
    rows = best_fit(lengths, 64)
    for later, row in enumerate(rows):
        for earlier in rows[:later]:
            longer = [lengths[s] for s in earlier if lengths[s] >= lengths[row[0]]]
            assert sum(longer) + lengths[row[0]] > 64


def test_the_row_length_of_the_least_work_is_chosen():
    assert best_rows([64] * 10)[0] == 64  # 128 would hold no less padding
    assert best_rows([65] * 12)[0] == 72  # 136 hardly less, and attention over it costs more
    size, rows = best_rows([10, 20, 30, 40, 50] * 40)
    assert size == 80  # 56 would be a tenth padding
    assert size * len(rows) <= 1.03 * 150 * 40
    assert best_rows([300] * 3 + [200] * 3)[0] == 304  # 600 would hold it all, at twice the cost a token


@given(sentences=sentence_lists)
def test_packing_keeps_every_token_of_every_sentence_in_place(sentences):
    packed = pack_sentences(sentences, pad_token_id=0)
    ids, owner = packed["input_ids"].flatten(), packed["sequence_ids"].flatten()
    position = restarting_positions(packed["sequence_ids"], packed["sequence_starts"]).flatten()
    for number, sentence in enumerate(sentences):
        start = packed["sequence_starts"][number]
        assert ids[start : start + len(sentence)].tolist() == sentence
        assert (owner == number).nonzero().flatten().tolist() == list(range(start, start + len(sentence)))
        assert position[owner == number].tolist() == list(range(len(sentence)))
    assert (ids[owner == -1] == 0).all()
    assert (position[owner == -1] == 0).all()


@given(sentences=sentence_lists)
def test_starts_and_borders_follow_from_the_sequence_ids(sentences):
    packed = pack_sentences(sentences, pad_token_id=0)
    sequence_ids, starts = packed["sequence_ids"], packed["sequence_starts"]
    assert find_sequence_starts(sequence_ids).equal(starts)
    borders = cumulative_lengths(sequence_ids, starts).tolist()
    owner = sequence_ids.flatten().tolist()
    length = sequence_ids.shape[1]
    expected = [0] + [
        i for i in range(1, len(owner)) if owner[i] != owner[i - 1] or (i % length == 0 and owner[i] == -1)
    ]
    assert sorted(set(borders)) == [*expected, len(owner)]
    assert len(borders) == len(sentences) + sequence_ids.shape[0] + 1


def test_cumulative_lengths_of_one_flat_row_are_the_same_notion():
    sequence_ids, starts = sequences_from_lengths(torch.tensor([0, 3, 5], dtype=torch.int32), tokens=7)
    assert sequence_ids.tolist() == [[0, 0, 0, 1, 1, -1, -1]]
    assert starts.tolist() == [0, 3]


@settings(deadline=None)
@given(sentences=sentence_lists)
def test_packed_and_padded_reductions_agree(sentences):
    packed = pack_sentences(sentences, pad_token_id=0)
    table = torch.randn(1000, 8, dtype=torch.float64)
    flat = PackedSentences(packed["sequence_ids"], packed["sequence_starts"])
    state = table[packed["input_ids"]]
    longest = max(map(len, sentences))
    padded = table[torch.tensor([s + [0] * (longest - len(s)) for s in sentences])]
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sentences])
    torch.testing.assert_close(flat.mean(state), PaddedSentences(mask).mean(padded))
    torch.testing.assert_close(flat.first(state), PaddedSentences(mask).first(padded))
    left, left_mask = padded.flip(1), mask.flip(1)  # and the sentences backwards
    torch.testing.assert_close(flat.mean(state), PaddedSentences(left_mask).mean(left))
    last = torch.stack([table[sentence[-1]] for sentence in sentences])
    torch.testing.assert_close(PaddedSentences(left_mask).first(left), last)


@settings(deadline=None)
@given(sentences=sentence_lists)
def test_a_recurrent_network_reads_every_token_once_and_in_order(sentences):
    packed = pack_sentences(sentences, pad_token_id=0)
    longest = max(map(len, sentences))
    left = torch.tensor([[0] * (longest - len(s)) + s for s in sentences])
    mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sentences])
    for block, layout in (
        (packed["input_ids"], PackedSentences(packed["sequence_ids"], packed["sequence_starts"])),
        (left, PaddedSentences(mask)),
    ):
        state = block.unsqueeze(-1)
        order = layout.reading_order(state)
        tokens = order.read(state).squeeze(-1)
        assert order.batch_sizes.sum() == len(tokens) == sum(map(len, sentences))
        assert (order.batch_sizes[1:] <= order.batch_sizes[:-1]).all()
        read = [tokens[order.ranks == rank].tolist() for rank in order.rank_of_sentence]
        assert read == sentences


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32, torch.float16])
def test_the_first_token_is_found_on_either_side_of_the_padding_with_any_kind_of_mask(dtype):
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0]]).to(dtype)
    state = torch.arange(6 * 3).view(6, 3, 1).expand(-1, -1, 2).float()
    first = PaddedSentences(mask).first(state)[:, 0] - 3 * torch.arange(6)
    assert first.tolist() == [0, 0, 1, 2, 1, 0]  # of a row without a token the first position


def test_the_first_tokens_of_padded_rows_are_a_copy_that_gets_the_gradient():
    state = torch.zeros(2, 3, 4, requires_grad=True)
    PaddedSentences(torch.tensor([[0, 1, 1], [1, 1, 0]])).first(state).sum().backward()
    assert state.grad.sum(dim=-1).tolist() == [[0, 4, 0], [4, 0, 0]]
    first = PaddedSentences(None).first(state.detach())
    assert first.untyped_storage().data_ptr() != state.untyped_storage().data_ptr()


def test_a_sentence_mean_is_summed_in_float32():
    state = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)
    mask = torch.ones(1, 4096)
    assert PaddedSentences(mask).mean(state).item() == 1
    packed = PackedSentences(torch.zeros(1, 4096, dtype=torch.long), torch.tensor([0]))
    assert packed.mean(state).item() == 1


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        pack_sentences([[1], []], pad_token_id=0)
    with pytest.raises(ValueError, match="at least one token"):
        pack_sentences([], pad_token_id=0)
    with pytest.raises(ValueError, match="9 tokens does not fit into rows of 8"):
        pack_sentences([list(range(9))], pad_token_id=0, row_length=8)
