"""Several training datasets: each batch from one of them, with its own columns."""

import os
import shutil

import pytest
import torch
from datasets import Dataset

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training.batching import PackingCollator
from tests.training.conftest import triplets


def pairs(count):
    return [{"anchor": f"cat {row}", "positive": f"dog near river {row}"} for row in range(count)]


def datasets():
    return {"triplets": Dataset.from_list(triplets(14)), "pairs": Dataset.from_list(pairs(9))}


def test_a_batch_of_pairs_has_no_negatives_and_one_of_triplets_has_them(make_trainer):
    trainer = make_trainer(train_dataset=datasets())
    loader = trainer.get_train_dataloader()
    pad = trainer.model.config.pad_token_id
    shapes = []
    for rows, batch in zip(loader.batch_sampler, loader, strict=True):
        columns = ["anchor", "positive"] if rows[0] >= 14 else ["anchor", "positive", "negative"]
        assert all((row >= 14) == (rows[0] >= 14) for row in rows)
        expected = PackingCollator(columns, pad)([trainer.train_dataset[row] for row in rows])
        assert batch["text_ids"].equal(expected["text_ids"])
        assert batch["input_ids"].equal(expected["input_ids"])
        assert torch.isfinite(trainer.compute_loss(trainer.model, batch))
        shapes.append(tuple(batch["text_ids"].shape))
    assert sorted(shapes) == [(2, 3), (4, 2), (4, 2), (4, 3), (4, 3), (4, 3)]  # the ninth pair would be alone
    assert trainer.most_negatives(4) == 7


def test_the_card_tells_the_rows_and_the_share_of_each_dataset(make_trainer):
    trainer = make_trainer(train_dataset=datasets(), dataset_weights={"triplets": 1, "pairs": 3}, max_steps=4)
    trainer.train()
    facts = trainer.card_facts()
    assert facts.train_rows == 23
    assert facts.settings["datasets, in the order above"] == "14 rows, 25% of the batches; 9 rows, 75% of the batches"


@pytest.mark.parametrize("options", [{}, {"no_duplicates": True}, {"gradient_cache": 32}])
def test_a_resumed_run_takes_the_same_batches(make_trainer, tmp_path, options):
    settings = {"dataset_weights": {"triplets": 2, "pairs": 1}, "max_steps": 9, "save_strategy": "steps"} | options
    whole = make_trainer(train_dataset=datasets(), save_steps=4, **settings)
    whole.train()
    shutil.copytree(tmp_path / "run" / "checkpoint-4", tmp_path / "again" / "checkpoint-4")
    resumed = make_trainer(name="again", train_dataset=datasets(), save_steps=40, **settings)
    resumed.train(resume_from_checkpoint=os.fspath(tmp_path / "again" / "checkpoint-4"))
    for (name, weight), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert weight.equal(other), name


def test_a_prompt_of_a_column_that_only_some_datasets_have_goes_before_its_texts(make_trainer, tokenizer):
    prompts = {"anchor": "find: ", "positive": "a passage: ", "negative": "a text: "}
    trainer = make_trainer(train_dataset=datasets(), prompts=prompts, no_duplicates=True)
    assert (
        trainer.train_dataset[0]["negative_input_ids"]
        == tokenizer("a text: " + triplets(1)[0]["negative"])["input_ids"]
    )
    assert trainer.train_dataset[14]["anchor_input_ids"] == tokenizer("find: cat 0")["input_ids"]
    assert trainer.model.config.prompts == {"query": "find: ", "document": "a passage: "}
    for batch in trainer.get_train_dataloader():
        assert torch.isfinite(trainer.compute_loss(trainer.model, batch))


def test_no_text_is_twice_in_a_batch_of_one_of_the_datasets(make_trainer):
    repeated = {"a": Dataset.from_list(pairs(6) * 2), "b": Dataset.from_list(triplets(8))}
    trainer = make_trainer(train_dataset=repeated, no_duplicates=True)
    for batch in trainer.get_train_dataloader():
        assert len(batch["text_ids"].unique()) == batch["text_ids"].numel()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset_weights": {"pairs": 1}}, "needs a weight above 0 for each of triplets, pairs"),
        ({"dataset_weights": {"pairs": 1, "triplets": 0}}, "needs a weight above 0 for each of triplets, pairs"),
        ({"shuffling": "words"}, "shuffling=words orders the rows of one dataset, not several"),
        ({"freeze_encoder": True}, "freeze_encoder needs datasets with the same columns"),
        ({"per_device_train_batch_size": 10, "dataloader_drop_last": True}, "pairs: 9 training row"),
        ({"hard_negative_weight": 1.0}, "pairs: hard_negative_weight does nothing without a column 'negative'"),
    ],
)
def test_what_does_not_fit_several_datasets_is_one_sentence(make_trainer, options, message):
    with pytest.raises(InputError, match=message):
        make_trainer(train_dataset=datasets(), **options)


def test_weights_need_several_datasets(make_trainer):
    with pytest.raises(InputError, match="dataset_weights"):
        make_trainer(dataset_weights={"a": 1})


def test_a_frozen_encoder_reads_the_states_of_all_datasets(make_trainer):
    both = {"a": Dataset.from_list(pairs(8)), "b": Dataset.from_list(pairs(12)[8:])}
    trainer = make_trainer(train_dataset=both, freeze_encoder=True, max_steps=3, learning_rate=1e-3)
    trainer.train()
    assert trainer.frozen is not None


def test_a_prompt_goes_before_the_texts_of_several_datasets_with_one_column(make_trainer, tokenizer):
    both = {name: Dataset.from_list([{"text": f"a {name} cat {row}"} for row in range(6)]) for name in ("red", "blue")}
    trainer = make_trainer(train_dataset=both, objective="unsupervised", prompts={"text": "find: "})
    assert trainer.train_dataset[6]["text_input_ids"] == tokenizer("find: a blue cat 0")["input_ids"]
    config = trainer.model.config
    assert (config.prompts, config.default_prompt_name) == ({"query": "find: ", "document": "find: "}, "query")


def test_evaluation_rows_need_no_columns_of_the_shorter_datasets(make_trainer):
    rows = [
        {"anchor": f"cat {n}", "positive": f"dog {n}", "negative_1": f"tree {n}", "negative_2": f"river {n}"}
        for n in range(8)
    ]
    both = {"numbered": Dataset.from_list(rows), "triplets": Dataset.from_list(triplets(8))}
    mixed = make_trainer(train_dataset=both, eval_dataset=Dataset.from_list(rows[:4]))
    alone = make_trainer(train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows[:4]))
    assert mixed.evaluate()["eval_loss"] == alone.evaluate()["eval_loss"]
