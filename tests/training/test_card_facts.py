import json
from dataclasses import asdict

import pytest
import torch
from datasets import IterableDataset

from tests.training.conftest import triplets


def metric_by_step(*values):
    """An evaluator that measures these values one after the other."""
    remaining = iter(values)
    return lambda model, tokenizer: {"spearman": next(remaining), "pairs": 8}


def test_the_facts_of_a_run_are_plain_data_and_belong_to_the_weights_that_were_loaded(make_trainer):
    """The best evaluation, at step 3, was not saved, and the one at step 1 is not a number."""
    trainer = make_trainer(
        evaluator=metric_by_step(float("nan"), 40.0, 90.0, 30.0, 40.0),
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="spearman",
        greater_is_better=True,
        hard_negative_weight=1.0,
        gradient_accumulation_steps=2,
        learn_temperature=True,
        temperature_learning_rate=0.5,
    )
    trainer.train()
    trainer.evaluate()
    facts = trainer.card_facts()
    assert json.loads(json.dumps(asdict(facts)))["task"] == "sentence-similarity"
    kept = trainer.state.best_model_checkpoint.rpartition("-")[2]
    assert facts.kept_step == int(kept)
    assert facts.is_best_kept
    scores = {step: scores["spearman"] for step, scores in facts.evaluations.items()}
    assert scores == {2: 40.0, 3: 90.0, 4: 30.0} | {facts.kept_step: 40.0}
    assert facts.seconds > 0
    # Further texts of a row are negatives of every anchor; accumulated batches add none.
    assert facts.settings["rows in a batch"] == "4, all processes together: at most 7 negatives for an anchor"
    assert facts.settings["batches in a step"] == "2 (this adds no negatives)"
    final = trainer.objective.temperature.item()
    assert f"{final:.4g}" != "0.05"
    assert facts.settings["temperature"] == f"learned: 0.05 at first, {final:.4g} in the end"
    assert facts.schedule["steps"] == "4"
    assert facts.schedule["device"] == "cpu, 1 process"
    assert "gao2021simcse" in facts.citations[0]


def test_a_stream_has_no_number_of_rows_or_epochs(make_trainer):
    stream = IterableDataset.from_generator(lambda: iter(triplets(8)))
    trainer = make_trainer(train_dataset=stream, max_steps=1)
    trainer.train()
    facts = trainer.card_facts()
    assert facts.train_rows is None
    assert "epochs" not in facts.schedule
    assert make_trainer(rows=9).card_facts().train_rows == 9


def test_options_are_settings_only_where_they_differ_from_the_defaults_of_the_pooler(make_trainer, tiny_model):
    options = {"pooler_residual": "cls", "pooler_normalize_inputs": True, "pooler_output_activation": "gelu"}
    model = tiny_model(pooler_type="layer_attention", **options)
    settings = make_trainer(model=model, freeze_encoder=True, pooler_learning_rate=0.01).card_facts().settings
    expected = {"pooler residual", "pooler inputs", "pooler output activation", "trained"}
    expected.add("learning rate of the pooler")
    assert settings["learning rate of the pooler"] == "0.01"
    assert expected <= settings.keys()
    assert expected.isdisjoint(make_trainer().card_facts().settings)


@pytest.mark.parametrize(("pooler_type", "author"), [("layer_attention", "Oh, Dongsuk"), ("hire", "Yang, Junjie")])
def test_the_paper_of_a_pooler_is_cited_only_where_it_is_used(make_trainer, tiny_model, pooler_type, author):
    trainer = make_trainer(model=tiny_model(pooler_type=pooler_type))
    assert author in trainer.card_facts().citations[-1]
    trainer = make_trainer(model=tiny_model(pooler_type="mean"))
    assert len(trainer.card_facts().citations) == 1


def test_a_model_in_half_precision_is_called_so(make_trainer, tiny_model):
    model = tiny_model(pooler_type="mean").to(torch.bfloat16)
    assert make_trainer(model=model).card_facts().schedule["precision"] == "bfloat16"
    assert make_trainer(bf16=True).card_facts().schedule["precision"] == "bfloat16 autocast, weights in float32"
