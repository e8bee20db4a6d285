import time
from collections import Counter
from itertools import chain

import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.models.modeling_layerpool_packing import find_sequence_starts
from modeling_layerpool.training.batching import (
    GlobalBatchSampler,
    MixedBatchSampler,
    NoDuplicatesBatchSampler,
    PackingCollator,
    StreamedBatches,
    divide,
)


@given(rows=st.integers(0, 60), per_process=st.integers(1, 7), world_size=st.integers(1, 4), drop_last=st.booleans())
def test_processes_share_every_batch_evenly_and_no_row_comes_twice(rows, per_process, world_size, drop_last):
    batch_size = per_process * world_size
    samplers = [
        GlobalBatchSampler(rows, batch_size, rank, world_size, seed=1, drop_last=drop_last)
        for rank in range(world_size)
    ]
    epochs = [list(sampler) for sampler in samplers]
    assert {len(epoch) for epoch in epochs} == {len(samplers[0])}  # nobody waits for a batch that never comes
    seen = []
    for parts in zip(*epochs, strict=True):
        sizes = [len(part) for part in parts]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) >= 2 or batch_size == 1
        seen += [row for part in parts for row in part]
    assert len(seen) == len(set(seen))
    left_out = rows - len(seen)
    assert left_out < (batch_size if drop_last else max(2, world_size))


def test_the_order_follows_from_seed_and_epoch_alone():
    first, second = GlobalBatchSampler(30, 4, seed=5), GlobalBatchSampler(30, 4, seed=5)
    list(first)
    torch.randn(10)
    assert list(first) == list(second)
    second.set_epoch(1)
    assert list(first) != list(second)
    first.set_epoch(1)
    assert list(first) == list(second)
    assert list(GlobalBatchSampler(30, 4, seed=6)) != list(GlobalBatchSampler(30, 4, seed=5))


row_texts = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3), min_size=2, max_size=60)


@given(texts=row_texts, per_process=st.integers(1, 6), world_size=st.integers(1, 3), drop_last=st.booleans())
def test_without_duplicates_no_text_stands_twice_in_a_batch(texts, per_process, world_size, drop_last):
    batch_size = per_process * world_size
    try:
        samplers = [
            NoDuplicatesBatchSampler(texts, batch_size, rank, world_size, seed=1, drop_last=drop_last)
            for rank in range(world_size)
        ]
    except InputError:
        # Then there is no batch to be made: not even the first rows that share no text are enough for one.
        return
    for epoch in range(4):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        batches = [sum(parts, []) for parts in zip(*map(list, samplers), strict=True)]  # noqa: RUF017
        assert len(batches) == len(samplers[0])
        for batch in batches:
            held = [text for row in batch for text in set(texts[row])]
            assert len(held) == len(set(held))
            assert min(2, batch_size) <= len(batch) <= batch_size
        rows = [row for batch in batches for row in batch]
        assert len(rows) == len(set(rows))


@given(rows=st.integers(2, 80), batch_size=st.integers(2, 9))
def test_without_repeated_texts_the_batches_are_the_plain_ones(rows, batch_size):
    texts = [[2 * row, 2 * row + 1] for row in range(rows)]
    assert list(NoDuplicatesBatchSampler(texts, batch_size, seed=4)) == list(
        GlobalBatchSampler(rows, batch_size, seed=4)
    )


def test_a_text_that_repeats_does_not_keep_the_others_out():
    texts = [[0, row] for row in range(1, 6)] + [[row, row + 100] for row in range(10, 55)]
    for epoch in range(20):
        sampler = NoDuplicatesBatchSampler(texts, 10, seed=0)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sum(map(len, batches)) >= 48  # at the end of an epoch there may be no batch left for a copy
        assert all(sum(0 in texts[row] for row in batch) <= 1 for batch in batches)


def test_nothing_but_repeats_is_refused():
    with pytest.raises(InputError, match="no batch of different texts"):
        NoDuplicatesBatchSampler([[1]] * 20, 4)


def test_many_repeats_take_linear_time():
    texts = [[row % 7, row] for row in range(200_000)]
    begin = time.perf_counter()
    list(NoDuplicatesBatchSampler(texts, 64, seed=0))
    assert time.perf_counter() - begin < 20


def features(rows):
    return [
        {"row_number": i, "anchor_input_ids": [101, i, 102], "positive_input_ids": [101, *range(i % 5 + 1), 102]}
        for i in rows
    ]


def test_a_batch_keeps_rows_columns_and_text_identity():
    batch = PackingCollator(["anchor", "positive"], pad_token_id=0)(features([3, 8, 4]))
    assert batch["row_numbers"] == [3, 8, 4]
    assert "labels" not in batch
    ids, owner = batch["input_ids"].flatten(), batch["sequence_ids"].flatten()
    assert ids[owner == 2].tolist() == [101, 8, 102]  # row 1, column 0
    text_ids = batch["text_ids"]
    assert text_ids.shape == (3, 2)
    assert text_ids[0, 1] == text_ids[1, 1]  # rows 3 and 8 have the same positive
    assert len(text_ids.unique()) == 5


def test_a_column_named_twice_is_packed_twice():
    batch = PackingCollator(["anchor", "anchor"], pad_token_id=0)(features([1, 2]))
    assert len(batch["sequence_starts"]) == 4
    assert (batch["text_ids"][:, 0] == batch["text_ids"][:, 1]).all()


@pytest.mark.parametrize("max_tokens", [1, 32, 64, 10_000])
def test_chunks_hold_the_sentences_of_the_batch(max_tokens):
    whole = PackingCollator(["anchor", "positive"], 0, row_length=16)(features(range(12)))
    cut = PackingCollator(["anchor", "positive"], 0, row_length=16, chunk_tokens=max_tokens)(features(range(12)))
    sentences = [
        chunk["input_ids"][chunk["sequence_ids"] == number].tolist()
        for chunk in cut["chunks"]
        for number in range(len(chunk["sequence_starts"]))
    ]
    expected = [whole["input_ids"][whole["sequence_ids"] == number].tolist() for number in range(24)]
    assert [sentences[index] for index in cut["sentence_indices"]] == expected
    for chunk in cut["chunks"]:
        assert chunk["input_ids"].numel() <= max(16, max_tokens)
        assert find_sequence_starts(chunk["sequence_ids"]).equal(chunk["sequence_starts"])
    assert cut["text_ids"].equal(whole["text_ids"])


def stream(rows):
    def generate(shards):
        for shard in shards:
            yield from ({"row_number": row} for row in range(shard, rows, 2))

    return IterableDataset.from_generator(generate, gen_kwargs={"shards": [0, 1]})


def take(batches, count, **options):
    loader = DataLoader(batches, batch_size=None, collate_fn=list, **options)
    return [[row["row_number"] for row in batch] for batch, _ in zip(loader, range(count), strict=False)]


def test_streamed_batches_are_shared_and_start_again_at_the_end():
    ranks = [take(StreamedBatches(stream(10), 4, rank, 2), 5) for rank in (0, 1)]
    batches = [sorted(a + b) for a, b in zip(*ranks, strict=True)]
    assert batches[0] == [0, 2, 4, 6]
    assert batches[2] == batches[0]  # 10 rows make two batches of 4, then the stream starts again
    assert all(len(part) == 2 for rank in ranks for part in rank)


def test_data_workers_divide_the_shards_of_a_stream():
    batches = take(StreamedBatches(stream(24), 4), 6, num_workers=2)
    assert sorted(row for batch in batches for row in batch) == list(range(24))
    assert batches == take(StreamedBatches(stream(24), 4), 6, num_workers=2)


def test_a_stream_shorter_than_a_batch_is_an_error_and_does_not_hang():
    with pytest.raises(InputError, match="shorter than a batch of 4 rows"):
        next(iter(StreamedBatches(stream(3), 4)))


def test_a_tokenised_dataset_goes_through_the_collator():
    dataset = Dataset.from_list(features(range(4)))
    assert PackingCollator(["positive"], 0, row_length=16)([dataset[0], dataset[1]])["input_ids"].shape == (1, 16)


# --- several datasets ---


def parts(sizes, batch_size, **options):
    return [GlobalBatchSampler(size, batch_size, **options) for size in sizes]


def dataset_of(row, sizes):
    """The index of the dataset that a row of the concatenation belongs to."""
    return next(index for index in range(len(sizes)) if row < sum(sizes[: index + 1]))


@given(
    sizes=st.lists(st.integers(8, 40), min_size=1, max_size=4),
    batch_size=st.integers(4, 9),
    world_size=st.integers(1, 3),
    epoch=st.integers(0, 3),
)
def test_an_epoch_of_several_datasets_has_each_row_once_and_one_dataset_in_a_batch(
    sizes, batch_size, world_size, epoch
):
    by_rank = []
    for rank in range(world_size):
        sampler = MixedBatchSampler(parts(sizes, batch_size, rank=rank, world_size=world_size))
        sampler.set_epoch(epoch)
        by_rank.append(list(sampler))
        assert len(sampler) == len(by_rank[-1])
    batches = [list(chain(*local)) for local in zip(*by_rank, strict=True)]
    # The obvious count: the batches of each dataset by itself, of which a last one may be too small.
    expected = [
        sum(len(range(size)[begin : begin + batch_size]) >= max(2, world_size) for begin in range(0, size, batch_size))
        for size in sizes
    ]
    for batch in batches:
        assert len({dataset_of(row, sizes) for row in batch}) == 1
    assert [sum(dataset_of(batch[0], sizes) == i for batch in batches) for i in range(len(sizes))] == expected
    rows = list(chain(*batches))
    assert len(set(rows)) == len(rows)


def test_weights_divide_the_batches_and_small_datasets_repeat_with_other_orders():
    sizes, weights = [8, 80], [3, 1]
    sampler = MixedBatchSampler(parts(sizes, 4), weights)
    shown = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        own = [[batch for batch in batches if dataset_of(batch[0], sizes) == index] for index in range(2)]
        assert [len(some) for some in own] == [17, 5]  # of 2 + 20 batches, three for one: 16.5 and 5.5
        counts = Counter(row for batch in own[0] for row in batch)
        assert max(counts.values()) - min(counts.values()) <= 1  # read again only when all rows were read
        assert len({frozenset(batch) for batch in own[0]}) > 2
        shown.append({row for batch in own[1] for row in batch})
        assert len(shown[-1]) == 20
    assert shown[0] != shown[1]


def test_the_order_of_datasets_depends_on_seed_and_epoch_alone():
    def order(seed, epoch, **options):
        sampler = MixedBatchSampler(parts([20, 30], 4, seed=seed, **options))
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)
    in_turn = order(1, 2, shuffle=False)
    assert list(chain(*in_turn)) == list(range(50))
    assert [20, 21, 22, 23] in in_turn


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5), total=st.integers(5, 200))
def test_a_total_is_divided_by_weight(weights, total):
    counts = divide(total, weights)
    exact = [total * weight / sum(weights) for weight in weights]
    assert sum(counts) >= total
    assert all(count >= 1 for count in counts)
    assert all(
        count > share - 1 - 1e-9 and count < max(1, share) + 1 + 1e-9
        for count, share in zip(counts, exact, strict=True)
    )
    if min(exact) >= 1:
        assert sum(counts) == total
