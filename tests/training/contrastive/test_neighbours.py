"""Rows in an order in which like stands by like: exact groups, every row once, resumable, on several processes."""

import time

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from modeling_layerpool.common import nearest_texts
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training.contrastive import neighbours
from modeling_layerpool.training.contrastive.neighbours import (
    NeighbourBatchSampler,
    group_by_clusters,
    group_by_neighbours,
    group_by_words,
)
from tests.files import write_rows
from tests.processes import ROOT, launch
from tests.training.conftest import triplets


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def brute_force(embeddings, group_size, seed):
    """The groups, one text after another, each looking at every free one."""
    units = embeddings / embeddings.norm(dim=1, keepdim=True)
    free = set(range(len(units)))
    groups = []
    for leader in torch.randperm(len(units), generator=generator(seed)).tolist():
        if leader not in free:
            continue
        free.remove(leader)
        nearest = sorted(free, key=lambda other: -(units[leader] @ units[other]).item())[: group_size - 1]
        free -= set(nearest)
        groups.append([leader, *nearest])
    return groups


@pytest.mark.parametrize("block", [40, 2**24])  # several blocks of leaders, or one
@pytest.mark.parametrize("group_size", [2, 5])
def test_groups_are_nearest_by_brute_force(monkeypatch, block, group_size):
    monkeypatch.setattr(neighbours, "BLOCK_SIMILARITIES", block)
    for seed in range(5):
        embeddings = torch.randn(83, 6, generator=generator(seed))
        got = group_by_neighbours(embeddings, group_size, generator(seed))
        assert got == brute_force(embeddings, group_size, seed)


def test_a_leader_whose_candidates_are_all_taken_looks_at_every_free_text():
    # Two dense clusters of very different size: the leaders of one block compete for the same neighbours.
    embeddings = torch.cat([torch.randn(90, 4, generator=generator()) * 0.3 + 1, torch.randn(10, 4)])
    assert group_by_neighbours(embeddings, 3, generator(3)) == brute_force(embeddings, 3, 3)


def test_faiss_that_searches_every_cell_groups_as_the_exact_search_does(monkeypatch, record_difference):
    monkeypatch.setattr(nearest_texts.FaissSearch, "CELLS", 10**6)
    for seed in range(3):
        embeddings = torch.randn(900, 16, generator=generator(seed))
        got = group_by_neighbours(embeddings, 5, generator(seed), search="faiss")
        assert got == brute_force(embeddings, 5, seed)
    record_difference("faiss-cpu", "groups of neighbours, against brute force (groups that differ)", 0)


@pytest.mark.parametrize("count", [1, 2, 39, 700])
def test_faiss_that_finds_too_little_still_fills_every_group(monkeypatch, count):
    monkeypatch.setattr(nearest_texts.FaissSearch, "CELLS", 1)
    embeddings = torch.randn(count, 16, generator=generator())
    groups = group_by_neighbours(embeddings, 5, generator(), search="faiss")
    assert sorted(number for group in groups for number in group) == list(range(count))
    assert {len(group) for group in groups[:-1]} <= {5}


def test_faiss_finds_what_the_exact_search_finds_most_of_the_time():
    topics = torch.randn(400, 32, generator=generator())
    embeddings = topics[torch.arange(8000) % 400] + torch.randn(8000, 32, generator=generator(1))
    units = torch.nn.functional.normalize(embeddings, dim=-1)
    exact, faiss = nearest_texts.ExactSearch(units), nearest_texts.FaissSearch(units)
    free = (torch.arange(8000) % 3 > 0).nonzero().squeeze(-1)
    leaders = list(range(0, 600, 3))
    found, expected = faiss(leaders, free, 10), exact(leaders, free, 10)
    assert torch.isin(found, free).all()
    shared = [len(set(one.tolist()) & set(other.tolist())) for one, other in zip(found, expected, strict=True)]
    assert sum(shared) / (10 * len(leaders)) > 0.9


texts = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), max_size=40)


@given(
    texts=texts,
    batch_size=st.integers(2, 7),
    group_size=st.integers(2, 9),
    shuffling=st.sampled_from(["neighbours", "words", "clusters"]),
    search=st.sampled_from(["exact", "faiss"]),
    refresh=st.sampled_from([None, 1, 3]),
    epoch=st.integers(0, 2),
)
def test_every_row_comes_once_an_epoch_the_same_on_every_call(
    texts, batch_size, group_size, shuffling, search, refresh, epoch
):
    def embed(some):
        return torch.tensor([[sum(text), len(text), text[0]] for text in some], dtype=torch.float)

    def sampler():
        options = {"shuffling": shuffling, "search": search, "group_size": group_size, "refresh_steps": refresh}
        made = NeighbourBatchSampler(texts, embed, batch_size, seed=3, **options)
        made.set_epoch(epoch)
        return made

    first = sampler()
    batches = list(first)
    rows = [row for batch in batches for row in batch]
    assert len(set(rows)) == len(rows)
    assert len(rows) >= len(texts) - 1  # a last batch of one row has no negatives
    assert len(batches) == len(first)
    assert list(first) == batches == list(sampler())


def test_rows_of_one_text_stay_together_and_count_once():
    texts = [[number % 10] for number in range(40)]
    sampler = NeighbourBatchSampler(texts, lambda some: torch.randn(len(some), 4), 20, group_size=5)
    assert [len({texts[row][0] for row in batch}) for batch in sampler] == [5, 5]


def test_words_put_texts_with_a_shared_token_together():
    texts = [[101, 7, 102], [101, 8, 102], [101, 7, 102], [101, 8, 102]]
    groups = group_by_words([[*text, number + 1000] for number, text in enumerate(texts)], 2, generator(1))
    assert sorted(number for group in groups for number in group) == [0, 1, 2, 3]
    for group in groups:
        assert len({texts[number][1] for number in group}) == 1


def test_clusters_are_the_ones_that_are_there():
    centres = torch.eye(4)[torch.arange(40) % 4]
    embeddings = centres + 0.01 * torch.randn(40, 4, generator=generator())
    for group in group_by_clusters(embeddings, 5, generator()):
        assert len({number % 4 for number in group}) == 1


def test_clusters_are_decided_by_the_generator_alone():
    embeddings = torch.randn(600, 16, generator=generator())
    groups = group_by_clusters(embeddings, 5, generator(1))
    assert group_by_clusters(embeddings.clone(), 5, generator(1)) == groups
    assert group_by_clusters(embeddings, 5, generator(2)) != groups


def test_another_epoch_has_another_order():
    sampler = NeighbourBatchSampler([[number] for number in range(30)], lambda some: torch.randn(len(some), 4), 5)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_ten_thousand_equal_texts_take_no_time():
    begin = time.perf_counter()
    sampler = NeighbourBatchSampler([[1]] * 10_000, lambda some: torch.ones(len(some), 4), 50, shuffling="words")
    assert sum(map(len, sampler)) == 10_000
    assert time.perf_counter() - begin < 5


# --- in a run ---


def weights(trainer):
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


@pytest.mark.long
@pytest.mark.parametrize(("shuffling", "refresh"), [("neighbours", None), ("neighbours", 2), ("clusters", None)])
def test_a_run_cut_in_the_middle_of_an_epoch_resumes_bit_identical(make_trainer, shuffling, refresh):
    options = {
        "rows": 24,
        "shuffling": shuffling,
        "group_size": 3,
        "refresh_steps": refresh,
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 1e-2,
    }
    unbroken, resumed = make_trainer(name="unbroken", **options), make_trainer(name="resumed", **options)
    unbroken.train()
    resumed.train(resume_from_checkpoint=f"{unbroken.args.output_dir}/checkpoint-4")
    for name, weight in weights(unbroken).items():
        assert weight.equal(weights(resumed)[name]), name


def test_the_order_is_that_of_the_models_embeddings_and_its_cost_is_told(make_trainer, tiny_model):
    # Weights this large, for texts that lie apart: those of a new model do so by hardly more than rounding.
    model = tiny_model(initializer_range=0.2)
    trainer = make_trainer(rows=12, model=model, shuffling="neighbours", group_size=3, max_steps=2)
    sampler = trainer.get_train_dataloader().batch_sampler
    rows = [row for batch in sampler for row in batch]
    embeddings = trainer.model.encode([row["anchor"] for row in triplets(12)], trainer.processing_class)
    draw = (1 * 1_000_003 + 0) * 1_000_003
    groups = brute_force(torch.from_numpy(np.asarray(embeddings)), 3, draw)
    assert rows == [row for group in groups for row in group][::-1]
    assert 0 < trainer.train().metrics["shuffling_percent"] < 100


@pytest.mark.long
def test_two_processes_take_the_same_rows_as_one(tiny_model, tokenizer, tmp_path):
    folder = tmp_path / "start"
    tiny_model(pooler_type="mean", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    train = tmp_path / "train.jsonl"
    write_rows(train, triplets(18))
    found = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        done = launch(
            ROOT / "run_contrastive.py",
            *("--model_name_or_path", folder, "--train_file", train, "--output_dir", output, "--max_steps", "6"),
            *("--shuffling", "neighbours", "--group_size", "3", "--save_strategy", "no", "--optim", "sgd"),
            *("--per_device_train_batch_size", 4 // processes, "--learning_rate", "0.1"),
            processes=processes,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert f"4 on {processes} process(es)" in done.stdout
        found.append(load_file(output / "model.safetensors"))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffling": "best"}, "shuffling='best' is unknown; use one of random, neighbours"),
        ({"shuffling": "neighbours", "no_duplicates": True}, "choose one of them"),
        ({"shuffling": "neighbours", "group_size": 1}, "group_size=1 must be at least 2"),
        ({"neighbour_search": "brute"}, "neighbour_search='brute' is unknown; use one of exact, faiss"),
        ({"neighbour_search": "faiss"}, "neighbour_search does nothing without shuffling=neighbours"),
        ({"refresh_steps": 3}, "refresh_steps does nothing without shuffling=neighbours or clusters"),
    ],
)
def test_what_does_not_fit_is_refused(make_trainer, options, message):
    with pytest.raises(InputError, match=message):
        make_trainer(**options)


def test_faiss_that_is_not_there_is_one_sentence(make_trainer, monkeypatch):
    monkeypatch.setattr(nearest_texts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"neighbour_search=faiss needs FAISS: pip install faiss-cpu"):
        make_trainer(shuffling="neighbours", neighbour_search="faiss")


def test_a_stream_cannot_be_shuffled_by_neighbours(make_trainer):
    stream = Dataset.from_list(triplets(8)).to_iterable_dataset()
    with pytest.raises(InputError, match="shuffling needs a dataset with a length, not a stream"):
        make_trainer(train_dataset=stream, shuffling="neighbours", max_steps=1).get_train_dataloader()
